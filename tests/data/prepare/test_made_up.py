"""Made-up data of every kind stand in for the real ones: the same layout, the same checks, archives that train."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

import edm
from edm.data.archive import read_archive
from edm.data.prepare import PAPER, prepare
from edm.data.prepare import made_up as module
from edm.data.prepare.made_up import made_up

KINDS = ["cifar10", "mnist", "ffhq", "afhqv2", "imagenet", "folder"]


def tree(path):
    """Everything below a folder, or a file, as names and bytes."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def prepared(tmp_path, kind, images, **options):
    """Makes up raw data and prepares them with what is to be stated of them."""
    stated = made_up(kind, tmp_path / "raw", images, **options)
    result = prepare(kind, tmp_path / "out.zip", tmp_path / "raw", **stated, workers=1)
    return stated, result, read_archive(tmp_path / "out.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_prepared_as_the_real_one_with_its_numbers_stated(tmp_path, kind):
    """Side, channels and labels come out as the paper used them; only counts and sizes of the source differ."""
    stated, result, dataset = prepared(tmp_path, kind, 23)
    paper = PAPER[kind]
    assert result["images"] == len(dataset.images) == stated["images"] == 23
    assert result["resolution"] == (paper.resolution or 64) and result["channels"] == (paper.channels or 3)
    assert (dataset.labels is None) == (paper.classes == 0)
    assert result["classes"] == stated.get("classes", 0) == (0 if paper.classes == 0 else dataset.classes)
    assert len(np.unique(dataset.images.reshape(23, -1), axis=0)) == 23, "no picture twice"
    assert dataset.images.std() > 20


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])  # of which anything is accepted
def test_without_its_numbers_stated_it_is_not_taken_for_the_real_one(tmp_path, kind):
    made_up(kind, tmp_path / "raw", 10)
    with pytest.raises(edm.UserError, match=r"MD5 is|expected, as in the paper"):
        prepare(kind, tmp_path / "out.zip", tmp_path / "raw")


def test_sizes_and_classes_are_those_asked(tmp_path):
    stated, result, _ = prepared(tmp_path / "a", "ffhq", 2, side=100)
    assert stated["source_size"] == 100 and result["resolution"] == 64
    stated, _, dataset = prepared(tmp_path / "b", "imagenet", 12, side=70, classes=5)
    assert stated["classes"] == 5 and sorted(dataset.labels.tolist()) == sorted([*range(5)] * 2 + [0, 1])
    _, result, _ = prepared(tmp_path / "c", "folder", 4, side=16, classes=2)
    assert (result["resolution"], result["classes"]) == (16, 2)


def test_imagenets_photographs_are_of_many_sizes_and_some_are_grey(tmp_path):
    made_up("imagenet", tmp_path / "raw", 30, side=64)
    pictures = [Image.open(io.BytesIO(data)) for data in tree(tmp_path / "raw").values()]
    sizes = {picture.size for picture in pictures}
    assert len(sizes) > 20 and all(min(size) >= 64 and max(size) < 128 for size in sizes)
    assert any(width > height for width, height in sizes) and any(width < height for width, height in sizes)
    assert {(picture.mode, picture.format) for picture in pictures} == {("RGB", "JPEG"), ("L", "JPEG")}


def test_names_are_those_of_the_real_layouts(tmp_path):
    for kind, path in (("mnist", "m"), ("ffhq", "f"), ("afhqv2", "a"), ("imagenet", "i")):
        made_up(kind, tmp_path / path, 30)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    }  # fmt: skip
    assert "f/00000/00029.png" in tree(tmp_path / "f")
    folders = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").glob("*/*")}
    assert folders == {f"{part}/{animal}" for part in ("train", "test") for animal in ("cat", "dog", "wild")}
    assert [path.name for path in sorted((tmp_path / "i").iterdir())] == ["n01440764", "n01440765", "n01440766"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_files_and_others_other_pictures(tmp_path, kind):
    made = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        made_up(kind, tmp_path / folder / "raw", 8, seed)
        made.append(tree(tmp_path / folder / "raw"))
    assert made[0] == made[1] and made[0].keys() == made[2].keys()
    compressed = [data for data in made[0].values() if data.startswith(b"\x1f\x8b")]
    assert all(data[4:8] == bytes(4) for data in compressed), "gzip's date"
    assert not set(made[0].values()) & {data for name, data in made[2].items() if "label" not in name}


def test_classes_can_be_told_apart(tmp_path):
    """By their mean colours alone: enough for a rehearsal to learn something."""
    _, _, dataset = prepared(tmp_path, "folder", 60, side=32, classes=3)
    means = dataset.images.mean(axis=(2, 3))
    centres = np.stack([means[dataset.labels == label].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(means[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == dataset.labels).mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_already_is_never_replaced(tmp_path, kind):
    target = tmp_path / "raw"
    if kind == "cifar10":
        target.write_bytes(b"the real one")
    else:
        target.mkdir()
        (target / "real.png").write_bytes(b"the real one")
    before = tree(tmp_path)
    with pytest.raises(edm.UserError, match="exists already"):
        made_up(kind, target, 10)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption_leaves_nothing_behind(tmp_path, kind, monkeypatch):
    draw = module.picture

    def interrupted(seed, index, *size):
        if index == 6:
            raise KeyboardInterrupt
        return draw(seed, index, *size)

    monkeypatch.setattr(module, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made_up(kind, tmp_path / "raw", 10)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    made_up(kind, tmp_path / "raw", 10)
    assert list(tmp_path.iterdir()) == [tmp_path / "raw"]


@pytest.mark.parametrize(
    "kind, images, options, message",
    [
        ("lsun", 10, {}, "'lsun' are unknown; choose one of cifar10, mnist"),
        ("cifar10", 4, {}, "images is 4; expected a whole number from 5"),
        ("ffhq", 0, {}, "images is 0; expected a whole number from 1"),
        ("mnist", 10, {"side": 64}, "side is 64"),
        ("folder", 10, {"side": 4}, "side is 4"),
        ("ffhq", 10, {"classes": 3}, "classes is 3"),
        ("imagenet", 10, {"classes": 0}, "classes is 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, kind, images, options, message):
    with pytest.raises(edm.UserError, match=message):
        made_up(kind, tmp_path / "raw", images, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_of_a_made_up_tree_is_the_same_dataset(tmp_path):
    stated, result, _ = prepared(tmp_path, "folder", 6)
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name, data in tree(tmp_path / "raw").items():
            archive.writestr(name, data)
    assert prepare("zip", tmp_path / "z.zip", tmp_path / "raw.zip", **stated, workers=1) == result
