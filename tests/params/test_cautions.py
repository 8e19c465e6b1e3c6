"""Valid settings that do not do what they say are named, once, on stderr."""

from pathlib import Path

import miniature
import pytest
import yaml

from edm import params
from edm.cli import main
from edm.params.cautions import cautions

ROOT = Path(__file__).parents[2]
RAW = miniature.raw()
LIMIT = "churn is at most √2 − 1 per step, reached at S_churn = 0.414 · num_steps; beyond it S_churn has no effect"
EULER = "num_steps of 1 is one step of Euler's method, whatever the solver"


def lines_of(**changes):
    raw = {**RAW, "run": ["mine"], "reports": {}}
    raw["experiments"] = {**RAW["experiments"], "mine": {"extends": "digits", **changes}}
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return cautions(params.load("params.yaml").experiment("mine"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_projects_own_experiments_on_digits_have_none():
    loaded = params.load(ROOT / "params.yaml")
    assert [cautions(loaded.experiment(name)) for name in ("digits", "digits-full", "cluster")] == [[], [], []]


CASES = {
    "the same sampler": ({"num_steps": 6, "S_churn": [2, 4, 8]},
                         f"(S_churn=4; S_churn=8): points that are the same sampler: {LIMIT}"),
    "more than the limit": ({"num_steps": [6, 32], "S_churn": 4}, f"(num_steps=6): {LIMIT}"),
    "many": ({"num_steps": [1, 2, 3, 4, 5, 6, 7], "S_churn": 9, "solver": "euler"},
             f"(num_steps=1; num_steps=2; num_steps=3; num_steps=4; num_steps=5; 2 more): {LIMIT}"),
    "one step": ({"num_steps": [1, 2]}, f"(num_steps=1): {EULER}"),
    "one step alone": ({"num_steps": 1}, f": {EULER}"),
    "one step of several": ({"num_steps": 1, "solver": "unipc-3"}, f": {EULER}"),
    "as much as the limit": ({"num_steps": 6, "S_churn": [1, 2.4]}, None),
    "one step of Euler": ({"num_steps": 1, "solver": "euler"}, None),
    "one whole step of Heun": ({"num_steps": 1, "final": "sigma_min"}, None),
    "one of the first order": ({"num_steps": 1, "solver": "multistep", "order": 1}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.first(3)
def test_a_grid_is_named_with_its_points(case):
    settings, expected = CASES[case]
    found = lines_of(grids={"tried": {"models": ["vp-A", "vp-F"], **settings}})
    place = "experiments.mine.grids.tried"
    space = "" if expected and expected.startswith(":") else " "
    assert found == ([f"{place}{space}{expected}"] if expected else [])


def test_so_are_searches_and_sheets():
    search = {"models": ["vp-A"], "num_steps": 6, "over": {"S_churn": [0, 4, 8]}, "images": 9}
    found = lines_of(searches={"best": search}, sheets={"samples": {"num_steps": 1}})
    assert found == [
        f"experiments.mine.searches.best (S_churn=4; S_churn=8): points that are the same sampler: {LIMIT}",
        f"experiments.mine.sheets.samples: {EULER}",
    ]


def test_a_null_label_that_training_has_not_shown_is_named():
    """A pretrained model does not tell; with label_dropout, all is well."""
    grids = {"guided": {"models": ["vp-E", "vp-F"], "guide": ["null", "vp-A"], "guidance": 2}}
    place = "experiments.mine.grids.guided: guide null"
    why = "trained without label_dropout, so the network does not know the null label"
    assert lines_of(grids=grids) == [f"{place}: vp-E, vp-F: {why}"]
    assert lines_of(grids=grids, ladder={"F": {"label_dropout": 0.1}}) == [f"{place}: vp-E: {why}"]
    assert lines_of(grids=grids, base={"label_dropout": 0.1}) == []


def test_attention_that_no_resolution_has_is_named_with_its_models():
    found = lines_of(base={"attn_resolutions": [2]})
    names = "vp-C, vp-D, vp-E, vp-F, leak"  # A and B go down to 2
    assert found == [f"experiments.mine: {names}: attn_resolutions [2] match no resolution (8, 4): no attention"]
    assert lines_of(base={"attn_resolutions": []}) == []


@pytest.mark.parametrize("command", [["check"], ["plan", "mine"], ["plan", "mine/table2"]])
@pytest.mark.first(1)
def test_check_and_plan_print_them_and_succeed(command, capsys):
    lines_of(grids={"ladder": {"num_steps": 1}})
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == f"warning: experiments.mine.grids.ladder: {EULER}\n" and "warning" not in said.out
