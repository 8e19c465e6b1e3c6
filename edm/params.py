"""params.yaml: read, checked, and resolved into configurations and sampler grids. Free of torch."""

import copy
import difflib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edm.config import SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.files import digest, read_json
from edm.metrics import EXTRACTORS
from edm.tracking import DEFAULT_URI

SCHEMA = Path(__file__).parent.parent / "workflow" / "schemas" / "params.schema.json"
#: Names of rules, targets and folders, which experiments cannot have.
RESERVED = {"all", "prepare", "features", "reference", "references", "train", "sample", "fid", "track", "logs"}


@dataclass(frozen=True)
class Point:
    """One sampler setting of a grid; ``id`` names what is swept over ("num_steps=18")."""

    id: str
    sampler: SamplerConfig


@dataclass(frozen=True)
class Grid:
    """Sampler settings to try on some models."""

    name: str
    models: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Experiment:
    """An experiment with everything resolved; ``models`` maps "column-rung" to its configuration, in table order."""

    name: str
    dataset: str
    features: str
    feature_weights: str | None
    columns: tuple[str, ...]
    rungs: tuple[str, ...]
    models: dict[str, TrainingConfig]
    grids: dict[str, Grid]
    images: int
    first_seed: int
    block: int
    tables: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, Any]]

    def grids_of(self, model: str) -> list[str]:
        return [grid.name for grid in self.grids.values() if model in grid.models]

    def evaluations(self) -> list[tuple[str, str]]:
        """(model, grid) of everything that is sampled."""
        return [(model, name) for name, grid in self.grids.items() for model in grid.models]

    def sampling_spec(self, model: str, grid: str) -> dict[str, Any]:
        """What decides the images of a grid, as plain data: choices that differ from the defaults."""
        if grid not in self.grids or model not in self.grids[grid].models:
            raise UserError(f"experiment {self.name}: no grid {grid!r} of model {model!r}")
        points = {point.id: point.sampler.changes() for point in self.grids[grid].points}
        return {"points": points, "images": self.images, "first_seed": self.first_seed, "block": self.block}

    def training_spec(self, model: str) -> dict[str, Any]:
        """What decides a training, as plain data: fields that differ from the defaults."""
        if model not in self.models:
            raise UserError(f"experiment {self.name}: no model {model!r}; it has {', '.join(self.models)}")
        return self.models[model].changes()

    def results_spec(self) -> dict[str, Any]:
        """What decides the tables and figures, as plain data."""
        points = {name: [point.id for point in grid.points] for name, grid in self.grids.items()}
        return {"tables": self.tables, "figures": self.figures, "columns": self.columns, "rungs": self.rungs,
                "points": points, "models": {name: grid.models for name, grid in self.grids.items()}}  # fmt: skip


@dataclass(frozen=True)
class Params:
    """The whole file. Experiments are resolved when asked for."""

    path: str
    raw: dict[str, Any]

    @property
    def run(self) -> list[str]:
        return self.raw["run"]

    @property
    def tracking_uri(self) -> str:
        return self.raw.get("tracking", {}).get("uri", DEFAULT_URI)

    def dataset(self, name: str) -> dict[str, Any]:
        """Source, path, and what the prepared archive must hold."""
        known = self.raw["datasets"]
        if name not in known:
            raise UserError(f"{self.path}: dataset {name!r} is not defined{_nearest(name, known)}")
        return {"path": None, "images": None, **known[name]}

    def experiment(self, name: str) -> Experiment:
        """Raises UserError, naming the place in the file, where the experiment does not fit together."""
        known = self.raw["experiments"]
        if name not in known:
            raise UserError(f"{self.path}: experiment {name!r} is not defined{_nearest(name, known)}")
        try:
            return _resolve(name, known[name], self.dataset(known[name]["dataset"]))
        except UserError as error:
            raise UserError(f"{self.path}: {error}".replace(f"{self.path}: {self.path}", self.path)) from None


def load(path: str | Path = "params.yaml") -> Params:
    """Reads and checks a params file. Raises UserError with the path of the first mistake and what was expected."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run from the folder of the project") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if isinstance(raw, dict) and isinstance(raw.get("experiments"), dict):
        raw["experiments"] = {name: _extended(name, raw["experiments"], path) for name in raw["experiments"]}
    _validate(raw, path)
    params = Params(str(path), raw)
    for name in (*raw["experiments"], *raw["run"]):
        params.experiment(name)
    return params


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which makes no objects, without its silence: YAML lets a key stand twice and keeps the last."""

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
                raise yaml.constructor.ConstructorError(None, None, f"key {value!r} stands twice", key.start_mark)
            seen.add(value)
        return super().construct_mapping(node, deep)


def _extended(name: str, experiments: dict[str, Any], path: Path, below: tuple[str, ...] = ()) -> Any:
    """An experiment merged, mapping by mapping, into the one it extends."""
    own = experiments[name]
    if not isinstance(own, dict) or "extends" not in own:
        return own
    base = own["extends"]
    if not isinstance(base, str) or base not in experiments:
        raise UserError(
            f"{path}: experiments.{name}.extends: {base!r} is not defined{_nearest(str(base), experiments)}"
        )
    if base in (*below, name):
        raise UserError(f"{path}: experiments.{name}.extends: {base!r} extends itself in the end")
    return _merged(_extended(base, experiments, path, (*below, name)), own)


