"""Resumable outputs: written to a partial file beside them, which survives interruptions, and renamed when complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edm.errors import UserError
from edm.files.lock import locked
from edm.files.outputs import require_replaceable
from edm.files.writing import atomic_write


class StoppedError(UserError):
    """A failure of the machine (disk, network), not of the input: the partial output is kept."""


@contextmanager
def resumable(output: Path, key: str) -> Iterator[BinaryIO]:
    """Yields ``.NAME.KEY.partial`` beside ``output``, open for reading and writing; on success it becomes ``output``.

    key: changes with everything that the output depends on, so that a run resumes only the file of an equal run.
    A UserError removes the file. StoppedError, any other exception, and a killed process leave it for the next run to
    resume. Partial files with other keys are removed.
    Raises UserError if another process is writing the same output, or if ``output`` is not a regular file; StoppedError
    if the disk fails.
    """
    partial = output.parent / f".{output.name}.{key}.partial"
    require_replaceable(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=1 << 20)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); check the folder and the disk") from None
    try:
        with file:
            if not (_lock(file) and _is_at(file, partial)):
                raise StoppedError(f"{output}: another process is preparing it; wait for it to end")
            _remove_others(output, partial)
            yield file
            file.flush()
            os.fsync(file.fileno())  # while it has its own name: a failure here loses nothing
            with atomic_write(output) as temporary:  # still locked: no other process may resume a complete file
                os.replace(partial, temporary)
    except StoppedError:
        raise
    except UserError:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StoppedError(f"{output}: {reason}; what is done is kept: fix that and run again to continue") from None


def _lock(file: BinaryIO) -> bool:
    """Whether this process now holds the file's lock; assumed on a file system without locks."""
    return locked(file.fileno()) is not False


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has its name: another process may have finished it between opening and locking."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_others(output: Path, partial: Path) -> None:
    for other in output.parent.iterdir():
        name = other.name
        if other != partial and name.startswith(f".{output.name}.") and name.endswith(".partial"):
            try:
                with open(other, "r+b") as file:  # NFS locks only what may be written
                    if _lock(file):
                        other.unlink(missing_ok=True)
            except OSError:
                continue
