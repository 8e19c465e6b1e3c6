"""Configurations: one table of limits, which the library, JSON files and params.yaml are all held to."""

import copy
import math
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

import edm
from edm import params
from edm.checked import _require_within, fits
from edm.config import LIMITS, NetworkConfig, SamplerConfig, TrainingConfig

ROOT = Path(__file__).parents[1]
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())
NEEDED = {
    NetworkConfig: {"resolution": 8},
    TrainingConfig: {"resolution": 8, "channels": 1, "classes": 10, "channel_mult": (1, 2)},
    SamplerConfig: {},
}
#: What each bound of a field forbids, nearest to it.
OUTSIDE = {
    "minimum": lambda bound: math.nextafter(bound, -math.inf) if isinstance(bound, float) else bound - 1,
    "exclusiveMinimum": lambda bound: bound,
    "maximum": lambda bound: bound + 1,
    "exclusiveMaximum": lambda bound: bound,
    "multipleOf": lambda bound: 2 * bound + 1,
}
FORBIDDEN = [
    (cls, field.name, bound, [OUTSIDE[bound](limit)] if isinstance(field.default, tuple) else OUTSIDE[bound](limit))
    for cls in NEEDED
    for field in fields(cls)
    for bound, limit in LIMITS.get(field.name, {}).items()
    if bound in OUTSIDE
]


def named(case):
    return " ".join([case[0].__name__, case[1], case[2]])


@pytest.mark.parametrize("cls, name, bound, value", FORBIDDEN, ids=map(named, FORBIDDEN))
def test_the_library_refuses_what_is_outside_of_a_limit(cls, name, bound, value):
    """Made directly and from a file's values, in a line that names the field and its value."""
    for make in (lambda values: cls(**values), cls.from_dict):
        with pytest.raises(edm.UserError, match=f"^{name} is ") as caught:
            make({**NEEDED[cls], name: value})
        assert "\n" not in str(caught.value)


IN_PARAMS = [case for case in FORBIDDEN if case[0] is not NetworkConfig and case[1] not in params.resolving.OF_DATASETS]


@pytest.mark.parametrize("cls, name, bound, value", IN_PARAMS, ids=map(named, IN_PARAMS))
def test_params_refuses_the_same_with_its_place(tmp_path, cls, name, bound, value):
    raw = copy.deepcopy({key: RAW[key] for key in ("datasets", "downloads", "tracking") if key in RAW})
    raw |= {"run": ["digits"], "experiments": {"digits": copy.deepcopy(RAW["experiments"]["digits"])}}
    digits = raw["experiments"]["digits"]
    place = digits["base"] if cls is TrainingConfig else digits["grids"]["ladder"]
    place[name] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    where = "base" if cls is TrainingConfig else "grids.ladder"
    with pytest.raises(edm.UserError, match=rf"experiments\.digits\.{where}\.{name}(\.0)?: ") as caught:
        params.load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_limits_are_of_fields_and_every_number_has_some():
    every = {field.name: field.type for cls in NEEDED for field in fields(cls)}
    assert LIMITS.keys() <= every.keys()
    assert {name for name, type in every.items() if type not in (bool, bool | None)} - {"settings"} <= LIMITS.keys()


@pytest.mark.parametrize("cls", [NetworkConfig, TrainingConfig, SamplerConfig])
def test_defaults_are_of_their_types_and_within_their_limits(cls):
    """A configuration does not check a field that has its default."""
    for field in fields(cls):
        if field.default is not MISSING and "apart" not in field.metadata:
            assert field.default == math.inf or fits(field.default, cls._hints()[field.name]), field.name
            _require_within(cls.limits.get(field.name, {}), field.name, field.default)


@pytest.mark.parametrize("cls", NEEDED)
def test_the_defaults_are_within_their_limits(cls):
    stated = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    made = cls(**{**stated, **NEEDED[cls]})
    assert cls.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    "cls, values, message",
    [
        (SamplerConfig, {"S_churn": math.nan}, "S_churn is nan, which is not a finite number"),
        (SamplerConfig, {"sigma_max": math.inf}, "sigma_max is inf, which is not a finite number or null"),
        (SamplerConfig, {"num_steps": 18.5}, "num_steps is 18.5, which is not a whole number"),
        (SamplerConfig, {"num_steps": True}, "num_steps is True, which is not a whole number"),
        (SamplerConfig, {"solver": ["heun"]}, "solver is ['heun'], which is not text"),
        (SamplerConfig, {"sigma_min": 3.0, "sigma_max": 2}, "sigma_min 3 is larger than sigma_max 2; swap them"),
        (TrainingConfig, {"duration": 10**400}, "which is not a finite number"),
        (TrainingConfig, {"channel_mult": []}, "channel_mult has 0 entries; it must have 1 to 16"),
        (TrainingConfig, {"channel_mult": [1] * 17}, "channel_mult has 17 entries; it must have 1 to 16"),
        (TrainingConfig, {"precision": "fp8"}, "precision 'fp8' is unknown; choose one of fp32, tf32, bf16, fp16"),
        (
            NetworkConfig,
            {"resolution": 30},
            "resolution 30: channel_mult has 3 levels, so the side is a multiple of 4, such as 28 or 32",
        ),
        (NetworkConfig, {"resample_filter": (1, 2, 1)}, "resample_filter needs an even number of taps, with a sum > 0"),
        (NetworkConfig, {"resample_filter": (0, 0)}, "resample_filter needs an even number of taps, with a sum > 0"),
    ],
)
def test_a_value_that_a_field_cannot_take_is_named(cls, values, message):
    with pytest.raises(edm.UserError) as caught:
        cls(**{**NEEDED[cls], **values})
    assert message in str(caught.value)
