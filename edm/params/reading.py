"""Reading params.yaml: YAML, the schema, and readable error messages."""

import copy
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edm.config import SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.files.reading import read_regular
from edm.files.writing import read_json
from edm.params.catalogue import PUBLISHED, kept_at
from edm.params.experiment import Experiment, Report
from edm.params.layouts import check_report
from edm.params.resolving import MADE_UP, OF_DATASETS, RESERVED, TARGETS, known, nearest, resolve
from edm.tracking import DEFAULT_URI

SCHEMA = Path(__file__).with_name("params.schema.json")

MAX_BYTES = 1 << 20  # of a params file; params.yaml has 40,000
MAX_DEPTH, MAX_VALUES = 50, 200_000  # of a params file with expanded aliases; params.yaml is 8 deep and has 2,500


@dataclass(frozen=True)
class Params:
    """The whole file. Experiments are resolved at their first use."""

    path: str
    raw: dict[str, Any]

    @property
    def run(self) -> list[str]:
        return self.raw["run"]

    @property
    def tracking_uri(self) -> str:
        return self.raw.get("tracking", {}).get("uri", DEFAULT_URI)

    @property
    def downloads(self) -> dict[str, dict[str, Any]]:
        """The downloads, with published checkpoints: path → url, and the checksum if it is known."""
        published = {kept_at(name): {"url": file.url, "note": file.where} for name, file in PUBLISHED.items()}
        return published | self.raw.get("downloads", {})

    @property
    def pretrained(self) -> dict[str, dict[str, Any]]:
        """Published checkpoints: name → path, and settings that the file does not determine; extends the catalogue."""
        known = {name: {"path": kept_at(name)} for name in PUBLISHED}
        stated = self.raw.get("pretrained", {})
        return known | {name: known.get(name, {}) | entry for name, entry in stated.items()}

    @property
    def reports(self) -> list[str]:
        """Everything that has tables or figures: single experiments, and reports on several."""
        own = [name for name, raw in self.raw["experiments"].items() if raw.get("tables") or raw.get("figures")]
        return [*own, *self.raw.get("reports", {})]

    def dataset(self, name: str) -> dict[str, Any]:
        """Source, path, and the expected content of the prepared archive."""
        datasets = self.raw["datasets"]
        if name not in datasets:
            raise UserError(f"{self.path}: dataset {name!r} is not defined{nearest(name, datasets)}")
        return {"path": None, "images": None, **datasets[name]}

    def dataset_spec(self, name: str) -> dict[str, Any]:
        """The settings that affect a dataset, without the content and the path of its raw data."""
        return {key: value for key, value in self.dataset(name).items() if key != "path"}

    def pretrained_spec(self, name: str) -> dict[str, Any]:
        """The settings that affect an imported model, without its published file. Only the plan uses ``like``."""
        return {key: value for key, value in self.pretrained[name].items() if key not in ("path", "like")}

    def experiment(self, name: str) -> Experiment:
        """The resolved experiment. Raises UserError, naming the place in the file, if its entries are inconsistent."""
        experiments = self.raw["experiments"]
        if name not in experiments:
            raise UserError(f"{self.path}: experiment {name!r} is not defined{nearest(name, experiments)}")
        if name not in self._resolved:
            raw = experiments[name]
            try:
                resolved = resolve(name, raw, self.dataset(raw["dataset"]), self._scale(name))
                for file in resolved.pretrained.values():
                    known(f"experiments.{name}.models", "pretrained file", file, self.pretrained)
                    if "path" not in self.pretrained[file]:
                        raise UserError(f"pretrained.{file}: key 'path' is missing; it is not a file of the catalogue")
            except UserError as error:
                raise UserError(f"{self.path}: {error}".replace(f"{self.path}: {self.path}", self.path)) from None
            self._resolved[name] = resolved
        return self._resolved[name]

    def report(self, name: str) -> Report:
        """A report on several experiments, or on a single one. Raises UserError as :meth:`experiment`."""
        reports = self.raw.get("reports", {})
        if name in reports:
            raw, place = reports[name], f"reports.{name}"
            experiments = {role: self.experiment(experiment) for role, experiment in raw["experiments"].items()}
        elif name in self.raw["experiments"]:
            raw, place = self.raw["experiments"][name], f"experiments.{name}"
            experiments = {"": self.experiment(name)}
        else:
            raise UserError(f"{self.path}: report {name!r} is not defined{nearest(name, self.reports)}")
        present = {key: {k: v for k, v in raw.get(key, {}).items() if v is not None} for key in ("tables", "figures")}
        report = Report(name, raw.get("title") or name, experiments, **present)
        try:
            check_report(report)
        except UserError as error:
            raise UserError(f"{self.path}: {place}.{error}") from None
        return report

    @functools.cached_property
    def _resolved(self) -> dict[str, Experiment]:
        return {}

    def _scale(self, experiment: str) -> float:
        """The scale of the report that contains an experiment."""
        scales = {
            name: raw.get("scale", 1.0)
            for name, raw in self.raw.get("reports", {}).items()
            if experiment in raw["experiments"].values()
        }
        if len(set(scales.values())) > 1:
            several = " and another in ".join(scales)
            raise UserError(f"{self.path}: experiment {experiment!r} has one scale in {several}")
        return next(iter(scales.values()), 1.0)


