"""The schema of params.yaml, and its errors as text that a person understands."""

import functools
import math
from pathlib import Path
from typing import Any

from edm import registry
from edm.config import LIMITS, SamplerConfig, TrainingConfig
from edm.errors import UserError, nearest
from edm.files.documents import read_json
from edm.params.resolving import OF_DATASETS

SCHEMA = Path(__file__).with_name("params.schema.json")
#: The relative width of an average of snapshots.
_WIDTH: dict[str, Any] = {"type": "number", **{key: LIMITS["ema_widths"][key] for key in ("minimum", "maximum")}}
#: A guide: "null", a model, or a snapshot or an average of snapshots of a training run.
_GUIDE: list[dict[str, Any]] = [
    {"type": "string", "minLength": 1, "maxLength": 200},
    {"type": "object", "additionalProperties": False, "required": ["model"], "properties": {
        "model": {"type": "string"}, "at": {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000},
        "ema": _WIDTH}},
]  # fmt: skip
LONGEST_VALUE = 100  # characters of a value in a message


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml: the schema file with the fields of the configurations from edm.config.

    Sampler settings take a number or, in a grid, a list of them. The parts and settings of loaded plugins are in it.
    """
    return _schema(registry.version())


@functools.lru_cache(maxsize=1)
def _schema(version: int) -> dict[str, Any]:
    found = read_json(SCHEMA)
    defs = found["$defs"]
    training = {name: field for name, field in TrainingConfig.schema().items() if name not in OF_DATASETS}
    training["seeds"] = {"$ref": "#/$defs/seeds"}
    training |= _of_plugins(*TrainingConfig.chosen)
    defs["training"]["properties"] = training
    defs["experiment"]["properties"]["metrics"]["items"] = {"enum": list(registry.Names("metric"))}
    defs["model"]["properties"] |= training
    sampling = SamplerConfig.schema() | _of_plugins(*SamplerConfig.chosen)
    settings = {name: _swept(field) for name, field in sampling.items()}
    settings["guide"] = {"anyOf": [*_GUIDE, {"type": "array", "items": {"anyOf": _GUIDE}, "minItems": 1,
                                             "uniqueItems": True}]}  # fmt: skip
    several = {"type": "array", "items": _WIDTH, "minItems": 1, "maxItems": 100, "uniqueItems": True}
    averages = "relative widths of averages of its models' snapshots"
    for place in (defs["grid"], defs["experiment"]["properties"]["choose"]["anyOf"][1]):
        place["properties"]["ema"] = {"anyOf": [_WIDTH, several], "description": averages}
    defs["dataset"]["properties"] |= _of_plugins("source")
    defs["analysis"]["properties"] |= {"kind": {"enum": list(registry.Names("study"))}, **_of_plugins("study")}
    for name in ("settings", "grid", "search", "sheet"):
        own = defs[name].setdefault("properties", {})
        defs[name]["properties"] = settings | own  # a search's ``over`` is its own
    return found


def _of_plugins(*kinds: str) -> dict[str, dict[str, Any]]:
    """The settings of plugins of some kinds, such as "solver.eta"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in (part for kind in kinds for part in registry.plugins(kind)):
        for name, setting in part.settings.items():
            found.setdefault(f"{part.kind}.{name}", []).append(setting.schema())
    return {key: one[0] if len(one) == 1 else {"anyOf": one} for key, one in found.items()}


