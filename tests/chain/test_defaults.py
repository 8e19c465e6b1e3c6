"""Defaults and constants decide results, too, and no specification holds them: each is pinned to code numbers.

defaults.json keeps them as they were with the code numbers beside them. After a change: raise the numbers named by
the test, then run ``python tests/chain/test_defaults.py``, which writes the file anew and refuses where one is not
raised. ``--same-results`` writes it nevertheless: for names that were moved, and new fields that change nothing.
"""

import ast
import copy
import importlib
import inspect
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edm import params
from edm.chain.rules import RULES
from edm.params import Sampling
from edm.params.resolving import Names, _search

PINNED = Path(__file__).with_name("defaults.json")
WRITE = "python tests/chain/test_defaults.py"
DESIGN = ("edm.design.draws", "edm.design.preconditioning", "edm.design.schedules", "edm.design.timesteps")
DRAWING = ("edm.sampling.library", "edm.sampling.sampler", "edm.sampling.rk45", "edm.sampling.originals",
           "edm.sampling.drawing", "edm.sampling.steps", "edm.config.SamplerConfig")  # fmt: skip
#: The rules whose results depend on what these modules, classes and constants state.
CODE = {name: rule.code for name, rule in RULES.items() if rule.kept}

DECIDED = {
    ("train",): (
        *DESIGN, "edm.design.augmentation", "edm.design.losses", "edm.networks.layers", "edm.networks.unet",
        "edm.training.step", "edm.training.batches", "edm.training.loss_levels", "edm.config.TrainingConfig",
        "edm.config.NetworkConfig", "edm.config.ARCHITECTURES", "edm.config.AUGMENT_DIM", "edm.config.MAX_SEED",
    ),
    ("choose", "search", "evaluate", "sample", "analyse"): (*DESIGN, *DRAWING),
    ("reference", "choose", "search", "evaluate", "analyse"): (
        "edm.metrics.measure", "edm.metrics.reference", "edm.metrics.frechet", "edm.metrics.vit", "edm.metrics.dinov2",
        "edm.metrics.MOST_FEATURES", "edm.metrics.NEIGHBOURS", "edm.metrics.WORST", "edm.metrics.neighbours",
    ),
    ("features",): ("edm.metrics.classifier",),
    ("table",): ("edm.analysis.orders",),
    ("search",): ("edm.evaluation.search",),
    ("analyse",): (
        "edm.analysis.studies", "edm.analysis.leakage", "edm.analysis.truncation", "edm.analysis.degradation",
        "edm.design.augmentation",
    ),
}  # fmt: skip
OF_TORCH = ("edm.training.step.CONSTANT_BUFFERS",)  # follows its version


