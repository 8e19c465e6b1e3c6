"""params.yaml: what it says is what is run; mistakes are named with their place and the nearest name."""

import copy
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import miniature
import pytest
import yaml

import edm
from edm import params
from edm.config import SamplerConfig, TrainingConfig
from edm.files.hashes import canonical_json, digest
from edm.params.layouts import figure_layout, figure_spec, table_layout, table_spec
from edm.params.resolving import RESERVED, TARGETS
from edm.params.studies import STUDIES

ROOT = Path(__file__).parents[2]
RAW = miniature.raw()

#: Two experiments of the paper and the digits, with a report of their own: all sections, and quickly read.
FEW = copy.deepcopy(RAW)
FEW["experiments"] = {name: FEW["experiments"][name] for name in ("digits", "digits-full", "cifar10-cond",
                                                                 "cifar10-uncond")}  # fmt: skip
FEW["pretrained"] = {"mine": {"path": "downloads/mine.pkl", "like": "cifar10-cond/vp-A"}}
FEW["reports"] = {
    "both": {
        "experiments": {"cond": "cifar10-cond", "uncond": "cifar10-uncond"},
        "tables": {
            "table2": {"kind": "configurations", "title": "T", "grid": "ladder", "columns": {"A": "cond/vp"}},
            "table5": {"kind": "settings", "title": "T", "columns": {"A": "uncond/vp-A:table5"}},
        },
        "figures": {
            "levels": {"kind": "levels", "models": {"A": "cond/vp-F"}},
            "sheet": {"kind": "sheets", "panels": {"A": "uncond/vp-A:sde"}},
            "rho": {"kind": "curve", "over": "rho", "lines": {"A": "uncond/vp-A:rho"}},
            "steps": {"kind": "truncation", "of": ["uncond/ve-A:truncation"]},
            "noisy": {"kind": "noisy", "dataset": "cond", "images": 3},
        },
    },
}


