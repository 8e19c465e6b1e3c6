"""Opens archives, and unpacks their images and labels into arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edm.data.decoding import decoded
from edm.data.labels import LABELS_FILE, read_labels, shown
from edm.data.trees import Tree, open_tree
from edm.errors import UserError
from edm.files.reading import require_regular

_UNFOLDED, _TIMES = 1 << 28, 256  # bytes of images in one piece, beyond which they may be so many times their files


class SizeError(UserError):
    """An image that is not square, is too small, or differs in its shape from those before it."""


def opened(path: str | Path) -> Tree:
    """The images of an archive, by name, under the same rules as a zip given to ``prepare``."""
    require_regular(path, "a dataset archive, which `edm prepare` makes")
    return open_tree(Path(path))


def unpack(tree: Tree, names: Sequence[str], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Images by name, uint8 [n, C, H, W], all of the shape of the first, or of ``shape``."""
    images = np.empty((0,), dtype=np.uint8)
    for i, name in enumerate(names):
        where = f"{tree.where}: {shown(name)}"
        pixels = np.asarray(decoded(tree.read(name), where))
        image = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        check_image(image, where, images.shape[1:] if i else shape)
        if i == 0:
            require_plausible(len(names) * image.nbytes, tree)
            images = np.empty((len(names), *image.shape), dtype=np.uint8)
        images[i] = image
    return images


def require_plausible(size: int, tree: Tree) -> None:
    """Raises UserError if images of ``size`` bytes in a small zip would fill the memory."""
    if size > max(_UNFOLDED, _TIMES * tree.packed):
        raise UserError(
            f"{tree.where}: its images unfold to {size:,} bytes, more than {_TIMES} times its files; if that is right, "
            "make an archive of it with `edm prepare`"
        )


def labels_in(tree: Tree) -> np.ndarray | None:
    if tree.labels_file is None:
        raise UserError(f'{tree.where}: {LABELS_FILE} is missing; an archive without labels has {{"labels": null}}')
    labels = read_labels(tree.labels_file, tree.names, tree.where)
    return None if labels is None else np.array(labels, dtype=np.int64)


def check_image(image: np.ndarray, where: str, shape: tuple[int, ...] | None) -> None:
    """Raises UserError if an archive cannot hold an image, or if its shape differs from the given one."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"{where} is {image.dtype} of shape {image.shape}; expected uint8 [1 or 3, side, side]")
    check_shape(image.shape, where, shape)


def check_shape(found: tuple[int, ...], where: str, shape: tuple[int, ...] | None) -> None:
    """Raises SizeError if an archive cannot hold an image of the shape found [C, H, W], or if another is given."""
    channels, height, width = found
    if height != width or height < 8:
        raise SizeError(f"{where} is {width}x{height}; images must be square, of at least 8 pixels")
    if shape is not None and found != tuple(shape):
        raise SizeError(f"{where} is {width}x{height} with {channels} channels, unlike those before it {shape}")
