"""params.yaml: the ladder is the sum of its differences; mistakes are named with their place and the nearest name."""

import copy
import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import edm
from edm import params
from edm.config import SamplerConfig, TrainingConfig
from edm.files import canonical_json, digest

ROOT = Path(__file__).parent.parent
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def load_changed(tmp_path, change):
    raw = copy.deepcopy(RAW)
    change(raw)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(tmp_path / "params.yaml")


def digits_of(raw):
    return raw["experiments"]["digits"]


def test_the_ladder_changes_only_what_each_rung_states():
    models = params.load(ROOT / "params.yaml").experiment("digits").models
    rungs = list(models.values())
    for (name, change), before, after in zip(
        list(digits_of(RAW)["ladder"].items())[1:], rungs, rungs[1:], strict=False
    ):
        differing = {f.name for f in fields(TrainingConfig) if getattr(before, f.name) != getattr(after, f.name)}
        assert differing <= set(change), name
        assert differing, f"{name} changes nothing"


def test_the_ladder_is_the_papers():
    """D brings the preconditioning, E the loss, F the augmentation; A to C are Song et al.'s designs (Table 2)."""
    models = params.load(ROOT / "params.yaml").experiment("digits-full").models
    assert list(models) == [f"{column}-{rung}" for column in ("vp", "ve") for rung in "ABCDEF"]
    for column in ("vp", "ve"):
        designs = [(models[f"{column}-{rung}"].preconditioning, models[f"{column}-{rung}"].loss) for rung in "ABCDEF"]
        assert designs == [(column, column)] * 3 + [("edm", column)] + [("edm", "edm")] * 2
        assert [models[f"{column}-{rung}"].augment for rung in "ABCDEF"] == [0] * 5 + [0.06]


def test_grids_are_products_of_their_lists(tmp_path):
    def change(raw):
        digits_of(raw)["grids"]["both"] = {"models": ["vp-A"], "num_steps": [4, 8], "S_churn": [0, 1, 2], "rho": 5}

    points = load_changed(tmp_path, change).experiment("digits").grids["both"].points
    assert [p.id for p in points] == [f"num_steps={n},S_churn={s}" for n in (4, 8) for s in (0, 1, 2)]
    assert all(p.sampler.rho == 5 for p in points)


def test_changing_one_configuration_changes_the_specification_of_its_models_alone(tmp_path):
    before = params.load(ROOT / "params.yaml").experiment("digits")
    after = load_changed(tmp_path, lambda raw: digits_of(raw)["ladder"]["F"].update(augment=0.3)).experiment("digits")
    changed = [m for m in before.models if before.training_spec(m) != after.training_spec(m)]
    assert changed == ["vp-F"]
    assert all(before.sampling_spec(*pair) == after.sampling_spec(*pair) for pair in before.evaluations())


def test_order_and_spelling_of_numbers_do_not_change_a_specification():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert canonical_json({"b": 0.001, "a": 1e-3}) == '{"a":0.001,"b":0.001}'


def test_a_specification_says_what_differs_from_the_defaults_and_no_more():
    """A field that a later version adds, with a default that changes nothing, must not retrain a model."""
    experiment = params.load(ROOT / "params.yaml").experiment("digits")
    for model, config in experiment.models.items():
        spec = experiment.training_spec(model)
        assert TrainingConfig.from_dict(spec) == config
        defaults = {f.name: f.default for f in fields(TrainingConfig)}
        assert all(value != defaults[name] for name, value in spec.items())


def test_extending_an_experiment_changes_what_it_states(tmp_path):
    def change(raw):
        raw["experiments"]["short"] = {"extends": "digits", "base": {"duration": 0.001}}

    loaded = load_changed(tmp_path, change)
    short, whole = loaded.experiment("short"), loaded.experiment("digits")
    assert short.models["vp-A"].duration == 0.001
    assert short.models["vp-A"].model_channels == whole.models["vp-A"].model_channels


def test_yaml_anchors_and_merges_are_understood(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("      C:\n", "      C: &c\n").replace("      D:\n", "      D:\n        <<: *c\n")
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(tmp_path / "params.yaml").experiment("digits").models["vp-D"].channel_mult == (1, 2)


def test_the_schema_knows_every_field():
    """A field that the schema forgets could not be set; one that it invents would fail later, without its place."""
    schema = json.loads(params.SCHEMA.read_text())["$defs"]
    assert set(schema["training"]["properties"]) == {f.name for f in fields(TrainingConfig)} - {
        "resolution", "channels", "classes",
    }  # fmt: skip
    assert set(schema["grid"]["properties"]) - {"models"} == {f.name for f in fields(SamplerConfig)}


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
    "an unknown model": (
        lambda raw: digits_of(raw)["grids"]["heun-vp"].update(models=["vp-G"]),
        "experiments.digits.grids.heun-vp: model 'vp-G' is not defined; did you mean 'vp-",
    ),
    "an unknown grid": (
        lambda raw: digits_of(raw)["tables"]["table2"].update(grid="lader"),
        "experiments.digits.tables.table2: grid 'lader' is not defined; did you mean 'ladder'",
    ),
    "no steps": (lambda raw: digits_of(raw)["grids"]["ladder"].update(num_steps=0), "grids.ladder.num_steps"),
    "S_min above S_max": (
        lambda raw: digits_of(raw)["grids"]["churn-all"].update(S_min=7),
        "experiments.digits.grids.churn-all (S_churn=2): S_min 7 is larger than S_max 5",
    ),
    "a network too deep for the image": (
        lambda raw: digits_of(raw)["ladder"]["C"].update(channel_mult=[1] * 9),
        r"experiments.digits.ladder.C (vp): channel_mult has 9 levels",
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
    "a curve over a table without rows": (
        lambda raw: digits_of(raw)["figures"]["distance-over-nfe"].update(table="table2"),
        "experiments.digits.figures.distance-over-nfe: table 'table2' is not defined",
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
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_in_one_line(tmp_path, mistake):
    change, message = MISTAKES[mistake]
    with pytest.raises(edm.UserError) as caught:
        load_changed(tmp_path, change)
    text = str(caught.value)
    assert message in text and text.startswith(str(tmp_path / "params.yaml")) and "\n" not in text, text


@pytest.mark.parametrize(
    "text, message",
    [
        ("run: [digits\nx: 1", "params.yaml:2: not valid YAML"),
        ("run: [a]\nrun: [b]", "params.yaml:2: not valid YAML (key 'run' stands twice)"),
        ("run: !!python/object/apply:os.system ['touch executed']", "could not determine a constructor"),
        ("- 1", "the file: [1] is not of type object"),
        ("run: [a]\n2022: b", "params.yaml:2: not valid YAML (key 2022 is not text; put it in quotes)"),
    ],
)
def test_text_that_is_no_params_file_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(edm.UserError) as caught:
        params.load(tmp_path / "params.yaml")
    assert message in str(caught.value)
