"""Resolves the entries of params.yaml: sums up ladders, multiplies out grids, looks up names.

:func:`resolve` looks at names; each configuration and each point is resolved when it is read. :func:`check` reads all.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from edm import registry
from edm.config import LIMITS, NULL, SamplerConfig, TrainingConfig
from edm.errors import UserError, nearest
from edm.files.writing import named
from edm.metrics import CLASSIFIER, EXTRACTORS, METRICS, check_metrics
from edm.networks.flops import parameters
from edm.params.experiment import (
    ALL,
    AT,
    LADDER,
    OF_EMA,
    OF_SNAPSHOT,
    Analysis,
    Choice,
    Experiment,
    Grid,
    Likelihood,
    Minutes,
    Sampling,
    Search,
    Sheet,
    Training,
    averaged,
    first_training,
    guiding_model,
    training_of,
    width_and_time,
)
from edm.params.lazy import Lazy
from edm.params.points import Points, checked
from edm.params.studies import STUDIES, check_settings

#: Names of rules, targets and folders, which experiments must not have.
RESERVED = {"all", "advise", "download", "prepare", "features", "reference", "references", "train", "published",
            "choose", "average", "sample", "analyse", "shard", "evaluate", "search", "likelihood",
            "likelihood_shard", "likelihood-shard", "table", "figure", "metrics", "about", "track", "logs", "made-up",
            "set-aside"}  # fmt: skip
#: The folder reserved for synthetic raw data.
MADE_UP = "runs/made-up"
#: `snakemake train-NAME` and similar targets: parts of an experiment or a report.
TARGETS = ("train", "sample", "evaluate", "download")
#: The fields of a training run that its dataset determines.
OF_DATASETS = ("resolution", "channels", "classes")
#: The fields that ``scale`` multiplies: durations in Mimg.
SCALED = ("duration", "lr_rampup", "ema_halflife", "snapshot_every")
#: What no laboratory runs, and what would take hours or all memory before the first job starts.
MAX_POINTS = 1000  # of a grid, per model
MAX_COMBINATIONS = 20_000  # of the values of a search; the paper's have 13,068
MAX_WORK = 250_000  # models and measurements of all experiments
MAX_PARAMETERS = 20e9  # of a network
FIRST = "first"  # of the training runs of a model, in a grid or a likelihood


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of models. words: the models that a word stands for.

    training_runs: the training runs of models with several seeds. scale: of durations, such as the images seen of a
    snapshot.
    """

    words: dict[str, list[str]]
    training_runs: dict[str, tuple[str, ...]]
    scale: float = 1.0

    @functools.cached_property
    def known(self) -> dict[str, None]:
        """Every name: a dictionary, for quick look-up in many grids."""
        return dict.fromkeys((*self.words[ALL], *(name for names in self.training_runs.values() for name in names)))


