"""CIFAR-10 (Krizhevsky 2009): the official python tarball, read in memory and without running anything it holds.

Its batches are pickles of {b"data": uint8 [10000, 3072], b"labels": list of int, …}, written by Python 2. A pickle is a
program; this module runs one only where every instruction is in a list of harmless ones and every name it looks up is
one of the four that numpy arrays need, and answers those names with stand-ins of its own: numpy sees plain bytes.
"""

import gzip
import hashlib
import io
import os
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edm.data.prepare.pictures import Images
from edm.errors import UserError

MD5 = "c58f30108f718f92721af3b95e74349a"  # of cifar-10-python.tar.gz, as its home page prints it
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_MOST_BYTES = 1 << 28  # of the tarball when decompressed; the real one has 186 MB
_AGAIN = "get cifar-10-python.tar.gz again"

#: All that a pickle of protocol 2 needs for containers, numbers, text and arrays.
_INSTRUCTIONS = frozenset({
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET",
    "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
})  # fmt: skip


def cifar10(path: Path, checksum: str | None = MD5) -> Images:
    """The 50,000 training images, 32×32 RGB, in the order of the batches, and their 10 classes.

    checksum: MD5 of the tarball, or None to read any. Raises UserError where it is another, or a batch is damaged.
    """
    try:
        with open(path, "rb") as file:
            identity = _identity(file, path, checksum)
            batches = _batches(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of cifar-10-python.tar.gz") from None
    images = [image for name in _BATCHES for image in batches[name][0].reshape(-1, 3, 32, 32)]
    labels = [label for name in _BATCHES for label in batches[name][1]]
    return Images(str(path), len(images), images.__getitem__, labels, identity)


def _identity(file: BinaryIO, path: Path, checksum: str | None) -> str:
    """SHA-256 of the tarball, whose MD5 is checked."""
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


def _batches(file: BinaryIO, path: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Pixels uint8 [N, 3072] and labels by the name of the batch."""
    found = {}
    try:
        stream = _Bounded(gzip.GzipFile(fileobj=file), path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in _BATCHES and member.isfile() and not member.issparse():
                    if name in found:
                        raise UserError(f"{path}: holds {name} twice; {_AGAIN}")
                    found[name] = _batch(archive.extractfile(member).read(), f"{path}: {name}")
        while stream.read(1 << 20):  # up to gzip's checksum, which is behind the end of the tar
            pass
    except UserError:
        raise
    except Exception as error:  # tarfile, gzip and zlib each have their own for damaged files
        raise UserError(f"{path}: not a whole gzip-compressed tarball ({_line(error)}); {_AGAIN}") from None
    missing = [name for name in _BATCHES if name not in found]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; {_AGAIN}")
    return found


class _Bounded:
    """A stream that refuses to give more than the tarball can hold, whatever sizes its headers claim."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, 1 << 20))
        self._left -= len(data)
        if self._left < 0:
            raise UserError(f"{self._path}: decompresses to more than {_MOST_BYTES >> 20} MiB; {_AGAIN}")
        return data


def _batch(data: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    _check_instructions(data, where)
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged program may fail at any of its instructions
        raise UserError(f"{where} is not a batch of CIFAR-10 ({_line(error)}); {_AGAIN}") from None
    array, labels = (content.get(key) for key in (b"data", b"labels")) if isinstance(content, dict) else (None, None)
    if not (isinstance(array, _Array) and isinstance(labels, list)):
        raise UserError(f"{where} is not a batch of CIFAR-10 (no data or no labels); {_AGAIN}")
    rows = array.shape[0] if len(array.shape) == 2 else 0
    if array.shape != (rows, 3072) or len(array.content) != rows * 3072 or not rows:
        raise UserError(f"{where} has data of shape {array.shape}; expected [N, 3072]; {_AGAIN}")
    if len(labels) != rows or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise UserError(f"{where} has not one label from 0 to 9 for each of its {rows} images; {_AGAIN}")
    pixels = np.frombuffer(array.content, np.uint8)
    return pixels.reshape(3072, rows).T if array.by_columns else pixels.reshape(rows, 3072), labels


def _check_instructions(data: bytes, where: str) -> None:
    """Raises UserError before anything runs where a pickle has an instruction outside the list, or a distant memo."""
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if instruction.name not in _INSTRUCTIONS:
                raise UserError(f"{where} is refused: its pickle uses {instruction.name}, as no CIFAR-10 batch does")
            if instruction.name.endswith("PUT") and int(argument) > number:
                raise UserError(f"{where} is refused: its pickle claims memory it does not use")
    except UserError:
        raise
    except Exception as error:  # genops raises whatever its readers meet
        raise UserError(f"{where} is not a whole pickle ({_line(error)}); {_AGAIN}") from None


class _Dtype:
    """Stands for numpy.dtype: unsigned bytes and nothing else."""

    __slots__ = ()

    def __init__(self, kind: object, *_: object) -> None:
        if kind not in ("u1", b"u1"):
            raise ValueError(f"pixels of kind {kind!r}")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment, of no meaning for bytes


class _Array:
    """Stands for numpy.ndarray: a shape and its bytes, not yet checked against each other."""

    __slots__ = ("by_columns", "content", "shape")

    def __init__(self, *_: object) -> None:
        self.shape, self.content, self.by_columns = (), b"", False

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        whole = isinstance(shape, tuple) and all(type(length) is int and length >= 0 for length in shape)
        if not (whole and isinstance(kind, _Dtype) and isinstance(content, bytes)):
            raise ValueError("an array that is not of bytes")
        self.shape, self.content, self.by_columns = shape, content, bool(by_columns)


class _Encode:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocol 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise ValueError(f"text in encoding {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        raise ValueError("a function with a state")


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,  # an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {ascii(module)[1:-1]}.{ascii(name)[1:-1]}")
        return _NAMES[module, name]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
