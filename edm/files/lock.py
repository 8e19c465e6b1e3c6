"""Exclusive locks between processes, also on file systems without locks."""

import errno
import math
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout, lock_descriptor

from edm.errors import UserError

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_BEAT, _DEAD = 5.0, 60.0  # seconds between two renewals of a lock file, and until an unrenewed one is broken


class Held(UserError):
    """Another process holds the lock."""


@contextmanager
def exclusive(path: str | os.PathLike, patience: float = 100.0) -> Iterator[int]:
    """Holds an exclusive lock on ``path``, a small file that it creates and does not delete.

    patience: seconds to wait for another holder; file servers take a while to release the lock of a crashed machine.

    The lock is a ``flock``, which the system releases when the process dies, and which Linux supports over NFS. On a
    file system without such locks, a second file beside ``path`` is the lock: its holder keeps renewing its time, and a
    lock not renewed for a minute, by the waiting process's clock, belongs to a dead process.

    Yields the open file: with ``flock``, a child process that inherits it holds the lock, too. Raises Held, naming the
    holder, when patience ends; UserError if the file cannot be written.
    """
    path, end = Path(path), time.monotonic() + patience
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, handle)
            while (held := locked(handle)) is False and time.monotonic() < end:
                time.sleep(random.uniform(0.02, 0.1))
            if held is None:
                wait = -1 if end == math.inf else max(end - time.monotonic(), 0)
                lease = SoftFileLease(f"{path}.held", timeout=wait, lease_duration=_DEAD, heartbeat_interval=_BEAT)
                with suppress(Timeout):
                    stack.enter_context(lease)
                held = lease.is_locked
            if not held:
                raise Held(f"{path}: held by {_holder(path) or 'another process'}; end it, or wait until it is done")
            _sign(handle)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error
        yield handle


def locked(handle: int) -> bool | None:
    """Whether this process now holds the lock on the open file; None if the file system has no locks."""
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None


def _sign(handle: int) -> None:
    """Records the holder in the lock file, for the error message of waiting processes."""
    with suppress(OSError):  # a full disk does not affect the lock
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
