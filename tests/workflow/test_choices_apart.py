"""Experiments that share a training run and choose differently write no file of each other."""

import re

import pytest
import yaml
from test_small_chain import snakemake, write_params

MODEL = "vp-A/best.safetensors"


@pytest.mark.slow
def test_choices_of_one_training_run_have_histories_and_journals_of_their_own(tmp_path):
    """In one file, of two choices at once, a choice that resumes takes the other's distances for its own."""

    def choosing(tiny):
        tiny["base"]["snapshot_every"] = 0.00064
        tiny["choose"] = {"grid": "ladder", "images": 40, "confirm": 1}

    write_params(tmp_path, choosing)
    path = tmp_path / "params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["experiments"]["more"] = {"extends": "tiny", "title": "More", "choose": {"images": 60}}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    told = snakemake(tmp_path, "--dry-run", "--printshellcmds", f"models/tiny/{MODEL}", f"models/more/{MODEL}")
    commands = [line for line in (told.stdout + told.stderr).splitlines() if "-- choose " in line]
    assert all("choose runs/tiny/vp-A/snapshots" in line for line in commands)  # of the training run that they share
    for what in ("history", "journal"):
        assert sorted(re.findall(rf"--{what} (\S+)", " ".join(commands))) == [
            f"runs/{one}/vp-A/choice.{what}.jsonl" for one in ("more", "tiny")]  # fmt: skip