def load(path: str | Path = "params.yaml", whole: bool = False) -> Params:
    """Reads a params file and validates it against the schema.

    whole: resolve and check all experiments and reports, too; otherwise a job resolves only its own experiment. Raises
    UserError with the path of the first mistake and the expected value.
    """
    path = Path(path)
    try:
        raw = _read_yaml(read_regular(path, MAX_BYTES, "params.yaml (run from the folder of the project)").decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    for section in ("experiments", "reports"):
        if isinstance(raw, dict) and isinstance(raw.get(section), dict):
            raw[section] = {name: _extended(f"{section}.{name}", raw[section], path) for name in raw[section]}
    _validate(raw, path)
    params = Params(str(path), raw)
    for name in raw.get("reports", {}):
        if name in raw["experiments"] or name in RESERVED:
            raise UserError(f"{path}: reports.{name}: an experiment or a rule has that name; choose another")
    _check_targets(raw, path)
    _check_made_up(raw, path)
    if whole:
        for name in raw["experiments"]:
            params.experiment(name)
        for name in params.reports:
            params.report(name)
        for name in raw["run"]:
            if name not in params.reports:
                params.experiment(name)
    return params


def _check_targets(raw: dict[str, Any], path: Path) -> None:
    """Raises UserError if an experiment or a report has the name of another one's target."""
    names = {name: section for section in ("experiments", "reports") for name in raw.get(section, {})}
    owners = {f"{stage}-{name}": name for stage in TARGETS for name in names}
    owners |= {f"data-{name}": name for name in raw["datasets"]}
    for name, section in names.items():
        if name in owners:
            raise UserError(
                f"{path}: {section}.{name}: `snakemake {name}` is a part of {owners[name]!r}; choose another"
            )


def _check_made_up(raw: dict[str, Any], path: Path) -> None:
    """Raises UserError if the path of synthetic data is outside the folder reserved for them."""
    for name, dataset in raw["datasets"].items():
        place = dataset.get("path")
        inside = isinstance(place, str) and os.path.normpath(place) == place and place.startswith(f"{MADE_UP}/")
        if "made_up" in dataset and not inside:
            raise UserError(
                f"{path}: datasets.{name}.path: synthetic data must be below {MADE_UP}/, where they replace none of "
                f"your files, not at {place!r}; state {MADE_UP}/{name}, or remove made_up"
            )


def _read_yaml(text: str) -> Any:
    """Plain data. Raises YAMLError for tags of objects, and for aliases that expand to too many values.

    ``yaml.load``, since ``safe_load`` takes no loader; the loader here extends the safe one, which has no Python tags.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_UniqueKeys):  # before building objects, which is recursive
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            nested = f"nested more than {MAX_DEPTH} deep"
            raise yaml.constructor.ConstructorError(None, None, nested, event.start_mark)  # type: ignore[arg-type]
    raw = yaml.load(text, Loader=_UniqueKeys)
    values, count = [(raw, 0)], 0
    while values:  # each as often as it is referenced: aliases of aliases can expand to billions
        value, depth = values.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise yaml.YAMLError("its aliases (*name) refer to themselves or expand without end")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        values += [(part, depth + 1) for part in inner]
    return raw


# The stubs know libyaml's marks and the other ones as two types, and no choice between two bases.
class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, with an error for duplicate keys, of which PyYAML silently keeps the last."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # PyYAML does not catch errors such as September 99, or of tags
            kind, value = node.tag.rpartition(":")[2], str(node.value)[:40]
            raise yaml.constructor.ConstructorError(
                None, None, f"{value!r} is no {kind}; put it in quotes if it is text", node.start_mark
            ) from None

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key, deep=True)
            if not isinstance(value, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {value!r} is not text; put it in quotes", key.start_mark
                )
            if value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {value!r}", key.start_mark)
            seen.add(value)
        return super().construct_mapping(node, deep)


def _extended(place: str, entries: dict[str, Any], path: Path, below: tuple[str, ...] = ()) -> Any:
    """An experiment or a report, merged key by key into the one that it extends."""
    section, _, name = place.partition(".")
    own = entries[name]
    if not isinstance(own, dict) or "extends" not in own:
        return own
    base = own["extends"]
    if not isinstance(base, str) or base not in entries:
        raise UserError(f"{path}: {place}.extends: {base!r} is not defined{nearest(str(base), entries)}")
    if base in (*below, name):
        raise UserError(f"{path}: {place}.extends: {base!r} extends itself in the end")
    return _merged(_extended(f"{section}.{base}", entries, path, (*below, name)), own)


def _merged(base: Any, change: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = {key: copy.deepcopy(value) for key, value in base.items() if key != "extends"}
    for key, value in change.items():
        merged[key] = _merged(merged.get(key), value)
    return merged


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml: the schema file with the fields of the configurations from edm.config.

    Sampler settings take a number or, in a grid, a list of them.
    """
    found = read_json(SCHEMA)
    defs = found["$defs"]
    training = {name: field for name, field in TrainingConfig.schema().items() if name not in OF_DATASETS}
    defs["training"]["properties"] = training
    defs["model"]["properties"] |= training
    settings = {name: _swept(field) for name, field in SamplerConfig.schema().items()}
    for name in ("settings", "grid", "search", "sheet"):
        defs[name].setdefault("properties", {}).update(settings)
    return found


def _swept(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of one value of a field, or of a list of values for a number; null is not allowed."""
    if "enum" in field:
        return field
    kind = field["type"] if isinstance(field["type"], str) else field["type"][0]
    one = {**field, "type": kind}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}


def _validate(raw: Any, path: Path) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import extend

    # JSON Schema accepts 64.0 as an integer and NaN as a number; the code accepts neither.
    types = Draft202012Validator.TYPE_CHECKER.redefine_many({
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    })  # fmt: skip
    validator = extend(Draft202012Validator, type_checker=types)
    errors = list(validator(schema()).iter_errors(raw))
    if not errors:
        return
    # Every experiment that extends a faulty one repeats its mistake: report the original place.
    error = _meant(best_match([error for error in errors if not _inherits(error, raw)] or errors))
    place = ".".join(str(part) for part in error.absolute_path) or "the file"
    raise UserError(f"{path}: {place}: {_explain(error)}")


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
        meant = [e for e in error.context if e.relative_path or e.validator not in ("type", "const")]
        if len({e.relative_schema_path[0] for e in meant}) != 1:
            break
        error = best_match(meant)
    return error


def _explain(error) -> str:
    """A schema error as readable text."""
    value, expected = error.instance, error.validator_value
    if error.context and all(e.validator in ("type", "const") for e in error.context):
        stated = [e.validator_value for e in error.context if e.validator == "type"]
        types = [name for names in stated for name in ([names] if isinstance(names, str) else names) if name != "null"]
        return f"{value!r} is not of type {' or '.join(types)}"
    if error.context and all(e.validator == "required" for e in error.context):
        choice = dict.fromkeys(" and ".join(map(repr, e.validator_value)) for e in error.context)
        return f"key {', or '.join(choice)} is missing"
    if error.validator == "oneOf" and not error.context:
        options = [" and ".join(map(repr, option["required"])) for option in expected]
        return f"{', or '.join(options)}: one of them, not both"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        key = next(key for key in value if key not in known)
        return f"unknown key {key!r}{nearest(key, known)}"
    if error.validator == "required":
        missing = next(key for key in expected if key not in value)
        return f"key {missing!r} is missing"
    if error.validator == "enum":
        return (
            f"{value!r} is not one of {', '.join(map(str, expected))}{nearest(str(value), [str(e) for e in expected])}"
        )
    if error.validator == "type":
        wanted = " or ".join([expected] if isinstance(expected, str) else expected)
        hint = ""
        if isinstance(value, str) and "number" in wanted and _is_number(value):
            hint = f"; YAML reads {value} as text, write {float(value)!r}"
        return f"{value!r} is not of type {wanted}{hint}"
    return error.message.splitlines()[0][:200]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
