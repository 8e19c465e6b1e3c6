"""Dataset archives: an uncompressed zip of PNG images and ``dataset.json``, interoperable with the authors' tools."""

import hashlib
import io
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edm.data.labels import class_index, count_classes, empty_classes
from edm.data.maps import shared
from edm.data.trees import Tree, open_tree
from edm.data.unpacking import SizeError, check_image, labels_in, opened, unpack
from edm.data.zip_writer import ArchiveWriter
from edm.errors import UserError, one_line
from edm.files.hashes import sha256_file
from edm.files.writing import atomic_write

# Members are stored without compression. All have the date 1980-01-01, so that equal images give equal bytes; the bytes
# are those that Python's zipfile writes.


SHARED = 1 << 26  # bytes of an archive from which the processes of a machine share one unpacked copy


@dataclass(frozen=True)
class Dataset:
    """images: uint8 [N, C, H, W], H = W from 8, C 1 or 3; labels: int64 [N] or None; sha256: of the archive."""

    images: np.ndarray
    labels: np.ndarray | None
    sha256: str
    path: str

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: Sequence[int] | np.ndarray | None = None) -> "Dataset":
        """A dataset of images in memory.

        images: uint8 [N, C, H, W], H = W from 8, C 1 (grey) or 3 (RGB). labels: class indices [N], or None.
        Raises UserError for other types, shapes or labels; for channels last it says how to move them.
        """
        try:
            images, labels = np.asarray(images), None if labels is None else np.asarray(labels)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors of a GPU
            raise UserError(f"images and labels are no arrays: {one_line(error)}") from None
        if images.ndim != 4 or not len(images):
            raise UserError(f"images have shape {list(images.shape)}; expected [N, C, H, W] with N > 0")
        if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            raise UserError(
                f"images have shape {list(images.shape)}: channels come second; images.transpose(0, 3, 1, 2)"
            )
        check_image(images[0], "images[0]", None)
        if labels is not None:
            if labels.shape != (len(images),):
                raise UserError(f"labels have shape {list(labels.shape)}; expected one per image, [{len(images)}]")
            labels = np.array([class_index(label, f"labels[{i}]") for i, label in enumerate(labels.tolist())], np.int64)
        images = np.ascontiguousarray(images)
        content = hashlib.sha256(str(images.shape).encode() + images.tobytes())
        content.update(b"" if labels is None else labels.tobytes())
        return cls(images, labels, content.hexdigest(), "arrays in memory")

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """The dataset of an archive of :func:`edm.data.prepare`. Raises UserError if the file is not one."""
        if not isinstance(path, str | Path):
            raise UserError(f"dataset is of type {type(path).__name__}; expected an edm.Dataset or the path of an "
                            "archive; edm.Dataset.from_arrays makes one of arrays")  # fmt: skip
        return read_archive(path)

    @property
    def classes(self) -> int:
        """Number of classes: the largest label + 1, 0 without labels."""
        return count_classes(self.labels)

    @property
    def empty_classes(self) -> list[int]:
        """Classes without images. A model learns nothing about them, but can still sample them."""
        return empty_classes(self.labels)

    def require(self, resolution: int, channels: int, classes: int) -> None:
        """Raises UserError if the archive does not match a configuration."""
        shape = self.images.shape[1:]
        if shape != (channels, resolution, resolution):
            raise UserError(
                f"{self.path}: images are {shape[2]}x{shape[1]} with {shape[0]} channels; "
                f"the configuration expects {resolution}x{resolution} with {channels}"
            )
        if classes and self.labels is None:
            raise UserError(f"{self.path}: has no labels, but the configuration is conditional on {classes} classes")
        if classes and self.classes != classes:
            raise UserError(
                f"{self.path}: has {self.classes} classes (labels to {self.classes - 1}); the configuration is "
                f"conditional on {classes}"
            )


def write_archive(path: str | Path, images: Iterable[np.ndarray], labels: list[int] | None) -> int:
    """Writes uint8 images [C, H, W] in order, and their labels. Equal input gives equal bytes. Returns the number of
    images.

    Raises UserError, leaving no file, if an image is not uint8, square with a power-of-two side, and grey or RGB, if
    sizes differ, or if the number of labels differs from the number of images.
    """
    shape = None
    with atomic_write(path) as temporary, open(temporary, "r+b") as file:
        writer = ArchiveWriter(file)
        for image in images:
            check_image(image, f"{path}: image {writer.count}", shape)
            shape = image.shape
            writer.add(encode_png(picture_of(image)))
        count = writer.count
        if count == 0:
            raise UserError(f"{path}: there are no images to write")
        if labels is not None and len(labels) != count:
            raise UserError(f"{path}: {count} images but {len(labels)} labels")
        writer.finish(labels)
    return count


def read_archive(path: str | Path) -> Dataset:
    """Reads a whole archive: a small one into memory, a large one as :mod:`edm.data.maps` says.

    Raises UserError for a file that is missing, truncated, or not an archive.
    """
    if os.path.isfile(path) and os.path.getsize(path) >= SHARED and (found := shared(path)) is not None:
        return Dataset(*found, str(path))
    with opened(path) as tree:
        labels = labels_in(tree)
        images = unpack(tree, tree.names)
    return Dataset(images, labels, sha256_file(path), str(path))


def count_images(path: str | Path) -> int:
    """The number of images in an archive or a folder, without reading them. Raises like :func:`read_archive`."""
    with _pictures(path) as tree:
        return len(tree.names)


def some_images(path: str | Path, which: Iterable[int]) -> np.ndarray:
    """Images of an archive by their places, uint8 [n, C, H, W], without reading the rest; those beyond its end not.

    Raises like :func:`read_archive`.
    """
    with opened(path) as tree:
        return unpack(tree, [tree.names[place] for place in which if place < len(tree.names)])


def labels_of(path: str | Path) -> np.ndarray | None:
    """The labels of an archive, int64 [N], or None, without reading its images. Raises like :func:`read_archive`."""
    with opened(path) as tree:
        return labels_in(tree)


def images_in_chunks(path: str | Path, size: int = 1000) -> Iterator[np.ndarray]:
    """All images of an archive in order, uint8 [≤ size, C, H, W], one chunk in memory at a time.

    Also of a folder, or a zip, of pictures that have one size, as those of an archive. Raises like
    :func:`read_archive`; for pictures of several sizes it says how to make them alike.
    """
    shape = None
    with _pictures(path) as tree:
        for start in range(0, len(tree.names), size):
            try:
                chunk = unpack(tree, tree.names[start : start + size], shape)
            except SizeError as error:
                source = ["--source", "folder" if Path(path).is_dir() else "zip", "--input", str(path)]
                remedy = shlex.join(["edm", "prepare", "pictures.zip", *source, "--resolution", "N"])
                raise UserError(f"{error}; make an archive of them: {remedy}") from None
            shape = chunk.shape[1:]
            yield chunk


def _pictures(path: str | Path) -> Tree:
    """The images of an archive, or of a folder."""
    return open_tree(Path(path)) if Path(path).is_dir() else opened(path)


def picture_of(image: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] as a grey or RGB picture."""
    return Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))


def encode_png(picture: Image.Image) -> bytes:
    """An uncompressed PNG file of a picture's pixels, without anything else that its file told."""
    buffer = io.BytesIO()
    picture.info = {}
    picture.save(buffer, format="png", compress_level=0)
    return buffer.getvalue()
