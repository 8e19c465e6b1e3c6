"""Tests that MLflow receives everything, with many processes at once and with a server outage.

    python bench/tracking.py [--processes N] [--points N] [--waves N] [--outage S] [--only PART ...]

Three parts, each on an empty SQLite store, so that the creation of its tables is part of the race:

syncs     N processes each write a journal and deliver it, all at the same moment (as `edm track sync` does)
journals  N processes write journals; one process delivers them afterwards
outage    N processes log while an `mlflow server` is stopped for S seconds; deliveries before, during and after

Then compares the store's tables with the logged values, point by point. Prints counts and times as JSON; exits with
status 1 if anything is missing, duplicated or different. Forks the processes from one that has loaded MLflow, which
saves 300 MB each; --waves splits them into groups if memory is still short.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from edm.errors import UserError
from edm.tracking import Journal
from edm.tracking.sync import Undelivered, sync

PARTS = ("syncs", "journals", "outage")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--points", type=int, default=160, help="metric points per process (default 160)")
    parser.add_argument("--waves", type=int, default=1, help="number of groups of processes, run one after another")
    parser.add_argument("--outage", type=float, default=60, help="seconds without the server (default 60)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    args = parser.parse_args()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (loaded once before forking)

    found = {}
    for part in (part for part in PARTS if part in args.only):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            begun = time.monotonic()
            figures = globals()[part](args)
            found[part] = {**figures, "seconds": round(time.monotonic() - begun, 1)}
    print(json.dumps(found, indent=1))
    return 1 if any(figures["wrong"] for figures in found.values()) else 0


def syncs(args: argparse.Namespace) -> dict:
    def work(me: int) -> None:
        log(me, args.points)
        _meet(args.processes // args.waves, me)
        sync([journal(me)], "sqlite:///mlflow.db")

    failed = 0
    for wave in range(args.waves):
        for ready in Path().glob("ready-*"):
            ready.unlink()
        failed += together(work, range(wave, args.processes, args.waves))
    return compared(args.processes, args.points) | {"processes failed": failed}


def journals(args: argparse.Namespace) -> dict:
    def work(me: int) -> None:
        log(me, args.points)

    failed = together(work, range(args.processes))
    begun = time.monotonic()
    together(lambda me: sync(map(journal, range(args.processes)), "sqlite:///mlflow.db"), [0])
    seconds = round(time.monotonic() - begun, 1)
    return compared(args.processes, args.points) | {"processes failed": failed, "of these in the one sync": seconds}


def outage(args: argparse.Namespace) -> dict:
    """The processes log their points over 1.5 times the duration of the outage."""
    every = 1.5 * args.outage / args.points
    writers = [fork(lambda me=me: log(me, args.points, every)) for me in range(args.processes)]
    uri = f"http://127.0.0.1:{_free_port()}"
    waits, failures = [], []

    def deliver() -> None:
        begun = time.monotonic()
        try:
            sync(filter(Path.exists, map(journal, range(args.processes))), uri)
        except Undelivered as error:
            failures.append(str(error))
        waits.append(time.monotonic() - begun)

    with server(uri):
        deliver()
    if failures:
        raise UserError(f"the server did not take anything at first: {failures[0]}")
    end = time.monotonic() + args.outage
    while time.monotonic() < end:
        deliver()
        time.sleep(max(0.0, min(5.0, end - time.monotonic())))
    with server(uri):
        failed = sum(not ended_well(writer) for writer in writers)
        deliver()
    return compared(args.processes, args.points) | {
        "processes failed": failed,
        "deliveries": len(waits),
        "refused while the server was away": len(failures),
        "longest delivery (s)": round(max(waits), 1),
        "what a person reads then": failures[-1].replace(os.getcwd(), "FOLDER") if failures else "",
    }


def log(me: int, points: int, every: float = 0.0) -> None:
    """Writes a journal like a training run: ``points`` points, two metrics per step."""
    with Journal(journal(me)).run(f"bench/{me}", experiment="bench", params={"seed": me, "lr": 1e-3}) as run:
        for step in range(points // 2):
            run.metrics({"loss": me + 1 / (step + 1), "rate": step}, step=step * 512)
            time.sleep(2 * every)


def journal(me: int) -> Path:
    return Path(f"{me}.journal.jsonl")


def compared(processes: int, points: int) -> dict:
    """Compares the contents of the tables with the logged values."""
    logged = Counter((f"bench/{me}", name, step * 512, value) for me in range(processes) for step in range(points // 2)
                     for name, value in (("loss", me + 1 / (step + 1)), ("rate", float(step))))  # fmt: skip
    with contextlib.closing(sqlite3.connect("mlflow.db")) as store:
        keys = Counter(key for (key,) in store.execute(
            "SELECT t.value FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'edm.key'"
            " WHERE r.lifecycle_stage = 'active' AND r.status = 'FINISHED'"))  # fmt: skip
        stored = Counter(store.execute(
            "SELECT t.value, m.key, m.step, m.value FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid"
            " AND t.key = 'edm.key' JOIN runs r ON r.run_uuid = m.run_uuid"
            " WHERE r.lifecycle_stage = 'active'"))  # fmt: skip
    wanted = Counter(f"bench/{me}" for me in range(processes))
    wrong = {
        "runs missing": sum((wanted - keys).values()), "runs double": sum((keys - wanted).values()),
        "points missing": sum((logged - stored).values()),
        "points double or different": sum((stored - logged).values()),
    }  # fmt: skip
    counts = {"runs": sum(keys.values()), "points": sum(stored.values())}
    return {**counts, **wrong, "wrong": any(wrong.values())}


def together(work: Callable[[int], object], numbers: range | list[int]) -> int:
    """Runs ``work`` in one process per number; returns how many failed."""
    return sum(not ended_well(process) for process in [fork(lambda me=me: work(me)) for me in numbers])


def fork(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    return process


def ended_well(process: int) -> bool:
    return os.waitpid(process, 0)[1] == 0


@contextlib.contextmanager
def server(uri: str) -> Iterator[None]:
    """Runs a tracking server with one worker on mlflow.db inside the block."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2],
               "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db",
               "--artifacts-destination", "artifacts"]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open("server.log", "ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2):
                break
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            raise UserError("the server did not start within a minute")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # its own group: the server and its worker
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _meet(number: int, me: int) -> None:
    """Returns when ``number`` processes have called it (a barrier)."""
    Path(f"ready-{me}").touch()
    end = time.monotonic() + 120
    while len(list(Path().glob("ready-*"))) < number and time.monotonic() < end:
        time.sleep(0.01)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
