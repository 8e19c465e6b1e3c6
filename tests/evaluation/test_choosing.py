"""Choosing a snapshot on the command line, with networks of a few thousand weights."""

import json
from pathlib import Path

import pytest
import yaml

from edm import params
from edm.cli import main


def chain(seed, confirm=1):
    """A params.yaml for a training run with two snapshots."""
    tiny = {
        "dataset": "digits", "features": "pixels",
        "base": {"conditional": False, "model_channels": 8, "num_blocks": 1, "attn_resolutions": [],
                 "channel_mult": [1, 2], "batch_size": 32, "duration": 128e-6, "snapshot_every": 64e-6,
                 "level_samples": 2, "seed": seed},
        "columns": {"vp": {"architecture": "ddpmpp"}},
        "ladder": {"A": {}},
        "sampling": {"images": 24, "block": 12},
        "choose": {"grid": "ladder", "images": 12, "confirm": confirm},
        "grids": {"ladder": {"models": ["vp-A"], "num_steps": 2}},
    }  # fmt: skip
    digits = {"source": "digits", "resolution": 8, "channels": 1, "classes": 10}
    return {"run": ["tiny"], "datasets": {"digits": digits}, "experiments": {"tiny": tiny}}


def loaded(raw, path="params.yaml"):
    Path(path).write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(path, whole=True)


def train(raw, archive):
    """Trains tiny/vp-A of params.yaml in the folders of the chain, below this one, and makes the reference."""
    loaded(raw)
    folders = ["--out", "runs/tiny/vp-A", "--final", "models/tiny/vp-A"]
    words = ["--experiment", "tiny", "--model", "vp-A", "--data", str(archive), *folders, "--device", "cpu"]
    assert main(["train", *words]) == 0
    assert main(["fid-ref", str(archive), "ref.npz", "--features", "pixels", "--device", "cpu"]) == 0


@pytest.fixture
def choice(tmp_path, digits_archive, monkeypatch):
    """Trains with a seed, chooses, and returns the record of the choice."""
    monkeypatch.chdir(tmp_path)
    assert main(["fid-ref", str(digits_archive), "ref.npz", "--features", "pixels", "--device", "cpu"]) == 0

    def choose(seed, confirm=1):
        Path("params.yaml").write_text(yaml.safe_dump(chain(seed, confirm)))
        model = ["--experiment", "tiny", "--model", "vp-A", "--device", "cpu"]
        assert main(["train", *model, "--data", str(digits_archive), "--out", "run", "--overwrite"]) == 0
        assert main(["choose", "run/snapshots", "best.safetensors", *model, "--ref", "ref.npz"]) == 0
        return json.loads(Path("choice.json").read_text())

    return choose


@pytest.mark.slow
def test_snapshots_of_another_training_are_measured_anew_although_they_are_called_the_same(choice, capfd):
    """One history holds their distances; an interrupted choice resumes from it."""
    first = choice(seed=0)
    measured = "12 images"
    assert capfd.readouterr().err.count(measured) == len(first["cheap"]) == 2
    again = choice(seed=0)
    assert measured not in capfd.readouterr().err and again["cheap"] == first["cheap"]
    other = choice(seed=1)
    assert other["cheap"].keys() == first["cheap"].keys()
    assert all(other["cheap"][name] != value for name, value in first["cheap"].items())


@pytest.mark.slow
def test_to_confirm_all_measures_every_snapshot_with_the_images_of_an_evaluation_and_other_seeds(choice, capfd):
    record = choice(seed=0, confirm="all")
    assert capfd.readouterr().err.count("of 24 images") == 2
    assert record["cheap"] == {} and len(record["full"]) == 2 and record["first_seed"] == 24
    assert record["value"] == min(record["full"].values()) == record["full"][record["best"]]