def _swept(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of one value of a field, or of a list of values for a number; null is not allowed."""
    if "anyOf" in field:  # of several plugins
        return {"anyOf": [_swept(one) for one in field["anyOf"]]}
    if "enum" in field or field["type"] == "array":  # a list of levels is one value
        return field
    kind = field["type"] if isinstance(field["type"], str) else field["type"][0]
    one = {**field, "type": kind}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}


def validate(raw: Any, path: Path) -> None:
    """Raises UserError, with the place of the first mistake in the file, if the schema refuses the data."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import extend

    # JSON Schema accepts 64.0 as an integer and NaN as a number; the code accepts neither.
    types = Draft202012Validator.TYPE_CHECKER.redefine_many({
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    })  # fmt: skip
    validator = extend(Draft202012Validator, {"uniqueItems": _unique}, type_checker=types)
    errors = list(validator(schema()).iter_errors(raw))
    if errors and registry.load_installed():
        errors = list(validator(schema()).iter_errors(raw))
    if not errors:
        return
    # Every experiment that extends a faulty one repeats its mistake: report the original place.
    error = _meant(best_match([error for error in errors if not _inherits(error, raw)] or errors))
    place = ".".join(str(part) for part in error.absolute_path) or "the file"
    raise UserError(f"{path}: {place}: {_explain(error)}")


def _unique(validator, unique, items, schema):
    """The keyword of that name. jsonschema's own compares every pair of a long list of several types."""
    from jsonschema.exceptions import ValidationError

    if unique and isinstance(items, list) and len(set(map(repr, items))) < len(items):
        yield ValidationError(f"{items!r} has an entry twice")


def _inherits(error, raw: Any) -> bool:
    place = list(error.absolute_path)
    if len(place) < 2 or place[0] not in ("experiments", "reports"):
        return False
    entry = raw[place[0]][place[1]]
    return isinstance(entry, dict) and "extends" in entry


def _meant(error):
    """The mistake itself if the schema has alternatives: ignores alternatives of another type."""
    from jsonschema.exceptions import best_match

    while error.context:
        meant = [e for e in error.context if e.relative_path or e.validator not in ("type", "enum", "const")]
        if len({e.relative_schema_path[0] for e in meant}) != 1:
            break
        error = best_match(meant)
    return error


def _explain(error) -> str:
    """A schema error as readable text."""
    value, expected, shown = error.instance, error.validator_value, _shown(error.instance)
    if error.context and all(e.validator in ("type", "enum", "const") for e in error.context):
        stated = [e.validator_value for e in error.context if e.validator == "type"]
        types = [name for names in stated for name in ([names] if isinstance(names, str) else names) if name != "null"]
        return f"{shown} is not of type {' or '.join(types)}"
    if error.context and all(e.validator == "required" for e in error.context):
        choice = dict.fromkeys(" and ".join(map(repr, e.validator_value)) for e in error.context)
        return f"key {', or '.join(choice)} is missing"
    if error.validator == "oneOf" and not error.context:
        options = [" and ".join(map(repr, option["required"])) for option in expected]
        return f"{', or '.join(options)}: one of them, not both"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        key = next(key for key in value if key not in known)
        kind = str(key).partition(".")[0]
        if "." in str(key) and kind in registry.KINDS and not any(name.startswith(f"{kind}.") for name in known):
            return f"unknown key {_shown(key)}: no plugin has that setting; name its file under `plugins`"
        return f"unknown key {_shown(key)}{nearest(key, known)}"
    if error.validator == "required":
        missing = next(key for key in expected if key not in value)
        return f"key {missing!r} is missing"
    if error.validator == "enum":
        place = list(error.absolute_path)
        of_study = "analyses" in place and place[-1] == "kind"
        names_a_part = of_study or place[-1] in registry.KINDS or "metrics" in place
        plugin = "; a plugin's file stands under `plugins`" if names_a_part else ""
        hint = nearest(str(value), [str(e) for e in expected])
        hint = hint if "did you mean" in hint else ""  # all names stand there already
        return f"{shown} is not one of {', '.join(map(str, expected))}{hint}{plugin}"
    if error.validator == "type":
        wanted = " or ".join([expected] if isinstance(expected, str) else expected)
        hint = ""
        if isinstance(value, str) and "number" in wanted and _is_number(value):
            hint = f"; YAML reads {value[:LONGEST_VALUE]} as text, write {float(value)!r}"
        return f"{shown} is not of type {wanted}{hint}"
    if error.validator == "pattern":
        return f"{shown} is not {error.schema['description']}"
    return error.message.replace(repr(value), shown)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
