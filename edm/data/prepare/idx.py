"""The idx files of MNIST (LeCun, Cortes and Burges): big-endian sizes, then bytes; often gzip-compressed."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from edm.data.prepare.pictures import Images
from edm.errors import UserError

_IMAGES, _LABELS = 0x0803, 0x0801  # unsigned bytes, three and one dimensions
_LARGEST = 1 << 28
_PADDING = 2  # 28x28 -> 32x32


def mnist(path: Path, padded: bool = True) -> Images:
    """The training images of MNIST, 28×28 or zero-padded to 32×32, and their digits.

    path: folder with train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz, or the images file.
    """
    folder = path if path.is_dir() else path.parent
    image_file = path if path.is_file() else _find(folder, "images", 3)
    pixels = _read(image_file, _IMAGES)
    labels = _read(_find(folder, "labels", 1), _LABELS)
    if pixels.shape[1:] != (28, 28):
        raise UserError(f"{image_file}: images are {pixels.shape[2]}x{pixels.shape[1]}; those of MNIST are 28x28")
    if len(labels) != len(pixels):
        raise UserError(
            f"{folder}: {len(pixels)} images but {len(labels)} labels; the two files do not belong together"
        )
    identity = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    margin = _PADDING if padded else 0
    return Images(str(path), len(pixels), lambda i: np.pad(pixels[i], margin)[None], labels.tolist(), identity)


def _find(folder: Path, what: str, dimensions: int) -> Path:
    names = [f"train-{what}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: {names[0]} (or {names[1]}) is missing; put both files of MNIST's training set there")


def _read(path: Path, magic: int) -> np.ndarray:
    """uint8 array of the declared shape. Never uses more memory than a complete file of that shape."""
    dimensions = magic & 0xFF
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or struct.unpack_from(">I", header)[0] != magic:
                raise UserError(f"{path}: not an idx file of bytes in {dimensions} dimensions")
            shape = struct.unpack_from(f">{dimensions}I", header, 4)
            size, declared = math.prod(shape), " x ".join(map(str, shape))
            if not 0 < size <= _LARGEST:
                raise UserError(f"{path}: declares {declared} bytes; from 1 to {_LARGEST:,} are read")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); get the file again") from None
    if len(data) != size:
        kind = "truncated" if len(data) < size else "longer than it declares"
        raise UserError(f"{path}: {kind} ({declared} bytes are declared); get the file again")
    return np.frombuffer(data, np.uint8).reshape(shape)
