"""The test split of a source, and a part of it held out by name."""

import hashlib

import numpy as np
import pytest
from made_up import picture, write_folder

import edm
from edm.data.archive import read_archive
from edm.data.prepare import prepare
from edm.data.prepare.made_up import made_up


def archive(folder, source, path=None, **options):
    prepare(source, folder / "out.zip", path, workers=1, **options)
    return read_archive(folder / "out.zip")


def found(images):
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("source", ["cifar10", "mnist"])
def test_the_test_images_are_not_those_of_training(tmp_path, source):
    made_up(source, tmp_path / "raw", 40)
    options = {"checksum": False} if source == "cifar10" else {}
    train = archive(tmp_path, source, tmp_path / "raw", images=40, **options)
    same = archive(tmp_path, source, tmp_path / "raw", images=40, split="train", **options)
    test = archive(tmp_path, source, tmp_path / "raw", images=4, classes=4, split="test", **options)
    assert (same.images == train.images).all()
    assert test.labels.tolist() == [0, 1, 2, 3] and not found(test.images) & found(train.images)


@pytest.mark.parametrize("source", ["cifar10", "mnist"])
def test_the_whole_test_set_is_expected(tmp_path, source):
    made_up(source, tmp_path / "raw", 40)
    with pytest.raises(edm.UserError, match=r"10,000 images expected, as in the paper; 4 images found"):
        archive(tmp_path, source, tmp_path / "raw", split="test", checksum=False)


def test_of_a_folder_it_is_the_subfolder(tmp_path):
    names = [f"{split}/{kind}/{i}.png" for split, count in (("train", 3), ("test", 2)) for kind in "ab"
             for i in range(count)]  # fmt: skip
    folder = write_folder(tmp_path / "in", {name: picture(i) for i, name in enumerate(names)})
    train, test = (archive(tmp_path, "folder", folder, split=split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.labels.tolist() == [0, 0, 1, 1]
    assert not found(test.images) & found(train.images)
    flat = write_folder(tmp_path / "flat", {f"{i}.png": picture(i) for i in range(3)})
    with pytest.raises(edm.UserError, match=r"flat: has no folder test/; add one, or hold out a part by name"):
        archive(tmp_path, "folder", flat, split="test")


def test_a_fraction_of_the_digits_is_held_out_by_number(tmp_path):
    whole = archive(tmp_path, "digits")
    train = archive(tmp_path, "digits", held_out=0.1)
    test = archive(tmp_path, "digits", split="test", held_out=0.1)
    held = [i for i in range(1797) if int(hashlib.sha256(str(i).encode()).hexdigest()[:16], 16) < 0.1 * 2**64]
    assert (test.images == whole.images[held]).all() and test.labels.tolist() == whole.labels[held].tolist()
    assert (train.images == np.delete(whole.images, held, 0)).all()
    assert 140 < len(held) < 220


def test_an_image_stays_in_its_part_when_others_come(tmp_path):
    """In any Unicode spelling of its name."""
    few = {f"ä{i}.png": picture(i) for i in range(20)}  # composed
    more = {f"a\u0308{i}.png": picture(i) for i in range(20)} | {f"b{i}.png": picture(20 + i) for i in range(20)}
    parts = [archive(tmp_path, "folder", write_folder(tmp_path / name, content), split="test", held_out=0.4)
             for name, content in (("few", few), ("more", more))]  # fmt: skip
    old = found(archive(tmp_path, "folder", tmp_path / "few").images)
    assert 0 < len(parts[0].images) < 20
    assert found(parts[0].images) == found(parts[1].images) & old


def test_an_empty_part_is_named(tmp_path):
    folder = write_folder(tmp_path / "in", {"a.png": picture(0)})
    with pytest.raises(edm.UserError, match=r"in: held_out: 0\.001 of 1 images leaves none for one split"):
        archive(tmp_path, "folder", folder, split="test", held_out=0.001)
    with pytest.raises(edm.UserError, match="held_out is 1; expected a fraction between 0 and 1"):
        archive(tmp_path, "folder", folder, held_out=1)
