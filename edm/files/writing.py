"""Atomic writes, and the hashes that identify files and values."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edm.errors import UserError
from edm.files.outputs import require_replaceable
from edm.files.reading import read_regular

_LONGEST_JSON = 64 << 20  # bytes; results of thousands of points have less than one


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed.

    The temporary name keeps the suffix of ``path``, for writers that choose a format by the suffix.
    Raises UserError if the folder or the file cannot be written, or if ``path`` is not a regular file.
    """
    path = Path(path)
    require_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporaries(path: str | os.PathLike) -> None:
    """Removes temporary files of processes killed in an ``atomic_write`` of ``path``. Its name may be a pattern.

    Also removes those of the safetensors library in the same folder, whose names do not show their target.
    Call it only from the sole writer of these files: it also removes the temporary files of running processes.
    """
    path = Path(path)
    patterns = [f".{path.stem}.????????{path.suffix}"]  # mkstemp puts in eight characters
    patterns += [".tmp??????"] if path.suffix == ".safetensors" else []
    for temporary in (temporary for pattern in patterns for temporary in path.parent.glob(pattern)):
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` (UTF-8) atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    """Writes ``value`` as indented JSON atomically. Raises ValueError for NaN and infinities, which JSON lacks."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    """The value in a JSON file. Raises UserError if the file is missing, no regular file, too large, or not JSON."""
    content = read_regular(path, _LONGEST_JSON, "a JSON file")
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # ValueError: also of bytes that are no text, and of endless numbers
        raise UserError(f"{path}: not a readable JSON file ({error})") from None


def named(number: float) -> str:
    """A number as part of a file name: as short as possible but unique. 40.0 gives "40"; 1/3 keeps all digits."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # some file systems cannot open folders; the rename is complete anyway
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
