"""Decodes image files, with the same rules for raw data and archives (docs/dataset.md lists them).

It checks the declared size of an image before decoding it.
"""

import io
import warnings

from PIL import ExifTags, Image, ImageChops, TiffImagePlugin

from edm.errors import UserError, one_line

FORMATS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",),
    "GIF": (".gif",), "TIFF": (".tif", ".tiff"),
}  # fmt: skip
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 1 << 26  # 8192 x 8192: 200 MB as RGB
_MOST_WORK = 1 << 34  # pixels times scans of a JPEG: each takes a pass over all; a photograph has 10 scans
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr")
#: The transposition that turns an image upright, by Exif orientation (Exif 3.0, tag 0x0112); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def decoded(data: bytes, where: str) -> Image.Image:
    """An image file as 8-bit grey (mode L) or colour (RGB), turned upright, with transparent pixels on white.

    Raises UserError, beginning with ``where``, for data that is not such an image, is damaged or too large; for more
    than 8 bits per channel, whose scaling would be a guess; and for several pictures in one file (an animation, pages),
    of which all but one would be lost. Previews that phones append to a JPEG do not count.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about damaged Exif data, and sizes that are refused below
            Image.open(io.BytesIO(data), formats=list(FORMATS)) as image,
        ):
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{where} declares {width}x{height} pixels; more than {MAX_PIXELS:,} are refused")
            if image.format in ("JPEG", "MPO") and width * height * data.count(b"\xff\xda") > _MOST_WORK:
                raise UserError(f"{where} has too many scans for {width}x{height} pixels; save it again")
            bits = _bits(image, data)
            if image.mode not in (*_GREY, *_COLOUR):
                raise UserError(f"{where} has pixels of kind {image.mode}; convert it to 8 bits per channel")
            if bits > 8:
                raise UserError(f"{where} has {bits} bits per channel; convert it to 8 bits per channel")
            if image.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(image, "is_animated", False):
                raise UserError(f"{where} holds several pictures (an animation or pages); save each as a file")
            image.load()
            return _on_white(_upright(image), bits)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{where} declares too many pixels; more than {MAX_PIXELS:,} are refused") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{where} is not a readable image ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions
        raise UserError(f"{where} is not a readable image ({one_line(error)})") from None


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel as the file declares them: Pillow silently reduces 16-bit RGB to 8 bits."""
    if image.format == "PNG":
        if data[12:16] != b"IHDR":
            raise ValueError("its first chunk is not IHDR")
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
    return 8


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 0))  # Pillow turns a TIFF itself
    except Exception:  # ignore damaged Exif data: the pixels are intact
        turn = None
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image, bits: int) -> Image.Image:
    grey = image.mode in _GREY
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    if image.mode == "L" and bits < 8 and image.format == "PNG":  # the transparent grey is not scaled to 8 bits
        image.info["transparency"] *= 255 // ((1 << bits) - 1)
    layer = image.convert("LA" if grey else "RGBA")
    clear = ImageChops.invert(layer.getchannel("A"))
    page = layer.convert("L" if grey else "RGB")
    page.paste("white", (0, 0), clear)
    return page
