"""A store that is locked, slow, full, read-only or away delays nothing for long and loses nothing."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edm.cli import main as edm
from edm.files.lock import exclusive
from edm.tracking import Journal
from edm.tracking.sync import Undelivered, sync
from edm.tracking.transfer import SyncReport, Transfer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SYNC = "import sys; from edm.tracking.sync import sync; print(sync(sys.argv[2:], sys.argv[1]))"


def write_journals(count, points=10):
    """Journals 0.jsonl, 1.jsonl and so on, of a run each."""
    for number in range(count):
        with Journal(f"{number}.jsonl").run(f"run/{number}", params={"lr": number}) as run:
            for step in range(points):
                run.metrics({"loss": number + step / 7}, step=step)
    return [f"{number}.jsonl" for number in range(count)]


def everything_arrived(store, count, points=10):
    assert sorted(store.runs()) == sorted(f"run/{number}" for number in range(count))
    for number in range(count):
        wanted = [(step, number + step / 7) for step in range(points)]
        assert store.history(f"run/{number}", "loss") == wanted
    return True


def one_line(error):
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_the_bench_finds_nothing_missing_with_eight_processes_and_a_server_that_goes_away(tmp_path):
    """Eight first writers at once on no store; eight journals and one sync; a real server stopped while runs log."""
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "tracking.py", "--processes", "8", "--points", "40", "--outage", "6"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(done.stdout)
    for part in ("syncs", "journals", "outage"):
        found = figures[part]
        assert (found["runs"], found["points"], found["wrong"], found["processes failed"]) == (8, 320, False, 0)
    assert figures["outage"]["refused while the server was away"] >= 1
    assert "Connection refused" in figures["outage"]["what a person reads then"]
    assert figures["outage"]["longest delivery (s)"] < 20


@pytest.fixture
def dead_server():
    with socket.socket() as listener:  # bound but not listening: the port is free and refuses
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_server_fails_a_person_and_not_the_chain(store, dead_server, capsys):
    Path("runs").mkdir()
    with contextlib.chdir("runs"):
        write_journals(3)
        for path in Path().glob("*.jsonl"):
            path.rename(f"{path.stem}.journal.jsonl")
    command = ["track", "sync", "--uri", dead_server, "--output", "tracking.json"]
    assert edm(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: http://127.0.0.1:") and error.count("\n") == 1 and "`edm track sync`" in error
    assert not Path("tracking.json").exists()

    assert edm([*command, "--or-later"]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: http://127.0.0.1:") and warning.count("\n") == 1
    summary = json.loads(Path("tracking.json").read_text())
    assert (summary["runs"], summary["runs_pending"], summary["runs_created"]) == (3, 3, 0)
    assert "Connection refused" in summary["reason"]

    assert edm(["track", "sync", "--uri", store.uri, "--output", "tracking.json", "--or-later"]) == 0
    summary = json.loads(Path("tracking.json").read_text())
    assert (summary["runs"], summary["runs_pending"], summary["runs_created"]) == (3, 0, 3)
    assert "reason" not in summary
    assert everything_arrived(store, 3)


def test_a_store_that_another_process_writes_to_is_waited_for_and_then_left(store):
    journals = write_journals(2)
    with contextlib.closing(sqlite3.connect(store.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        with pytest.raises(Undelivered, match="database is locked") as caught:
            sync(journals, store.uri, limit=1)
        assert time.monotonic() - begun < 5
    assert "mlflow.db" in one_line(caught)
    assert caught.value.report.runs_pending == 2
    assert store.sync(*journals).runs_created == 2
    assert everything_arrived(store, 2)


def test_a_store_locked_in_mid_sync_for_longer_than_mlflow_waits_loses_nothing(store, monkeypatch):
    """MLflow waits 20 seconds, whatever it is told, and gives up."""
    journals = write_journals(3)
    send, other = Transfer._send, sqlite3.connect(store.database, isolation_level=None)

    def send_then_lock(self, record):
        send(self, record)
        if record.key == "run/0":
            other.execute("BEGIN IMMEDIATE")

    monkeypatch.setattr(Transfer, "_send", send_then_lock)
    with contextlib.closing(other):
        begun = time.monotonic()
        with pytest.raises(Undelivered, match="database is locked") as caught:
            store.sync(*journals)
        assert time.monotonic() - begun < 60
    one_line(caught)
    assert caught.value.report == SyncReport(runs_created=1, metrics_sent=10)
    assert caught.value.report.runs_pending == 2
    monkeypatch.setattr(Transfer, "_send", send)
    assert store.sync(*journals).runs_created == 2
    assert everything_arrived(store, 3)


def test_a_slow_store_is_left_when_the_time_is_up_and_gone_on_with_later(store, monkeypatch):
    journals, send = write_journals(6), Transfer._send

    def slowly(self, record):
        time.sleep(0.5)
        send(self, record)

    monkeypatch.setattr(Transfer, "_send", slowly)
    with pytest.raises(Undelivered, match=r"time is up, \d of 6 runs are pending") as caught:
        sync(journals, store.uri, limit=1.2)
    one_line(caught)
    assert 0 < caught.value.report.runs_pending < 6
    monkeypatch.setattr(Transfer, "_send", send)
    assert store.sync(*journals).runs_created == caught.value.report.runs_pending
    assert everything_arrived(store, 6)


def test_a_full_disk_loses_nothing(store, tmp_path):
    """The limit on the size of a file stands in for the end of the disk, for the database and for an artifact."""
    journals = write_journals(8, points=1500)
    Path("grid.png").write_bytes(bytes(3_000_000))
    with Journal("8.jsonl").run("figure") as run:
        run.artifact("grid.png")
    size = store.database.stat().st_size + 400_000
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); {SYNC}"
    for paths in (journals, ["8.jsonl"]):
        done = subprocess.run(
            [sys.executable, "-c", code, store.uri, *paths], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "edm.tracking.sync.Undelivered: sqlite:///" in done.stderr.splitlines()[-1]
    report = store.sync(*journals, "8.jsonl")
    assert report.runs_pending == 0 and report.artifacts_sent == 1
    runs = store.runs()
    assert runs.pop("figure").info.status == "FINISHED"
    for number in range(8):
        assert len(store.history(f"run/{number}", "loss")) == 1500
    assert (store.database.parent / "artifacts" / "edm").is_dir()


DROP_CAPABILITIES = "import ctypes; ctypes.CDLL(None).capset((ctypes.c_uint * 2)(0x20080522), (ctypes.c_uint * 6)()); "


@pytest.mark.skipif(sys.platform != "linux", reason="root gives up its rights as Linux has it")
@pytest.mark.parametrize("place", ["database", "folder"])
def test_a_read_only_store_is_one_line(store, place):
    write_journals(1)
    if place == "database":
        Path(f"{store.database}.lock").touch()
    locked = store.database if place == "database" else store.database.parent
    mode = locked.stat().st_mode
    locked.chmod(mode & ~0o222)
    done = subprocess.run(
        [sys.executable, "-c", DROP_CAPABILITIES + SYNC, store.uri, "0.jsonl"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    locked.chmod(mode)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("edm.tracking.sync.Undelivered: sqlite:///")
    assert ("readonly database" if place == "database" else "Permission denied") in last
    assert store.sync("0.jsonl").runs_created == 1


def test_a_run_that_mlflow_refuses_keeps_no_other_from_arriving(store, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    journals, log = write_journals(3), Transfer._log

    def refuse(self, run, params=None, tags=None, points=None):
        if params == {"lr": "1"}:
            raise MlflowException("no such thing", INVALID_PARAMETER_VALUE)
        log(self, run, params, tags, points)

    monkeypatch.setattr(Transfer, "_log", refuse)
    with pytest.raises(Undelivered, match=r"^run/1: MLflow refused this run \(.*no such thing\); everything else"):
        store.sync(*journals)
    assert store.history("run/2", "loss")
    monkeypatch.setattr(Transfer, "_log", log)
    with pytest.raises(
        Undelivered, match=r"^none\.jsonl: no such file; expected a journal; everything else has arrived"
    ):
        store.sync("none.jsonl", *journals)
    assert everything_arrived(store, 3)


def test_a_sync_does_not_wait_for_ever_for_another(store):
    held = exclusive(f"{store.database}.lock", patience=1)
    with held, pytest.raises(Undelivered, match=rf"lock: held by process {os.getpid()} on ") as caught:
        sync(write_journals(2), store.uri, limit=0.3)
    one_line(caught)
    assert caught.value.report.runs_pending == 2


def test_a_missing_mlflow_is_one_line(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(Undelivered, match=r"mlflow is not installed.*the journals keep everything") as caught:
        store.sync(*write_journals(2))
    one_line(caught)
    assert caught.value.report.runs_pending == 2
