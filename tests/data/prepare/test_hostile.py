"""Bad folders, zips and idx files: one clear line, nothing left beside the output, little memory spent."""

import bz2
import gzip
import io
import os
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
from made_up import idx_file, labels_file, picture, write_folder, write_mnist, write_zip
from PIL import Image

import edm
from edm.data.archive import read_archive
from edm.data.prepare import prepare

pytestmark = pytest.mark.usefixtures("cheap")


# Folders and zips -----------------------------------------------------------------------------------------------------


LEADS_OUT = "is a name that leads out of the archive"


@pytest.mark.parametrize(
    "name, message",
    [
        ("../a.png", LEADS_OUT),
        ("/a.png", LEADS_OUT),
        ("a/../../b.png", LEADS_OUT),
        ("..", LEADS_OUT),
        ("a\\b.png", "has a backslash in its name"),
        ("C:/a.png", "has a colon in 'C:'"),
        ("rose: red/1.png", "has a colon in 'rose: red', .*; rename that"),
        ("a//b.png", "has a folder without a name in its path"),
    ],
)
def test_a_name_that_a_zip_should_not_hold_is_refused_with_what_is_wrong(tmp_path, refused, classes, name, message):
    path = write_zip(tmp_path / "a.zip", classes | {"dataset.json": labels_file(None)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), picture(1))
    refused(message, "zip", path)
    with pytest.raises(edm.UserError, match=message):
        read_archive(path)


@pytest.mark.parametrize("name", ["..\\a.png", "\\a.png", "a\\..\\..\\b.png", "C:\\a.png", "a\\\\b.png"])
def test_backslashes_of_windows_lead_out_no_more_than_slashes(tmp_path, refused, classes, name):
    path = write_zip(tmp_path / "a.zip", classes)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 0
        archive.writestr(info, picture(1))
    refused(f"{LEADS_OUT}|has a colon in 'C:'|has a folder without a name", "zip", path)


def edited(path, **fields):
    """Rewrites fields of the last member in the zip's directory and in the header before its bytes."""
    data = bytearray(path.read_bytes())
    offsets = {"flags": (6, 8), "method": (8, 10), "crc": (14, 16), "packed": (18, 20), "size": (22, 24)}
    for name, value in fields.items():
        for signature, place in zip((b"PK\3\4", b"PK\1\2"), offsets[name], strict=True):
            at = data.rfind(signature) + place
            struct.pack_into("<H" if name in ("flags", "method") else "<I", data, at, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"flags": 1}, "1.png is encrypted; unpack"),
        ({"method": zipfile.ZIP_LZMA}, "compressed by another method than deflate"),
        ({"size": 0xFFFFFFFE}, "claims 4,294,967,294 bytes; more than"),
        ({"crc": 7}, "1.png is damaged .*CRC"),
        ({"size": 1000}, "1.png is damaged|1.png is not a readable image"),
        ({"method": 0}, "1.png is damaged|1.png is not a readable image"),
    ],
)
def test_members_that_lie_are_refused(tmp_path, refused, fields, message):
    path = write_zip(tmp_path / "a.zip", {"0.png": picture(0), "1.png": picture(1)})
    refused(message, "zip", edited(path, **fields))


