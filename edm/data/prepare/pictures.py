"""Images of a source as an archive holds them: cropped, resized, grey or RGB."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edm.data.archive import check_image
from edm.data.decoding import decoded
from edm.data.labels import shown
from edm.data.prepare.expected import Expected
from edm.errors import UserError


@dataclass(frozen=True)
class Images:
    """The images of a source. ``read(i)`` is the bytes of an image file, or uint8 [C, H, W]; any thread may call it.

    identity: hash of everything that the images and labels depend on, so that equal identities give equal archives.
    names: what to call the images in messages, where they have names.
    """

    where: str
    count: int
    read: Callable[[int], bytes | np.ndarray]
    labels: list[int] | None
    identity: str
    names: Sequence[str] | None = None

    def place(self, i: int) -> str:
        """Where image i is, for messages."""
        return f"{self.where}: {shown(self.names[i]) if self.names else f'image {i}'}"


def pixels(data: bytes, where: str, expected: Expected) -> np.ndarray:
    """An image file as uint8 [C, H, W]: grey as one channel, anything else as RGB; cropped and resized where asked.

    With ``expected.resolution`` the middle square over the short side is cut out and resized by Pillow's Lanczos
    filter, as the authors did (App. F); without it the image is taken as it is.
    Raises UserError for what :func:`edm.data.decoding.decoded` refuses, and for an image of another size than the
    source is expected to have.
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
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def as_asked(item: bytes | np.ndarray, where: str, expected: Expected, shape: tuple[int, ...] | None) -> np.ndarray:
    """What a source reads as uint8 [C, H, W] with the channels that are asked, fit to stand in an archive.

    Raises UserError where it is no image, or is unlike the shape of those before it.
    """
    image = pixels(item, where, expected) if isinstance(item, bytes) else item
    image = _with_channels(image, expected.channels, where)
    try:
        check_image(image, where, shape)
    except UserError as error:
        raise UserError(f"{error}; state resolution and channels to make all images alike") from None
    return image


def _with_channels(image: np.ndarray, channels: int | None, where: str) -> np.ndarray:
    if channels is None or image.shape[0] == channels:
        return image
    if channels == 1:
        raise UserError(f"{where} is in colour, but channels: 1 is asked; state channels: 3")
    return np.repeat(image, channels, axis=0)


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
