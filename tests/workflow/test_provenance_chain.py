"""Nothing runs again after a pull, and only what has to after a change: DVC and Snakemake agree, on a real clone."""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import miniature
import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.slow

DIGITS = load_digits()
DIGESTS, KEPT = "digests", ("--datasets", "digits", "--experiments", "digits")  # the stage, and what it writes
RAW = "downloads/pictures"
ROOT = Path(__file__).parent.parent.parent
PARTS = ("edm", "snakemake_logger_plugin_edm", "workflow", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore",
         ".gitignore", "dvc.yaml")  # fmt: skip
GIT = {f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def run(folder, *words, status=0):
    """A command of this environment in a clone, with the clone's own code; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **GIT, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def small_params():
    """The digits of params.yaml, made small: two configurations, trained in a second, on a folder of pictures."""
    raw = miniature.raw()
    digits = copy.deepcopy(raw["experiments"]["digits"])
    digits["ladder"]["A"] |= {"lr_rampup": 0.0005, "ema_halflife": 0.0005}
    digits |= {
        "base": {"model_channels": 8, "num_blocks": 1, "attn_resolutions": [4], "duration": 0.00128,
                 "level_samples": 16, "channel_mult": [1, 1]},
        "ladder": {"A": digits["ladder"]["A"], "B": digits["ladder"]["B"]},
        "models": {},
        "sampling": {**digits["sampling"], "images": 80, "block": 40},
        "grids": {"ladder": {"models": "all", "num_steps": 2}},
        "sheets": {"samples": {"models": "all", "num_steps": 2, "images": 4}},
        "analyses": {},
        "tables": {"table2": {"kind": "configurations", "title": "Ladder", "grid": "ladder"}},
        "figures": {"samples": {"kind": "sheets", "panels": ["vp-A:samples", "vp-B:samples"]}},
    }  # fmt: skip
    dataset = {"source": "folder", "path": RAW, "resolution": 8, "channels": 1, "classes": 10}
    return {"run": ["digits"], "tracking": raw["tracking"], "datasets": {"digits": dataset},
            "experiments": {"digits": digits}}  # fmt: skip


def draw(path, number, shade=0):
    """A handwritten digit as a picture; all are of one size in bytes."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((DIGITS.images[number] * 15 + shade).astype(np.uint8)).save(path)


def edit(folder, change):
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    change(raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def merged(base, change):
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def restore(folder):
    run(folder, "git", "checkout", "-q", "params.yaml", "edm")


def planned(folder, *targets):
    """What `snakemake -n` would run, by its messages."""
    return sorted(re.findall(r"^would run: (.*)$", run(folder, "snakemake", "-n", *targets), flags=re.M))


def changed_stages(folder):
    """What `dvc status` names, after the command of the stage `digests`."""
    run(folder, "edm", "digests", *KEPT)
    return sorted(json.loads(run(folder, "dvc", "status", "--json").partition("\n")[0] or "{}"))


def shuffle_times(folder, seed=0):
    """What no checkout promises: any order of times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    for number, path in enumerate(files):
        time = 1_500_000_000 + random.Random(seed + number).randrange(10**8)
        os.utime(path, (time, time))


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A project whose chain has run once through `dvc repro`, committed and pushed."""
    folder = tmp_path_factory.mktemp("origin") / "project"
    for part in PARTS:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, target)
    (folder / "params.yaml").write_text(yaml.safe_dump(small_params(), sort_keys=False))
    for number in range(200):
        draw(folder / RAW / str(DIGITS.target[number]) / f"{number}.bmp", number)
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())
    stages["stages"]["digests"]["deps"].append(RAW)  # as docs/versions.md asks for raw data
    (folder / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "add", RAW)
    run(folder, "dvc", "remote", "add", "--default", "lab", str(folder.parent / "remote"))
    run(folder, "dvc", "repro")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", "First run")
    run(folder, "dvc", "push")
    return folder


@pytest.fixture(autouse=True)
def undone(clone):
    yield
    run(clone, "git", "checkout", "-q", "params.yaml", "edm")
    run(clone, "edm", "digests", *KEPT)


@pytest.fixture(scope="module")
def clone(origin):
    folder = origin.parent / "a clone"
    run(origin, "git", "clone", "-q", str(origin), str(folder))
    run(folder, "dvc", "pull")
    return folder


STAGES = [f"{stage}@digits" for stage in ("data", "evaluate", "sample", "tables", "train")]
#: The first word of a rule's message → its stage.
STAGE_OF = {"Prepare": "data", "Reference": "data", "Train": "train", "Choose": "train", "Sample": "sample",
            "Search": "evaluate", "Distances": "evaluate", "Table": "tables", "Figure": "tables",
            "Headline": "tables", "How": "tables", "MLflow:": "tables"}  # fmt: skip
