"""One process at a time, also where a file system has no locks."""

import errno
import fcntl
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edm.errors import UserError

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_BEAT, _DEAD = 5.0, 60.0  # seconds between two signs of life of a lock file, and without one until it is broken


class Held(UserError):
    """Another process holds the lock."""


@contextmanager
def exclusive(path: str | os.PathLike, patience: float = 100.0) -> Iterator[int]:
    """Holds ``path`` (a small file, made here and left) alone: of all who ask for it, one at a time goes on.

    patience: seconds to wait for another; file servers take a while to notice that one died with its machine.

    Held with ``flock``, which the system releases where the process dies, and which Linux carries over NFS. Where
    the file system has no such locks, a file beside it is the lock: its holder keeps renewing its time, and one that
    was not renewed for a minute, by the waiting process's own clock, belongs to a dead process.

    Yields the open file: with ``flock``, whoever inherits it holds it, too. Raises Held, naming who holds it, when
    patience ends; UserError where the file cannot be written.
    """
    path, end = Path(path), time.monotonic() + patience
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, handle)
            if _wait(lambda: _flocked(handle), path, end) is None:
                stack.enter_context(_lock_file(path.with_name(f"{path.name}.held"), end))
            else:
                _sign(handle)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error
        yield handle


def _flocked(handle: int) -> bool | None:
    """Whether the file is locked now; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


@contextmanager
def _lock_file(path: Path, end: float) -> Iterator[None]:
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
        _sign(handle)
        os.close(handle)
        return True

    _wait(made, path, end)
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


def _sign(handle: int) -> None:
    """Writes who holds the lock, for those who wait in vain."""
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


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


def _wait(ask: Callable[[], bool | None], path: Path, end: float) -> bool | None:
    """The first answer that is not False. Raises Held, naming who holds ``path``, where none came by ``end``."""
    while (answer := ask()) is False:
        if time.monotonic() >= end:
            who = ""
            with suppress(OSError):
                who = path.read_text(encoding="utf-8", errors="replace").strip()
            raise Held(f"{path}: held by {who or 'another process'}; end it, or wait until it is done")
        time.sleep(random.uniform(0.02, 0.1))
    return answer
