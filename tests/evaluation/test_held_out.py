"""Distances to the training images and to held-out images, of the same generated images in one pass."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_choosing import chain

from edm import params
from edm.cli import main
from edm.evaluation.records import measurement, read_results
from edm.metrics.frechet import load_reference_features
from edm.report.results import about_metrics


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


@pytest.mark.slow
def test_memorisation_stands_beside_that_of_the_held_out_images(model, capfd):
    """Exactly: a held-out image counts if it is nearer to its nearest training image than half the mean of 50."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["experiments"]["tiny"]["metrics"] = ["memorisation"]
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    train = model[0].replace("run/model.safetensors", "digits.zip")
    assert main(["prepare", train, "--source", "digits", "--split", "train", "--held-out", "0.1"]) == 0
    for data, reference in ((train, "train.npz"), ("test.zip", "test.npz")):
        keep = ["--features", "pixels", "--keep-features", "5000", "--device", "cpu"]
        assert main(["fid-ref", data, reference, *keep]) == 0
    held_out, training = (load_reference_features(path).astype(np.float64) for path in ("test.npz", "train.npz"))
    distances = np.sort(np.linalg.norm(held_out[:, None] - training, axis=2))[:, :50]
    share = 100 * np.mean(distances[:, 0] < 0.5 * distances.mean(axis=1))
    assert evaluate(model, "one.json", "--ref", "train.npz", "test.npz") == 0
    parts = [f"{i}-of-2.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert evaluate(model, part, "--ref", "train.npz", "test.npz", "--shard", f"{i}/2") == 0
    assert evaluate(model, "merged.json", "--ref", "train.npz", "test.npz", "--parts", *parts) == 0
    for result in ("one.json", "merged.json"):
        (row,) = json.loads(Path(result).read_text())["points"]
        assert row["memorisation_of_test"] == pytest.approx(share) and 0 < share < 100
        assert row["memorisation_of_test"] != row["memorisation_of_reference"]
    record = read_results("one.json")
    measured = measurement(record, record["points"][0])
    (note,) = [line for line in about_metrics([measured], ["memorisation"]) if line.startswith("Neighbours")]
    assert f"memorisation of the held-out images, which no model has seen: {share:.3g} %" in note
    assert main(["fid-ref", "test.zip", "test.npz", "--features", "pixels", "--device", "cpu"]) == 0
    capfd.readouterr()
    assert evaluate(model, "one.json", "--ref", "train.npz", "test.npz") == 1
    assert "test.npz: holds no features of the reference images, which memorisation needs" in capfd.readouterr().err


def test_only_experiments_with_held_out_images_and_the_metric_are_measured_again(tmp_path):
    raw = chain(seed=0)
    raw["datasets"]["test"] = raw["datasets"]["digits"] | {"split": "test", "held_out": 0.1}
    specs = {}
    for metrics in ([], ["memorisation"]):
        for test in (None, "test"):
            tiny = raw["experiments"]["tiny"] | {"metrics": metrics} | ({"test": test} if test else {})
            (tmp_path / "params.yaml").write_text(yaml.safe_dump({**raw, "experiments": {"tiny": tiny}}))
            experiment = params.load(tmp_path / "params.yaml").experiment("tiny")
            specs[bool(metrics), bool(test)] = experiment.evaluation_spec(experiment.evaluation("vp-A", "ladder"))
    assert [key for key, spec in specs.items() if "memorisation_of_test" in spec] == [(True, True)]


def test_a_missing_second_reference_is_named(model, capfd):
    assert evaluate(model, "both.json", "--ref", "train.npz") == 1
    assert "--ref: 2 files are needed, one for each of pixels, the images of test" in capfd.readouterr().err
