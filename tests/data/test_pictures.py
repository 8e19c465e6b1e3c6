"""Picture files of every kind, through ``prepare`` and in an archive that is read directly: one set of rules."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import edm
from edm.data.archive import read_archive
from edm.data.prepare import prepare

SIDE = 16
RAMP = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP.T], axis=2)
ALPHA = np.where(np.arange(SIDE) < 4, 0, np.where(np.arange(SIDE) < 8, 128, 255))[None].repeat(SIDE, 0).astype(np.uint8)


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.fixture
def both_ways(tmp_path):
    """The images [N, C, H, W] of files in a zip, read as an archive and through ``prepare``, which must agree."""

    def read(*files, suffix=".png", **options):
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i, content in enumerate(files):
                archive.writestr(f"{i}{suffix}", content)
            archive.writestr("dataset.json", '{"labels": null}')
        results = []
        for way in (lambda: read_archive(path), lambda: read_archive(prepared(path, **options))):
            try:
                results.append(way().images)
            except edm.UserError as error:
                results.append(str(error))
        if isinstance(results[0], str):
            assert results[0].split(";")[0] == results[1].split(";")[0] and "\n" not in results[0]
            raise edm.UserError(results[0])
        assert (results[0] == results[1]).all()
        return results[0]

    def prepared(path, **options):
        prepare("zip", tmp_path / "out.zip", path, workers=1, **options)
        return tmp_path / "out.zip"

    return read


def on_white(pixels, alpha=ALPHA):
    """Pixels uint8 [H, W] or [H, W, 3] over white, in whole numbers as the nearest."""
    share = alpha[..., None] / 255 if pixels.ndim == 3 else alpha / 255
    return np.rint(pixels * share + 255 * (1 - share))


def chunked(header, *chunks):
    """A PNG of its IHDR fields and further chunks."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, *header)), *chunks, (b"IEND", b"")]
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def rows(data):
    """Rows of bytes [H, n] as an IDAT chunk."""
    return b"IDAT", zlib.compress(b"".join(b"\0" + bytes(row) for row in data))


GREY, COLOUR = Image.fromarray(RAMP), Image.fromarray(COLOURS)
BLACK_WHITE = GREY.convert("1", dither=Image.Dither.NONE)
PALETTE = COLOUR.quantize(64)
LOSSY = Image.open(io.BytesIO(saved(COLOUR, "JPEG")))
CMYK = Image.merge("CMYK", [*COLOUR.split(), Image.new("L", (SIDE, SIDE), 0)])