def _merged(base: Any, change: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = {key: copy.deepcopy(value) for key, value in base.items() if key != "extends"}
    for key, value in change.items():
        merged[key] = _merged(merged.get(key), value)
    return merged


def _validate(raw: Any, path: Path) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import extend

    # JSON's schema takes 64.0 for an integer and NaN for a number; the code behind it takes neither.
    types = Draft202012Validator.TYPE_CHECKER.redefine_many({
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    })  # fmt: skip
    validator = extend(Draft202012Validator, type_checker=types)
    errors = list(validator(read_json(SCHEMA)).iter_errors(raw))
    if not errors:
        return
    # A mistake shows up in every experiment that extends the one it stands in: name it where it stands.
    error = best_match([error for error in errors if not _inherits(error, raw)] or errors)
    place = ".".join(str(part) for part in error.absolute_path) or "the file"
    raise UserError(f"{path}: {place}: {_explain(error)}")


def _inherits(error, raw: Any) -> bool:
    place = list(error.absolute_path)
    if len(place) < 2 or place[0] != "experiments":
        return False
    experiment = raw["experiments"][place[1]]
    return isinstance(experiment, dict) and "extends" in experiment


def _explain(error) -> str:
    """A schema error in a person's words."""
    value, expected = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        key = next(key for key in value if key not in known)
        return f"unknown key {key!r}{_nearest(key, known)}"
    if error.validator == "required":
        missing = next(key for key in expected if key not in value)
        return f"key {missing!r} is missing"
    if error.validator == "enum":
        return (
            f"{value!r} is not one of {', '.join(map(str, expected))}{_nearest(str(value), [str(e) for e in expected])}"
        )
    if error.validator == "type":
        types = " or ".join([expected] if isinstance(expected, str) else expected)
        hint = ""
        if isinstance(value, str) and "number" in types and _is_number(value):
            hint = f"; YAML reads {value} as text, write {float(value)!r}"
        return f"{value!r} is not of type {types}{hint}"
    return error.message.splitlines()[0][:200]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _nearest(word: str, known) -> str:
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"


def _resolve(name: str, raw: dict[str, Any], dataset: dict[str, Any]) -> Experiment:
    here = f"experiments.{name}"
    if name in RESERVED:
        raise UserError(f"{here}: the workflow has a rule or a folder of that name; choose another")
    _known(f"{here}.features", "extractor", raw["features"], EXTRACTORS)
    size = {key: dataset[key] for key in ("resolution", "channels", "classes")}
    models = {}
    for column, rung in itertools.product(raw["columns"], raw["ladder"]):
        fields = {**size, **raw["base"], **raw["columns"][column]}
        for step, change in raw["ladder"].items():
            fields.update(change)
            if step == rung:
                break
        if f"{column}-{rung}" in models:
            raise UserError(f"{here}: two models are called {column}-{rung}; rename a column or a rung")
        models[f"{column}-{rung}"] = _checked(f"{here}.ladder.{rung} ({column})", TrainingConfig.from_dict, fields)
    grids = {key: _grid(f"{here}.grids.{key}", key, value, models) for key, value in raw["grids"].items()}
    for key, table in raw["tables"].items():
        for grid in [*table.get("rows", {}).values(), *([table["grid"]] if "grid" in table else [])]:
            _known(f"{here}.tables.{key}", "grid", grid, grids)
    with_rows = [key for key, table in raw["tables"].items() if "rows" in table]
    for key, figure in raw.get("figures", {}).items():
        for kind, known in (("grid", grids), ("table", with_rows), ("model", models)):
            if kind in figure:
                _known(f"{here}.figures.{key}", kind, figure[kind], known)
    sampling = {"first_seed": 0, "block": 64, **raw["sampling"]}
    return Experiment(
        name=name,
        dataset=raw["dataset"],
        features=raw["features"],
        feature_weights=raw.get("feature_weights"),
        columns=tuple(raw["columns"]),
        rungs=tuple(raw["ladder"]),
        models=models,
        grids=grids,
        images=sampling["images"],
        first_seed=sampling["first_seed"],
        block=sampling["block"],
        tables=raw["tables"],
        figures=raw.get("figures", {}),
    )


def _grid(here: str, name: str, raw: dict[str, Any], models: dict[str, TrainingConfig]) -> Grid:
    chosen = list(models) if raw["models"] == "all" else raw["models"]
    for model in chosen:
        _known(here, "model", model, models)
    choices = {key: value for key, value in raw.items() if key != "models"}
    swept = [key for key, value in choices.items() if isinstance(value, list)]
    points = []
    for values in itertools.product(*(choices[key] for key in swept)):
        setting = dict(zip(swept, values, strict=True))
        label = ",".join(f"{key}={value:g}" for key, value in setting.items()) or "only"
        points.append(Point(label, _checked(f"{here} ({label})", SamplerConfig.from_dict, {**choices, **setting})))
    return Grid(name, tuple(chosen), tuple(points))


def _known(here: str, kind: str, name: str, known) -> None:
    if name not in known:
        raise UserError(f"{here}: {kind} {name!r} is not defined{_nearest(name, known)}")


def _checked(here: str, make, values):
    try:
        return make(values)
    except (UserError, TypeError) as error:
        raise UserError(f"{here}: {error}") from None


def check_spec(spec: Any, expected: str | None, what: str) -> None:
    """Raises UserError where a spec is no longer the one with the digest that a workflow's job was started with."""
    if expected is not None and digest(spec) != expected:
        raise UserError(f"{what}: params.yaml was changed after this job was planned; run snakemake again")