def load_changed(folder, change=lambda raw: None):
    raw = copy.deepcopy(FEW)
    change(raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(folder / "params.yaml", whole=True)


def digits_of(raw):
    return raw["experiments"]["digits"]


def uncond_of(raw):
    return raw["experiments"]["cifar10-uncond"]


def differing(one, other):
    return {f.name for f in fields(TrainingConfig) if getattr(one, f.name) != getattr(other, f.name)}


@pytest.fixture(scope="module")
def whole():
    return params.load(ROOT / "params.yaml", whole=True)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return load_changed(tmp_path_factory.mktemp("params"))


# Models ---------------------------------------------------------------------------------------------------------------


def test_the_ladder_changes_only_what_each_rung_states(few):
    rungs = [few.experiment("digits").models[f"vp-{rung}"] for rung in "ABCDEF"]
    for (before, after), (name, change) in zip(pairwise(rungs), list(digits_of(FEW)["ladder"].items())[1:],
                                               strict=True):  # fmt: skip
        assert differing(before, after) <= set(change), name
        assert differing(before, after), f"{name} changes nothing"


def test_the_digits_climb_the_papers_ladder(few):
    """D brings the preconditioning, E the loss, F the augmentation; A to C are Song et al.'s designs (Table 2)."""
    models = few.experiment("digits-full").models
    assert list(models) == [*(f"{column}-{rung}" for column in ("vp", "ve") for rung in "ABCDEF"), "leak"]
    for column in ("vp", "ve"):
        designs = [(models[f"{column}-{rung}"].preconditioning, models[f"{column}-{rung}"].loss) for rung in "ABCDEF"]
        assert designs == [(column, column)] * 3 + [("edm", column)] + [("edm", "edm")] * 2
        assert [models[f"{column}-{rung}"].augment for rung in "ABCDEF"] == [0] * 5 + [0.06]


def test_a_further_model_is_another_one_changed(few):
    models = few.experiment("digits").models
    assert differing(models["leak"], models["vp-F"]) == {"augment"} and models["leak"].augment == 1


def test_published_files_are_known_by_name_and_others_state_where_they_are(few):
    assert few.pretrained["mine"]["path"] == "downloads/mine.pkl"
    known = few.pretrained["edm-cifar10-32x32-cond-vp"]["path"]
    assert known == "downloads/pretrained/edm-cifar10-32x32-cond-vp.pkl"
    assert few.downloads[known]["url"].endswith("/edm-cifar10-32x32-cond-vp.pkl")
    assert few.downloads["downloads/cifar-10-python.tar.gz"]["md5"]  # what the file states stands beside them


def test_a_pretrained_model_takes_the_place_of_a_trained_one(few):
    """Row A of the unconditional columns of Table 2 is Song et al.'s own checkpoints."""
    experiment = few.experiment("cifar10-uncond")
    assert experiment.pretrained == {f"{c}-A": f"score_sde-cifar10-32x32-uncond-{c}" for c in ("vp", "ve")}
    assert not set(experiment.pretrained) & set(experiment.models)
    assert not experiment.chosen("vp-A") and experiment.chosen("vp-B")
    with pytest.raises(edm.UserError, match=r"'vp-A' .*it is pretrained"):
        experiment.training_spec("vp-A")


def test_an_override_is_applied_to_every_model_whatever_its_rung_states(tmp_path):
    def change(raw):
        digits_of(raw)["override"] = {"batch_size": 7, "model_channels": 8}

    models = load_changed(tmp_path, change).experiment("digits").models
    assert {(config.batch_size, config.model_channels) for config in models.values()} == {(7, 8)}
    assert len({config.learning_rate for config in models.values()}) > 1


def test_scale_shortens_every_duration_and_number_of_images_and_nothing_else(tmp_path, few):
    scaled = load_changed(tmp_path, lambda raw: raw["reports"]["both"].update(scale=0.01))
    one, other = few.experiment("cifar10-uncond"), scaled.experiment("cifar10-uncond")
    for model, before in one.models.items():
        after = other.models[model]
        for field in fields(TrainingConfig):
            factor = 0.01 if field.name in ("duration", "lr_rampup", "ema_halflife", "snapshot_every",
                                            "level_samples") else None  # fmt: skip
            expected = getattr(before, field.name)
            assert getattr(after, field.name) == (expected if factor is None else pytest.approx(factor * expected))
        assert len(after.snapshots) == len(before.snapshots) == 80
    assert other.analyses["leakage"].settings["images"] == 500  # the distances of them; few images to look at stay
    assert other.analyses["degradation"] == one.analyses["degradation"] and other.sheets == one.sheets
    assert (other.sampling.images, other.choice.images, other.searches["table5"].images) == (500, 50, 100)
    assert [other.sampling.seeds(repeat) for repeat in range(3)] == [range(500), range(500, 1000), range(1000, 1500)]
    assert other.grids == one.grids
    assert other.models["vp-F"].batch_size == 512
    assert scaled.experiment("digits").models == few.experiment("digits").models  # in no report of that scale


def test_one_experiment_cannot_have_two_scales(tmp_path):
    def change(raw):
        raw["reports"]["short"] = {"scale": 0.1, "experiments": {"cond": "cifar10-cond"}}

    with pytest.raises(edm.UserError, match="'cifar10-cond' has one scale in both and another in short"):
        load_changed(tmp_path, change)


# Extending ------------------------------------------------------------------------------------------------------------


def test_extending_an_experiment_changes_what_it_states(tmp_path):
    def change(raw):
        raw["experiments"]["short"] = {"extends": "digits", "base": {"duration": 0.001}}

    loaded = load_changed(tmp_path, change)
    short, long = loaded.experiment("short"), loaded.experiment("digits")
    assert short.models["vp-A"].duration == 0.001
    assert short.models["vp-A"].model_channels == long.models["vp-A"].model_channels
    assert (short.grids, short.sheets, short.analyses) == (long.grids, long.sheets, long.analyses)


def test_a_note_on_results_is_not_taken_over_by_other_results(tmp_path):
    def change(raw):
        digits_of(raw)["tables"]["table2"]["note"] = "F is the best here."
        raw["experiments"]["mine"] = {"extends": "digits"}

    loaded = load_changed(tmp_path, change)
    assert loaded.report("digits").tables["table2"]["note"] == "F is the best here."
    assert "note" not in loaded.report("mine").tables["table2"]


def test_null_takes_away_what_the_extended_experiment_has(tmp_path):
    def change(raw):
        gone = {"models": {"leak": None}, "grids": {"rk45": None}, "sheets": {"samples": None}, "choose": None,
                "analyses": {"leakage": None}, "figures": {"leakage": None, "figure9": None, "figure2": None},
                "tables": {"table3": None}}  # fmt: skip
        raw["experiments"]["less"] = {"extends": "digits", **gone}
        raw["experiments"]["unchosen"] = {"extends": "cifar10-cond", "choose": None, "searches": {}}
        raw["experiments"]["unsearched"] = {"extends": "cifar10-uncond", "searches": {"table5": None}}
        raw["reports"]["fewer"] = {"extends": "both", "tables": {"table5": None}, "figures": {"sheet": None}}

    loaded = load_changed(tmp_path, change)
    less, more = loaded.experiment("less"), loaded.experiment("digits")
    assert set(more.models) - set(less.models) == {"leak"}
    assert set(more.grids) - set(less.grids) == {"rk45"}
    assert less.sheets == {} and set(less.analyses) == {"truncation", "degradation"}
    assert set(loaded.report("less").tables) == {"table2", "table4"}
    gone = set(loaded.report("digits").figures) - set(loaded.report("less").figures)
    assert gone == {"figure2", "figure9", "leakage"}
    assert loaded.experiment("cifar10-cond").chosen("vp-B") and not loaded.experiment("unchosen").chosen("vp-B")
    assert set(loaded.experiment("unsearched").searches) == {"plain", "noise", "range"}
    assert set(loaded.report("fewer").tables) == {"table2"} and "sheet" not in loaded.report("fewer").figures


def test_null_takes_away_sections_settings_rungs_columns_and_rows(tmp_path):
    def change(raw):
        raw["experiments"]["less"] = {
            "extends": "digits-full", "analyses": None, "columns": {"ve": None}, "ladder": {"F": None},
            "models": None, "sampling": {"first_seed": None}, "override": {"clip_norm": None},
            "grids": {"churn": {"S_churn": None}, "churn-all": {"models": {"vp-A": None}}, "ladder": {"num_steps": 9}},
            "tables": {"table3": {"rows": {"Black-box RK45": None}}},
            "figures": {"figure5b": None, "figure13": None, "figure14": None, "leakage": None},
        }  # fmt: skip
        raw["experiments"]["again"] = {"extends": "less", "ladder": {"F": {"augment": 0.2}}}
        raw["reports"]["both"]["figures"]["noisy"] = None

    loaded = load_changed(tmp_path, change)
    less = loaded.experiment("less")
    assert list(less.models) == ["vp-A", "vp-B", "vp-C", "vp-D", "vp-E"] and less.analyses == {}
    assert less.models["vp-A"].clip_norm is None and less.sampling.first_seed == 0  # null: no clipping; the default
    assert [point.sampler.S_churn for point in less.grids["churn"].points["vp-A"]] == [0]
    assert less.grids["churn-all"].models == ("vp-A",)  # there, null is a model without changes
    assert "Black-box RK45" not in loaded.report("less").tables["table3"]["rows"]
    assert loaded.experiment("again").models["vp-F"].augment == 0.2
    assert "noisy" not in loaded.report("both").figures


def test_a_new_rung_is_measured_and_shown_without_being_named(tmp_path):
    def change(raw):
        raw["experiments"]["mine"] = {"extends": "digits", "ladder": {"G": {"dropout": 0.05}}}
        raw["experiments"]["wider"] = {"extends": "digits-full", "ladder": {"G": {"dropout": 0.05}},
                                       "analyses": {"degradation": {"models": "ladder"}},
                                       "figures": {"figure5a": {"models": "all"}}}  # fmt: skip

    loaded = load_changed(tmp_path, change)
    report, rungs = loaded.report("mine"), [f"vp-{rung}" for rung in "ABCDEFG"]
    mine = loaded.experiment("mine")
    assert list(mine.grids["ladder"].models) == list(mine.sheets["samples"].samplers) == rungs  # without leak
    assert list(table_layout(report, "table2").rows) == list("ABCDEFG")
    assert [source.model for source in figure_layout(report, "figure5a").sources()] == rungs
    named = {rung: mine.called(rung) for rung in "ABCDEFG"}
    assert (named["A"], named["G"]) == ("A: baseline", "G")  # the new rung has no name
    assert list(figure_layout(report, "figure9").shown) == ["digits", *named.values()]
    assert list(figure_layout(report, "figure1").shown) == ["digits"]
    wider = loaded.report("wider")
    both = [*rungs, *(rung.replace("vp", "ve") for rung in rungs)]
    whole = [model + named[model[3:]][1:] for model in both]  # of two columns, by their whole names
    assert list(figure_layout(wider, "figure9").shown) == ["digits", *whole]
    assert list(loaded.experiment("wider").analyses["degradation"].models) == both
    assert list(figure_layout(wider, "figure5a").shown) == [*whole, "leak"]


def test_the_models_of_a_table_may_be_a_word(tmp_path):
    def change(raw):
        table = {"kind": "networks", "title": "T", "columns": "ladder"}
        digits_of(raw)["tables"]["networks"] = table
        raw["reports"]["both"]["tables"]["networks"] = table

    loaded = load_changed(tmp_path, change)
    assert table_layout(loaded.report("digits"), "networks").columns == [f"vp-{rung}" for rung in "ABCDEF"]
    columns = table_layout(loaded.report("both"), "networks").columns
    assert columns[:2] == ["cond/vp-A", "cond/vp-B"] and "uncond/vp-A" not in columns  # that one is pretrained


def test_a_figure_shows_the_dataset_of_its_experiment(tmp_path):
    def change(raw):
        raw["datasets"]["flowers"] = {"source": "folder", "path": "data/raw/flowers", "resolution": 16, "channels": 3,
                                      "classes": 2}  # fmt: skip
        raw["experiments"]["flowers"] = {"extends": "digits", "dataset": "flowers", "base": {"attn_resolutions": [8]}}

    report = load_changed(tmp_path, change).report("flowers")
    assert list(figure_layout(report, "figure1").shown) == ["flowers"]
    assert next(iter(figure_layout(report, "figure9").shown)) == "flowers"


def test_yaml_anchors_and_merges_are_understood(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("      C:\n", "      C: &c\n", 1).replace("      D:\n", "      D:\n        <<: *c\n", 1)
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(tmp_path / "params.yaml").experiment("digits").models["vp-D"].channel_mult == (1, 2)


# Grids ----------------------------------------------------------------------------------------------------------------


def test_grids_are_products_of_their_lists(tmp_path):
    def change(raw):
        digits_of(raw)["grids"]["both"] = {"models": ["vp-A"], "num_steps": [4, 8], "S_churn": [0, 1, 2], "rho": 5}

    points = load_changed(tmp_path, change).experiment("digits").grids["both"].points["vp-A"]
    assert [p.id for p in points] == [f"num_steps={n},S_churn={s}" for n in (4, 8) for s in (0, 1, 2)]
    assert [(p.sampler.num_steps, p.sampler.S_churn) for p in points] == [(n, s) for n in (4, 8) for s in (0, 1, 2)]
    assert all(p.sampler.rho == 5 for p in points)


def test_a_model_of_a_grid_may_change_what_the_grid_states(tmp_path):
    def change(raw):
        digits_of(raw)["grids"]["own"] = {
            "models": {"vp-A": {"S_churn": [1, 2], "rho": 3}, "vp-B": None, "vp-C": {"num_steps": 9}},
            "num_steps": [4, 8],
        }  # fmt: skip

    points = load_changed(tmp_path, change).experiment("digits").grids["own"].points
    choices = lambda sampler: (sampler.num_steps, sampler.S_churn, sampler.rho)
    settings = {model: [choices(point.sampler) for point in points[model]] for model in points}
    assert settings["vp-A"] == [(n, s, 3) for n in (4, 8) for s in (1, 2)]
    assert settings["vp-B"] == [(4, 0, 7), (8, 0, 7)]
    assert settings["vp-C"] == [(9, 0, 7)] and points["vp-C"][0].id == "only"


def test_all_models_are_the_trained_and_the_pretrained(tmp_path):
    change = lambda raw: uncond_of(raw)["grids"].update(everywhere={"models": "all"})
    experiment = load_changed(tmp_path, change).experiment("cifar10-uncond")
    assert set(experiment.grids["everywhere"].models) == {*experiment.models, "vp-A", "ve-A"}


def test_steps_shorten_every_list_of_steps_and_every_single_number(tmp_path):
    change = lambda raw: uncond_of(raw).update(steps=[2, 3, 5])
    experiment = load_changed(tmp_path, change).experiment("cifar10-uncond")

    def steps(grid):
        return [p.sampler.num_steps for p in experiment.grids[grid].points["vp-A"]]

    assert steps("ours") == [2, 3, 5]  # a list of 17
    assert set(steps("churn-plain")) == {5} and len(steps("churn-plain")) == 11  # 256
    assert set(steps("rk45")) == {SamplerConfig().num_steps} and len(steps("rk45")) == 8  # an adaptive solver has none
    assert experiment.searches["table5"].samplers["vp-A"].num_steps == 5
    assert experiment.sheets["sde"].samplers["ve-A"].num_steps == 5


def test_a_grid_takes_what_it_leaves_open_from_a_search(few):
    experiment = few.experiment("cifar10-uncond")
    grid, search = experiment.grids["stochastic-range"], experiment.searches["range"]
    assert grid.settings_from == "range"
    for model in grid.models:
        point, start = grid.points[model][0].sampler, search.samplers[model]
        assert point.S_churn == 0 and "S_churn" in search.over
        assert (point.S_min, point.S_max, point.S_noise) == (start.S_min, start.S_max, start.S_noise)
    evaluation = next(experiment.evaluations_of("vp-A", "stochastic-range"))
    assert experiment.evaluation_spec(evaluation)["settings_from"] == "range"


def test_a_search_may_start_from_bounds_that_some_of_its_values_do_not_go_with(tmp_path):
    """S_min 5 does not go with S_max 1, where a search may start; it skips such pairs itself."""
    start = {"models": {"vp-A": {"S_min": 0.5, "S_max": 1}}}
    search = load_changed(tmp_path, lambda raw: uncond_of(raw)["searches"]["table5"].update(start))
    found = search.experiment("cifar10-uncond").searches["table5"]
    assert 5 in found.over["S_min"] and 0.2 in found.over["S_max"]
    assert (found.samplers["vp-A"].S_min, found.samplers["vp-A"].S_max) == (0.5, 1)


def test_a_guide_is_the_null_label_a_model_or_a_snapshot(tmp_path):
    """A list of guides is swept like any other, and a snapshot is named by the images that it has seen."""
    guides = ["null", "vp-A", {"model": "vp-F", "at": 0.05}]

    def change(raw):
        digits_of(raw)["base"]["snapshot_every"] = 0.05
        digits_of(raw)["grids"]["guided"] = {"models": ["vp-F"], "guide": guides, "guidance": [1, 2]}

    digits = load_changed(tmp_path, change).experiment("digits")
    points = digits.grids["guided"].points["vp-F"]
    assert [point.id for point in points[::2]] == [
        f"guide={guide},guidance=1" for guide in ("null", "vp-A", "vp-F-at-0.05")
    ]
    batch = digits.models["vp-F"].batch_size
    snapshot = -(-50_000 // batch) * batch
    assert digits.guides(digits.grids["guided"].points["vp-F"].guides) == {"vp-A": None, "vp-F at 0.05": snapshot}
    assert snapshot in digits.models["vp-F"].snapshots


def test_scale_moves_the_snapshot_of_a_guide_with_those_of_its_model(tmp_path):
    def change(raw):
        cond = raw["experiments"]["cifar10-cond"]
        cond["grids"]["guided"] = {"models": ["vp-F"], "guide": {"model": "vp-F", "at": 10}, "guidance": 2}
        raw["reports"]["both"]["scale"] = 0.01

    cond = load_changed(tmp_path, change).experiment("cifar10-cond")
    (images,) = cond.guides(cond.grids["guided"].points["vp-F"].guides).values()
    assert images in cond.models["vp-F"].snapshots and images == pytest.approx(100_000, abs=512)


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_the_three_repeats_take_the_papers_seeds(few):
    """Section 6: seeds 0-49,999, 50,000-99,999, 100,000-149,999."""
    sampling = few.experiment("cifar10-cond").sampling
    seeds = [sampling.seeds(repeat) for repeat in range(sampling.repeats)]
    assert seeds == [range(0, 50_000), range(50_000, 100_000), range(100_000, 150_000)]


def test_one_job_evaluates_a_grid_or_a_point_and_the_draws_are_the_same(tmp_path):
    def change(raw):
        per_point = {"images": 20, "first_seed": 5, "repeats": 2, "one_job_per": "point"}
        raw["experiments"]["points"] = {"extends": "digits", "sampling": per_point}
        raw["experiments"]["grids"] = {"extends": "digits", "sampling": {**per_point, "one_job_per": "grid"}}
        raw["experiments"]["once"] = {"extends": "digits", "sampling": {**per_point, "repeats": 1}}

    loaded = load_changed(tmp_path, change)
    names = {}
    for name in ("points", "grids", "once"):
        names[name] = [e.name for e in loaded.experiment(name).evaluations_of("vp-A", "heun")]
    steps = (4, 8, 16, 32)
    assert names["points"] == [f"heun/num_steps={n}@{repeat}" for n in steps for repeat in (0, 1)]
    assert names["once"] == [f"heun/num_steps={n}" for n in steps]
    assert names["grids"] == ["heun"]

    def draws(name):
        experiment = loaded.experiment(name)
        return Counter((e.model, e.grid, point, repeat) for e in experiment.evaluations() for point, repeat in e.draws)

    assert draws("points") == draws("grids") and set(draws("points").values()) == {1}
    assert loaded.experiment("points").sampling.seeds(1) == range(25, 45)


def test_every_evaluation_is_found_again_by_its_name(few):
    experiment = few.experiment("cifar10-uncond")
    for evaluation in experiment.evaluations():
        assert experiment.evaluation(evaluation.model, evaluation.name) == evaluation
    with pytest.raises(edm.UserError, match="no evaluation 'ladder/only@3' of model 'vp-B'"):
        experiment.evaluation("vp-B", "ladder/only@3")


def test_changing_one_configuration_changes_the_specification_of_its_models_alone(tmp_path, few):
    before = few.experiment("digits")
    after = load_changed(tmp_path, lambda raw: digits_of(raw)["ladder"]["F"].update(augment=0.3)).experiment("digits")
    changed = [m for m in before.models if before.training_spec(m) != after.training_spec(m)]
    assert changed == ["vp-F"]  # the leakage check states an augmentation of its own
    assert all(before.evaluation_spec(e) == after.evaluation_spec(e) for e in before.evaluations())


def test_changing_a_setting_changes_the_specification_of_its_jobs_alone(tmp_path, few):
    def change(raw):
        uncond_of(raw)["grids"]["ours"]["rho"] = 6
        uncond_of(raw)["searches"]["table5"]["images"] = 20_000
        uncond_of(raw)["sheets"]["sde"]["sigma_max"] = 40
        uncond_of(raw)["analyses"]["truncation"]["substeps"] = 100

    before, after = few.experiment("cifar10-uncond"), load_changed(tmp_path, change).experiment("cifar10-uncond")
    specs = lambda experiment: [(e.grid, experiment.evaluation_spec(e)) for e in experiment.evaluations()]
    evaluations = [one[0] for one, other in zip(specs(before), specs(after), strict=True) if one != other]
    assert set(evaluations) == {"ours"} and len(evaluations) == 2 * 17 * 3
    for kind, entries in (("search", before.searches), ("sheet", before.sheets), ("analysis", before.analyses)):
        pairs = [(model, name) for name, entry in entries.items()
                 for model in getattr(entry, "models", None) or entry.samplers]  # fmt: skip
        one, other = getattr(before, f"{kind}_spec"), getattr(after, f"{kind}_spec")
        changed = {name for model, name in pairs if one(model, name) != other(model, name)}
        assert changed == {{"search": "table5", "sheet": "sde", "analysis": "truncation"}[kind]}
    assert all(before.training_spec(model) == after.training_spec(model) for model in before.models)


@pytest.mark.parametrize(
    "change, tables, figures",
    [
        (lambda raw: uncond_of(raw)["grids"]["rho"].update(rho=[6, 7]), set(), {"rho"}),
        (lambda raw: raw["experiments"]["cifar10-cond"]["sampling"].update(repeats=2), {"table2"}, {"rho"}),
        (lambda raw: raw["reports"]["both"]["tables"]["table5"].update(title="U"), {"table5"}, set()),
        (lambda raw: raw["experiments"]["cifar10-cond"]["base"].update(duration=100), {"table2", "table7"}, set()),
        (lambda raw: uncond_of(raw)["sheets"]["sde"].update(sigma_max=40), set(), set()),
    ],
    ids=["points", "repeats", "title", "configuration", "sheet"],
)
def test_a_table_is_made_again_where_it_shows_something_else(tmp_path, change, tables, figures):
    """What is measured anew makes it again by itself; this is what its results files do not tell."""
    described = {"table7": {"kind": "hyperparameters", "title": "T", "columns": {"A": "cond/vp-F"}}}
    add = lambda raw: raw["reports"]["both"]["tables"].update(described)
    before = load_changed(tmp_path, add).report("both")
    after = load_changed(tmp_path, lambda raw: (add(raw), change(raw))).report("both")
    assert {n for n in before.tables if table_spec(before, n) != table_spec(after, n)} == tables
    assert {n for n in before.figures if figure_spec(before, n) != figure_spec(after, n)} == figures


def test_a_changed_specification_stops_a_job_that_was_planned_before():
    params.check_spec({"images": 1000}, digest({"images": 1000}), "digits/vp-A")
    with pytest.raises(edm.UserError, match=r"digits/vp-A: params\.yaml was changed after this job was planned"):
        params.check_spec({"images": 1000}, digest({"images": 500}), "digits/vp-A")


def test_order_and_spelling_of_numbers_do_not_change_a_specification():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert canonical_json({"b": 0.001, "a": 1e-3}) == '{"a":0.001,"b":0.001}'


def test_a_specification_says_what_differs_from_the_defaults_and_no_more(few):
    """A field that a later version adds, with a default that changes nothing, must not retrain a model."""
    experiment = few.experiment("digits")
    for model, config in experiment.models.items():
        spec = experiment.training_spec(model)
        asked = {"level_samples": config.level_samples}  # holds for the next training, and is no reason for one
        assert TrainingConfig.from_dict(spec | asked) == config and "level_samples" not in spec
        defaults = {f.name: f.default for f in fields(TrainingConfig)}
        assert all(value != defaults[name] for name, value in spec.items())


# The file -------------------------------------------------------------------------------------------------------------


def test_the_rehearsal_has_every_table_and_figure_of_the_paper(whole):
    paper, rehearsal = whole.report("paper"), whole.report("rehearsal")
    noteless = {
        name: {key: value for key, value in table.items() if key != "note"} for name, table in paper.tables.items()
    }
    assert rehearsal.tables == noteless and rehearsal.figures == paper.figures
    assert rehearsal.experiments.keys() == paper.experiments.keys()
    for role, experiment in paper.experiments.items():
        small = rehearsal.experiments[role]
        assert {*small.all_models} - {*small.averages} == {*experiment.all_models} - {*experiment.averages}
        for section in ("grids", "searches", "sheets", "analyses"):
            assert getattr(small, section).keys() == getattr(experiment, section).keys(), (role, section)


def test_the_schema_knows_every_field():
    """A field that the schema forgets could not be set; one that it invents would fail later, without its place."""
    schema = params.schema()["$defs"]
    training = {f.name for f in fields(TrainingConfig)} - {"resolution", "channels", "classes", "settings"} | {"seeds"}
    sampler = {f.name for f in fields(SamplerConfig)} - {"settings"}  # of plugins: tests/plugins
    known = {name: set(entry.get("properties", ())) for name, entry in schema.items()}
    assert known["training"] == training
    assert known["model"] - {"from", "pretrained"} == training
    assert known["settings"] == sampler
    assert known["grid"] - {"models", "reference", "settings_from", "seeds", "ema"} == sampler
    assert known["search"] - {"models", "method", "images", "max_sweeps"} == sampler  # ``over`` is its own
    assert known["sheet"] - {"models", "images"} == sampler


def solvers_of(raw, **changes):
    """Adds a table by number of evaluations to the digits; returns its name."""
    table = {"kind": "solvers", "title": "Few", "model": "vp-A", "evaluations": [8], "rows": {"Euler": "euler"}}
    digits_of(raw)["tables"]["few"] = {key: value for key, value in (table | changes).items() if value is not None}
    return "few"


MISTAKES = {
    "a wrong key": (
        lambda raw: digits_of(raw)["ladder"]["B"].update(learning_rat=1),
        "experiments.digits.ladder.B: unknown key 'learning_rat'; did you mean 'learning_rate'",
    ),
    "a number that YAML reads as text": (
        lambda raw: digits_of(raw)["ladder"]["B"].update(learning_rate="4e-3"),
        "experiments.digits.ladder.B.learning_rate: '4e-3' is not of type number; YAML reads 4e-3 as text",
    ),
    "a wrong value": (
        lambda raw: digits_of(raw)["ladder"]["D"].update(preconditioning="edn"),
        "ladder.D.preconditioning: 'edn' is not one of vp, ve, iddpm, edm; did you mean 'edm'",
    ),
    "a value out of range": (
        lambda raw: digits_of(raw)["ladder"]["F"].update(augment=1.5),
        "experiments.digits.ladder.F.augment: 1.5 is greater than the maximum of 1",
    ),
    "a missing key": (
        lambda raw: raw["datasets"]["digits"].pop("source"),
        "datasets.digits: key 'source' is missing",
    ),
    "an unknown experiment": (lambda raw: raw.update(run=["digit"]), "'digit' is not defined; did you mean 'digits'"),
    "an unknown dataset": (
        lambda raw: digits_of(raw).update(dataset="digitz"),
        "dataset 'digitz' is not defined; did you mean 'digits'",
    ),
    "an unknown model in a grid": (
        lambda raw: digits_of(raw)["grids"]["heun"].update(models=["vp-G"]),
        "experiments.digits.grids.heun: model 'vp-G' is not defined; did you mean 'vp-",
    ),
    "an unknown model with changes of its own": (
        lambda raw: uncond_of(raw)["grids"]["rho"]["models"].update({"vp-a": {"num_steps": 2}}),
        "experiments.cifar10-uncond.grids.rho: model 'vp-a' is not defined; did you mean 'vp-",
    ),
    "a change that no sampler knows": (
        lambda raw: uncond_of(raw)["grids"]["rho"]["models"].update({"vp-A": {"num_step": 2}}),
        "experiments.cifar10-uncond.grids.rho.models.vp-A: unknown key 'num_step'; did you mean 'num_steps'",
    ),
    "an unknown guide": (
        lambda raw: digits_of(raw)["grids"]["ladder"].update(guide="vp-G", guidance=[1, 2]),
        "experiments.digits.grids.ladder: guide 'vp-G' is not defined; did you mean 'vp-",
    ),
    "a model that guides itself": (
        lambda raw: digits_of(raw)["grids"]["ours"].update(guide="vp-A", guidance=2),
        "experiments.digits.grids.ours: guide vp-A: is the model itself; name another one, or a snapshot of it",
    ),
    "guidance without a guide": (
        lambda raw: digits_of(raw)["grids"]["ours"].update(guide=None, guidance=2),
        "guidance has no effect without a guide; name one (the null label is 'null', in quotes)",
    ),
    "a snapshot that is not taken": (
        lambda raw: digits_of(raw)["grids"]["ours"].update(guide={"model": "vp-F", "at": 0.07}, guidance=2),
        "guide: vp-F has no snapshot at 0.07 Mimg; it takes none (snapshot_every)",
    ),
    "a snapshot at another time": (
        lambda raw: (
            digits_of(raw)["base"].update(snapshot_every=0.05),
            digits_of(raw)["grids"]["ours"].update(guide={"model": "vp-F", "at": 0.07}, guidance=2),
        ),
        "guide: vp-F has no snapshot at 0.07 Mimg; the nearest is at 0.05",
    ),
    "a guide with an unknown key": (
        lambda raw: digits_of(raw)["grids"]["ours"].update(guide={"model": "vp-F", "after": 0.07}, guidance=2),
        "grids.ours.guide: unknown key 'after'; did you mean",
    ),
    "the null label of an unconditional model": (
        lambda raw: uncond_of(raw)["grids"]["churn-all"].update(guide="null", guidance=2),
        "guide null: vp-F is unconditional, so no label can be left out",
    ),
    "a choice of snapshots with a guide": (
        lambda raw: raw["experiments"]["cifar10-cond"]["grids"]["ladder"].update(guide="null", guidance=2),
        "experiments.cifar10-cond.choose: grid 'ladder' has a guide; name a grid without one",
    ),
    "an unknown grid": (
        lambda raw: digits_of(raw)["tables"]["table2"].update(grid="lader"),
        "experiments.digits.tables.table2: grid 'lader' is not defined for any of its models; did you mean 'ladder'",
    ),
    "no steps": (
        lambda raw: digits_of(raw)["grids"]["ladder"].update(num_steps=0),
        "experiments.digits.grids.ladder.num_steps: 0 is less than the minimum of 1",
    ),
    "steps that are no numbers": (
        lambda raw: digits_of(raw)["grids"]["ladder"].update(num_steps="many"),
        "experiments.digits.grids.ladder.num_steps: 'many' is not of type integer or array",
    ),
    "a grid of one model that is not in a list": (
        lambda raw: digits_of(raw)["grids"]["ladder"].update(models="vp-A"),
        "experiments.digits.grids.ladder.models: 'vp-A' is not of type array or object",
    ),
    "S_min above S_max": (
        lambda raw: digits_of(raw)["grids"]["churn-all"].update(S_min=7),
        "experiments.digits.grids.churn-all (S_churn=2): S_min 7 is larger than S_max 5",
    ),
    "a choice without effect": (
        lambda raw: digits_of(raw)["grids"]["original"].update(rho=5),
        "experiments.digits.grids.original (num_steps=8): solver vp-ode has no rho; it takes num_steps",
    ),
    "a network too deep for the image": (
        lambda raw: digits_of(raw)["ladder"]["C"].update(channel_mult=[1] * 9),
        r"experiments.digits.ladder.C (vp): resolution 8: channel_mult has 9 levels",
    ),
    "a fraction for a count": (
        lambda raw: digits_of(raw)["base"].update(num_blocks=1.0),
        "experiments.digits.base.num_blocks: 1.0 is not of type integer",
    ),
    "a number that is none": (
        lambda raw: digits_of(raw)["base"].update(P_mean=float("nan")),
        "experiments.digits.base.P_mean: nan is not of type number",
    ),
    "an unknown extractor": (
        lambda raw: digits_of(raw).update(features="digit-classifier"),
        "experiments.digits.features: extractor 'digit-classifier' is not defined; did you mean 'digits-classifier'",
    ),
    "an unknown further extractor": (
        lambda raw: digits_of(raw).update(more_features={"pixel": None}),
        "experiments.digits.features: extractor 'pixel' is not defined; did you mean 'pixels'",
    ),
    "a metric of other features": (
        lambda raw: digits_of(raw).update(metrics=["inception_score"]),
        "experiments.digits.metrics: inception_score is made of the class logits of inception-v3-compat",
    ),
    "an experiment named as a rule": (
        lambda raw: raw["experiments"].update(train=raw["experiments"]["digits"]),
        "experiments.train: the workflow has a rule or a folder of that name",
    ),
    "an empty experiment": (
        lambda raw: raw["experiments"].update(mine=None),
        "experiments.mine: None is not of type object",
    ),
    "an experiment that extends a list": (
        lambda raw: raw["experiments"]["digits-full"].update(extends=["digits"]),
        "experiments.digits-full.extends: ['digits'] is not defined",
    ),
    "a seed out of range": (
        lambda raw: digits_of(raw)["base"].update(seed=20221012),
        "experiments.digits.base.seed: 20221012 is greater than the maximum",
    ),
    "an experiment that extends itself": (
        lambda raw: raw["experiments"]["digits"].update(extends="digits-full"),
        "extends itself",
    ),
    "steps of which one is none": (
        lambda raw: digits_of(raw)["grids"]["ladder"].update(num_steps=[8, 0]),
        "experiments.digits.grids.ladder.num_steps.1: 0 is less than the minimum of 1",
    ),
    "a sampler's value out of range": (
        lambda raw: digits_of(raw)["sheets"]["samples"].update(rho=0),
        "experiments.digits.sheets.samples.rho: 0 is less than the minimum of 0.1",
    ),
    "a mistake in an experiment that others extend": (
        lambda raw: raw["experiments"]["cifar10-cond"]["base"].update(duration=0),
        "experiments.cifar10-cond.base.duration: 0 is less than or equal to the minimum of 0",
    ),
    "an unknown entry of the override": (
        lambda raw: digits_of(raw).update(override={"blocks": 1}),
        "experiments.digits.override: unknown key 'blocks'; did you mean 'num_blocks'",
    ),
    "a model from one that is not there": (
        lambda raw: digits_of(raw)["models"]["leak"].update({"from": "vp-G"}),
        "experiments.digits.models.leak: model 'vp-G' is not defined; did you mean 'vp-",
    ),
    "a model from a pre-trained one": (
        lambda raw: uncond_of(raw)["models"]["leak"].update({"from": "vp-A"}),
        "experiments.cifar10-uncond.models.leak: model 'vp-A' is not defined",
    ),
    "a model from nothing": (
        lambda raw: digits_of(raw)["models"]["leak"].pop("from"),
        "experiments.digits.models.leak: key 'pretrained', or 'from' is missing",
    ),
    "a pre-trained model with a change": (
        lambda raw: uncond_of(raw)["models"]["vp-A"].update(dropout=0.2),
        "experiments.cifar10-uncond.models.vp-A",
    ),
    "a model that is trained and pretrained": (
        lambda raw: digits_of(raw)["models"]["leak"].update(pretrained="mine"),
        "experiments.digits.models.leak: 'pretrained' stands alone",
    ),
    "an unknown pre-trained file": (
        lambda raw: uncond_of(raw)["models"]["vp-A"].update(pretrained="edm-ffhq-uncond-vp"),
        "experiments.cifar10-uncond.models: pretrained file 'edm-ffhq-uncond-vp' is not defined; did you mean 'edm-",
    ),
    "a pre-trained file without a path": (
        lambda raw: (raw["pretrained"]["mine"].pop("path"), uncond_of(raw)["models"]["vp-A"].update(pretrained="mine")),
        "pretrained.mine: key 'path' is missing; it is not a file of the catalogue",
    ),
    "an unknown key of a pre-trained file": (
        lambda raw: raw["pretrained"]["mine"].update(lik="a/b"),
        "pretrained.mine: unknown key 'lik'; did you mean 'like'",
    ),
    "a download without its address": (
        lambda raw: raw["downloads"]["downloads/cifar-10-python.tar.gz"].pop("url"),
        "downloads.downloads/cifar-10-python.tar.gz: key 'url' is missing",
    ),
    "an unknown checksum of a download": (
        lambda raw: raw["downloads"]["downloads/cifar-10-python.tar.gz"].update(sha265="00"),
        "downloads.downloads/cifar-10-python.tar.gz: unknown key 'sha265'; did you mean 'sha256'",
    ),
    "a checksum that is too short": (
        lambda raw: raw["downloads"]["downloads/cifar-10-python.tar.gz"].update(sha256="00"),
        "downloads.downloads/cifar-10-python.tar.gz.sha256: '00' is not a SHA-256 of 64 hexadecimal digits",
    ),
    "a download from elsewhere than the web": (
        lambda raw: raw["downloads"]["downloads/cifar-10-python.tar.gz"].update(url="ftp://a/b"),
        "downloads.downloads/cifar-10-python.tar.gz.url: 'ftp://a/b' is not an address that begins with http",
    ),
    "a choice by an unknown grid": (
        lambda raw: raw["experiments"]["cifar10-cond"]["choose"].update(grid="lader"),
        "experiments.cifar10-cond.choose: grid 'lader' is not defined; did you mean 'ladder'",
    ),
    "a choice by a grid of several points": (
        lambda raw: raw["experiments"]["cifar10-cond"]["choose"].update(grid="nfe"),
        "experiments.cifar10-cond.choose: grid 'nfe' has several points; a choice needs a single one",
    ),
    "a choice that confirms nothing": (
        lambda raw: raw["experiments"]["cifar10-cond"]["choose"].update(confirm=0),
        "experiments.cifar10-cond.choose.confirm: 0 is less than the minimum of 1",
    ),
    "an unknown model of a search": (
        lambda raw: uncond_of(raw)["searches"]["table5"].update(models=["vp-AA"]),
        "experiments.cifar10-uncond.searches.table5: model 'vp-AA' is not defined; did you mean 'vp-",
    ),
    "a search over what is no setting": (
        lambda raw: uncond_of(raw)["searches"]["table5"]["over"].update(S_chrun=[1]),
        "experiments.cifar10-uncond.searches.table5.over: unknown key 'S_chrun'; did you mean 'S_churn'",
    ),
    "a search over a value out of range": (
        lambda raw: uncond_of(raw)["searches"]["table5"]["over"].update(S_churn=[0, -10]),
        "experiments.cifar10-uncond.searches.table5.over.S_churn: S_churn is -10; it must be at least 0",
    ),
    "a search from several settings": (
        lambda raw: uncond_of(raw)["searches"]["table5"].update(num_steps=[128, 256]),
        "experiments.cifar10-uncond.searches.table5: takes one sampler setting per model, not a list",
    ),
    "an unknown method of a search": (
        lambda raw: uncond_of(raw)["searches"]["table5"].update(method="exhaustiv"),
        "experiments.cifar10-uncond.searches.table5.method: 'exhaustiv' is not one of coordinate, exhaustive; did you",
    ),
    "settings from an unknown search": (
        lambda raw: uncond_of(raw)["grids"]["stochastic-plain"].update(settings_from="plane"),
        "experiments.cifar10-uncond.grids.stochastic-plain: search 'plane' is not defined; did you mean 'plain'",
    ),
    "settings from a search of another model": (
        lambda raw: uncond_of(raw)["grids"]["stochastic-plain"].update(models=["vp-A", "vp-F"]),
        "experiments.cifar10-uncond.grids.stochastic-plain.settings_from (plain): model 'vp-F' is not defined",
    ),
    "a setting that a search finds and the grid states": (
        lambda raw: uncond_of(raw)["grids"]["stochastic-plain"].update(S_churn=[0, 20]),
        "experiments.cifar10-uncond.grids.stochastic-plain: S_churn is stated here and found by search plain; leave",
    ),
    "a setting that a search finds and the grid states for one model": (
        lambda raw: uncond_of(raw)["grids"]["stochastic-plain"].update(models={"vp-A": {"S_churn": 0}}),
        "experiments.cifar10-uncond.grids.stochastic-plain: S_churn is stated here and found by search plain; leave",
    ),
    "a study of leakage of a model that was not trained here": (
        lambda raw: uncond_of(raw)["analyses"]["leakage"].update(models=["vp-A"]),
        "experiments.cifar10-uncond.analyses.leakage: model 'vp-A' is not defined",
    ),
    "an unknown model of a sheet": (
        lambda raw: digits_of(raw)["sheets"]["samples"].update(models=["vp-H"]),
        "experiments.digits.sheets.samples: model 'vp-H' is not defined; did you mean 'vp-",
    ),
    "a sheet of several settings": (
        lambda raw: digits_of(raw)["sheets"]["samples"].update(num_steps=[8, 16]),
        "experiments.digits.sheets.samples: takes one sampler setting per model, not a list",
    ),
    "an unknown model of an analysis": (
        lambda raw: digits_of(raw)["analyses"]["leakage"].update(models=["leek"]),
        "experiments.digits.analyses.leakage: model 'leek' is not defined; did you mean 'leak'",
    ),
    "a study of memorisation without its metric": (
        lambda raw: digits_of(raw)["analyses"].update(
            near={"kind": "memorisation", "models": ["vp-F"], "grid": "ladder"}
        ),
        "experiments.digits.analyses.near: memorisation is not among the metrics of this experiment; add it",
    ),
    "a study of memorisation of a grid without the model": (
        lambda raw: digits_of(raw)["analyses"].update(
            near={"kind": "memorisation", "models": ["vp-F"], "grid": "ours"}
        ),
        "experiments.digits.analyses.near (grid ours): model 'vp-F' is not defined",
    ),
    "a study of memorisation without a grid": (
        lambda raw: digits_of(raw)["analyses"].update(near={"kind": "memorisation", "models": ["vp-F"]}),
        "experiments.digits.analyses.near: key 'grid' is missing; memorisation needs it",
    ),
    "a panel of a grid that is nowhere": (
        lambda raw: digits_of(raw)["tables"].update(all={"kind": "panel", "title": "All", "grid": "lader"}),
        "experiments.digits.tables.all: grid 'lader' is not defined for any of its models; did you mean 'ladder'",
    ),
    "an unknown kind of analysis": (
        lambda raw: digits_of(raw)["analyses"]["leakage"].update(kind="leak"),
        "experiments.digits.analyses.leakage.kind: 'leak' is not one of truncation, degradation, leakage",
    ),
    "a curve over a table without rows": (
        lambda raw: digits_of(raw)["figures"]["figure2"].update(table="table7"),
        "experiments.digits.figures.figure2: table 'table7' is not defined",
    ),
    "a curve of a column that its table lacks": (
        lambda raw: digits_of(raw)["figures"]["figure2"].update(column="vp-B"),
        "experiments.digits.figures.figure2: column 'vp-B' is not in table3; it has vp-A",
    ),
    "a curve of a table without its column": (
        lambda raw: digits_of(raw)["figures"]["figure2"].pop("column"),
        "experiments.digits.figures.figure2: key 'column' is missing; table3 has vp-A",
    ),
    "a curve of a column of samplers by evaluations": (
        lambda raw: digits_of(raw)["figures"]["figure2"].update(table=solvers_of(raw)),
        "experiments.digits.figures.figure2: table 'few' is of one model, and a curve shows all of its rows",
    ),
    "samplers by evaluations that no row has": (
        lambda raw: solvers_of(raw, evaluations=[8, 9]),
        "experiments.digits.tables.few: evaluations: no row has NFE 9; see num_steps of its grids",
    ),
    "samplers by evaluations of an unknown grid": (
        lambda raw: solvers_of(raw, rows={"Euler": "eulr"}),
        "experiments.digits.tables.few: row 'Euler': grid 'eulr' is not defined for any of its models; did you mean",
    ),
    "samplers by evaluations of no model": (
        lambda raw: solvers_of(raw, model=None),
        "experiments.digits.tables.few: key 'model' is missing",
    ),
    "the order of an adaptive solver": (
        lambda raw: solvers_of(raw, kind="orders", rows={"RK45": "rk45", "Euler": "euler"}),
        "experiments.digits.tables.few: row 'RK45': grid 'rk45' is not of one solver with an order",
    ),
    "the order of several solvers": (
        lambda raw: [digits_of(raw)["grids"]["euler"].update(rho=[5, 7]), solvers_of(raw, kind="orders")],
        "experiments.digits.tables.few: row 'Euler': grid 'euler' is not of one solver with an order; sweep num_steps",
    ),
    "a curve over nothing": (
        lambda raw: raw["reports"]["both"]["figures"]["rho"].pop("over"),
        "reports.both.figures.rho: key 'over' is missing",
    ),
    "a curve of a table and of lines": (
        lambda raw: raw["reports"]["both"]["figures"]["rho"].update(table="table2", column="A"),
        "reports.both.figures.rho: 'lines', or 'table': one of them, not both",
    ),
    "an unknown kind of table": (
        lambda raw: raw["reports"]["both"]["tables"]["table5"].update(kind="setting"),
        "reports.both.tables.table5.kind: 'setting' is not one of configurations, samplers, cells, settings,",
    ),
    "a report of an unknown experiment": (
        lambda raw: raw["reports"]["both"]["experiments"].update(cond="cifar10-con"),
        "experiment 'cifar10-con' is not defined; did you mean 'cifar10-cond'",
    ),
    "a report named as an experiment": (
        lambda raw: raw["reports"].update(digits=raw["reports"]["both"]),
        "reports.digits: an experiment or a rule has that name",
    ),
    "a report that extends what is not there": (
        lambda raw: raw["reports"].update(mine={"extends": "bot"}),
        "reports.mine.extends: 'bot' is not defined; did you mean 'both'",
    ),
    "a table of an unknown role": (
        lambda raw: raw["reports"]["both"]["tables"]["table2"]["columns"].update(A="con/vp"),
        "reports.both.tables.table2: 'con/vp' names no experiment of this report; it knows cond/…, uncond/…",
    ),
    "a table of an unknown column": (
        lambda raw: raw["reports"]["both"]["tables"]["table2"]["columns"].update(A="cond/adm"),
        "reports.both.tables.table2: column 'cond/adm' is not defined; cifar10-cond has vp, ve",
    ),
    "a table of an unknown search": (
        lambda raw: raw["reports"]["both"]["tables"]["table5"]["columns"].update(A="uncond/vp-A:table6"),
        "reports.both.tables.table5: search 'table6' is not defined; cifar10-uncond has table5, plain, noise, range",
    ),
    "a table of a search that its model has not": (
        lambda raw: raw["reports"]["both"]["tables"]["table5"]["columns"].update(A="uncond/vp-F:table5"),
        "reports.both.tables.table5: search 'table5' of cifar10-uncond is not made for model 'vp-F'",
    ),
    "hyperparameters of a pre-trained model": (
        lambda raw: raw["reports"]["both"]["tables"].update(
            table7={"kind": "hyperparameters", "title": "T", "columns": {"A": "uncond/vp-A"}}
        ),
        "reports.both.tables.table7: column 'A': vp-A is pretrained and has no configuration here",
    ),
    "a row of a grid that no model has": (
        lambda raw: digits_of(raw)["tables"]["table3"]["rows"].update(mine="hoin"),
        "experiments.digits.tables.table3: row 'mine': grid 'hoin' is not defined for any of its models; did you",
    ),
    "a row of a grid that the table's models lack": (
        lambda raw: digits_of(raw)["grids"]["rk45"].update(models=["vp-F"]),
        "experiments.digits.tables.table3: no model is sampled by the grids of all of its rows",
    ),
    "a row of a grid per column in a table without columns": (
        lambda raw: digits_of(raw)["tables"]["table3"]["rows"].update(mine={"vp-A": "heun"}),
        "experiments.digits.tables.table3: row 'mine': a grid per column needs `columns`",
    ),
    "a line of an unknown grid": (
        lambda raw: raw["reports"]["both"]["figures"]["rho"]["lines"].update(A="uncond/vp-A:roh"),
        "reports.both.figures.rho: grid 'roh' is not defined; cifar10-uncond has",
    ),
    "a panel of an unknown sheet": (
        lambda raw: raw["reports"]["both"]["figures"]["sheet"]["panels"].update(A="uncond/vp-A:sdf"),
        "reports.both.figures.sheet: sheet 'sdf' is not defined; cifar10-uncond has",
    ),
    "a panel without a sheet": (
        lambda raw: raw["reports"]["both"]["figures"]["sheet"]["panels"].update(A="uncond/vp-A"),
        "reports.both.figures.sheet: 'uncond/vp-A': expected MODEL:NAME of",
    ),
    "the levels of an unknown model": (
        lambda raw: raw["reports"]["both"]["figures"]["levels"]["models"].update(A="cond/vp-G"),
        "reports.both.figures.levels: model 'cond/vp-G' is not defined; cifar10-cond has vp-A, vp-B",
    ),
    "a picture of another analysis's model": (
        lambda raw: raw["reports"]["both"]["figures"]["steps"].update(of=["uncond/vp-A:truncation"]),
        "reports.both.figures.steps: analysis 'truncation' of cifar10-uncond is not made for model 'vp-A'",
    ),
    "noisy images of an unknown dataset": (
        lambda raw: raw["reports"]["both"]["figures"]["noisy"].update(dataset="ffhq"),
        "reports.both.figures.noisy: dataset 'ffhq' is not one of cond, uncond",
    ),
    "an empty path": (
        lambda raw: raw["datasets"]["digits"].update(path=""),
        "datasets.digits.path: '' is not a path without {, }, tabs and line breaks",
    ),
    "a raw path in which Snakemake would see a wildcard": (
        lambda raw: raw["datasets"]["digits"].update(path="raw/{train}"),
        "datasets.digits.path: 'raw/{train}' is not a path without {, }, tabs and line breaks",
    ),
    "a download whose path is too long": (
        lambda raw: raw["downloads"].update({"x/" * 300: {"url": None}}),
        "downloads: '" + "x/" * 49 + "x… is too long",
    ),
    "a name that ends in a line break": (
        lambda raw: digits_of(raw)["grids"].update({"mine\n": digits_of(raw)["grids"]["heun"]}),
        "experiments.digits.grids: 'mine\\n' is not a name of letters, digits, points, underscores and single hyphens",
    ),
    "a name in braces": (
        lambda raw: digits_of(raw)["models"].update({"{x}": {"from": "vp-A"}}),
        "experiments.digits.models: '{x}' is not a name of letters",
    ),
    "a name that is too long for a file": (
        lambda raw: digits_of(raw)["sheets"].update({"s" * 101: digits_of(raw)["sheets"]["samples"]}),
        "experiments.digits.sheets: '" + "s" * 99 + "… is too long",
    ),
    "a label that spreadsheets would run": (
        lambda raw: digits_of(raw)["tables"]["table3"]["rows"].update({"=1+1": "heun"}),
        "experiments.digits.tables.table3.rows: '=1+1' is not a label: one line that does not begin with = or @",
    ),
    "a title of two lines": (
        lambda raw: digits_of(raw)["tables"]["table3"].update(title="a\nb"),
        "experiments.digits.tables.table3.title: 'a\\nb' is not a label: one line",
    ),
    "too many repeats": (
        lambda raw: digits_of(raw)["sampling"].update(repeats=10**6),
        "experiments.digits.sampling.repeats: 1000000 is greater than the maximum of 1000",
    ),
    "too many shards": (
        lambda raw: digits_of(raw)["sampling"].update(shards=10**6),
        "experiments.digits.sampling.shards: 1000000 is greater than the maximum of 1000",
    ),
    "more repeats and shards than jobs can be planned": (
        lambda raw: digits_of(raw)["sampling"].update(repeats=1000, shards=1000),
        "experiments.digits: more than 250,000 models and measurements (points x repeats x shards)",
    ),
    "too few images for a metric": (
        lambda raw: (digits_of(raw).update(metrics=["recall"]), digits_of(raw)["sampling"].update(images=2)),
        "experiments.digits.sampling.images: recall needs at least 4 images",
    ),
    "a duration of centuries": (
        lambda raw: digits_of(raw)["base"].update(duration=1e300),
        "experiments.digits.base.duration: 1e+300 is greater than the maximum of 1000000",
    ),
    "a snapshot every image": (
        lambda raw: digits_of(raw)["base"].update(snapshot_every=1e-6, duration=200),
        "a snapshot every 1e-06 of ",
    ),
    "more blocks than any network has": (
        lambda raw: digits_of(raw)["base"].update(num_blocks=10**9),
        "experiments.digits.base.num_blocks: 1000000000 is greater than the maximum of 64",
    ),
    "a network that no machine holds": (
        lambda raw: digits_of(raw).update(override={"model_channels": 1 << 14, "channel_mult": [64, 64]}),
        "billion parameters; state fewer channels",
    ),
    "a grid of too many points": (
        lambda raw: digits_of(raw)["grids"]["heun"].update(rho=[*range(1, 101)], S_noise=[*range(1, 101)]),
        "experiments.digits.grids.heun: its lists multiply to ",
    ),
    "a point whose name is too long for a file": (
        lambda raw: digits_of(raw)["grids"]["heun"].update(
            {name: [1.2345678901234] for name in ("rho", "S_noise", "S_min", "S_churn", "alpha", "sigma_min")},
            S_max=[2.2345678901234],
            sigma_max=[2.2345678901234],
        ),
        "is too long for the name of a file; sweep fewer settings at once",
    ),
    "a search of too many combinations": (
        lambda raw: uncond_of(raw)["searches"]["table5"].update(over={"rho": [*range(1, 201)], "S_min": [*range(200)]}),
        "experiments.cifar10-uncond.searches.table5.over: its lists multiply to 40,000 combinations, more than 20,000",
    ),
    "more models than a ladder has": (
        lambda raw: digits_of(raw).update(columns={f"c{n}": {} for n in range(200)}),
        "experiments.digits: columns and ladder: its lists multiply to 1,200 combinations, more than 1,000",
    ),
    "experiments that extend each other too often": (
        lambda raw: raw["experiments"].update(
            {f"x{n}": {"extends": f"x{n - 1}" if n else "digits"} for n in range(30)}
        ),
        "extends: more than 20 entries extend each other in a row",
    ),
    "experiments that are long together": (
        lambda raw: raw["experiments"].update({f"x{n}": {"extends": "cifar10-uncond"} for n in range(200)}),
        "experiments: with what they extend, they have more than 50,000 values",
    ),
    "a value of thousands of characters": (
        lambda raw: raw["datasets"]["digits"].update(images="x" * 3000),
        "datasets.digits.images: '" + "x" * 99 + "… is not of type integer",
    ),
    "a list of a value twice": (
        lambda raw: digits_of(raw)["grids"]["heun"].update(models=["vp-A", "vp-A"]),
        "experiments.digits.grids.heun.models: ['vp-A', 'vp-A'] has an entry twice",
    ),
    "a study of leakage without images": (
        lambda raw: digits_of(raw)["analyses"]["leakage"].pop("images"),
        "experiments.digits.analyses.leakage: key 'images' is missing; leakage needs it",
    ),
    "a study of degradation without noise levels": (
        lambda raw: uncond_of(raw)["analyses"]["degradation"].pop("sigmas"),
        "experiments.cifar10-uncond.analyses.degradation: key 'sigmas' is missing; degradation needs it",
    ),
    "a setting of another study": (
        lambda raw: uncond_of(raw)["analyses"]["truncation"].update(images=8),
        "experiments.cifar10-uncond.analyses.truncation: truncation has no images; it takes num_steps, rhos",
    ),
    "the features of a classifier without classes": (
        lambda raw: (raw["datasets"]["digits"].update(classes=0), digits_of(raw)["base"].update(conditional=False)),
        "experiments.digits.features: digits-classifier learns from classes, and dataset digits has none",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.first(40)
def test_a_mistake_is_named_with_its_place_in_one_line(tmp_path, mistake):
    change, message = MISTAKES[mistake]
    with pytest.raises(edm.UserError) as caught:
        load_changed(tmp_path, change)
    text = str(caught.value)
    assert message in text and text.startswith(str(tmp_path / "params.yaml")) and "\n" not in text, text
    assert text.count("params.yaml") == 1, text


@pytest.mark.parametrize("place", [
    "downloads/mine", "downloads/mine.tar.gz", "/", "..", ".", "/tmp/mine", "runs/made-up", "runs/made-up/",
    "runs/made-up/../../mine", "runs//made-up/mine", "runs/made-up/..", None, ["runs/made-up/mine"],
])  # fmt: skip
@pytest.mark.first(4)
def test_made_up_data_lie_in_a_folder_of_their_own(tmp_path, place):
    """Snakemake removes what is at the path of an output before it is made."""
    with pytest.raises(edm.UserError, match=r"datasets\.digits\.path: synthetic data must be below runs/made-up/"):
        load_changed(tmp_path, lambda raw: raw["datasets"]["digits"].update(made_up=5, path=place))
    load_changed(tmp_path, lambda raw: raw["datasets"]["digits"].update(made_up=5, path="runs/made-up/digits"))


def test_a_job_reads_its_own_experiment_whatever_is_wrong_with_another(tmp_path):
    with pytest.raises(edm.UserError):
        load_changed(tmp_path, lambda raw: uncond_of(raw)["grids"]["ours"].update(models=["vp-Z"]))
    loaded = params.load(tmp_path / "params.yaml")
    assert loaded.experiment("digits").models
    for ask in (lambda: loaded.experiment("cifar10-uncond"), lambda: loaded.report("both")):
        with pytest.raises(edm.UserError, match="model 'vp-Z' is not defined"):
            ask()


def test_no_experiment_takes_the_name_of_a_rule():
    """Snakemake would find two rules of one name, and say so in its own words."""
    rules = (path.read_text() for path in [ROOT / "workflow/Snakefile", *(ROOT / "workflow/rules").iterdir()])
    names = {name for text in rules for name in re.findall(r"^rule (\w+):", text, re.MULTILINE)}
    assert {"all", "train", "about"} <= names <= RESERVED


@pytest.mark.parametrize(
    "name, owner", [*((f"{stage}-digits", "digits") for stage in TARGETS), ("data-mnist", "mnist")]
)
def test_nor_that_of_a_part_of_another(tmp_path, name, owner):
    message = rf"params.yaml: experiments.{name}: `snakemake {name}` is a part of '{owner}'; choose another"
    with pytest.raises(edm.UserError, match=message):
        load_changed(tmp_path, lambda raw: raw["experiments"].update({name: {"extends": "digits"}}))
    text = (ROOT / "workflow" / "Snakefile").read_text()
    stages = re.search(r"for stage in \((.*)\):", text).group(1)
    assert {*re.findall(r"\w+", stages), "download"} == {*TARGETS} and 'f"download-{name}"' in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("run: [digits\nx: 1", "params.yaml:2: not valid YAML"),
        (
            "run: [a]\nrun: [b]",
            "params.yaml:2: not valid YAML (duplicate key 'run'; put its entries below that of line 1)",
        ),
        ("- 1", "the file: [1] is not of type object"),
        ("run: [a]\n2022: b", "params.yaml:2: not valid YAML (key 2022 is not text; put it in quotes)"),
        ("run:\n- 2024-99-99", "params.yaml:2: not valid YAML ('2024-99-99' is no timestamp; put it in quotes if"),
        ("run: !!timestamp now", "params.yaml:1: not valid YAML (tag 'tag:yaml.org,2002:timestamp': tags (!name) are"),
        ("run: !!map x", "params.yaml:1: not valid YAML (tag 'tag:yaml.org,2002:map': tags (!name) are not supported"),
        ("run: 2001-12-14t21:59:43.10+99:99", "params.yaml:1: not valid YAML ('2001-12-14t21:59:43.10+99:99' is no"),
        (f"run: {'9' * 5000}", f"params.yaml:1: not valid YAML ('{'9' * 40}'… has more than 4,000 characters)"),
        (f"run: {'9' * 400}", f"params.yaml:1: not valid YAML ('{'9' * 40}' is a number beyond 64 bits)"),
        (f"run: 0x{'f' * 3990}", f"params.yaml:1: not valid YAML ('0x{'f' * 38}' is a number beyond 64 bits)"),
        ('run: "a\\0b"', "params.yaml:1: not valid YAML ('a\\x00b' has a control character)"),
        ("run: e\u0301", "letters and accents apart; write each as one character (Unicode NFC)"),
        (f"run: [{'x, ' * 60_000}]", "params.yaml:1: not valid YAML (more than 50,000 values)"),
        (f"run: [&a {'x' * 4000}, {'*a, ' * 1000}]", "expand without end"),
    ],
)
def test_text_that_is_no_params_file_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(edm.UserError) as caught:
        params.load(tmp_path / "params.yaml")
    assert message in str(caught.value)


BOMB = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)])  # fmt: skip
MERGES = "\n".join(["a0: &a0 {x: 1, y: 2}"] + [
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)])  # fmt: skip
HOSTILE = {
    "a call": "run: !!python/object/apply:os.system ['touch executed']",
    "a call in a key": "? !!python/object/apply:os.system ['touch executed']\n: 1",
    "a class": "run: !!python/object/new:subprocess.Popen [['touch', 'executed']]",
    "an import": "run: !!python/module:this",
    "a name": "run: !!python/name:os.system",
    "a tag of its own": "run: !run 'touch executed'",
    "billions of values": BOMB,
    "itself": "run: &a [*a]",
    "itself, as a mapping": "experiments: &a {x: {extends: x, dataset: *a}}",
    "a hundred thousand levels": "run: " + "[" * 100_000,
    "a mapping that merges billions of values": MERGES,
    "a mapping that merges itself": "run: &a {<<: *a}",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.first(4)
def test_a_hostile_params_file_runs_nothing_and_is_refused_in_a_line(tmp_path, kind):
    """In a process of its own, where anything that was run, imported or written would be heard of."""
    (tmp_path / "params.yaml").write_text(HOSTILE[kind])
    reader = """
import os, sys
import edm.params.reading, jsonschema, yaml
def heard(event, arguments):
    if event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "import")) or (
        event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    ):
        print("heard", event, arguments)
sys.addaudithook(heard)
try:
    edm.params.reading.load("params.yaml")
except edm.params.reading.UserError as error:
    print("refused", error)
os.system(":")  # which is heard
"""
    done = subprocess.run([sys.executable, "-c", reader], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    line, control = done.stdout.splitlines()
    assert control.startswith("heard os.system")
    assert line.startswith("refused params.yaml") and "not valid YAML" in line and len(line) < 300, line
    assert done.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.slow
def test_dvc_changes_one_value_of_the_file_and_keeps_the_rest(tmp_path):
    """`dvc exp run -S` writes params.yaml with its own YAML writer, which folds lines: docs/versions.md's example."""
    from dvc.utils.hydra import apply_overrides

    page = (ROOT / "docs" / "versions.md").read_text()
    (stated,) = re.findall(r"dvc exp run -S '(.*)'", page)
    copy_of = tmp_path / "params.yaml"
    copy_of.write_text((ROOT / "params.yaml").read_text())
    before = params.load(copy_of).raw
    apply_overrides(copy_of, [stated])
    after = params.load(copy_of, whole=True).raw
    ladders = [raw["experiments"]["digits"]["ladder"]["B"] for raw in (before, after)]
    assert [ladder["learning_rate"] for ladder in ladders] == [6.0e-3, 4.0e-3]
    for name in ("digits", "digits-full", "cluster"):  # those that extend it
        after["experiments"][name]["ladder"]["B"]["learning_rate"] = 6.0e-3
    assert after == before and json.dumps(after) == json.dumps(before)  # and in the same order


def grid_of(folder, **settings):
    change = lambda raw: digits_of(raw)["grids"].update(mine={"models": ["vp-A"], **settings})
    return load_changed(folder, change).experiment("digits").grids["mine"].points["vp-A"]


def test_points_that_differ_in_the_seventh_digit_have_names_of_their_own(tmp_path):
    """The name is the key under which a point is kept, drawn and shown: two of one name would be one."""
    values = [1.0, 1.0000001, 1234567.0, 1234568.0, 0.1, 40.0]
    names = [point.id for point in grid_of(tmp_path, S_churn=values)]
    assert names == ["S_churn=1", "S_churn=1.0000001", "S_churn=1234567.0", "S_churn=1234568.0", "S_churn=0.1",
                     "S_churn=40"]  # fmt: skip


def test_the_settings_of_a_study_are_the_arguments_of_its_function():
    """A setting that the check lets through and the study does not take would fail after the training runs."""
    from edm.analysis.studies import degradation, leaked
    from edm.analysis.truncation import truncation_errors

    given = {
        "dataset",
        "augment",
        "transform",
        "features",
        "block",
        "classes",
        "first_seed",
    }  # by the command, not by params.yaml
    for kind, function in (("truncation", truncation_errors), ("degradation", degradation), ("leakage", leaked)):
        parameters = inspect.signature(function).parameters.values()
        stated = {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given}
        study = STUDIES[kind]
        assert stated == dict.fromkeys(study.needed, True) | dict.fromkeys(study.optional, False)
        assert {*study.needed, *study.optional} <= params.schema()["$defs"]["analysis"]["properties"].keys()


@pytest.mark.parametrize("make, message", [
    (lambda path: os.mkfifo(path), "is a pipe"),
    (lambda path: path.mkdir(), "is a folder"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    (lambda path: path.write_bytes(b"#" * (2 << 20)), "has more than 1,048,576 bytes"),
    (lambda path: None, "no such file; expected the params file of a project"),
])  # fmt: skip
def test_a_params_file_is_a_regular_file_of_bounded_size(tmp_path, make, message):
    make(tmp_path / "params.yaml")
    with pytest.raises(edm.UserError, match=message):
        params.load(tmp_path / "params.yaml")


def test_a_leakage_study_knows_its_extractor(tmp_path):
    """In other features, its distances are others."""
    specs = set()
    for features in ("pixels", "inception-v3-compat", "dinov2-vit-s-14", "dinov2-vit-b-14"):

        def change(raw, features=features):
            digits_of(raw).update(features=features, metrics=[], more_features={})
            digits_of(raw)["analyses"] |= {"leak": {"kind": "leakage", "models": ["vp-F"], "images": 20},
                                           "steps": {"kind": "truncation", "models": ["vp-F"]}}  # fmt: skip

        experiment = load_changed(tmp_path, change).experiment("digits")
        assert experiment.analysis_spec("vp-F", "leak")["features"] == features
        assert "features" not in experiment.analysis_spec("vp-F", "steps")
        specs.add(digest(experiment.analysis_spec("vp-F", "leak")))
    assert len(specs) == 4
