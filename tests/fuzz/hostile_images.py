"""Hostile image files: formats cut and bent, sizes that their bytes do not hold, and small files that decode slowly."""

import functools
import io
import random
import struct
import zlib

import numpy as np
from hostile_zips import zlib_zeros
from PIL import Image

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp"}
MODES = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA"], "JPEG": ["L", "RGB", "CMYK"], "GIF": ["L", "P"],
         "TIFF": ["1", "L", "RGB", "RGBA", "CMYK"], "WEBP": ["RGB", "RGBA"], "BMP": ["1", "L", "P", "RGB"]}  # fmt: skip
SIDE = 8  # of the harmless images


@functools.cache
def image(kind: str, mode: str, seed: int = 0, side: int = SIDE) -> bytes:
    """A small valid image file of noise."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))
    file = io.BytesIO()
    (noise.convert("RGBA") if mode == "LA" else noise).convert(mode).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, pixels: bytes, *extra: bytes, interlace: int = 0) -> bytes:
    """A PNG of these claims, whose pixels are already compressed."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@functools.cache
def largest_png(side: int, color: int) -> bytes:
    """A complete black PNG of that side: 8192 × 8192 pixels of RGBA take 260 KB as a file."""
    return png(side, side, 8, color, zlib_zeros(side * (1 + side * {0: 1, 2: 3, 6: 4}[color])))


def patched_jpeg(width: int, height: int, scans: int = 1, progressive: bool = True) -> bytes:
    """A JPEG of noise that claims another size, with its first scan repeated."""
    file = io.BytesIO()
    Image.frombytes("L", (16, 16), bytes(range(256))).save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    frame = data.find(b"\xff\xc2" if progressive else b"\xff\xc0")
    data = data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    first = data.find(b"\xff\xda")
    end = min(at for at in (data.find(mark, first + 2) for mark in (b"\xff\xda", b"\xff\xc4", b"\xff\xd9")) if at > 0)
    return data[:first] + data[first:end] * scans + b"\xff\xd9"


def bomb(draw: random.Random) -> tuple[bytes, str]:
    """A small file that decodes to much, or claims much. Returns its bytes and suffix."""
    kind = draw.randrange(8)
    width, height = draw.choice([(8192, 8192), (8193, 8192), (65_000, 65_000), (2**31 - 1, 1), (1, 2**26), (0, 0)])
    if kind == 0:
        return largest_png(8192, draw.choice([0, 2, 6])), ".png"
    if kind == 1:
        color, depth = draw.choice([0, 2, 3, 4, 6, 7]), draw.choice([1, 2, 4, 8, 16, 3])
        return png(width, height, depth, color, zlib_zeros(1 << 26), interlace=draw.randrange(2)), ".png"
    if kind == 2:
        text = draw.choice([b"zTXt", b"iCCP"]), b"k\0\0" + zlib_zeros(1 << 30)
        return png(8, 8, 8, 0, zlib.compress(bytes(72)), *[chunk(*text)] * draw.choice([1, 3])), ".png"
    if kind == 3:
        return patched_jpeg(*draw.choice([(8000, 8000), (65_500, 1000)]), draw.choice([1, 20, 20_000])), ".jpg"
    if kind == 4:
        data = bytearray(image("GIF", "P"))
        struct.pack_into("<HH", data, draw.choice([6, data.rfind(b",") + 5]), 65_535, 65_535)
        return bytes(data), ".gif"
    if kind == 5:
        data = bytearray(image("BMP", "RGB"))
        struct.pack_into("<ii", data, 18, draw.choice([8192, 2**31 - 1, -8]), draw.choice([8192, -(2**31), 2**30]))
        return bytes(data), ".bmp"
    if kind == 6:
        many = draw.choice([1, 3, 2**30])
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, many, 8), (259, 3, 1, 8), (262, 3, 1, 1),
                (273, 4, many, 8), (274, 3, 1, draw.randrange(10)), (277, 3, 1, draw.choice([1, 4, 65_535])),
                (278, 4, 1, height), (279, 4, many, 99)]  # fmt: skip
        directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
        return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", draw.choice([0, 8])), ".tif"
    data = bytearray(image("WEBP", "RGB"))
    at = draw.randrange(20, 30)
    data[at : at + 4] = b"\xff" * 4
    return bytes(data), ".webp"


def bent(draw: random.Random, data: bytes) -> bytes:
    """One to six changes of some bytes: bits turned, parts cut, repeated or overwritten."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 6])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind <= 1 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[at : draw.choice([at + 1, at + 8, len(data)])]
        elif kind == 3:
            data[at:at] = data[at : at + draw.choice([1, 4, 64])] * draw.choice([1, 50])
        else:
            number = draw.choice([b"\0", b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"\x7f", b"\x80\0", b"\0\0\0\1"])
            data[at : at + len(number)] = number
    return bytes(data)


def any_image(draw: random.Random) -> tuple[bytes, str]:
    """An image file and its suffix: harmless, damaged, or a bomb."""
    if draw.random() < 0.15:
        return bomb(draw)
    kind = draw.choice(list(FORMATS))
    data = image(kind, draw.choice(MODES[kind]), draw.randrange(3))
    return (bent(draw, data) if draw.random() < 0.7 else data), FORMATS[kind]
