"""Dataset archives: an uncompressed zip of PNG images and ``dataset.json``, interoperable with the authors' tools."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edm.errors import UserError
from edm.files import atomic_write, sha256_file

LABELS_FILE = "dataset.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # one date for every member, so that equal images give equal bytes


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, C, H, W], H = W a power of two, C 1 or 3; labels int64 [N] or None; SHA-256 of the archive."""

    images: np.ndarray
    labels: np.ndarray | None
    sha256: str
    path: str

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def require(self, resolution: int, channels: int, classes: int) -> None:
        """Raises UserError where the archive is not what a configuration expects."""
        shape = self.images.shape[1:]
        if shape != (channels, resolution, resolution):
            raise UserError(
                f"{self.path}: images are {shape[2]}x{shape[1]} with {shape[0]} channels; "
                f"the configuration expects {resolution}x{resolution} with {channels}"
            )
        if classes and self.labels is None:
            raise UserError(f"{self.path}: has no labels, but the configuration is conditional on {classes} classes")
        if classes and self.classes > classes:
            raise UserError(
                f"{self.path}: labels reach {self.classes - 1}, but the configuration has {classes} classes"
            )


def image_name(index: int) -> str:
    """00000/img00000000.png: a folder per thousand images."""
    return f"{index // 1000:05d}/img{index:08d}.png"


def write_archive(path: str | Path, images: Iterable[np.ndarray], labels: list[int] | None) -> int:
    """Writes uint8 images [C, H, W] in order and their labels; equal input gives equal bytes. Returns their number.

    Raises UserError where an image is not uint8, square with a power-of-two side and grey or RGB, where sizes differ,
    or where there are not as many labels as images; nothing is left behind then.
    """
    count, shape = 0, None
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            _check_image(image, f"{path}: image {count}", shape)
            shape = image.shape
            archive.writestr(zipfile.ZipInfo(image_name(count), _EPOCH), _png(image))
            count += 1
        if count == 0:
            raise UserError(f"{path}: there are no images to write")
        if labels is not None and len(labels) != count:
            raise UserError(f"{path}: {count} images but {len(labels)} labels")
        entries = None if labels is None else [[image_name(i), int(label)] for i, label in enumerate(labels)]
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, _EPOCH), json.dumps({"labels": entries}))
    return count


def read_archive(path: str | Path) -> Dataset:
    """Reads a whole archive into memory. Raises UserError for a file that is missing, truncated or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such dataset; make it with `edm prepare`")
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            if not names:
                raise UserError(f"{path}: holds no PNG image")
            images = _decode(archive, names, path)
            labels = _labels(archive, names, path)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable zip archive ({error}); prepare it again") from None
    return Dataset(images, labels, sha256_file(path), str(path))


def _decode(archive: zipfile.ZipFile, names: list[str], path: Path) -> np.ndarray:
    images: np.ndarray | None = None
    for i, (name, image) in enumerate(_images(archive, names, path)):
        _check_image(image, f"{path}: {name}", None if images is None else images.shape[1:])
        if images is None:
            images = np.empty((len(names), *image.shape), dtype=np.uint8)
        images[i] = image
    return images


def _images(archive: zipfile.ZipFile, names: list[str], path: Path) -> Iterator[tuple[str, np.ndarray]]:
    for name in names:
        try:
            with Image.open(io.BytesIO(archive.read(name)), formats=["PNG"]) as image:
                pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except (zipfile.BadZipFile, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: {name} is not a readable PNG image ({error})") from None
        yield name, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _labels(archive: zipfile.ZipFile, names: list[str], path: Path) -> np.ndarray | None:
    if LABELS_FILE not in archive.namelist():
        raise UserError(f'{path}: {LABELS_FILE} is missing; an archive without labels has {{"labels": null}}')
    try:
        entries = json.loads(archive.read(LABELS_FILE))["labels"]
        if entries is None:
            return None
        table = {name: int(label) for name, label in entries}
        labels = np.array([table[name] for name in names], dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{path}: {LABELS_FILE} is not of the form {{"labels": [[name, label], …]}} ({error})'
        ) from None
    except KeyError as error:
        raise UserError(f"{path}: {LABELS_FILE} has no label for {error}") from None
    if labels.min() < 0:
        raise UserError(f"{path}: {LABELS_FILE} has a negative label")
    return labels


def _check_image(image: np.ndarray, where: str, shape: tuple[int, ...] | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"{where} is {image.dtype} of shape {image.shape}; expected uint8 [1 or 3, side, side]")
    _, height, width = image.shape
    if height != width or height & (height - 1) or height < 8:
        raise UserError(f"{where} is {width}x{height}; images must be square with a power-of-two side from 8")
    if shape is not None and image.shape != tuple(shape):
        raise UserError(f"{where} is {width}x{height} with {image.shape[0]} channels, unlike those before it {shape}")


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(buffer, format="png", compress_level=0)
    return buffer.getvalue()
