"""One unpacked copy of a large archive per machine, shared by all processes that read it.

The copy is a file in a folder of this machine, mapped into memory: its pages are in memory once for all processes, and
the system drops them when memory is short. The folder is ``$EDM_CACHE``, or ``edm-UID`` in the folder for temporary
files (``$TMPDIR``, which many clusters point to the job's own disk). A copy is named after the archive's SHA-256, is
complete before it gets its name, and is made under a lock. The copies used least recently go when all together exceed
``$EDM_CACHE_GB`` (200), or when the disk is full.
"""

import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm.data.forked import cores, forked
from edm.data.trees import Tree
from edm.data.unpacking import labels_in, opened, require_plausible, unpack
from edm.errors import UserError
from edm.files.documents import COUNT, FLAG, read_document
from edm.files.hashes import Hashes, digest
from edm.files.lock import exclusive
from edm.files.writing import atomic_write, remove_temporaries, write_json

FOLDER, LIMIT = "EDM_CACHE", "EDM_CACHE_GB"  # environment variables
FORMAT, _SHAPE = "edm-unpacked/1", {"shape": [COUNT], "labels": FLAG, "mark": [COUNT]}
_LIMIT = 200.0  # GB
_SPARE = 1 << 28  # bytes of the disk that stay free
_CHUNK = 256  # images that a worker unpacks at once
_TOLD = 1 << 30  # bytes from which a line says that unpacking begins

#: images uint8 [N, C, H, W], labels int64 [N] or None, SHA-256 of the archive
Content = tuple[np.ndarray, np.ndarray | None, str]


class _Unusable(Exception):
    """The folder cannot hold the copy: the reason."""


def shared(path: str | Path) -> Content | None:
    """The content of an archive, its images mapped; None, with a line on stderr, if the folder cannot hold them.

    Writing to the images changes neither the copy nor what others see. Raises UserError for a file that is no archive.
    """
    real = os.path.realpath(path)
    try:
        folder = _folder()
        before = _version(real)
        with _locked(folder / f"{digest(real)}.lock"):  # one process hashes
            hashes = Hashes(folder / "hashes.json")
            sha256 = hashes.of(real)
            hashes.save()
        if sha256 is None:
            return None
        copy = _Copy(folder, sha256)
        with _locked(copy.lock):
            if not copy.is_complete():
                copy.make(path)
                if _version(real) != before:
                    copy.remove()
                    raise UserError(f"{path}: was changed while it was read; run again")
            return copy.content()
    except (_Unusable, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"{path}: each process unpacks its own copy into memory ({reason})", file=sys.stderr)
        return None


@dataclass(frozen=True)
class _Copy:
    """Images and labels of the archive with this hash, in two files: the numbers, and a seal that describes them."""

    folder: Path
    sha256: str

    @property
    def numbers(self) -> Path:
        """uint8 [N, C, H, W], then int64 [N] if there are labels."""
        return self.folder / f"{self.sha256}.u8"

    @property
    def seal(self) -> Path:
        return self.folder / f"{self.sha256}.seal"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.sha256}.lock"

    def is_complete(self) -> bool:
        """Whether the copy is as it was sealed: the same file, of the same size and time."""
        with suppress(UserError, OSError):
            return bool(self._sealed()["mark"] == self._mark())
        return False

    def content(self) -> Content:
        os.utime(self.seal)  # used now
        sealed = self._sealed()
        shape = tuple(sealed["shape"])
        images = np.memmap(self.numbers, np.uint8, "c", shape=shape).view(np.ndarray)
        labels = np.fromfile(self.numbers, np.int64, offset=math.prod(shape)) if sealed["labels"] else None
        return images, labels, self.sha256

    def make(self, path: str | Path) -> None:
        remove_temporaries(self.numbers)  # left by a killed process
        with opened(path) as tree:
            labels = labels_in(tree)
            shape = (len(tree.names), *unpack(tree, tree.names[:1]).shape[1:])
            size = math.prod(shape)
            require_plausible(size, tree)
            total = size + (0 if labels is None else labels.nbytes)
            _make_room(self.folder, total)
            if size > _TOLD:
                print(f"{path}: unpacking {shape[0]:,} images once for this machine, into {self.folder}",
                      file=sys.stderr, flush=True)  # fmt: skip
            with atomic_write(self.numbers) as temporary, open(temporary, "r+b", buffering=0) as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, total)  # a full disk is an error here, later a signal
                    _fill(tree, shape, file.fileno())
                    if labels is not None:
                        os.pwrite(file.fileno(), labels.tobytes(), size)
                except OSError as error:
                    raise _Unusable(f"{self.folder}: {error.strerror}") from None
        self.numbers.chmod(0o444)
        about = {"format": FORMAT, "shape": list(shape), "labels": labels is not None, "mark": self._mark()}
        write_json(self.seal, about)

    def remove(self) -> None:
        for path in (self.seal, self.numbers):
            path.unlink(missing_ok=True)

    def _sealed(self) -> dict:
        return read_document(self.seal, FORMAT, _SHAPE, "a seal", "it is made anew")

    def _mark(self) -> list[int]:
        return _version(self.numbers)