def adam7(image):
    """An interlaced 8-bit grey PNG (PNG specification, Section 8.2)."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b"".join(b"\0" + bytes(row) for x, y, dx, dy in passes for row in image[y::dy, x::dx])
    return chunked((8, 0, 0, 0, 1), (b"IDAT", zlib.compress(data)))


@pytest.mark.parametrize(
    "content, suffix, expected",
    [
        (saved(BLACK_WHITE), ".png", np.asarray(BLACK_WHITE.convert("L"))),
        (saved(GREY), ".png", RAMP),
        (saved(COLOUR), ".png", COLOURS),
        (saved(PALETTE), ".png", np.asarray(PALETTE.convert("RGB"))),
        (adam7(RAMP), ".png", RAMP),
        (saved(COLOUR), ".PNG", COLOURS),
        (saved(COLOUR, "JPEG"), ".jpg", np.asarray(LOSSY)),
        (saved(COLOUR, "JPEG"), ".JPEG", np.asarray(LOSSY)),
        (saved(GREY, "JPEG", quality=100), ".jpg", None),
        (saved(CMYK, "TIFF"), ".tif", 255 - np.asarray(CMYK)[..., :3]),
        (saved(COLOUR, "BMP"), ".bmp", COLOURS),
        (saved(COLOUR, "WEBP", lossless=True), ".webp", COLOURS),
        (saved(PALETTE, "GIF"), ".gif", np.asarray(PALETTE.convert("RGB"))),
        (saved(COLOUR, "TIFF"), ".tif", COLOURS),
        (saved(COLOUR, "TIFF", compression="tiff_lzw"), ".tiff", COLOURS),
        (saved(GREY, "TIFF"), ".TIFF", RAMP),
    ],
)
def test_every_promised_kind_of_file_is_read(both_ways, content, suffix, expected):
    (image,) = both_ways(content, suffix=suffix)
    if expected is None:
        assert image.shape[0] == 1 and abs(image[0].astype(int) - RAMP).max() <= 3
    else:
        assert (image == (expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1))).all()


def test_an_archive_drops_no_picture_for_its_format(both_ways, tmp_path):
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for name, content in (("0.png", saved(COLOUR)), ("1.jpg", saved(COLOUR, "JPEG")), ("2.PNG", saved(COLOUR))):
            archive.writestr(name, content)
        archive.writestr("dataset.json", json.dumps({"labels": [["0.png", 0], ["1.jpg", 1], ["2.PNG", 2]]}))
    dataset = read_archive(tmp_path / "mixed.zip")
    assert len(dataset.images) == 3 and dataset.labels.tolist() == [0, 1, 2]
    assert (dataset.images[1] == np.asarray(LOSSY).transpose(2, 0, 1)).all()


# Transparency ---------------------------------------------------------------------------------------------------------


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.fromarray(ALPHA))
    return image


def palette_with_transparency():
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)], 1).astype(np.uint8)
    image = Image.fromarray(RAMP)
    image.putpalette(palette.tobytes())
    return image, palette


@pytest.mark.parametrize("format, options, suffix", [
    ("PNG", {}, ".png"), ("TIFF", {}, ".tif"), ("WEBP", {"lossless": True, "exact": True}, ".webp"),
])  # fmt: skip
def test_colour_lies_on_white_and_what_is_hidden_never_shows(both_ways, format, options, suffix):
    (image,) = both_ways(saved(with_alpha(COLOUR), format, **options), suffix=suffix)
    assert np.abs(image.transpose(1, 2, 0) - on_white(COLOURS)).max() <= 1
    assert (image[:, :, :4] == 255).all(), "nothing of a hidden colour"


@pytest.mark.parametrize("format, suffix", [("PNG", ".png"), ("TIFF", ".tif")])
def test_transparent_grey_stays_grey(both_ways, format, suffix):
    (image,) = both_ways(saved(with_alpha(GREY), format), suffix=suffix)
    assert image.shape[0] == 1 and np.abs(image[0] - on_white(RAMP)).max() <= 1


def test_transparent_entries_of_a_palette_are_white(both_ways):
    image, palette = palette_with_transparency()
    alphas = bytes([0, 128]) + bytes([255]) * 254
    (partly,) = both_ways(saved(image, transparency=alphas))
    expected = on_white(palette[RAMP], np.frombuffer(alphas, np.uint8)[RAMP])
    assert np.abs(partly.transpose(1, 2, 0) - expected).max() <= 1
    (gif,) = both_ways(saved(image, "GIF", transparency=3), suffix=".gif")
    assert (gif[:, RAMP == 3] == 255).all() and (gif[:, RAMP != 3] == palette[RAMP[RAMP != 3]].T).all()


def test_one_transparent_colour_is_white(both_ways):
    (grey,) = both_ways(saved(GREY, transparency=5))
    assert (grey[0] == np.where(RAMP == 5, 255, RAMP)).all()
    key = tuple(COLOURS[3, 4].tolist())
    (colour,) = both_ways(saved(COLOUR, transparency=key))
    hidden = (np.array(key) == COLOURS).all(2)
    assert hidden.any() and (colour.transpose(1, 2, 0) == np.where(hidden[..., None], 255, COLOURS)).all()
    (bits,) = both_ways(saved(BLACK_WHITE, transparency=0))
    assert (bits == 255).all(), "black was transparent"


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_meant_before_it_is_scaled(both_ways, depth):
    most = (1 << depth) - 1
    levels = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % (most + 1)
    packed = np.packbits((levels[..., None] >> np.arange(depth)[::-1] & 1).reshape(SIDE, -1).astype(np.uint8), axis=1)
    (image,) = both_ways(chunked((depth, 0, 0, 0, 0), (b"tRNS", struct.pack(">H", 1)), rows(packed)))
    assert (image[0] == np.where(levels == 1, 255, levels * (255 // most))).all()


# Orientation ----------------------------------------------------------------------------------------------------------

#: What each orientation says of the first row and column of the stored pixels (Exif 3.0, tag 0x0112).
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def oriented(upright, orientation, format, **options):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(stored, format, exif=exif, **options)


@pytest.mark.parametrize("format, options, suffix", [
    ("PNG", {}, ".png"), ("TIFF", {}, ".tif"), ("TIFF", {"compression": "tiff_lzw"}, ".tif"),
    ("WEBP", {"lossless": True}, ".webp"),
])  # fmt: skip
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright(both_ways, orientation, format, options, suffix):
    (image,) = both_ways(oriented(COLOURS, orientation, format, **options), suffix=suffix)
    assert (image.transpose(1, 2, 0) == COLOURS).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_photograph_is_turned_before_its_middle_is_cut_out(tmp_path, orientation):
    """A phone's picture: the crop of the upright image, not of the one on its side."""
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16] = (255, 0, 0)  # the top, which lies partly in the middle square
    upright[32:] = (0, 0, 255)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(oriented(upright, orientation, "JPEG", quality=95))
    prepare("folder", tmp_path / "o.zip", tmp_path / "in", resolution=32, workers=1)
    image = read_archive(tmp_path / "o.zip").images[0].transpose(1, 2, 0).astype(int)
    assert np.abs(image - upright[8:40]).max() < 60, "the square of the upright picture"


