"""A step with the settings and the inputs of one of the extended experiment is that one; no other step is."""

import copy
from pathlib import Path

import miniature
import pytest
import yaml

from edm import params
from edm.chain import paths
from edm.chain.choices import choices
from edm.chain.jobs import Chain
from edm.cli import main

ROOT = Path(__file__).parents[2]
RAW = miniature.raw()
RAW["run"] = ["mine"]

#: The example of docs/configuration.md.
MINE = {
    "extends": "digits",
    "title": "Mine",
    "ladder": {"G": {"P_mean": -0.8, "dropout": 0.05}},
    "models": {"wide": {"from": "vp-F", "model_channels": 32}},
}


def chain_of(change, base="digits", whole=True):
    """The chain with an experiment "mine"; not ``whole``: one that states all of ``base`` itself, without extending."""
    raw = {**copy.deepcopy(RAW), "run": ["mine"], "reports": {}}
    raw["experiments"]["mine"] = {"extends": base, **copy.deepcopy(change)}
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    loaded = params.load("params.yaml")
    if not whole:
        del loaded.raw["experiments"]["mine"]["extends"]
    return Chain(loaded)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def own_steps(chain, *rules):
    return {(job.rule, *job.key[1:]) for job in chain.by_name.values() if job.key[0] == "mine" and job.rule in rules}


def test_the_example_trains_and_measures_only_what_is_new():
    chain = chain_of(MINE)
    assert own_steps(chain, "train") == {("train", "vp-G"), ("train", "wide")}
    new = {("evaluate", "vp-G", "ladder"), ("sample", "vp-G", "samples")}
    assert own_steps(chain, "evaluate", "sample", "analyse", "search") == new
    mine = chain.experiments["mine"]
    assert paths.model_file(mine, "vp-F") == "models/digits/vp-F/model.safetensors"
    assert paths.model_file(mine, "vp-G") == "models/mine/vp-G/model.safetensors"
    assert chain.by_name["table mine/table3"].files == chain.by_name["table digits/table3"].files
    needed = chain.needed(chain.targets("mine"))
    assert len([job for job in needed if job.rule == "train"]) == 8  # A to G and leak; no table names wide


def test_check_tells_own_steps_from_shared_ones(capsys):
    chain_of({**MINE, "grids": {"ladder": {"models": ["vp-F", "vp-G", "wide"]}}})
    assert main(["check"]) == 0
    expected = "mine: 2 training runs (7 more are those of digits), 2 evaluations (42 more are those of digits)\n"
    out = capsys.readouterr().out
    assert out.startswith(expected) and out.count("\n") == 2


def test_parts_of_the_experiment_make_the_shared_steps_too():
    chain = chain_of(MINE)
    trained = chain.steps("train", "mine")
    assert "models/digits/vp-F/model.safetensors" in trained and "models/mine/vp-G/model.safetensors" in trained
    assert "results/digits/distances/vp-A/ladder.json" in chain.steps("evaluate", "mine")
    assert "models/mine/vp-G/model.safetensors" not in chain.steps("train", "digits")
    assert chain.tracked("mine") == ["runs/digits", "runs/mine"]  # whose journals hold its runs


@pytest.mark.slow
def test_the_page_of_the_configuration_names_shared_models_in_the_order_of_the_experiment():
    """leak stands before the models of its own that a chain lists, and after them in the experiment."""
    change = {"columns": {"ve": {"architecture": "ncsnpp", "preconditioning": "ve", "loss": "ve"}},
              "figures": {"figure5a": {"models": ["vp-A", "ve-F", "leak"]}}}  # fmt: skip
    shared, alone = chain_of(change), chain_of(change, whole=False)
    assert choices(shared, shared.reports["mine"]) == choices(alone, alone.reports["mine"])


@pytest.mark.slow
def test_dvc_has_to_keep_the_owner_as_well(capsys):
    chain_of(MINE)
    assert main(["digests", "--experiments", "mine"]) == 1
    assert capsys.readouterr().err == "error: mine: it shares steps of digits; add digits to `kept` in dvc.yaml\n"
    assert main(["digests", "--experiments", "mine", "digits"]) == 0
    assert "train digits/vp-F" in Path("steps/digests/train/mine.json").read_text()


STEPS = ("train", "published", "average", "choose", "search", "evaluate", "sample", "analyse")

CHANGES = {
    "nothing": ("digits", {}),
    "a rung": ("digits", {"ladder": {"G": {"dropout": 0.05}}}),
    "an early rung": ("digits", {"ladder": {"C": {"dropout": 0.05}}}),
    "images": ("digits", {"sampling": {"images": 500}}),
    "resources": ("digits", {"sampling": {"shards": 2}, "training": {"state_every": 5}}),
    "points": ("digits", {"sampling": {"one_job_per": "point"}}),
    "features": ("digits", {"features": "pixels"}),
    "more features": ("digits", {"more_features": {"pixels": None}}),
    "metrics": ("digits", {"metrics": ["kid"]}),
    "a dataset": ("cifar10-cond", {"dataset": "mnist", "base": {"x_flip": False}}),
    "weights": ("cifar10-uncond", {"feature_weights": "downloads/other.pth"}),
    "the choice": ("cifar10-cond", {"choose": {"images": 100}}),
    "no choice": ("cifar10-cond", {"choose": None}),
    "a search": ("cifar10-uncond", {"searches": {"table5": {"images": 100}}}),
    "a grid's reference": ("imagenet", {"grids": {"heun": {"reference": None}, "published": {"reference": None}}}),
    "a published file": ("cifar10-uncond", {"models": {"vp-A": {"pretrained": "rehearsal-vp"}}}),
    "a child of a child": ("cifar10-dropout", {"ladder": {"G": {"dropout": 0.05}}}),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.first(3)
def test_a_step_is_shared_exactly_if_its_settings_and_its_inputs_are_the_same(name):
    """By the rules' own settings and inputs, in a chain where the experiment states everything itself."""
    base, change = CHANGES[name]
    chain, alone = chain_of(change, base), chain_of(change, base, whole=False)
    shared, same_files = chain.experiments["mine"].shared, dict[str, str]()
    for job in (job for job in alone.by_name.values() if job.key[0] == "mine" and job.rule in STEPS):
        step = (job.rule, *job.key[1:])
        owner = chain.experiments[base].owner(*step)
        twin = alone.by_name.get("/".join((f"{job.rule} {owner}", *job.key[1:])))
        inputs = {label: tuple(same_files.get(path, path) for path in files) for label, files in job.inputs.items()}
        same = twin and alone.specification(twin) == alone.specification(job) and twin.inputs == inputs
        assert shared.get(step) == (owner if same else None), step
        if same:
            same_files |= dict(zip(job.outputs, twin.outputs, strict=True))
    assert (name == "a dataset") == (not same_files)