def resolve(name: str, raw: dict[str, Any], dataset: dict[str, Any], scale: float = 1.0) -> Experiment:
    """An experiment, with every duration and every number of images times ``scale``.

    Raises UserError, naming the place in the file, if the entries of the experiment are inconsistent, as does what is
    resolved later: models, grids, searches, sheets and studies.
    """
    here = f"experiments.{name}"
    if name in RESERVED:
        raise UserError(f"{here}: the workflow has a rule or a folder of that name; choose another")
    more = raw.get("more_features", {})
    for extractor in (raw["features"], *more):
        known(f"{here}.features", "extractor", extractor, EXTRACTORS)
    try:
        check_metrics(raw.get("metrics", ()), raw["features"])
    except UserError as error:
        raise UserError(f"{here}.metrics: {error}") from None
    if not dataset["classes"] and CLASSIFIER in (raw["features"], *more):
        raise UserError(f"{here}.features: {CLASSIFIER} learns from classes, and dataset {raw['dataset']} has none")
    models, pretrained, training_runs = _models(here, raw, dataset, scale)
    rungs = [f"{column}-{rung}" for column in raw["columns"] for rung in raw["ladder"]]
    firsts = [model for model in (*models, *pretrained) if first_training(model) == model]
    names = Names({ALL: firsts, LADDER: rungs}, training_runs, scale)
    sampling = _sampling(raw["sampling"], scale)
    for metric in raw.get("metrics", ()):
        if sampling.images < METRICS[metric].fewest:
            raise UserError(f"{here}.sampling.images: {metric} needs at least {METRICS[metric].fewest} images")
    steps = raw.get("steps")
    searches = Lazy(raw.get("searches", {}), lambda key: _search(
        f"{here}.searches.{key}", key, raw["searches"][key], names, scale, steps))  # fmt: skip
    grids = Lazy(raw["grids"], lambda key: _grid(f"{here}.grids.{key}", key, raw["grids"][key], names, searches, steps))
    sheets = Lazy(raw.get("sheets", {}), lambda key: _sheet(
        f"{here}.sheets.{key}", key, raw["sheets"][key], names, steps))  # fmt: skip

    def study(key: str) -> Analysis:
        value, place = raw["analyses"][key], f"{here}.analyses.{key}"
        known_of, stated = STUDIES[value["kind"]], {k: v for k, v in value.items() if k not in ("kind", "models")}
        settings = checked(place, partial(check_settings, value["kind"]), stated)
        if known_of.features and "images" in settings:  # the images of a distance
            settings["images"] = _count(settings["images"], scale)
        studied = _chosen(value["models"], names)
        for model in studied:
            known(place, "model", model, models if known_of.trained else names.known)
        if known_of.pairs:
            _check_pairs(place, settings["grid"], grids, studied, raw.get("metrics", ()))
        return Analysis(key, value["kind"], tuple(studied), settings)

    likelihoods = Lazy(raw.get("likelihoods", {}), lambda key: _likelihood(
        f"{here}.likelihoods.{key}", key, raw["likelihoods"][key], raw.get("test"), names, scale))  # fmt: skip
    choice = _choice(here, raw.get("choose"), grids, scale)
    averages: tuple[str, ...] = ()
    if _names_averages(raw):
        guided = lambda section: (key for key, entry in raw.get(section, {}).items() if any(_guides(entry)))
        places = _evaluated(here, grids, {key: searches[key] for key in guided("searches")},
                            {key: sheets[key] for key in guided("sheets")})  # fmt: skip
        averages, training_runs = _averages(places, _to_choose(here, choice, grids, models), models, training_runs)
    return Experiment(
        name=name,
        dataset=raw["dataset"],
        features=raw["features"],
        feature_weights=raw.get("feature_weights"),
        columns=tuple(raw["columns"]),
        rungs=tuple(raw["ladder"]),
        models=models,
        pretrained=pretrained,
        grids=grids,
        sampling=sampling,
        training=_training(here, raw.get("training", {})),
        choice=choice,
        searches=searches,
        sheets=sheets,
        analyses=Lazy(raw.get("analyses", {}), study),
        metrics=tuple(raw.get("metrics", ())),
        more_features=more,
        reference=raw.get("reference"),
        names=dict(raw.get("names", {})),
        training_runs=training_runs,
        test=raw.get("test"),
        metric_settings=_metric_settings(f"{here}.metric_settings", raw),
        averages=averages,
        likelihoods=likelihoods,
    )


def check(experiment: Experiment) -> None:
    """Resolves all of an experiment. Raises UserError, naming the place in the file, for the first mistake."""
    here = f"experiments.{experiment.name}"
    for _ in experiment.models.values():
        pass
    for search in experiment.searches.values():
        _check_values(f"{here}.searches.{search.name}", search)
    if experiment.work > MAX_WORK:
        raise UserError(f"{here}: more than {MAX_WORK:,} models and measurements (points x repeats x shards)")
    points = [points for grid in experiment.grids.values() for points in grid.points.values()]
    samplers = [sheet.samplers for sheet in experiment.sheets.values()]
    lazy = (experiment.analyses, experiment.likelihoods, experiment.alike, *samplers)
    for part in (*points, *(one.values() for one in lazy)):
        for _ in part:
            pass
    _check_averages(here, experiment)
    _check_guides(here, experiment)