def test_damaged_exif_data_say_nothing(both_ways):
    (image,) = both_ways(saved(COLOUR, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff"), suffix=".jpg")
    assert (image.transpose(1, 2, 0) == np.asarray(LOSSY)).all()


# Refused --------------------------------------------------------------------------------------------------------------


def wide(mode):
    return Image.frombytes(mode, (SIDE, SIDE), bytes(SIDE * SIDE * {"I": 4, "F": 4, "I;16": 2}[mode]))


def deep_png(kind, channels):
    """A PNG of 16 bits per channel."""
    return chunked((16, kind, 0, 0, 0), rows(np.full((SIDE, SIDE * channels * 2), 9, np.uint8)))


def deep_tiff():
    """An RGB TIFF of 16 bits per channel, uncompressed; its tags in the order of their numbers."""
    pixels = np.full((SIDE, SIDE, 3), 999, "<u2").tobytes()
    tags = [(256, 3, 1, SIDE), (257, 3, 1, SIDE), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
            (277, 3, 1, 3), (278, 3, 1, SIDE), (279, 4, 1, len(pixels))]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 14 + len(pixels)) + struct.pack("<3H", 16, 16, 16) + pixels + directory


def several(format, **options):
    others = [Image.fromarray(255 - COLOURS), Image.fromarray(COLOURS // 2)]
    return saved(COLOUR, format, save_all=True, append_images=others, **options)


@pytest.mark.parametrize(
    "content, suffix, message",
    [
        (saved(wide("I;16")), ".png", "has pixels of kind I;16; convert it to 8 bits per channel"),
        (saved(wide("I"), "TIFF"), ".tif", "has pixels of kind I; convert it to 8 bits per channel"),
        (saved(wide("F"), "TIFF"), ".tif", "has pixels of kind F; convert it to 8 bits per channel"),
        (deep_png(2, 3), ".png", "has 16 bits per channel; convert it"),
        (deep_png(6, 4), ".png", "has 16 bits per channel; convert it"),
        (deep_png(4, 2), ".png", "has 16 bits per channel; convert it"),
        (deep_tiff(), ".tif", "has 16 bits per channel; convert it"),
        (several("GIF"), ".gif", "holds several pictures"),
        (several("TIFF"), ".tif", "holds several pictures"),
        (several("WEBP"), ".webp", "holds several pictures"),
        (several("PNG"), ".png", "holds several pictures"),
        (saved(COLOUR)[:-60], ".png", "is not a readable image"),
        (saved(COLOUR, "PPM"), ".png", "is not a readable image"),
        (saved(COLOUR, "PPM"), ".ppm", r"is not an image \(\.png, \.jpg.*\); take it out"),
        (b"a text", ".txt", r"is not an image"),
    ],
)
def test_what_cannot_be_read_without_a_guess_is_refused(both_ways, content, suffix, message):
    with pytest.raises(edm.UserError, match=f"0{suffix} {message}"):
        both_ways(content, suffix=suffix)


def test_the_preview_behind_a_phone_s_jpeg_is_no_second_picture(both_ways):
    """A JPEG with a gain map or a preview (MPO): the first picture is the photograph."""
    content = saved(COLOUR, "MPO", save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
    (image,) = both_ways(content, suffix=".jpg")
    assert np.abs(image.transpose(1, 2, 0).astype(int) - np.asarray(LOSSY)).max() < 60