@pytest.mark.slow
def test_a_zip_bomb_is_refused_for_what_it_claims_and_cut_at_what_it_claims(tmp_path, refused):
    path = write_zip(tmp_path / "a.zip", {"0.png": bytes(65 << 20)})
    refused("0.png claims 68,157,440 bytes; more than 67,108,864", "zip", path)
    path = write_zip(tmp_path / "b.zip", {"0.png": picture(0)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("1.png", "w") as member:
        for _ in range(200):
            member.write(bytes(1 << 20))
    refused("1.png is damaged|1.png is not a readable image", "zip", edited(path, size=1000))
    path = write_zip(tmp_path / "c.zip", {"0.png": picture(0), "dataset.json": bytes(40 << 20)})
    refused("dataset.json is far too large for 1 images", "zip", path)


def test_a_zip_that_is_not_whole_is_refused_at_any_length(tmp_path, refused, classes):
    whole = write_zip(tmp_path / "a.zip", classes).read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.zip").write_bytes(whole[:length])
        refused(r"b\.zip: not a readable zip archive", "zip", tmp_path / "b.zip")
    damaged = bytearray(whole)
    damaged[60:90] = bytes(30)
    (tmp_path / "b.zip").write_bytes(damaged)
    refused(r"cat/0\.png is damaged", "zip", tmp_path / "b.zip")


def test_two_zips_must_not_hold_the_same_name(tmp_path, refused, classes):
    paths = [write_zip(tmp_path / name, classes) for name in ("a.zip", "b.zip")]
    refused(r"b\.zip: holds cat/0\.png a second time", "zip", paths)


def huge_png(width, height, mode=2):
    header = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def text_bomb():
    """A PNG whose text decompresses to 60 MB."""
    text = b"k\0\0" + zlib.compress(bytes(60 << 20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    whole = picture(1)
    return whole[:33] + chunk + whole[33:]


def sixteen_bits():
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (huge_png(100_000, 100_000), "declares too many pixels"),
        (huge_png(9_000, 9_000), "declares 9000x9000 pixels; more than 67,108,864"),
        (huge_png(9_500, 9_500), "declares 9500x9500 pixels; more than 67,108,864"),
        (text_bomb(), "is not a readable image .*Decompressed data too large"),
        (picture(1)[:-40], "is not a readable image"),
        (picture(1, format="JPEG")[:300], "is not a readable image"),
        (b"", "is not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a readable image"),
        (b"<svg/>" * 100, "is not a readable image"),
        (bz2.compress(b"text"), "is not a readable image"),
        (sixteen_bits(), "has pixels of kind I;16; convert it to 8 bits"),
    ],
)
@pytest.mark.parametrize("place", ["0.png", "9.png"])
def test_files_that_are_no_harmless_image_are_named(tmp_path, refused, content, message, place):
    """The first of all, and one met by a worker."""
    files = {f"{i}.png": picture(i) for i in range(1, 9)} | {place: content}
    refused(f"{place[0]}.png {message}", "folder", write_folder(tmp_path / "in", files), resolution=8, channels=3)


@pytest.mark.parametrize("name", ["cat/notes.txt", "dog/movie.mp4", "archive.tar", "cat/more.zip", "x\ny.doc"])
def test_files_that_are_not_images_are_named(tmp_path, refused, classes, name):
    refused(f"{ascii(name)[1:-1]}.* is not an image".replace("\\", "\\\\"), "folder",
            write_folder(tmp_path / "in", classes | {name: b"x"}))  # fmt: skip


def test_what_is_neither_file_nor_folder_does_not_block(tmp_path, refused, classes):
    top = write_folder(tmp_path / "in", classes)
    os.mkfifo(top / "cat" / "pipe.png")
    refused("cat/pipe.png is neither a file nor a folder", "folder", top)
    (top / "cat" / "pipe.png").unlink()
    (top / "dog" / "circle").symlink_to(top)
    refused("is a link to a folder that holds it", "folder", top)
    (top / "dog" / "circle").unlink()
    (top / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    refused("cannot be read", "folder", top)


def test_mixed_sizes_and_kinds_need_to_be_told_what_to_become(tmp_path, refused, classes):
    for number, (content, message) in enumerate(
        (
            (picture(1, 32, 32), "is 32x32 with 3 channels, unlike those before it .*state resolution and channels to"),
            (picture(1, 16, 24), "is 16x24; images must be square, of at least 8 pixels; state resolution"),
            (picture(1, 16, 16, "L"), "is 16x16 with 1 channels, unlike those before it .*state .*channels"),
        )
    ):
        path = write_folder(tmp_path / f"in{number}", classes | {"dog/9.png": content})
        refused(f"dog/9.png {message}", "folder", path)
        prepare("folder", tmp_path / "o.zip", path, resolution=16, channels=3)


def test_what_was_stated_is_not_asked_for_again(tmp_path, refused, classes):
    path = write_folder(tmp_path / "in", classes | {"dog/9.png": picture(1, 16, 16, "L")})
    refused("unlike those before it .*; state channels to make", "folder", path, resolution=16)
    path = write_folder(tmp_path / "in", {"dog/9.png": picture(1, 32, 32)})
    refused("unlike those before it .*; state resolution to make", "folder", path, channels=3)
    for side in (7, 4, 1 << 15):
        refused(f"^resolution is {side}; expected 8 to 16384", "folder", path, resolution=side)


def test_missing_labels_are_an_error_where_classes_are_expected(tmp_path, refused, classes):
    flat = write_folder(tmp_path / "flat", {f"{i}.png": picture(i) for i in range(3)})
    refused("has no labels, but 2 classes are expected; put each class in a folder", "folder", flat, classes=2)
    path = write_zip(tmp_path / "a.zip", classes | {"dataset.json": labels_file(None)})
    refused("has no labels, but 2 classes", "zip", path, classes=2)
    refused("0.png is beside class folders", "folder", write_folder(tmp_path / "in", classes | {"0.png": picture(1)}))


def test_two_files_of_labels_or_images_outside_are_an_error(tmp_path, refused, classes):
    twice = classes | {"dataset.json": labels_file(None), "cat/dataset.json": labels_file(None)}
    refused("one dataset has one dataset.json", "zip", write_zip(tmp_path / "a.zip", twice))
    outside = classes | {"cat/dataset.json": labels_file(None)}
    refused(r"dog/0\.png is outside of cat/", "zip", write_zip(tmp_path / "b.zip", outside))


def test_no_input_and_empty_input(tmp_path, refused):
    (tmp_path / "in").mkdir()
    refused("holds no images", "folder", tmp_path / "in")
    refused("needs an input", "imagenet", None)
    refused("no such file; expected a folder or a zip", "ffhq", tmp_path / "missing")
    refused("take no input file", "digits", tmp_path / "in")
    (tmp_path / "in" / "a.zip").write_bytes(b"no zip")
    refused(r"a\.zip: not a readable zip archive", "folder", tmp_path / "in")


def test_damage_met_late_leaves_nothing_behind_either(tmp_path, refused):
    files = {f"{i:03d}.png": picture(i) for i in range(200)} | {"200.png": b"no image"}
    refused("200.png is not a readable image", "folder", write_folder(tmp_path / "in", files))


# MNIST ----------------------------------------------------------------------------------------------------------------


def test_damaged_idx_files_are_named(tmp_path, refused):
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
    folder = tmp_path / "mnist"
    file = folder / "train-images-idx3-ubyte"
    write_mnist(folder, images[:, :27], labels)
    refused("images are 28x27; those of MNIST are 28x28", "mnist", folder, images=20)
    write_mnist(folder, images, labels[:19])
    refused("20 images but 19 labels", "mnist", folder, images=20)
    write_mnist(folder, images, labels)
    for content, message in (
        (idx_file(images)[:-1], r"truncated \(20 x 28 x 28 bytes are declared\)"),
        (idx_file(images) + b"x", "longer than it declares"),
        (idx_file(labels), "not an idx file of bytes in 3 dimensions"),
        (b"", "not an idx file"),
        (struct.pack(">I3I", 0x0803, 0xFFFFFFFF, 0xFFFFFFFF, 28), "declares 4294967295 x .* bytes; from 1 to"),
    ):
        file.write_bytes(content)
        refused(message, "mnist", folder, images=20)
    file.unlink()
    refused("train-images-idx3-ubyte .* is missing", "mnist", folder)


def test_compressed_idx_files_are_read_no_further_than_they_declare(tmp_path, refused):
    folder = write_mnist(tmp_path / "mnist", np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8), compress=True)
    file = folder / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(idx_file(np.zeros((20, 28, 28), np.uint8)))
        for _ in range(150):
            stream.write(bytes(1 << 20))
    refused("longer than it declares", "mnist", folder)
    file.write_bytes(whole[:-9])
    refused("cannot be read|truncated", "mnist", folder)
    file.write_bytes(b"no gzip")
    refused("cannot be read", "mnist", folder)


def test_refusals_stay_small_as_the_system_counts(tmp_path):
    """Pillow's own memory, which Python does not trace: a declared gigapixel costs nothing."""
    folder = write_folder(tmp_path / "in", {"a.png": huge_png(30_000, 30_000)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(edm.UserError, match="too many pixels"):
        prepare("folder", tmp_path / "o.zip", folder, resolution=64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_jpeg_with_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path, refused):
    """Each scan takes a pass over all pixels, though it may have no more than 13 bytes."""
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    frame, scan = data.find(b"\xff\xc2"), data.find(b"\xff\xda")
    data = data[: frame + 5] + struct.pack(">HH", 8000, 8000) + data[frame + 9 : scan] + data[scan : scan + 10] * 5000
    folder = write_folder(tmp_path / "in", {"a.jpg": data + b"\xff\xd9"})
    refused("a.jpg has too many scans for 8000x8000 pixels; save it again", "folder", folder, resolution=64)