def known(here: str, kind: str, name: str, names) -> None:
    """Raises UserError, with the nearest name, if ``name`` is not one of ``names``."""
    if name not in names:
        raise UserError(f"{here}: {kind} {name!r} is not defined{nearest(name, names)}")


def _metric_settings(here: str, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the metrics of plugins that are no defaults."""
    found: dict[str, dict[str, Any]] = {}
    for name, stated in raw.get("metric_settings", {}).items():
        known(here, "metric", name, raw.get("metrics", ()))
        try:
            own = registry.find("metric", name).check_settings(stated)
        except UserError as error:
            raise UserError(f"{here}: {error}") from None
        found |= {name: own} if own else {}
    return found


def _check_pairs(
    here: str, grid: str, grids: Mapping[str, Grid], models: Iterable[str], metrics: Iterable[str]
) -> None:
    """A study of memorisation shows pairs that evaluations have found."""
    known(here, "grid", grid, grids)
    for model in models:
        known(f"{here} (grid {grid})", "model", model, grids[grid].points)
    if "memorisation" not in metrics:
        raise UserError(f"{here}: memorisation is not among the metrics of this experiment; add it")


def _guides(entry: dict[str, Any]) -> Iterator[Any]:
    """The guides that a grid, a search or a sheet states for all models or for one; None where none is stated."""
    by_model = entry["models"].values() if isinstance(entry["models"], dict) else ()
    for settings in (entry, *by_model):
        yield from _listed((settings or {}).get("guide"))


def _names_averages(raw: dict[str, Any]) -> bool:
    """Whether an experiment evaluates averages of snapshots, chooses among them, or names one as a guide."""
    entries = [entry for section in ("grids", "searches", "sheets") for entry in raw.get(section, {}).values()]
    of_average = ((isinstance(one, dict) and "ema" in one) or OF_EMA in str(one) for e in entries for one in _guides(e))
    return any("ema" in entry for entry in (*entries, raw.get("choose") or {})) or any(of_average)


Places = Iterator[tuple[str, str]]  # a model, and the place that names it


def _evaluated(
    here: str, grids: Mapping[str, Grid], searches: Mapping[str, Search], sheets: Mapping[str, Sheet]
) -> Places:
    """The models that are evaluated or guide, in the order of the file."""
    for name, grid in grids.items():
        guides = (guide for points in grid.points.values() for guide in points.guides)
        yield from ((model, f"{here}.grids.{name}") for model in (*grid.points, *guides))
    for kind, entries in (("searches", searches), ("sheets", sheets)):
        for name, one in entries.items():
            guides = (sampler.guide for sampler in one.samplers.values() if sampler.guide)
            yield from ((guide, f"{here}.{kind}.{name}") for guide in guides)


def _to_choose(
    here: str, choice: Choice | None, grids: Mapping[str, Grid], models: Mapping[str, TrainingConfig]
) -> Places:
    """The averages that a choice is among, of the models that have snapshots, and the place that names them."""
    if choice is not None and choice.widths:
        for model in grids[choice.grid].points:
            if model in models and models[model].snapshot_every:
                yield from ((averaged(model, width), f"{here}.choose") for width in choice.widths)


def _averages(
    evaluated: Places, to_choose: Places,
    models: Mapping[str, TrainingConfig], training_runs: dict[str, tuple[str, ...]],
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:  # fmt: skip
    """The averages of snapshots that are evaluated, chosen among or guide; the training runs, with theirs."""
    used = dict((*evaluated, *to_choose))
    averages = {model: place for model, place in used.items() if training_of(model)[1]}
    for model, place in averages.items():
        _check_name(place, model, models)
    stated = dict.fromkeys(width_and_time(training_of(model)[1]) for model in averages)
    several = {averaged(first, *one): tuple(made for run in runs if (made := averaged(run, *one)) in averages)
               for first, runs in training_runs.items() for one in stated}  # fmt: skip
    return tuple(averages), training_runs | {name: runs for name, runs in several.items() if name in averages}


def _check_name(place: str, model: str, models: Mapping[str, TrainingConfig]) -> None:
    """Raises UserError if no average has that name."""
    training, mark = training_of(model)
    known(f"{place}: ema {mark}", "model", training, models)
    limits = LIMITS["ema_widths"]
    try:
        width, at = width_and_time(mark)
        stated = averaged(training, width, at) == model and limits["minimum"] <= width <= limits["maximum"]
    except ValueError:
        stated = False
    if not stated:
        raise UserError(f"{place}: {model} is no average; state {{model: {training}, ema: 0.1}}")


def _check_averages(here: str, e: Experiment) -> None:
    """Raises UserError if an average cannot be made of snapshots."""
    places = (*_evaluated(here, e.grids, e.searches, e.sheets), *_to_choose(here, e.choice, e.grids, e.models))
    used = dict(places) if e.averages else {}
    for model in e.averages:
        (training, mark), place = training_of(model), used[model]
        config = e.models[training]
        if not config.snapshots:
            raise UserError(f"{place}: ema {mark}: {training} takes no snapshots; state snapshot_every")
        if not config.ema_widths and config.ema_halflife == 0:
            raise UserError(f"{place}: ema {mark}: snapshots of {training} average nothing (ema_halflife is 0)")
        checked(place, partial(_average_spec, e, training, mark), {})


def _average_spec(e: Experiment, training: str, mark: str, _: Any) -> Any:
    return e.average_spec(training, mark)


def _check_guides(here: str, experiment: Experiment) -> None:
    """Raises UserError for guides that do not exist, that are the model itself, and where no guide is supported."""
    used: dict[str, dict[str, list[str]]] = {}
    for kind, entries in (("searches", experiment.searches), ("sheets", experiment.sheets)):
        for name, one in entries.items():
            used[f"{here}.{kind}.{name}"] = {model: [sampler.guide] if sampler.guide is not None else []
                                             for model, sampler in one.samplers.items()}  # fmt: skip
    for name, grid in experiment.grids.items():
        used[f"{here}.grids.{name}"] = {model: points.guides for model, points in grid.points.items()}
    for place, guides in used.items():
        for model, those in guides.items():
            for guide in those:
                _check_guide(place, experiment, model, guide)
    alone = {f"{here}.choose": experiment.choice.grid} if experiment.choice else {}
    for key, study in experiment.analyses.items():
        if STUDIES[study.kind].pairs:
            alone[f"{here}.analyses.{key}"] = study.settings["grid"]
    for place, name in alone.items():
        if any(points.guides for points in experiment.grids[name].points.values()):
            raise UserError(f"{place}: grid {name!r} has a guide; name a grid without one")


def _check_guide(place: str, experiment: Experiment, model: str, guide: str) -> None:
    if guide == NULL:
        if model in experiment.models and not experiment.models[model].conditional:
            raise UserError(f"{place}: guide null: {model} is unconditional, so no label can be left out")
        return
    other, at = guiding_model(guide)
    known(place, "guide", other, experiment.all_models if at is None else experiment.models)
    if at is None and other == model:
        raise UserError(f"{place}: guide {guide}: is the model itself; name another one, or a snapshot of it")
    checked(place, lambda _: experiment.guides([guide]), {})


def _sampling(raw: dict[str, Any], scale: float) -> Sampling:
    sampling = Sampling(**{**raw, "images": _count(raw["images"], scale)})
    per: Any = sampling.one_job_per
    return dataclasses.replace(sampling, one_job_per=Minutes(**per)) if isinstance(per, dict) else sampling


def _training(here: str, raw: dict[str, Any]) -> Training:
    training = Training(**raw)
    if training.processes % training.nodes:
        raise UserError(f"{here}.training: {training.gpus} GPUs cannot be shared evenly by {training.nodes} nodes")
    return training


def _count(images: int, scale: float) -> int:
    return max(2, round(images * scale))


def _models(
    here: str, raw: dict[str, Any], dataset: dict[str, Any], scale: float
) -> tuple[Lazy[TrainingConfig], dict[str, str], dict[str, tuple[str, ...]]]:
    """The trained models by name, the files of the pretrained ones, and the training runs of several seeds."""
    size = {key: dataset[key] for key in OF_DATASETS}
    fields: dict[str, dict[str, Any]] = {}
    _check_product(f"{here}: columns and ladder", (raw["columns"], raw["ladder"]), MAX_POINTS)
    for column, own in raw["columns"].items():
        values = {**size, "seeds": raw.get("seeds"), **raw["base"], **own}
        for rung, change in raw["ladder"].items():
            values = {**values, **change}
            if f"{column}-{rung}" in fields:
                raise UserError(f"{here}: two models are called {column}-{rung}; rename a column or a rung")
            fields[f"{column}-{rung}"] = values
    pretrained: dict[str, str] = {}
    for name, spec in raw.get("models", {}).items():
        if "pretrained" in spec and len(spec) > 1:
            raise UserError(f"{here}.models.{name}: 'pretrained' stands alone; a published model cannot be changed")
        if "pretrained" in spec:
            pretrained[name] = spec["pretrained"]
            fields.pop(name, None)
        else:
            known(f"{here}.models.{name}", "model", spec["from"], fields)
            fields[name] = {**fields[spec["from"]], **{key: value for key, value in spec.items() if key != "from"}}
    training_runs: dict[str, tuple[str, ...]] = {}
    origin: dict[str, tuple[str, int | None]] = {}  # of each training run, its model and its seed; None: the model's
    for name in fields:
        fields[name] = {**fields[name], **raw.get("override", {})}
        origin[name] = (name, None)
        if further := _further_seeds(_place(here, raw, name), fields[name]):
            training_runs[name] = (name, *(f"{name}{AT}{seed}" for seed in further))
            origin |= {f"{name}{AT}{seed}": (name, seed) for seed in further}

    def config(model: str) -> TrainingConfig:
        name, seed = origin[model]
        return _config(_place(here, raw, name), fields[name], scale) if seed is None else dataclasses.replace(
            models[name], seed=seed)  # fmt: skip

    models = Lazy(origin, config)
    return models, pretrained, training_runs


def _place(here: str, raw: dict[str, Any], model: str) -> str:
    column, _, rung = model.partition("-")
    return f"{here}.ladder.{rung} ({column})" if rung in raw["ladder"] else f"{here}.models.{model}"


def _config(place: str, fields: dict[str, Any], scale: float) -> TrainingConfig:
    values = {key: value for key, value in fields.items() if key != "seeds"}
    if scale != 1:
        stated = {key: values.get(key, getattr(TrainingConfig, key)) for key in (*SCALED, "level_samples")}
        values |= {key: stated[key] * scale for key in SCALED if stated[key] is not None}
        values["level_samples"] = _count(stated["level_samples"], scale)
    config: TrainingConfig = checked(place, TrainingConfig.from_dict, values)
    own = registry.is_own("architecture", config.architecture)  # counting a plugin's imports torch
    if own and (weights := parameters(config)) > MAX_PARAMETERS:
        raise UserError(f"{place}: a network of {weights / 1e9:,.0f} billion parameters; state fewer channels")
    return config


def _further_seeds(place: str, fields: dict[str, Any]) -> list[int]:
    """The seeds of the further training runs of a model; its own name stands for the run with its own seed."""
    seeds, own = fields["seeds"], fields.get("seed", TrainingConfig.seed)
    if seeds is not None and own not in seeds:
        raise UserError(f"{place}: seeds {seeds} lack the model's own; add {own}, or state seed: {seeds[0]}")
    return [seed for seed in seeds or () if seed != own]


def _choice(here: str, raw: dict[str, Any] | None, grids: Mapping[str, Grid], scale: float) -> Choice | None:
    if raw is None:
        return None
    known(f"{here}.choose", "grid", raw["grid"], grids)
    if any(len(points) != 1 for points in grids[raw["grid"]].points.values()):
        raise UserError(f"{here}.choose: grid {raw['grid']!r} has several points; a choice needs a single one")
    widths, snapshots = _listed(raw.get("ema", [])), raw.get("snapshots", True)
    if not widths and not snapshots:
        raise UserError(f"{here}.choose: without snapshots there is nothing to choose from; list EMA widths (ema)")
    if raw["confirm"] == ALL:
        return Choice(raw["grid"], 0, ALL, tuple(widths), snapshots)
    if "images" not in raw:
        raise UserError(f"{here}.choose: key 'images' is missing; only `confirm: all` needs no ranking")
    return Choice(raw["grid"], _count(raw["images"], scale), raw["confirm"], tuple(widths), snapshots)


def _listed(value: Any) -> list[Any]:
    """A value or the values of a list, as a list."""
    return value if isinstance(value, list) else [value]


def _grid(here: str, name: str, raw: dict[str, Any], models: Names, searches: Mapping[str, Search], steps) -> Grid:
    own = ("reference", "settings_from", "seeds", "ema")
    points = _points(here, {key: value for key, value in raw.items() if key not in own}, models, steps)
    source = raw.get("settings_from")
    if source is not None:
        known(here, "search", source, searches)
        for model in points:
            known(f"{here}.settings_from ({source})", "model", first_training(model), searches[source].samplers)
        by_model = raw["models"].values() if isinstance(raw["models"], dict) else ()
        stated = {key for values in (raw, *by_model) for key in values or ()}
        if both := [key for key in searches[source].over if key in stated]:
            raise UserError(f"{here}: {both[0]} is stated here and found by search {source}; leave it out of one")
    like = {model: model for model in points}  # the entry whose points each model has
    if raw.get("seeds") != FIRST:
        further = {model: models.training_runs.get(model, ())[1:] for model in points}
        like = {one: one if one in points else model for model in points for one in (model, *further[model])}
    if (widths := raw.get("ema")) is not None:
        like = {averaged(model, width): given for model, given in like.items() for width in _listed(widths)}
    points = Lazy(like, partial(_at, points, like))
    return Grid(name, points, raw.get("reference"), source)


def _at(points: Mapping[str, Points], like: dict[str, str], model: str) -> Points:
    return points[like[model]]


def _search(here: str, name: str, raw: dict[str, Any], models: Names, scale: float, steps) -> Search:
    own = ("over", "method", "images", "max_sweeps")
    points = _points(here, {key: value for key, value in raw.items() if key not in own}, models, steps)
    _check_product(f"{here}.over", raw["over"].values(), MAX_COMBINATIONS)
    over = {key: tuple(values) for key, values in raw["over"].items()}
    samplers = Lazy(points, lambda model: _single(here, points[model]))
    return Search(name, samplers, over, raw.get("method", "coordinate"), _count(raw["images"], scale),
                  raw.get("max_sweeps", 10))  # fmt: skip


def _check_values(here: str, search: Search) -> None:
    """Raises UserError if a search tries a value that a sampler cannot take."""
    for sampler in dict.fromkeys(search.samplers.values()):
        for key, values in search.over.items():
            for value in values:
                # Without checking the other bound: the search skips invalid pairs.
                bounds = ({"S_min": 0.0, "S_max": None}, {"guidance_min": 0.0, "guidance_max": None})
                free: dict[str, Any] = next((pair for pair in bounds if key in pair), {})
                checked(f"{here}.over.{key}", SamplerConfig.from_dict, {**sampler.changes(), **free, key: value})


def _sheet(here: str, name: str, raw: dict[str, Any], models: Names, steps) -> Sheet:
    points = _points(here, {key: value for key, value in raw.items() if key != "images"}, models, steps)
    return Sheet(name, Lazy(points, lambda model: _single(here, points[model])), raw["images"])


#: The settings of a likelihood that an entry leaves out; the specification states them.
_OF_LIKELIHOODS = {"num_steps": 100, "solver": "heun", "trace": "hutchinson", "probes": 1}


def _likelihood(here: str, name: str, raw: dict[str, Any], test: str | None, models: Names, scale: float) -> Likelihood:
    """Bits per dimension of a dataset, by default of the held-out images."""
    if (dataset := raw.get("dataset", test)) is None:
        raise UserError(f"{here}: state a dataset, such as one with split: test, or `test` of the experiment")
    chosen = tuple(_chosen(raw["models"], models))
    for model in chosen:
        known(here, "model", model, models.known)
    if raw.get("seeds") != FIRST:
        runs = dict.fromkeys(run for model in chosen for run in models.training_runs.get(model, (model,)))
        chosen = tuple(runs)
    own = ("models", "dataset", "images", "seeds")
    settings = _OF_LIKELIHOODS | {key: value for key, value in raw.items() if key not in own}
    return Likelihood(name, chosen, dataset, _count(raw["images"], scale), settings)


def _points(here: str, raw: dict[str, Any], models: Names, steps: list[int] | None) -> Mapping[str, Points]:
    """The settings of each model of a grid: the product of its lists. A model may override settings of the grid.

    steps: an experiment's replacement for every list of ``num_steps``; its last entry replaces every single number.
    """
    chosen = _chosen(raw["models"], models)
    chosen = dict.fromkeys(chosen) if isinstance(chosen, list) else chosen
    common = {key: value for key, value in raw.items() if key != "models"}
    for model in chosen:
        known(here, "model", model, models.known)

    def of_model(model: str) -> Points:
        choices = {**common, **(chosen[model] or {})}
        if steps is not None and "num_steps" in choices:
            choices["num_steps"] = steps if isinstance(choices["num_steps"], list) else steps[-1]
        swept = [key for key, value in choices.items() if isinstance(value, list) and not _is_one_value(key, choices)]
        _check_product(here, (choices[key] for key in swept), MAX_POINTS)
        if "guide" in choices:
            named_guides = [_guide(here, value, models.scale) for value in _listed(choices["guide"])]
            choices["guide"] = named_guides if "guide" in swept else named_guides[0]
        return Points(here, model, choices, swept)

    return Lazy(chosen, of_model)


def _is_one_value(key: str, choices: dict[str, Any]) -> bool:
    """Whether the list of a setting is one value: of noise levels, or of a plugin's setting that is a list."""
    kind, _, setting = key.partition(".")
    if not setting:
        return key == "sigmas"
    name = choices.get(kind, getattr(SamplerConfig, kind, None))
    part = next((part for part in registry.plugins(kind) if part.name == name), None)
    return part is not None and setting in part.settings and part.settings[setting].is_list


def _guide(here: str, value: str | dict[str, Any], scale: float) -> str:
    """A guide as :class:`SamplerConfig` names it: the null label, a model, or what was made of its training run.

    That is a snapshot ("vp-F at 20"), an average of the snapshots ("vp-F@ema-0.05"), or an average at the place of a
    snapshot ("vp-F@ema-0.05-at-20").
    """
    if isinstance(value, str):
        _check_snapshot(here, value)
        return value
    if "at" not in value and "ema" not in value:
        what = "its snapshot (at, in Mimg), its EMA width (ema), or both"
        raise UserError(f"{here}: guide {value['model']}: state {what}")
    at = value["at"] * scale if "at" in value else None
    if "ema" in value:
        return averaged(value["model"], value["ema"], at)
    assert at is not None
    return f"{value['model']}{OF_SNAPSHOT}{named(at)}"


def _check_snapshot(here: str, guide: str) -> None:
    """Raises UserError for a guide at no number of images."""
    try:
        guiding_model(guide)
    except ValueError:
        model = guide.partition(OF_SNAPSHOT)[0]
        raise UserError(f"{here}: guide {guide!r} is no snapshot; state {{model: {model}, at: 20}}, in Mimg") from None


def _chosen(models: Any, names: Names) -> Any:
    """The models that an entry states, or those of the group that it names."""
    return names.words[models] if isinstance(models, str) else models


def _check_product(here: str, lists: Iterable[Collection[Any]], most: int) -> None:
    if (count := math.prod(map(len, lists))) > most:
        raise UserError(f"{here}: its lists multiply to {count:,} combinations, more than {most:,}; shorten them")


def _single(here: str, points: Points) -> SamplerConfig:
    if len(points) != 1:
        raise UserError(f"{here}: takes one sampler setting per model, not a list")
    return points[0].sampler
