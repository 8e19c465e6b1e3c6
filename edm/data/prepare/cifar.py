"""CIFAR-10 (Krizhevsky 2009): reads the official python tarball in memory, with the restricted unpickler.

Its batches are pickles of {b"data": uint8 [10000, 3072], b"labels": list of int, …}, written by Python 2 in protocol 2.
"""

import gzip
import hashlib
import io
import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edm.data.prepare.pictures import Images
from edm.errors import UserError, one_line
from edm.files.pickles import Budget, Instance, Name, Names, Span, interpret
from edm.files.reading import open_regular
from edm.files.refusals import refused, shown

MD5 = "c58f30108f718f92721af3b95e74349a"  # of cifar-10-python.tar.gz, from its home page
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_MOST_BYTES = 1 << 28  # of the decompressed tarball; the official one has 186 MB
_AGAIN = "get cifar-10-python.tar.gz again"
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before numpy 2, and since


def cifar10(path: Path, checksum: str | None = MD5, split: str = "train") -> Images:
    """The 50,000 training images (of "test" the 10,000 others), 32×32 RGB, in the order of the batches, and 10 classes.

    checksum: MD5 of the tarball; None accepts any. Raises UserError if it differs, or if a batch is damaged.
    """
    try:
        with open_regular(path, "cifar-10-python.tar.gz") as file:
            identity = _identity(file, path, checksum)
            batches = _batches(file, path, _BATCHES[split])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of cifar-10-python.tar.gz") from None
    images = [image for name in _BATCHES[split] for image in batches[name][0].reshape(-1, 3, 32, 32)]
    labels = [label for name in _BATCHES[split] for label in batches[name][1]]
    return Images(str(path), len(images), images.__getitem__, labels, identity)


def _identity(file: io.BufferedReader, path: Path, checksum: str | None) -> str:
    """The SHA-256 of the tarball, after checking its MD5."""
    if os.fstat(file.fileno()).st_size > _MOST_BYTES:
        raise UserError(f"{path}: larger than the whole of CIFAR-10; {_AGAIN}")
    if checksum is not None:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != checksum.lower():
            raise UserError(f"{path}: MD5 is {found}, expected {checksum}; {_AGAIN}")
    file.seek(0)
    identity = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return identity


def _batches(file: BinaryIO, path: Path, names: tuple[str, ...]) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Pixels uint8 [N, 3072] and labels by the name of the batch."""
    found = {}
    try:
        stream = _Bounded(gzip.GzipFile(fileobj=file), path)
        # tarfile's stubs ask for more of a stream than it does in this mode.
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isfile() and not member.issparse():
                    if name in found:
                        raise UserError(f"{path}: holds {name} twice; {_AGAIN}")
                    found[name] = _batch(archive.extractfile(member).read(), f"{path}: {name}")
        while stream.read(1 << 20):  # read up to gzip's checksum, after the end of the tar
            pass
    except UserError:
        raise
    except Exception as error:  # tarfile, gzip and zlib raise different exceptions
        raise UserError(f"{path}: not a whole gzip-compressed tarball ({one_line(error)}); {_AGAIN}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; {_AGAIN}")
    return found


class _Bounded:
    """A stream that raises UserError after more bytes than the tarball can hold, regardless of its headers."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, 1 << 20))
        self._left -= len(data)
        if self._left < 0:
            raise UserError(f"{self._path}: decompresses to more than {_MOST_BYTES >> 20} MiB; {_AGAIN}")
        return data


def _batch(data: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    try:
        budget = Budget(text=len(data), longest=len(data))  # Python 3 writes even the pixels as text
        content = interpret(io.BytesIO(data), _names(len(data)), budget, kind="CIFAR-10 batch")
    except UserError as error:
        raise UserError(f"{where} is {error}") from None
    found = [content.get(key) for key in (b"data", b"labels")] if type(content) is dict else [None, None]
    match found:
        case (Instance("numpy.ndarray", _, (_, tuple() as shape, Instance("numpy.dtype"), by_columns, pixels)),
              list() as labels):  # fmt: skip
            pass
        case _:
            raise UserError(f"{where} is not a batch of CIFAR-10 (no data or no labels); {_AGAIN}")
    if type(pixels) is Span:
        pixels = data[pixels.start : pixels.start + pixels.length]
    rows = len(labels)
    if shape != (rows, 3072) or type(pixels) is not bytes or len(pixels) != rows * 3072 or not rows:
        lengths = "×".join(map(shown, shape[:4]))
        raise UserError(f"{where} has data of shape {lengths} and {rows} labels; expected [N, 3072] and N; {_AGAIN}")
    if not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise UserError(f"{where} has not one label from 0 to 9 for each of its {rows} images; {_AGAIN}")
    array = np.frombuffer(pixels, np.uint8)
    return array.reshape(3072, rows).T if by_columns else array.reshape(rows, 3072), labels


def _array(*arguments: Any) -> Instance:
    """Stands for numpy's _reconstruct: an array, whose state holds its shape and bytes."""
    return Instance("numpy.ndarray", arguments)


def _dtype(*arguments: Any) -> Instance:
    """Stands for numpy.dtype; accepts only unsigned bytes."""
    if arguments[:1] not in (("u1",), (b"u1",)):
        raise refused(f"it holds pixels of kind {', '.join(map(shown, arguments[:1]))}")
    return Instance("numpy.dtype", arguments)


def _names(left: int) -> Names:
    """The globals that a batch may use. left: limit of bytes from encoding, since a pickle can reuse a stored text."""

    def encoded(*arguments: Any) -> bytes:
        """Stands for _codecs.encode, with which Python 3 writes bytes in protocol 2."""
        nonlocal left
        match arguments:
            case (str() as text, "latin1"):
                left -= len(text)
                if left < 0:
                    raise refused("it encodes its text more than once")
                with suppress(UnicodeEncodeError):
                    return text.encode("latin1")
        raise refused("it encodes text otherwise than in latin1")

    return {
        **{Name(module, "_reconstruct"): _array for module in _NUMPY},
        Name("numpy", "ndarray"): None,  # an argument of _reconstruct
        Name("numpy", "dtype"): _dtype,
        Name("_codecs", "encode"): encoded,
    }
