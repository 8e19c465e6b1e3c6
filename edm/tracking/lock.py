"""One process at a time, also where a file system has no locks."""

import errno
import fcntl
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_BEAT, _DEAD = 5.0, 60.0  # seconds between two signs of life of a lock file, and without one until it is broken


@contextmanager
def exclusive(path: Path, deadline: float) -> Iterator[None]:
    """Holds ``path`` alone. Raises TimeoutError where it is not free by ``deadline`` (of ``time.monotonic``).

    Held with ``flock``, which the system releases where the process dies, and which Linux carries over NFS. Where
    the file system has no such locks, a file beside it is the lock: its holder keeps renewing its time, and one that
    was not renewed for a minute, by the waiting process's own clock, belongs to a dead process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            _wait(lambda: _flocked(file), deadline, path)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            with _lock_file(path.with_name(f"{path.name}.held"), deadline):
                yield
            return
        yield


def _flocked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _lock_file(path: Path, deadline: float) -> Iterator[None]:
    seen, since = None, time.monotonic()

    def made() -> bool:
        nonlocal seen, since
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            state = _state(path)
            if state != seen:
                seen, since = state, time.monotonic()
            elif state and time.monotonic() - since > _DEAD:
                _break(path, state)
            return False
        os.write(handle, f"{socket.gethostname()} {os.getpid()}\n".encode())
        os.close(handle)
        return True

    _wait(made, deadline, path)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT):
            try:
                os.utime(path)
            except OSError:
                continue

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        path.unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _break(path: Path, state: tuple[int, int]) -> None:
    """Removes a dead process's lock file; one that another process has put in its place meanwhile comes back."""
    aside = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}")
    try:
        os.rename(path, aside)
        if _state(aside) != state:
            os.link(aside, path)
        aside.unlink()
    except (FileNotFoundError, FileExistsError):
        aside.unlink(missing_ok=True)


def _wait(ready, deadline: float, path: Path) -> None:
    while not ready():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another sync still holds {path}")
        time.sleep(random.uniform(0.02, 0.1))
