"""What CI runs, with stand-ins for the tests: the slow ones beside those on Slurm, one status, and one end."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: In place of Python. Each of two kinds of tests waits for the other to begin; both then wait for "go".
PROGRAM = """#!/bin/sh
case "$*" in
    *tests/slurm*) mine=slurm; other=slow;;
    *"-m slow"*) mine=slow; other=slurm;;
    *"-m not slow"*) echo "the fast tests"; exit ${FAST:-0};;
    *) exit 0;;
esac
echo $$ > $mine.began
tries=0
while [ ! -e $other.began ] || [ ! -e go ]; do
    tries=$((tries + 1)); [ $tries -lt 600 ] || exit 9
    sleep 0.1
done
echo "the tests of $mine"
[ "$mine" != "$FAILS" ]
"""


@pytest.fixture
def start(tmp_path):
    """Starts what CI runs in a copy of its files."""
    for name in ("Makefile", ".ci/run", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "mkdocs", "slurmctld", "munged"):
        (tmp_path / ".venv/bin" / name).write_text(PROGRAM)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def begin(**variables):
        return subprocess.Popen(["bash", ".ci/run"], cwd=tmp_path, env={**environment, **variables}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    return begin


def both(folder):
    """The processes of the two kinds of tests, once both have begun."""
    end = time.monotonic() + 60
    while not all((folder / f"{kind}.began").exists() and (folder / f"{kind}.began").read_text().strip()
                  for kind in ("slow", "slurm")):  # fmt: skip
        assert time.monotonic() < end, "one waits for the end of the other"
        time.sleep(0.05)
    return [int((folder / f"{kind}.began").read_text()) for kind in ("slow", "slurm")]


@pytest.mark.parametrize("fails", ["", "slow", "slurm"])
def test_the_slow_tests_run_beside_those_on_slurm_and_a_failure_of_either_is_one(start, tmp_path, fails):
    (tmp_path / "go").touch()
    begun = start(FAILS=fails)
    both(tmp_path)
    said, _ = begun.communicate(timeout=60)
    assert all(line in said for line in ("the fast tests", "the tests of slow", "the tests of slurm")), said
    assert (begun.returncode != 0) == bool(fails) and "site/index.html" in said, said


def test_nothing_slow_begins_after_the_fast_tests_have_failed(start, tmp_path):
    begun = start(FAST="1")
    assert begun.wait(60) != 0 and not list(tmp_path.glob("*.began"))


def test_an_early_end_ends_both(start, tmp_path):
    begun = start()
    processes = both(tmp_path)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(30) != 0
    end = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < end, "the tests go on"
        time.sleep(0.05)
