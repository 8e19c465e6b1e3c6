"""One process at a time, also where a file system has no locks."""

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
    """Whether this process has the open file for itself from now on; None where the file system has no locks."""
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None


def _sign(handle: int) -> None:
    """Writes who holds the lock, for those who wait in vain."""
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
