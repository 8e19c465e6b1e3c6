"""One process at a time holds a lock, whatever the file system can do, and it ends with its holder."""

import errno
import itertools
import os
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest

import edm
from edm.files import lock
from edm.files.lock import exclusive


def no_locks(patch):
    """A file system without locks, and lock files that die young."""

    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    patch(lock, "lock_descriptor", refuse)
    patch(lock, "_BEAT", 0.1)
    patch(lock, "_DEAD", 0.6)


def hold(path, seconds, found, locks):
    """Holds the lock of a path for a while, in a process of its own; reports when it had it."""
    if not locks:
        no_locks(setattr)
    with exclusive(path, patience=30):
        begun = time.monotonic()
        time.sleep(seconds)
        found.put((begun, time.monotonic()))


@pytest.mark.parametrize("locks", [True, False], ids=["flock", "lock file"])
def test_one_process_at_a_time_holds_the_lock(tmp_path, locks):
    context = get_context("fork")
    found = context.Queue()
    workers = [context.Process(target=hold, args=(tmp_path / "l", 0.8 if me else 0.1, found, locks)) for me in range(3)]
    for worker in workers:
        worker.start()
    spans = sorted(found.get(timeout=30) for _ in workers)
    for worker in workers:
        worker.join()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert [path.name for path in tmp_path.iterdir()] == ["l"]


@pytest.mark.slow
def test_the_lock_file_of_a_dead_process_is_broken_and_that_of_a_living_one_is_not(tmp_path, monkeypatch):
    no_locks(monkeypatch.setattr)
    dead = tmp_path / "l.held"
    dead.write_text("process 1 on host\n")
    begun = time.monotonic()
    with exclusive(tmp_path / "l", patience=5):
        assert time.monotonic() - begun >= 0.6
        second = exclusive(tmp_path / "l", patience=1.5)
        with pytest.raises(edm.UserError, match=rf"l: held by process {os.getpid()} on ") as caught, second:
            pass
        assert caught.value.__context__ is None  # else a missing lock would be taken for the cause
    assert not dead.exists()


def test_two_training_runs_never_write_one_folder(tmp_path):
    """A lock that ends with its holder, however that ends."""
    path = tmp_path / "run" / ".training"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom edm.files.lock import exclusive\n"
         "with exclusive(sys.argv[1]):\n    print(flush=True)\n    time.sleep(60)", path],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    holder.stdout.readline()
    second = exclusive(path, patience=0.1)
    with pytest.raises(edm.UserError, match=rf"^{path}: held by process {holder.pid} on \S+; end it, or wait"), second:
        pass
    holder.kill()
    with exclusive(path, patience=10):
        pass
    holder.communicate()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(edm.UserError, match="cannot be written"), exclusive(tmp_path / "run" / ".training"):
        pass


def test_a_full_disk_keeps_nobody_from_the_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "write", full)
    second = exclusive(tmp_path / "l", patience=0.1)
    with exclusive(tmp_path / "l"), pytest.raises(edm.UserError, match="held by another process"), second:
        pass
    no_locks(monkeypatch.setattr)  # a lock file must name its holder
    with pytest.raises(edm.UserError, match=r"l: cannot be written \(No space left"), exclusive(tmp_path / "l"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["l"]
