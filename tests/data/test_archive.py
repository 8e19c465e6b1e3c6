"""Dataset archives: the published format, equal bytes from equal images, clear words for anything else."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

import edm
from edm.data.archive import images_in_chunks, read_archive, some_images, write_archive
from edm.data.prepare import prepare
from edm.data.zip_writer import image_name


def test_an_archive_has_the_published_layout(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, list(range(12)))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert json.loads(archive.read("dataset.json"))["labels"][3] == ["00000/img00000003.png", 3]
        with Image.open(io.BytesIO(archive.read("00000/img00000005.png"))) as image:
            assert (np.asarray(image).transpose(2, 0, 1) == rgb_images[5]).all()
    assert image_name(12_345) == "00012/img00012345.png"


def test_parts_of_an_archive_are_those_of_the_whole(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, list(range(12)))
    parts = list(images_in_chunks(tmp_path / "a.zip", 5))
    assert [len(part) for part in parts] == [5, 5, 2]
    assert (np.concatenate(parts) == rgb_images).all()
    assert (some_images(tmp_path / "a.zip", range(3, 7)) == rgb_images[3:7]).all()
    with pytest.raises(edm.UserError, match="no such file; expected a dataset archive"):
        next(images_in_chunks(tmp_path / "b.zip"))


@pytest.mark.parametrize("labels", [None, [2, 0, 1] * 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back(tmp_path, rgb_images, labels, channels):
    images = rgb_images[:, :channels]
    write_archive(tmp_path / "a.zip", images, labels)
    dataset = read_archive(tmp_path / "a.zip")
    assert (dataset.images == images).all()
    assert (dataset.labels is None) if labels is None else (dataset.labels.tolist() == labels)


def test_equal_images_give_equal_bytes(tmp_path, rgb_images):
    for name in ("a.zip", "b.zip"):
        write_archive(tmp_path / name, rgb_images, None)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_digits_are_the_real_ones(digits):
    from sklearn.datasets import load_digits

    assert digits.images.shape == (1797, 1, 8, 8) and digits.classes == 10
    assert (np.rint(digits.images[:, 0] * (16 / 255)) == load_digits().images).all()
    assert digits.images.max() == 255


def break_member(path, name, data):
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members[name] = data
    with zipfile.ZipFile(path, "w") as archive:
        for n, content in members.items():
            if content is not None:
                archive.writestr(n, content)


@pytest.mark.parametrize(
    "member, content, message",
    [
        ("00000/img00000003.png", b"not a png", "00000/img00000003.png is not a readable image"),
        ("dataset.json", None, "dataset.json is missing"),
    ],
)
def test_a_damaged_archive_is_named_with_what_is_wrong(tmp_path, rgb_images, member, content, message):
    write_archive(tmp_path / "a.zip", rgb_images, [0] * 12)
    break_member(tmp_path / "a.zip", member, content)
    with pytest.raises(edm.UserError, match=message) as caught:
        read_archive(tmp_path / "a.zip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("notes.txt", r"notes\.txt is not an image"),
        ("00000/img00000012.avif", "img00000012.avif is not an image"),
        ("00000/img00000011.png", "holds 00000/img00000011.png a second time"),
    ],
)
def test_nothing_in_an_archive_is_dropped_in_silence(tmp_path, rgb_images, name, message):
    write_archive(tmp_path / "a.zip", rgb_images, [0] * 12)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr(name, b"x")  # Python warns of a name that stands twice
    with pytest.raises(edm.UserError, match=message):
        read_archive(tmp_path / "a.zip")


def test_what_a_mac_adds_to_an_archive_is_skipped(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, list(range(12)))
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        for name in (".DS_Store", "__MACOSX/._dataset.json", "__MACOSX/00000/._img00000000.png", "00000/.DS_Store"):
            archive.writestr(name, b"\0\5\x16\7")
    dataset = read_archive(tmp_path / "a.zip")
    assert (dataset.images == rgb_images).all() and dataset.labels.tolist() == list(range(12))
    assert (some_images(tmp_path / "a.zip", range(2)) == rgb_images[:2]).all()


def test_an_archive_zipped_again_with_its_folder_is_read(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, list(range(12)))
    with zipfile.ZipFile(tmp_path / "a.zip") as ours, zipfile.ZipFile(tmp_path / "b.zip", "w") as again:
        for name in ours.namelist():
            again.writestr(f"digits/{name}", ours.read(name))
    dataset = read_archive(tmp_path / "b.zip")
    assert (dataset.images == rgb_images).all() and dataset.labels.tolist() == list(range(12))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((8, 8, 3), np.uint8), "unlike those before it"),
        (np.zeros((16, 8, 3), np.uint8), "must be square"),
        (np.zeros((7, 7, 3), np.uint8), "of at least 8 pixels"),
    ],
)
def test_images_of_the_wrong_size_are_named(tmp_path, rgb_images, image, message):
    write_archive(tmp_path / "a.zip", rgb_images, None)
    break_member(tmp_path / "a.zip", "00000/img00000007.png", png(image))
    with pytest.raises(edm.UserError, match=f"img00000007.png .*{message}"):
        read_archive(tmp_path / "a.zip")


def test_a_truncated_archive_is_refused_at_any_length(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, None)
    whole = (tmp_path / "a.zip").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.zip").write_bytes(whole[:length])
        with pytest.raises(edm.UserError, match=r"b\.zip: not a readable zip archive"):
            read_archive(tmp_path / "b.zip")


def test_a_compressed_archive_with_flipped_bits_is_refused(tmp_path, rgb_images):
    """Others may compress what we store: a damaged stream is zlib's error, and the user's one line."""
    write_archive(tmp_path / "a.zip", rgb_images, None)
    with zipfile.ZipFile(tmp_path / "a.zip") as source, zipfile.ZipFile(tmp_path / "b.zip", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "b.zip").read_bytes())
    for place in range(60, len(data) // 2, 97):
        data[place] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(edm.UserError, match=r"b\.zip: ") as caught:
        read_archive(tmp_path / "b.zip")
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, rgb_images):
    with pytest.raises(edm.UserError, match="12 images but 3 labels"):
        write_archive(tmp_path / "a.zip", rgb_images, [1, 2, 3])
    with pytest.raises(edm.UserError, match="choose one of digits"):
        prepare("cats", tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_small_archive_of_large_black_images_is_refused_before_it_fills_the_memory(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(buffer, format="png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(200):
            archive.writestr(image_name(i), buffer.getvalue())
        archive.writestr("dataset.json", b'{"labels": null}')
    for read in (read_archive, lambda path: next(images_in_chunks(path))):
        with pytest.raises(edm.UserError, match="unfold to 629,145,600 bytes, more than 256 times its files"):
            read(tmp_path / "a.zip")
    assert some_images(tmp_path / "a.zip", range(2)).shape == (2, 3, 1024, 1024)