OF_B = ["Distances of digits vp-B: ladder", "Figure digits samples", "Headline numbers and curves of digits",
        "How digits was made", "MLflow: runs of digits", "Sample digits vp-B: samples", "Table digits table2",
        "Train digits/vp-B"]  # fmt: skip
OF_DATA = ["Derive settings from digits", "Distances of digits vp-A: ladder", "Prepare digits",
           "Reference statistics of digits (digits-classifier)", "Sample digits vp-A: samples", "Train digits/vp-A",
           "Train the feature classifier of digits"]  # fmt: skip


def test_intermediate_files_are_not_in_the_cache(origin, clone):
    assert list((origin / "runs").rglob("*.safetensors")) != [] and not (clone / "runs").exists()
    assert (clone / "models/digits/vp-B/model.safetensors").read_bytes() == (
        origin / "models/digits/vp-B/model.safetensors").read_bytes()  # fmt: skip


def test_after_a_pull_there_is_nothing_to_do(clone):
    assert planned(clone) == [] and changed_stages(clone) == []
    shuffle_times(clone)
    assert planned(clone) == [] and changed_stages(clone) == []


def test_a_learning_rate_concerns_one_configuration(origin, clone):
    """On a clone the other configuration's sheet is drawn, too: a figure shows both, and samples are not kept."""
    for folder in (origin, clone):
        edit(folder, lambda raw: raw["experiments"]["digits"]["ladder"]["B"].update(learning_rate=2.0e-3))
    assert planned(origin) == OF_B and planned(clone) == sorted([*OF_B, "Sample digits vp-A: samples"])
    restore(origin)
    assert planned(origin) == []
    assert list(json.loads(run(clone, "dvc", "status", "--json"))) == [DIGESTS]  # which runs first
    assert changed_stages(clone) == [DIGESTS, *STAGES[1:]]
    restore(clone)
    assert planned(clone) == [] and changed_stages(clone) == []


def test_a_dataset_concerns_all_that_used_it(clone):
    edit(clone, lambda raw: raw["datasets"]["digits"].update(images=200))
    assert planned(clone) == sorted(OF_B + OF_DATA) and changed_stages(clone) == sorted([DIGESTS, *STAGES])
    restore(clone)
    assert planned(clone) == [] and changed_stages(clone) == []
    picture = next((clone / RAW).rglob("17.bmp"))
    before = picture.read_bytes()
    draw(picture, 17, shade=1)  # of equal size, and older than all
    os.utime(picture, (10**9, 10**9))
    assert len(picture.read_bytes()) == len(before)
    found = planned(clone), changed_stages(clone)
    picture.write_bytes(before)
    assert found == (sorted(OF_B + OF_DATA), sorted([DIGESTS, *STAGES, f"{RAW}.dvc"]))
    assert planned(clone) == [] and changed_stages(clone) == []


def test_a_clone_needs_no_raw_data(clone):
    (clone / RAW).rename(clone / "away")
    assert planned(clone) == []
    (clone / "away").rename(clone / RAW)


def test_a_change_of_code_is_told_by_its_number(clone):
    source = clone / "edm" / "chain" / "rules.py"
    source.write_text(source.read_text() + "# A comment.\n")
    assert planned(clone) == [] and changed_stages(clone) == [DIGESTS]
    sheet = '_of_experiment("sheet"), '
    assert sheet in source.read_text()
    source.write_text(source.read_text().replace(sheet, f"{sheet}code=2, "))
    assert planned(clone) == ["Figure digits samples", "How digits was made", "MLflow: runs of digits",
                              "Sample digits vp-A: samples", "Sample digits vp-B: samples"]  # fmt: skip
    assert changed_stages(clone) == [DIGESTS, "sample@digits", "tables@digits"]


def test_what_decides_no_result_runs_nothing(clone):
    def change(raw):
        raw["experiments"]["digits"]["sampling"] |= {"shards": 3, "gpus": 8}
        raw["experiments"]["digits"]["training"] = {"gpus": 8, "nodes": 2, "state_every": 60}

    edit(clone, change)
    assert planned(clone) == [] and changed_stages(clone) == [DIGESTS]


