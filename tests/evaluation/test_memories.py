"""A code change discards partial results of interrupted jobs: searches, choices, grids and shards start again."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import edm.evaluation.jobs
from edm.chain.rules import RULES
from edm.cli import main
from edm.commands.common import MADE_FROM
from edm.models import building, checkpoint
from edm.params import load
from edm.tracking import read_journal

SMALL = {
    "dataset": "digits", "features": "pixels",
    "base": {"conditional": False, "model_channels": 8, "num_blocks": 1, "attn_resolutions": [], "channel_mult": [1],
             "batch_size": 32, "duration": 128e-6, "snapshot_every": 64e-6},
    "columns": {"vp": {"architecture": "ddpmpp"}},
    "ladder": {"A": {}},
    "sampling": {"images": 24, "block": 12},
    "choose": {"grid": "one", "images": 12, "confirm": 1},
    "grids": {"one": {"models": ["vp-A"], "num_steps": 2}, "steps": {"models": ["vp-A"], "num_steps": [1, 2, 3]}},
    "searches": {"best": {"models": ["vp-A"], "num_steps": 2, "images": 12, "over": {"S_churn": [0, 1, 2]}}},
}  # fmt: skip
OF = ["--experiment", "small", "--model", "vp-A", "--ref", "ref.npz", "--device", "cpu"]
COMMANDS = {
    "search": (["search", "model.safetensors", "out.json", "--search", "best", *OF], "out.json"),
    "choose": (["choose", "run/snapshots", "best.safetensors", *OF], "choice.json"),
    "evaluate": (["evaluate", "model.safetensors", "out.json", "--evaluation", "steps", *OF], "out.json"),
}


@pytest.fixture
def place(tmp_path, digits_archive, monkeypatch):
    """A folder with a model, two snapshots and a reference, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)
    digits = {"source": "digits", "resolution": 8, "channels": 1, "classes": 10}
    raw = {"run": ["small"], "datasets": {"digits": digits}, "experiments": {"small": SMALL}}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    config = load("params.yaml").experiment("small").models["vp-A"]
    Path("run/snapshots").mkdir(parents=True)
    for images in config.snapshots:
        torch.manual_seed(images)
        checkpoint.save(f"run/snapshots/{images:012d}.safetensors", building.build(config), config, {"images": images})
    checkpoint.save("model.safetensors", building.build(config), config, {"images": 128})
    assert main(["fid-ref", str(digits_archive), "ref.npz", "--features", "pixels", "--device", "cpu"]) == 0
    return tmp_path


@pytest.fixture
def measuring(monkeypatch):
    """Replaces measuring by increasing numbers. Returns the list of calls; call number ``stop`` is interrupted."""
    calls, numbers = [], itertools.count(1)

    def start(stop=None):
        calls.clear()

        def evaluate(*_, **how):
            calls.append(next(numbers))
            if len(calls) == stop:
                raise KeyboardInterrupt
            return {"images": 24, "nfe": 3, "distance": float(calls[-1])}

        monkeypatch.setattr(edm.evaluation.jobs, "evaluate", evaluate)
        return calls

    return start


def distances(path):
    record = json.loads(Path(path).read_text())
    return record.get("history") or record.get("cheap") or [point["distance"] for point in record["points"]]


@pytest.mark.parametrize("rule", COMMANDS)
def test_an_interruption_costs_one_measurement_and_other_code_takes_nothing_over(place, measuring, monkeypatch, rule):
    command, output = COMMANDS[rule]
    calls = measuring(stop=3)
    assert main(command) == 130 and len(calls) == 3
    calls = measuring()
    assert main(command) == 0 and len(calls) == 1  # the first two are known
    before = distances(output)
    if rule == "evaluate":  # partial results are deleted on completion: interrupt again
        measuring(stop=3)
        assert main(command) == 130
    monkeypatch.setitem(RULES, rule, replace(RULES[rule], code=RULES[rule].code + 1))
    calls = measuring()
    assert main(command) == 0 and len(calls) == 3
    assert distances(output) != before


@pytest.mark.parametrize("rule", ["search", "choose"])
def test_a_history_comes_back_with_its_step(place, measuring, monkeypatch, capsys, rule):
    """The digest that `edm launch` passes, of the step's code and its inputs, replaces the code number."""
    command, _ = COMMANDS[rule]
    for step, measured in (("one", 3), ("another", 3), ("one", 0)):
        monkeypatch.setenv(MADE_FROM, step)
        calls = measuring()
        assert main(command) == 0 and len(calls) == measured
        moved = "is the history of another search: moved to" in capsys.readouterr().err
        assert moved == (step == "another" or measured == 0)


def test_a_shard_of_other_code_is_refused(place, monkeypatch, capsys):
    command = COMMANDS["evaluate"][0]
    for part in ("1", "2"):
        assert main([*command[:2], f"{part}.safetensors", *command[3:], "--shard", f"{part}/2"]) == 0
    merge = [*command, "--parts", "1.safetensors", "2.safetensors"]
    assert main(merge) == 0
    monkeypatch.setitem(RULES, "evaluate", replace(RULES["evaluate"], code=RULES["evaluate"].code + 1))
    capsys.readouterr()
    assert main(merge) == 1
    assert capsys.readouterr().err == (
        "error: 1.safetensors: a part of another evaluation (its spec differs); delete it and run again\n"
    )


def test_distances_of_unlike_numbers_of_images_have_their_own_names_in_mlflow(place, measuring):
    """A choice measures both numbers of images, a search fewer than an evaluation."""
    found = {}
    for rule, (command, _) in COMMANDS.items():
        measuring()
        assert main([*command, *(["--journal", rule] if rule != "choose" else [])]) == 0
        record = read_journal("run/choice.journal.jsonl" if rule == "choose" else rule)[0]
        found[rule] = {name for name in record.metrics if name.startswith("FD")}
    assert found == {"search": {"FD_of_12"}, "choose": {"FD_of_12", "FD_of_24"}, "evaluate": {"FD"}}
