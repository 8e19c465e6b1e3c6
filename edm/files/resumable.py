"""An output that grows in a file beside it, outlives an interruption, and appears under its name only when whole."""

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
    """A failure of the machine (disk, network), not of the input: what was done until then is kept."""


@contextmanager
def resumable(output: Path, key: str) -> Iterator[BinaryIO]:
    """Yields ``.NAME.KEY.partial`` beside ``output``, open for reading and writing; on success it becomes ``output``.

    key: changes with everything that the output depends on, so that only a run of the same kind is continued.
    A UserError removes the file. Anything else, a killed process included, leaves it for the next run to continue,
    and so does StoppedError. What runs with other keys left behind is removed.
    Raises UserError where another process is at the same work, or something else than a file stands at ``output``;
    StoppedError where the disk fails.
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
            with atomic_write(output) as temporary:  # still locked: nobody else may continue a file that is whole
                os.replace(partial, temporary)
    except StoppedError:
        raise
    except UserError:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StoppedError(f"{output}: {reason}; what is done is kept: mend that and run again to continue") from None


def _lock(file: BinaryIO) -> bool:
    """Whether this process now has the file for itself; where a file system knows no locks, it is taken to have."""
    return locked(file.fileno()) is not False


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has its name: between opening and locking, its owner may have finished it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_others(output: Path, partial: Path) -> None:
    for other in output.parent.iterdir():
        name = other.name
        if other != partial and name.startswith(f".{output.name}.") and name.endswith(".partial"):
            try:
                with open(other, "rb") as file:
                    if _lock(file):
                        other.unlink(missing_ok=True)
            except OSError:
                continue
