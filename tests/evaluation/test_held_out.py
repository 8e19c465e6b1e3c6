"""Distances to the training images and to held-out images, of the same generated images in one pass."""

import json
from pathlib import Path

import pytest
import yaml
from test_choosing import chain

from edm.cli import main


@pytest.fixture
def model(tmp_path, digits_archive, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = chain(seed=0)
    tiny = raw["experiments"]["tiny"]
    tiny.update(test="test")
    tiny["sampling"] |= {"shards": 2}
    raw["datasets"]["test"] = raw["datasets"]["digits"] | {"split": "test", "held_out": 0.1}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    model = ["--experiment", "tiny", "--model", "vp-A", "--device", "cpu"]
    assert main(["train", *model, "--data", str(digits_archive), "--out", "run"]) == 0
    assert main(["prepare", "test.zip", "--dataset", "test"]) == 0
    for data, reference in ((str(digits_archive), "train.npz"), ("test.zip", "test.npz")):
        assert main(["fid-ref", data, reference, "--features", "pixels", "--device", "cpu"]) == 0
    return ["run/model.safetensors", *model[:-2], "--evaluation", "ladder", "--device", "cpu"]


def evaluate(model, output, *options):
    checkpoint, *rest = model
    return main(["evaluate", checkpoint, output, *rest, *options])


def test_the_distance_to_the_held_out_images_stands_beside_the_other(model, capfd):
    assert evaluate(model, "both.json", "--ref", "train.npz", "test.npz") == 0
    (row,) = json.loads(Path("both.json").read_text())["points"]
    assert evaluate(model, "swapped.json", "--ref", "test.npz", "train.npz") == 0
    (swapped,) = json.loads(Path("swapped.json").read_text())["points"]
    assert row["distance"] == swapped["distance_to_test"] != row["distance_to_test"] == swapped["distance"]
    parts = [f"{i}-of-2.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert evaluate(model, part, "--ref", "train.npz", "test.npz", "--shard", f"{i}/2") == 0
    assert evaluate(model, "merged.json", "--ref", "train.npz", "test.npz", "--parts", *parts) == 0
    (merged,) = json.loads(Path("merged.json").read_text())["points"]
    assert merged["distance_to_test"] == pytest.approx(row["distance_to_test"], rel=1e-9)


def test_a_missing_second_reference_is_named(model, capfd):
    assert evaluate(model, "both.json", "--ref", "train.npz") == 1
    assert "--ref: 2 files are needed, one for each of pixels, the images of test" in capfd.readouterr().err