def _version(path: str | Path) -> list[int]:
    """Numbers that change with a file's content."""
    status = os.stat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _folder() -> Path:
    """The folder of the copies, which only this user may write to."""
    stated = os.environ.get(FOLDER)
    folder = Path(stated) if stated else Path(tempfile.gettempdir()) / f"edm-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat() if not stated else folder.stat()
    except OSError as error:
        raise _Unusable(f"{folder}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise _Unusable(f"{folder}: others may write to it; name a folder of your own in {FOLDER}")
    return folder


@contextmanager
def _locked(path: Path, patience: float = math.inf) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path, patience))
        except UserError as error:
            raise _Unusable(str(error)) from None
        yield


def _make_room(folder: Path, needed: int) -> None:
    """Removes the copies used least recently, but those in the hands of another process, until a new one fits."""
    try:
        limit = float(os.environ.get(LIMIT) or _LIMIT) * 1e9
    except ValueError:
        raise UserError(f"{LIMIT}={os.environ[LIMIT]}: not a number of gigabytes") from None
    if needed > limit:
        raise _Unusable(f"it takes {needed / 1e9:.1f} GB; {LIMIT} allows {limit / 1e9:g}")
    copies = [_Copy(folder, seal.stem) for seal in sorted(folder.glob("*.seal"), key=lambda seal: seal.stat().st_mtime)]
    sizes = {copy: copy.numbers.stat().st_size for copy in copies if copy.numbers.exists()}
    for copy in list(sizes):
        if sum(sizes.values()) + needed <= limit and shutil.disk_usage(folder).free >= needed + _SPARE:
            return
        with suppress(_Unusable), _locked(copy.lock, 0):
            copy.remove()
            del sizes[copy]
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise _Unusable(f"{folder} has {free / 1e9:.1f} GB free; it takes {needed / 1e9:.1f}")


_work: tuple[Tree, tuple[int, ...], int] | None = None  # inherited by forked workers


def _fill(tree: Tree, shape: tuple[int, ...], file: int) -> None:
    """Unpacks all images into an open file, on all cores."""
    global _work
    _work, workers = (tree, shape, file), min(cores(), 1 + shape[0] // (8 * _CHUNK))
    starts = range(0, shape[0], _CHUNK)
    try:
        if workers == 1 or sys.platform != "linux":
            for start in starts:
                _unpack(start)
            return
        with forked(workers) as processes:
            for _ in processes.map(_unpack, starts):
                pass
    except BrokenProcessPool:
        raise _Unusable("a process that unpacked it was killed") from None
    finally:
        _work = None


def _unpack(start: int) -> None:
    assert _work is not None
    tree, shape, file = _work
    part = unpack(tree, tree.names[start : start + _CHUNK], shape[1:])
    os.pwrite(file, part.tobytes(), start * math.prod(shape[1:]))
