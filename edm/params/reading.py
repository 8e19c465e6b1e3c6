"""Reading params.yaml: the file, entries that extend others, and checks between its sections."""

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from edm import registry
from edm.config import TrainingConfig
from edm.data.prepare.expected import check_split
from edm.errors import UserError, nearest
from edm.files.reading import read_regular
from edm.params.catalogue import PUBLISHED, kept_at
from edm.params.experiment import Experiment, Minutes, Report
from edm.params.layouts import check_report
from edm.params.lazy import Lazy
from edm.params.resolving import MADE_UP, MAX_WORK, RESERVED, TARGETS, check, known, resolve
from edm.params.sharing import sharing
from edm.params.strict_yaml import MAX_VALUES, read_yaml, size
from edm.params.validating import validate
from edm.tracking import DEFAULT_URI

MAX_BYTES = 1 << 20  # of a params file; the project's own has 40 kB
#: Places in an experiment where null is a value: a training field, an extractor's weights, a model without changes.
NULL_IS_A_VALUE = ("base", "override", "columns/*", "ladder/*", "models/*", "more_features",
                   "grids/*/models", "searches/*/models", "sheets/*/models")  # fmt: skip
VALID = "EDM_VALID_PARAMS"  # environment variable: SHA-256 of a params file that a workflow found valid
MAX_BASES = 20  # entries that extend each other in a row


@dataclass(frozen=True)
class Params:
    """The whole file. Experiments are resolved at their first use.

    planned: a workflow has checked the whole file and knows by digests what each step is, so an experiment or a report
    is resolved only as far as it is read: a job pays for its own step.
    """

    path: str
    raw: dict[str, Any]
    planned: bool = False
    sha256: str = ""

    @property
    def plugins(self) -> list[str]:
        """The plugins as the file names them: paths relative to it, or names of modules."""
        found: list[str] = self.raw.get("plugins", [])
        return found

    @property
    def plugin_paths(self) -> list[str]:
        """The same, with the paths relative to the working directory, for ``edm --plugins``."""
        folder = os.path.dirname(self.path)
        return [os.path.join(folder, one) if registry.is_path(one) else one for one in self.plugins]

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
        return {key: value for key, value in self.dataset(name).items() if key not in ("path", "advise")}

    def pretrained_spec(self, name: str) -> dict[str, Any]:
        """The settings that affect an imported model, without its published file. Only the plan uses ``like``."""
        return {key: value for key, value in self.pretrained[name].items() if key not in ("path", "like")}

    def experiment(self, name: str) -> Experiment:
        """The resolved experiment, with the steps that it shares with the one that it extends.

        Raises UserError, naming the place in the file, if its entries are inconsistent.
        """
        experiments = self.raw["experiments"]
        if name not in experiments:
            raise UserError(f"{self.path}: experiment {name!r} is not defined{nearest(name, experiments)}")
        if name not in self._resolved:
            raw = experiments[name]
            try:
                self._check_test(name, raw)
                resolved = resolve(name, raw, self.dataset(raw["dataset"]), self._scale(name))
                for one in resolved.likelihoods.values():
                    self._check_alike(f"experiments.{name}.likelihoods.{one.name}", one.dataset, raw["dataset"])
                for file in resolved.pretrained.values():
                    known(f"experiments.{name}.models", "pretrained file", file, self.pretrained)
                    if "path" not in self.pretrained[file]:
                        raise UserError(f"pretrained.{file}: key 'path' is missing; it is not a file of the catalogue")
                if isinstance(resolved.sampling.one_job_per, Minutes):
                    alike = Lazy(resolved.pretrained, partial(self._alike, resolved))
                    resolved = replace(resolved, alike=alike)
                if not self.planned:
                    check(resolved)
            except UserError as error:
                raise UserError(f"{self.path}: {error}".replace(f"{self.path}: {self.path}", self.path)) from None
            self._resolved[name] = sharing(resolved, self.experiment(raw["extends"])) if "extends" in raw else resolved
            if not self.planned and sum(experiment.work for experiment in self._resolved.values()) > MAX_WORK:
                raise UserError(f"{self.path}: its experiments have more than {MAX_WORK:,} models and measurements")
        return self._resolved[name]

    def _alike(self, experiment: Experiment, model: str) -> TrainingConfig:
        """The configuration that the entry `like` of a pretrained model names."""
        file = experiment.pretrained[model]
        other, _, name = self.pretrained[file].get("like", "").partition("/")
        if other in self.raw["experiments"]:
            raw = self.raw["experiments"][other]  # resolved alone: its own pretrained models may name this experiment
            models = resolve(other, raw, self.dataset(raw["dataset"]), self._scale(other)).models
            if name in models:
                return models[name]
        raise UserError(
            f"pretrained.{file}: state `like: EXPERIMENT/MODEL`, a trained model of the same network, for jobs of so "
            f"many minutes in experiments.{experiment.name}.sampling"
        )

    def _check_test(self, name: str, raw: dict[str, Any]) -> None:
        """Raises UserError if the held-out images of an experiment are not comparable with its dataset."""
        test, dataset, here = raw.get("test"), raw["dataset"], f"experiments.{name}.test"
        if test is None:
            return
        if test == dataset:
            raise UserError(f"{here}: {test!r} is what the models learn from; name a dataset with split: test")
        self._check_alike(here, test, dataset)

    def _check_alike(self, here: str, test: str, dataset: str) -> None:
        """Raises UserError if the images of two datasets are not comparable."""
        known(here, "dataset", test, self.raw["datasets"])
        for key in ("resolution", "channels"):
            ours, theirs = self.dataset(dataset)[key], self.dataset(test)[key]
            if ours != theirs:
                raise UserError(f"{here}: {test!r} has {key} {theirs}, and {dataset!r} has {ours}; make them alike")

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
        report = Report(name, raw.get("title") or name, experiments, raw.get("tables", {}), raw.get("figures", {}))
        try:
            if not self.planned:
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