def plain(value):
    """A value as JSON holds it; Ellipsis for what is no plain value."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        parts = {str(key): plain(one) for key, one in value.items()}
        return ... if ... in parts.values() else parts
    if isinstance(value, (list, tuple)):
        parts = [plain(one) for one in value]
        return ... if ... in parts else parts
    if isinstance(value, float):  # other processors may compute another last bit
        return float(f"{value:.12g}") if math.isfinite(value) else repr(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else ...


def stated(name):
    """The defaults and constants of a module, of a dataclass, or one constant, each with its full name."""
    try:
        place = importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, part = name.rpartition(".")
        place = getattr(importlib.import_module(module), part)
    if inspect.ismodule(place):
        found = {}
        for node in ast.parse(inspect.getsource(place)).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [
                one.id for target in targets for one in ast.walk(target or ast.Pass()) if isinstance(one, ast.Name)
            ]
            found |= {f"{name}.{one}": getattr(place, one) for one in names if one.isupper()}
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found |= stated(f"{name}.{node.name}")
    elif inspect.isclass(place):
        found = {f"{name}.{key}": value for key, value in vars(place).items() if key.isupper()}
        for key, method in vars(place).items():
            if inspect.isfunction(method):
                found |= arguments(name if key == "__init__" else f"{name}.{key}", method)
    else:
        found = arguments(name, place) if inspect.isfunction(place) else {name: place}
    return {key: plain(value) for key, value in found.items() if key not in OF_TORCH and plain(value) is not ...}


def arguments(name, function):
    return {f"{name}.{key}": one.default for key, one in inspect.signature(function).parameters.items()
            if one.default is not one.empty}  # fmt: skip


def found():
    """{rules: {name: value}}."""
    return {" ".join(rules): {key: value for name in names for key, value in stated(name).items()}
            for rules, names in DECIDED.items()}  # fmt: skip


def complaints(pinned, values, code):
    """What keeps ``values`` and CODE from being those that are pinned, a line each."""
    lines, numbers = [], pinned["code"]
    for rules, now in values.items():
        before = pinned["values"].get(rules, {})
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key, ...) != now.get(key, ...)]
        told = "; ".join(f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}" for key in changed)
        behind = [rule for rule in rules.split() if code[rule] <= numbers.get(rule, 0)]
        if changed and behind:
            lines.append(f"{told}: raise CODE of {', '.join(behind)}, then run `{WRITE}`")
        elif changed:
            lines.append(f"{told}: CODE is raised; run `{WRITE}`")
    raised = [rule for rule, number in numbers.items() if code[rule] != number]
    return lines or [f"CODE of {rule} was raised: run `{WRITE}`" for rule in raised]


def test_no_default_changes_without_a_raised_code():
    lines = complaints(json.loads(PINNED.read_text()), found(), CODE)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    "name, rule",
    [
        ("edm.config.SamplerConfig.rho", "evaluate"),
        ("edm.config.TrainingConfig.dropout", "train"),
        ("edm.config.NetworkConfig.num_blocks", "train"),
        ("edm.config.ARCHITECTURES", "train"),
        ("edm.config.AUGMENT_DIM", "train"),
        ("edm.design.augmentation.SCALE_STD", "train"),
        ("edm.design.augmentation.SHIFT_STD", "analyse"),
        ("edm.design.losses.EDMLoss.P_mean", "train"),
        ("edm.design.losses.VELoss.sigma_min", "train"),
        ("edm.design.timesteps.DEFAULT_RANGE", "evaluate"),
        ("edm.sampling.rk45._SAFETY", "evaluate"),
        ("edm.sampling.originals.VE_SNR", "search"),
        ("edm.training.loss_levels.LEVELS", "train"),
        ("edm.metrics.measure.KID_SETTINGS", "evaluate"),
        ("edm.metrics.classifier.train_classifier.epochs", "features"),
        ("edm.analysis.studies.leaked.num_steps", "analyse"),
        ("edm.analysis.orders.SIGMA_FIRST", "table"),
    ],
)
@pytest.mark.first(5)
def test_a_changed_value_is_told_until_every_rule_that_it_decides_is_raised(name, rule):
    values = found()
    (rules, *_) = (rules for rules, stated in values.items() if name in stated and rule in rules.split())
    pinned = {"code": dict(CODE), "values": copy.deepcopy(values)}
    assert not complaints(pinned, values, CODE)
    values[rules][name] = "another"
    (line,) = complaints(pinned, {rules: values[rules]}, CODE)
    assert name in line and f"raise CODE of {', '.join(rules.split())}" in line
    raised = {**CODE, **{one: CODE[one] + 1 for one in rules.split()}}
    (line,) = complaints(pinned, {rules: values[rules]}, raised)
    assert "CODE is raised; run" in line
    almost = {**raised, rule: CODE[rule]}
    assert f"raise CODE of {rule}," in complaints(pinned, {rules: values[rules]}, almost)[0]


@pytest.mark.parametrize(
    "field, other",
    [("images", 7), ("first_seed", 5), ("block", 3), ("repeats", 2), ("precision", "tf32")],
)
def test_what_params_leaves_open_stands_in_the_specification(tmp_path, field, other):
    """Defaults of a params file need no pin: a step's specification holds what they were resolved to."""
    experiment = params.load(Path(__file__).parents[2] / "params.yaml").experiment("digits")
    experiment = replace(experiment, sampling=Sampling(images=100))
    changed = replace(experiment, sampling=replace(experiment.sampling, **{field: other}))
    (one, another) = (next(iter(e.evaluations_of("vp-A", "ladder"))) for e in (experiment, changed))
    assert experiment.evaluation_spec(one) != changed.evaluation_spec(another)


def test_a_search_is_specified_with_its_method_and_its_most_sweeps():
    raw = {"models": ["a"], "over": {"rho": [5, 7]}, "images": 4}
    search = _search("here", "s", raw, Names({"all": ["a"], "ladder": ["a"]}, {}), 1.0, None)
    experiment = replace(
        params.load(Path(__file__).parents[2] / "params.yaml").experiment("digits"), searches={"s": search}
    )
    spec = experiment.search_spec("a", "s")
    assert (spec["method"], spec["max_sweeps"]) == ("coordinate", 10)


if __name__ == "__main__":
    old = json.loads(PINNED.read_text()) if PINNED.exists() else {"code": {}, "values": {}}
    open_lines = [line for line in complaints(old, found(), CODE) if ": raise CODE" in line]
    if open_lines and "--same-results" not in sys.argv:
        sys.exit("\n".join(open_lines))
    numbers = {rule: CODE[rule] for rules in DECIDED for rule in rules}
    groups = [
        f'  "{rules}": {{\n   '
        + ",\n   ".join(f'"{key}": {json.dumps(values[key])}' for key in sorted(values))
        + "\n  }"
        for rules, values in sorted(found().items())
    ]
    text = f' "code": {json.dumps(numbers, sort_keys=True)},\n "values": {{\n' + ",\n".join(groups) + "\n }"
    PINNED.write_text(f"{{\n{text}\n}}\n")
