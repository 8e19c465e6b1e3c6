"""dataset.json and the number of classes: one reader and one notion, for archives and for ``prepare``."""

import json
import re
import unicodedata
import zipfile

import numpy as np
import pytest

import edm.cli
from edm.data.archive import read_archive, write_archive
from edm.data.labels import class_index, count_classes, described, empty_classes
from edm.data.prepare import prepare


@pytest.fixture
def archive(tmp_path, rgb_images):
    """An archive of three images with this dataset.json."""

    def make(content):
        write_archive(tmp_path / "whole.zip", rgb_images[:3], [0, 1, 2])
        with zipfile.ZipFile(tmp_path / "whole.zip") as whole, zipfile.ZipFile(tmp_path / "a.zip", "w") as changed:
            for name in whole.namelist()[:3]:
                changed.writestr(name, whole.read(name))
            changed.writestr("dataset.json", content)
        return tmp_path / "a.zip"

    return make


def image(i):
    return f"00000/img{i:08d}.png"


def entries(*labels):
    return json.dumps({"labels": [[image(i), label] for i, label in enumerate(labels)]}).encode()


NO_INDEX = f"the label of {image(1)} is not a class index from 0 to 999,999"
NO_FORM = 'is not of the form {"labels": [[name, label], …]}'


@pytest.mark.parametrize(
    "content, message",
    [
        (entries(0, 0.5, 1), NO_INDEX),
        (entries(0, 1.0, 1), NO_INDEX),
        (entries(0, "1", 1), NO_INDEX),
        (entries(0, True, 1), NO_INDEX),
        (entries(0, -1, 1), NO_INDEX),
        (entries(0, float("nan"), 1), NO_INDEX),
        (entries(0, float("inf"), 1), NO_INDEX),
        (entries(0, 10**30, 1), NO_INDEX),
        (entries(0, 1_000_000, 1), NO_INDEX),
        (entries(0, None, 1), NO_INDEX),
        (entries(0, [1, 0], 1), NO_INDEX),
        (entries(0, {"a": 1}, 1), NO_INDEX),
        (entries(0, 1), f"has no label for {image(2)}"),
        (entries(0, 1, 2, 3), f"names {image(3)}, which does not exist"),
        (json.dumps({"labels": [[image(i), k] for i, k in ((0, 0), (1, 1), (2, 2), (1, 5))]}), f"{image(1)} twice"),
        (json.dumps({"labels": [[image(i), k] for i, k in ((0, 0), (1, 1), (2, 2), (1, 1))]}), f"{image(1)} twice"),
        (json.dumps({"labels": {image(i): i for i in range(3)}}), NO_FORM),
        (json.dumps({"labels": [{image(i): i} for i in range(3)]}), NO_FORM),
        (json.dumps({"labels": [[image(i)] for i in range(3)]}), NO_FORM),
        (json.dumps({"labels": [[i, 0] for i in range(3)]}), NO_FORM),
        (json.dumps({"labels": [[["a"], 0]]}), NO_FORM),
        (json.dumps({"labels": ["ab", "cd"]}), NO_FORM),
        (json.dumps({"labels": [0, 1, 2]}), NO_FORM),
        (json.dumps({"labels": 3}), NO_FORM),
        (json.dumps({"classes": []}), NO_FORM),
        (b'{"labels": null, "labels": [["a", 1]]}', NO_FORM),
        (b"[1, 2]", NO_FORM),
        (b"[" * 1500, NO_FORM),
        (b"", NO_FORM),
        (b"\xff\xfe\xfa", NO_FORM),
    ],
)
def test_labels_that_are_no_class_indices_are_refused_in_both_ways_alike(tmp_path, archive, content, message):
    path = archive(content)
    for read in (lambda: read_archive(path), lambda: prepare("zip", tmp_path / "out.zip", path, workers=1)):
        with pytest.raises(
            edm.UserError, match=f"^{re.escape(f'{path}: dataset.json')}.*{re.escape(message)}"
        ) as caught:
            read()
        assert "\n" not in str(caught.value) and not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("labels", [[2, 0, 1], [0, 5, 9], [0, 0, 0], [999_999, 0, 1], None])
def test_labels_are_what_the_file_says_in_both_ways(tmp_path, archive, labels):
    path = archive(b'{"labels": null}' if labels is None else entries(*labels))
    result = prepare("zip", tmp_path / "out.zip", path, workers=1)
    for dataset in (read_archive(path), read_archive(tmp_path / "out.zip")):
        assert (dataset.labels is None) if labels is None else (dataset.labels.tolist() == labels)
        assert dataset.classes == result["classes"] == (max(labels) + 1 if labels else 0)
        assert dataset.empty_classes == result["empty_classes"]