def load(path: str | Path = "params.yaml", whole: bool = False, planned: bool = False) -> Params:
    """Reads a params file and validates it against the schema.

    whole: resolve and check all experiments and reports, too. planned: for a job of a workflow, see :class:`Params`.
    With neither, an experiment is checked when it is first used. Raises UserError with the path of the first mistake
    and the expected value.
    """
    path = Path(path)
    content = read_regular(path, MAX_BYTES, "the params file of a project")
    try:
        raw = read_yaml(content.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    _extend(raw, path)
    _load_plugins(raw, path)
    sha256 = hashlib.sha256(content).hexdigest()
    if not planned or registry.plugins() or os.environ.get(VALID) != sha256:
        validate(raw, path)
    params = Params(str(path), raw, planned, sha256)
    for name in raw.get("reports", {}):
        if name in raw["experiments"] or name in RESERVED:
            raise UserError(f"{path}: reports.{name}: an experiment or a rule has that name; choose another")
    _check_targets(raw, path)
    _check_made_up(raw, path)
    _check_splits(raw, path)
    if whole:
        for name in raw["experiments"]:
            params.experiment(name)
        for name in params.reports:
            params.report(name)
        for name in raw["run"]:
            if name not in params.reports:
                params.experiment(name)
    return params


def state_valid(params: Params) -> None:
    """Tells the jobs of a workflow that the schema accepts this file: checking that takes longer than reading it.

    Not with plugins, which are a part of the schema and may change.
    """
    if not registry.plugins():
        os.environ[VALID] = params.sha256


def _load_plugins(raw: Any, path: Path) -> None:
    """Loads the plugins that the file names, before its names are checked; the schema refuses any other value."""
    stated = raw.get("plugins") if isinstance(raw, dict) else None
    if not isinstance(stated, list) or not all(isinstance(one, str) for one in stated):
        return
    try:
        registry.load(stated, path.parent)
    except UserError as error:
        raise UserError(f"{path}: plugins: {error}") from None


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


def _check_splits(raw: dict[str, Any], path: Path) -> None:
    """Raises UserError if a dataset is a split that its source does not have."""
    for name, dataset in raw["datasets"].items():
        try:
            check_split(dataset["source"], dataset.get("split"), dataset.get("held_out"))
            _check_source(dataset)
        except UserError as error:
            raise UserError(f"{path}: datasets.{name}.{error}") from None


def _check_source(dataset: dict[str, Any]) -> None:
    """Raises UserError for settings that the source of a dataset does not have."""
    own = {key.removeprefix("source."): value for key, value in dataset.items() if key.startswith("source.")}
    part = next((part for part in registry.plugins("source") if part.name == dataset["source"]), None)
    if own and part is None:
        raise UserError(f"source.{next(iter(own))}: source {dataset['source']} has no such setting")
    if part is not None:
        part.check_settings(own)


def _extend(raw: Any, path: Path) -> None:
    """Completes the entries that extend others, and removes what they set to null."""
    values = 0
    for section in ("experiments", "reports"):
        if not isinstance(raw, dict) or not isinstance(raw.get(section), dict):
            continue
        entries, raw[section] = raw[section], {}
        for name in entries:
            raw[section][name] = _without_null(_extended(f"{section}.{name}", entries, path))
            values += size(raw[section][name])
            if values > MAX_VALUES:
                raise UserError(f"{path}: {section}: with what they extend, they have more than {MAX_VALUES:,} values")


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
    if len(below) == MAX_BASES:
        raise UserError(f"{path}: {place}.extends: more than {MAX_BASES} entries extend each other in a row")
    return _merged(_without_notes(_without_null(_extended(f"{section}.{base}", entries, path, (*below, name)))), own)


def _without_notes(base: dict[str, Any]) -> dict[str, Any]:
    """An experiment or a report without the notes of its tables: they speak of its own results."""
    if not isinstance(base, dict) or not isinstance(base.get("tables"), dict):
        return base
    tables = {name: {key: value for key, value in table.items() if key != "note"} if isinstance(table, dict) else table
              for name, table in base["tables"].items()}  # fmt: skip
    return {**base, "tables": tables}


def _without_null(value: Any, place: tuple[str, ...] = ()) -> Any:
    """An experiment or a report without the entries that are null, except at ``NULL_IS_A_VALUE``."""
    if not isinstance(value, dict) or any(fnmatchcase("/".join(place), pattern) for pattern in NULL_IS_A_VALUE):
        return value
    return {key: _without_null(entry, (*place, str(key))) for key, entry in value.items() if entry is not None}


def _merged(base: Any, change: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    merged = {key: value for key, value in base.items() if key != "extends"}
    for key, value in change.items():
        merged[key] = _merged(merged.get(key), value)
    return merged