@pytest.mark.parametrize(("change", "stages"), [
    ({"override": {"dropout": 0.2}}, ["evaluate", "sample", "tables", "train"]),
    ({"sampling": {"precision": "bf16"}}, ["evaluate", "sample", "tables"]),
    ({"sampling": {"repeats": 2}}, ["evaluate", "tables"]),
    ({"metrics": ["kid"]}, ["data", "evaluate", "tables"]),
    ({"base": {"snapshot_every": 0.00064}, "choose": {"grid": "ladder", "images": 40, "confirm": 1}},
     ["evaluate", "sample", "tables", "train"]),
    ({"searches": {"s": {"models": ["vp-A"], "num_steps": 2, "images": 40, "over": {"S_churn": [0, 1]}}},
      "grids": {"ladder": {"settings_from": "s", "models": ["vp-A"]}}}, ["evaluate", "tables"]),
])  # fmt: skip
def test_both_engines_see_keys_that_were_not_stated_before(clone, change, stages):
    edit(clone, lambda raw: raw["experiments"].update(digits=merged(raw["experiments"]["digits"], change)))
    assert changed_stages(clone) == sorted([DIGESTS, *(f"{stage}@digits" for stage in stages)])
    assert {STAGE_OF[message.split()[0]] for message in planned(clone)} == set(stages)


def test_a_file_that_was_tampered_with_is_made_again(clone):
    result = clone / "results/digits/distances/vp-A/ladder.json"
    before = result.read_bytes()
    result.write_bytes(before.replace(b'"distance": ', b'"distance":9'))
    jobs = ["Distances of digits vp-A: ladder", "Headline numbers and curves of digits", "How digits was made",
            "MLflow: runs of digits", "Table digits table2"]  # fmt: skip
    found = planned(clone), changed_stages(clone)
    result.write_bytes(before)
    assert found == (jobs, ["evaluate@digits", "tables@digits"])
    assert planned(clone) == []


def test_dvc_runs_what_snakemake_finds_stale_and_records_it(clone):
    """Only configuration B is trained again, and the results of its new rate are what the lock then holds."""
    model = {name: clone / f"models/digits/{name}/model.safetensors" for name in ("vp-A", "vp-B")}
    before = {name: path.read_bytes() for name, path in model.items()}
    shuffle_times(clone, 1)
    edit(clone, lambda raw: raw["experiments"]["digits"]["ladder"]["B"].update(learning_rate=2.0e-3))
    run(clone, "dvc", "repro")
    assert model["vp-A"].read_bytes() == before["vp-A"] and model["vp-B"].read_bytes() != before["vp-B"]
    sidecar = json.loads((clone / "steps/train/digits/train/vp-B.json").read_text())
    assert sidecar["specification"]["settings"]["learning_rate"] == 2.0e-3
    digests = json.loads((clone / "steps/digests/train/digits.json").read_text())
    assert digests["train digits/vp-B"] == sidecar["digest"]
    assert planned(clone) == [] and changed_stages(clone) == []
    assert "didn't change" in run(clone, "dvc", "repro") and "Running" not in run(clone, "dvc", "repro")
    assert "results/digits/metrics.json" in run(clone, "dvc", "metrics", "diff")


def test_an_experiment_of_dvc_runs_on_a_pristine_clone(origin):
    """The command of docs/versions.md: only what a rate concerns runs, and DVC shows what it changed."""
    folder = origin.parent / "pristine"
    run(origin, "git", "clone", "-q", str(origin), str(folder))
    run(folder, "dvc", "pull")
    model = {name: folder / f"models/digits/{name}/model.safetensors" for name in ("vp-A", "vp-B")}
    before = {name: path.read_bytes() for name, path in model.items()}
    told = run(folder, "dvc", "exp", "run", "-S", "experiments.digits.ladder.B.learning_rate=4.0e-3")
    assert model["vp-A"].read_bytes() == before["vp-A"] and model["vp-B"].read_bytes() != before["vp-B"]
    assert "Train digits/vp-B" in told and "Train digits/vp-A" not in told and "Prepare" not in told
    assert planned(folder) == [] and changed_stages(folder) == []
    (change,) = json.loads(run(folder, "dvc", "params", "diff", "--json"))["params.yaml"].items()
    assert change[0] == "experiments.digits.ladder.B.learning_rate"
    assert (change[1]["old"], change[1]["new"]) == (6.0e-3, 4.0e-3)
    assert "experiments.digits.ladder.B.learning_rate" in run(folder, "dvc", "exp", "show", "--only-changed", "--csv")
    assert "results/digits/metrics.json" in run(folder, "dvc", "metrics", "show")
    for name in ("loss", "nfe"):
        assert f"results/digits/plots/{name}.csv" in run(folder, "dvc", "plots", "diff", "--json")
