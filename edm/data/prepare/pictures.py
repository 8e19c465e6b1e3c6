"""Converts the images of a source for the archive: crop, resize, grey or RGB."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edm.data.archive import picture_of
from edm.data.decoding import decoded
from edm.data.labels import shown
from edm.data.prepare.expected import Expected
from edm.data.unpacking import SizeError, check_image, check_shape
from edm.errors import UserError


@dataclass(frozen=True)
class Images:
    """The images of a source. ``read(i)`` returns the bytes of an image file, or uint8 [C, H, W]; it is thread-safe.

    identity: hash of everything that the images and labels depend on, so that equal identities give equal archives.
    names: names of the images for messages, if they have any.
    """

    where: str
    count: int
    read: Callable[[int], bytes | np.ndarray]
    labels: list[int] | None
    identity: str
    names: Sequence[str] | None = None

    def place(self, i: int) -> str:
        """The location of image i, for messages."""
        return f"{self.where}: {shown(self.names[i]) if self.names else f'image {i}'}"


def picture(data: bytes, where: str, expected: Expected) -> Image.Image:
    """An image file as a picture: grey or RGB; cropped and resized on request.

    With ``expected.resolution`` it crops the centre square and resizes it with Pillow's Lanczos filter, as the authors
    did (App. F); without it the image keeps its size.
    Raises UserError for images that :func:`edm.data.decoding.decoded` refuses, and for an image whose size differs from
    the expected size of the source.
    """
    image = decoded(data, where)
    size = expected.source_size
    if size is not None and image.size != (size, size):
        width, height = image.size
        accept = f"; state source_size: {width} to accept" if width == height else ""
        raise UserError(
            f"{where} is {width}x{height}, {size}x{size} is expected, {expected.why('source_size')}{accept}"
        )
    if expected.resolution is not None and image.size != (expected.resolution, expected.resolution):
        image = _middle(image).resize((expected.resolution, expected.resolution), Image.Resampling.LANCZOS)
    return image


def as_asked(item: bytes | np.ndarray, where: str, expected: Expected, shape: tuple[int, ...] | None) -> Image.Image:
    """An item of a source as a picture with the requested channels, valid for an archive.

    Raises UserError if it is not an image, or if its shape [C, H, W] differs from that of the images before it.
    """
    try:
        if isinstance(item, bytes):
            image = picture(item, where, expected)
        else:
            check_image(item, where, None)
            image = picture_of(item)
        image = _with_channels(image, expected.channels, where)
        check_shape(shape_of(image), where, shape)
    except SizeError as error:
        unstated = [name for name in ("resolution", "channels") if getattr(expected, name) is None]
        raise UserError(f"{error}; state {' and '.join(unstated)} to make all images alike") from None
    return image


def shape_of(image: Image.Image) -> tuple[int, int, int]:
    """[C, H, W] of a picture."""
    return len(image.getbands()), image.height, image.width


def _with_channels(image: Image.Image, channels: int | None, where: str) -> Image.Image:
    if channels is None or len(image.getbands()) == channels:
        return image
    if channels == 1:
        raise UserError(f"{where} is in colour, but channels: 1 is asked; state channels: 3")
    return image.convert("RGB")


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