def test_the_order_of_entries_does_not_count(archive):
    text = json.dumps({"labels": [[image(2), 7], [image(0), 5], [image(1), 6]]})
    assert read_archive(archive(text)).labels.tolist() == [5, 6, 7]


@pytest.mark.parametrize("files, entries", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_equal_in_any_unicode_spelling(tmp_path, archive, files, entries):
    """macOS decomposes the letters of file names; a dataset.json written elsewhere has them composed."""
    names = ["über/é.png", "über/e.png"]
    labels = [[unicodedata.normalize(entries, name), i] for i, name in enumerate(names)]
    with zipfile.ZipFile(archive(b"")) as old, zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
        for i, name in enumerate(names):
            new.writestr(unicodedata.normalize(files, name), old.read(image(i)))
        new.writestr("dataset.json", json.dumps({"labels": labels}))
    assert read_archive(tmp_path / "b.zip").labels.tolist() == [1, 0]  # e.png comes first in any spelling


@pytest.mark.parametrize("labelled", [True, False])
def test_two_spellings_of_one_name_are_refused(tmp_path, archive, labelled):
    names = [unicodedata.normalize(form, "é/") + "0.png" for form in ("NFC", "NFD")]
    with zipfile.ZipFile(archive(b"")) as old, zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
        for i, name in enumerate(names):
            new.writestr(name, old.read(image(i)))
        if labelled:
            new.writestr("dataset.json", json.dumps({"labels": [[names[0], 0]]}))
    with pytest.raises(edm.UserError, match=r"'e\\u0301.*' and '\\xe9.*' are one name in two spellings; rename one"):
        prepare("zip", tmp_path / "out.zip", tmp_path / "b.zip", workers=1)


def test_classes_are_counted_to_the_largest_label_everywhere(tmp_path, archive, capsys):
    """Labels 0, 5, 9: ten classes to ``prepare``, to training and in every message; those without images are named."""
    path = archive(entries(0, 5, 9))
    assert prepare("zip", tmp_path / "out.zip", path, classes=10)["classes"] == 10
    with pytest.raises(edm.UserError, match=r"\(labels to 9\): 3 classes expected, as stated; 10 classes found"):
        prepare("zip", tmp_path / "out.zip", path, classes=3)
    dataset = read_archive(tmp_path / "out.zip")
    dataset.require(16, 3, 10)
    dataset.require(16, 3, 0)
    for classes in (3, 9, 11):
        with pytest.raises(edm.UserError, match=rf"has 10 classes \(labels to 9\); .* conditional on {classes}"):
            dataset.require(16, 3, classes)
    assert edm.cli.main(["prepare", str(tmp_path / "o.zip"), "--source", "zip", "--input", str(path)]) == 0
    assert "10 classes (7 without images: 1, 2, 3, 4, 6, 7, 8)" in capsys.readouterr().err


def test_training_tells_of_classes_without_images(tmp_path, tiny, capsys):
    """Once where it is conditional: images are drawn of such a class as of all others."""
    write_archive(tmp_path / "d.zip", np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8), [0, 2] * 20)
    for conditional in (True, False):
        config = tiny(classes=3, conditional=conditional, duration=32e-6, batch_size=16)
        (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
        out = ["--data", str(tmp_path / "d.zip"), "--out", str(tmp_path / f"out{conditional}"), "--device", "cpu"]
        assert edm.cli.main(["train", "--config", str(tmp_path / "c.json"), *out]) == 0
        assert ("3 classes (1 without images: 1); it samples all classes" in capsys.readouterr().err) == conditional


def test_the_count_in_words():
    assert count_classes(None) == 0 and empty_classes(None) == []
    assert count_classes([3]) == 4 and empty_classes([3, 1]) == [0, 2]
    assert described(1, []) == "1 class" and described(2, []) == "2 classes"
    assert described(20, list(range(15))) == "20 classes (15 without images: 0, 1, 2, 3, 4, 5, 6, 7, …)"


def test_no_label_is_rounded_when_it_is_written(tmp_path, rgb_images):
    assert class_index(np.int32(3), "x") == 3
    with pytest.raises(edm.UserError, match="the label of image 1 is not a class index"):
        write_archive(tmp_path / "a.zip", rgb_images[:2], [0, 0.5])
    assert not (tmp_path / "a.zip").exists()
