"""What journals say arrives in MLflow, once, whoever syncs and whatever happened before."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import url2pathname

import pytest

from edm.errors import UserError
from edm.tracking import Journal
from edm.tracking.sync import run_id, sync
from edm.tracking.transfer import SyncReport

ROOT = Path(__file__).parents[2]


SYNC_TOGETHER = """
import sys, time
from pathlib import Path
from edm.tracking import Journal
from edm.tracking.sync import run_id, sync
import mlflow
folder, uri, me, workers = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
paths = []
for number in range(4):
    key = f"train/{me}-{number}"
    paths.append(folder / f"{me}-{number}.jsonl")
    with Journal(paths[-1]).run(key, experiment="together", params={f"p{i}": i for i in range(20)}) as run:
        for step in range(100):
            run.metrics({"loss": step / 7}, step=step)
(folder / f"ready-{me}").touch()
end = time.monotonic() + 60
while len(list(folder.glob("ready-*"))) < workers and time.monotonic() < end:
    time.sleep(0.01)
print(sync(paths, uri).metrics_sent)
"""


@pytest.mark.slow
def test_runs_of_processes_that_sync_at_once_on_an_empty_store_all_arrive(tmp_path, open_store):
    store = open_store(tmp_path / "not yet" / "mlflow.db")
    (tmp_path / "journals").mkdir()
    command = [sys.executable, "-c", SYNC_TOGETHER, tmp_path / "journals", store.uri]
    workers = [
        subprocess.Popen([*command, str(me), "4"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for me in range(4)
    ]
    ends = [(*worker.communicate(timeout=600), worker.returncode) for worker in workers]
    assert ends == [("400\n", "", 0)] * 4  # nothing on stderr either
    runs = store.runs()
    assert sorted(runs) == sorted(f"train/{me}-{number}" for me in range(4) for number in range(4))
    for key, run in runs.items():
        assert store.history(key, "loss") == [(step, step / 7) for step in range(100)]
        assert run.data.params == {f"p{i}": str(i) for i in range(20)}
        assert run.info.status == "FINISHED"


def test_a_run_arrives_whole(store, tmp_path):
    grid = tmp_path / "sample grid.png"
    grid.write_bytes(b"picture")
    params = {"sampler": {"steps": 18, "S_max": math.inf}, "ema": None, "on": True, "seeds": [0, 1], "long": "x" * 9000}
    with Journal("a.jsonl").run("a", name="first", experiment="table 2/x", params=params, tags={"commit": "c0"}) as run:
        for step in range(2500):
            run.metrics({"loss": step * 0.1, "odd@name/": 1.0}, step=step * 512)
        run.metrics({"bad": math.nan, "up": math.inf}, step=1)
        run.artifact(grid, folder="grids")
    report = store.sync("a.jsonl")
    assert report == SyncReport(runs_created=1, metrics_sent=5002, artifacts_sent=1)

    run = store.runs()["a"]
    first, *_, last = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (first["time"], last["time"])
    assert store.client.get_experiment(run.info.experiment_id).name == "table 2/x"
    assert run.data.tags["commit"] == "c0"
    assert {name: value for name, value in run.data.params.items() if name != "long"} == {
        "sampler.steps": "18",
        "sampler.S_max": "inf",
        "ema": "null",
        "on": "true",
        "seeds": "[0, 1]",
    }
    assert len(run.data.params["long"]) == 6000
    assert store.history("a", "loss") == [(step * 512, step * 0.1) for step in range(2500)]
    assert math.isnan(run.data.metrics["bad"])
    assert run.data.metrics["up"] > 1e308
    artifacts = Path(url2pathname(run.info.artifact_uri.removeprefix("file://")))
    assert (artifacts / "grids" / "sample grid.png").read_bytes() == b"picture"
    assert artifacts.is_relative_to(store.database.parent / "artifacts")


def test_a_repeated_sync_sends_nothing_and_looks_into_no_run(store, monkeypatch):
    for key in "ab":
        with Journal("a.jsonl").run(key, params={"lr": 1}, parent="b") as run:
            run.metrics({"loss": 1}, step=1)
    assert store.sync("a.jsonl").runs_created == 2
    before = store.database.read_bytes()
    monkeypatch.delattr("mlflow.MlflowClient.get_metric_history")
    monkeypatch.delattr("mlflow.MlflowClient.log_batch")
    assert store.sync("a.jsonl") == SyncReport()
    assert store.database.read_bytes() == before


def test_an_interrupted_sync_is_completed_without_doubles(store):
    """The mark of completeness is missing, as after a kill: what is there is compared point by point."""
    with Journal("a.jsonl").run("a", params={"lr": 1}) as run:
        run.metrics({"loss": 1, "nan": math.nan, "inf": -math.inf}, step=1)
    store.sync("a.jsonl")
    run_id = store.runs()["a"].info.run_id
    store.client.delete_tag(run_id, "edm.synced")
    assert store.sync("a.jsonl") == SyncReport()
    assert store.runs()["a"].info.run_id == run_id
    assert "edm.synced" in store.runs()["a"].data.tags


def test_a_child_is_nested_under_its_parent_even_when_the_parent_comes_later(store):
    with Journal("t.jsonl").run("t"):
        pass
    with Journal("e.jsonl").run("e/18", parent="t") as run:
        run.metrics({"fid": 2}, step=1)
    with Journal("e.jsonl").run("e/36", parent="t"):
        pass
    assert store.sync("e.jsonl").runs_created == 2
    assert "mlflow.parentRunId" not in store.runs()["e/18"].data.tags
    assert store.sync("t.jsonl") == SyncReport(runs_created=1, runs_updated=2)
    runs = store.runs()
    for key in ("e/18", "e/36"):
        assert runs[key].data.tags["mlflow.parentRunId"] == runs["t"].info.run_id
    assert store.sync("e.jsonl", "t.jsonl") == SyncReport()


def test_runs_and_experiments_deleted_by_hand_come_back(store):
    with Journal("a.jsonl").run("a", experiment="x", params={"lr": 1}) as run:
        run.metrics({"loss": 1}, step=1)
    store.sync("a.jsonl")
    store.client.delete_run(store.runs()["a"].info.run_id)
    assert store.sync("a.jsonl") == SyncReport(runs_created=1, metrics_sent=1)
    store.client.delete_experiment(store.runs()["a"].info.experiment_id)
    store.sync("a.jsonl")
    assert store.history("a", "loss") == [(1, 1)]  # MLflow restores both runs with the experiment; one key, one run


@pytest.mark.slow
def test_a_deleted_database_is_rebuilt(store):
    with Journal("t.jsonl").run("t", name="n", experiment="x", params={"lr": 1}, tags={"commit": "c0"}) as run:
        run.metrics({"loss": 1}, step=1)
    with Journal("e.jsonl").run("e", parent="t", experiment="x"):
        pass

    def contents():
        keep = {"commit", "edm.key", "edm.parent", "edm.synced", "mlflow.runName"}
        return {
            key: (
                run.info.start_time,
                run.info.end_time,
                run.info.status,
                run.data.params,
                run.data.metrics,
                {name: value for name, value in run.data.tags.items() if name in keep},
            )
            for key, run in store.runs().items()
        }

    first = store.sync("t.jsonl", "e.jsonl")
    before = contents()
    shutil.rmtree(store.database.parent)
    code = "import sys; from edm.tracking.sync import sync; print(sync(sys.argv[2:], sys.argv[1]))"
    done = subprocess.run(  # another process, as MLflow keeps the deleted file open in this one
        [sys.executable, "-c", code, store.uri, "t.jsonl", "e.jsonl"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (str(first), "")
    store.database = store.database.rename(store.database.with_name("rebuilt.db"))
    store.uri = f"sqlite:///{store.database}"
    assert contents() == before
    assert store.runs()["e"].data.tags["mlflow.parentRunId"] == store.runs()["t"].info.run_id


def test_an_unreachable_server_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:  # bound but not listening: the port is free and refuses
        listener.bind(("127.0.0.1", 0))
        with pytest.raises(UserError) as caught:
            sync([], f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}")
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:")
    assert "Connection refused" in message
    assert "the journals keep everything" in message
    assert "edm track sync" in message
    assert "\n" not in message
    assert "secret" not in message
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("something else entirely, long enough to be read as a header\n" * 20)
    with pytest.raises(UserError, match=r"mlflow\.db: .*file is not a database.*`edm track sync`$"):
        sync([], f"sqlite:///{tmp_path}/mlflow.db")


def test_a_run_is_found_by_its_key(store, tmp_path):
    key, nowhere = "tiny/vp-B/churn/num_steps=4@1", tmp_path / "none.db"
    assert run_id(f"sqlite:///{nowhere}", key) is None and not nowhere.exists()
    ids = [store.client.create_run("0", tags={"edm.key": key}, start_time=start).info.run_id for start in (2, 3, 1)]
    assert run_id(store.uri, key) == ids[1] and run_id(store.uri, "another") is None
    store.client.delete_run(ids[1])
    assert run_id(store.uri, key) == ids[0]
    (tmp_path / "text.db").write_text("no database")
    assert run_id(f"sqlite:///{tmp_path}/text.db", key) is None and run_id("http://127.0.0.1:1", key) is None
