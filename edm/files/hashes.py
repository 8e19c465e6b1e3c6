"""The hashes that identify files, folders and values. Free of torch."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edm.errors import UserError
from edm.files.reading import open_regular
from edm.files.writing import write_text

LOCAL = Path(".edm")  # only for this clone; may be deleted at any time
SLOW = 1.0  # seconds of hashing that no other process should repeat
SETTLED = 2.0  # seconds after which another change of a file also changes its time, on every file system


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes. Raises UserError if it cannot be opened or is no regular file."""
    with open_regular(path, "a file to hash") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value) -> str:
    """One string per value: keys sorted, no spaces. Equal values give equal strings, whatever their order in YAML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value) -> str:
    """Short hash (12 hex digits) of a JSON value, used to name and compare specifications."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


class Hashes:
    """SHA-256 of files and folders, cached as long as a file keeps its inode, size and times."""

    def __init__(self, path: Path | None = LOCAL / "hashes.json"):
        self.path, self._new = path, False
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def of(self, path: str) -> str | None:
        """The hash of a file, or of the names and contents of a folder; None if the path does not exist.

        Raises UserError if it cannot be read.
        """
        if not os.path.exists(path):
            return None
        begun, folder = time.time(), os.path.isdir(path)
        try:
            mark, newest = _folder_mark(path) if folder else _mark(os.stat(path))
            known = self._known.get(path)
            if known and known[0] == mark:
                content: str = known[1]
                return content
            found = _folder_hash(path) if folder else sha256_file(path)
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
        if begun - newest > SETTLED:
            self._known[path], self._new = [mark, found], True
            if time.time() - begun > SLOW:
                self.save()
        return found

    def save(self) -> None:
        """Saves the computed hashes for the next process; a failure has no consequence."""
        if self.path and self._new:
            with contextlib.suppress(UserError):
                write_text(self.path, json.dumps(self._known))
            self._new = False


def _mark(status: os.stat_result) -> tuple[list[int | str], float]:
    """A mark that changes with a file, and the time of its last change."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns], status.st_ctime


def _files(folder: str) -> list[str]:
    """The files below a folder, also those behind links. A link to nothing has no content."""

    def below(place: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        status = os.stat(place)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{place}: a link to a folder that contains it; remove the link")
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from below(entry.path, (*above, here))
                elif entry.name != ".snakemake_timestamp" and os.path.exists(entry.path):
                    yield entry.path

    return sorted(below(folder, ()))


def _folder_mark(folder: str) -> tuple[list[int | str], float]:
    whole, newest, count = hashlib.sha256(), 0.0, 0
    for path in _files(folder):
        mark, changed = _mark(os.stat(path))
        whole.update(f"{path}\0{mark}\n".encode(errors="surrogateescape"))
        newest, count = max(newest, changed), count + 1
    return [count, whole.hexdigest()], newest


def _folder_hash(folder: str) -> str:
    whole = hashlib.sha256()
    for path in _files(folder):
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        whole.update(f"{name}\0{sha256_file(path)}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()
