"""The settings behind the numbers of a report, as text.

The page "configuration" shows this text, and the text is the specification of the page's step.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edm.chain.job import Job
from edm.config import ADAPTIVE, SamplerConfig, TrainingConfig
from edm.params import Experiment, Report

if TYPE_CHECKING:
    from edm.chain.jobs import Chain


def choices(chain: "Chain", report: Report) -> list[dict[str, Any]]:
    """Sections of a page, as plain data: a title, notes, and a table, whose first ``words`` columns are text.

    They contain only the models, samplers and studies that the tables and figures need.
    """
    needed, sections = set(chain.needed(chain.by_name[f"about {report.name}"].files)), []
    for experiment in report.experiments.values():  # in the order of params.yaml, not of the tables
        own = [job for job in chain.by_name.values()
               if job in needed and job.key[0] == experiment.owner(job.rule, *job.key[1:])]  # fmt: skip
        sections += [_section(f"Experiment {experiment.name}", [_experiment(experiment)])]
        sections += [*_models(chain, experiment, own), *_samplers(experiment, own), *_studies(experiment, own)]
    defaults = [(name, _shown(value)) for name, value in _fields(SamplerConfig()).items()]
    return [*sections, _section("What is not named of a sampler", [], ("choice", "value"), defaults, 2)]


def _section(title: str, notes: Sequence[str], head: Sequence[str] = (), rows: Iterable[Sequence[str]] = (),
             words: int = 1) -> dict[str, Any]:  # fmt: skip
    return {"title": title, "notes": list(notes), "head": list(head), "rows": [list(row) for row in rows],
            "words": words}  # fmt: skip


def _experiment(experiment: Experiment) -> str:
    sampling = experiment.sampling
    repeats = f", {sampling.repeats} times" if sampling.repeats > 1 else ""
    more = in_words([*experiment.metrics, *experiment.more_features])
    return (f"Dataset {experiment.dataset}. Each number is measured on {sampling.images:,} images{repeats}, from seed "
            f"{sampling.first_seed:,} on, in the features of {experiment.features}"
            f"{f'; beside it {more}' if more else ''}.")  # fmt: skip


def _models(chain: "Chain", experiment: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    trained = {job.key[1] for job in jobs if job.rule == "train"}
    names = [name for name in experiment.models if name in trained]
    chosen = {job.key[1]: None for job in jobs if job.rule == "choose"}
    published = [(job.key[1], chain.published_file(*job.key)) for job in jobs if job.rule == "published"]
    sections = []
    if names:
        values = {name: _fields(experiment.models[name]) for name in names}
        every = dict.fromkeys(choice for fields in values.values() for choice in fields)
        values = {name: {choice: fields.get(choice) for choice in every} for name, fields in values.items()}
        differing = [choice for choice in values[names[0]] if len({str(values[name][choice]) for name in names}) > 1]
        if differing:
            rows = [("model", *differing), *((name, *(_shown(values[name][choice]) for choice in differing))
                                             for name in names)]  # fmt: skip
            if len(names) <= len(differing):  # the longer list becomes the rows
                rows = list(zip(*rows, strict=True))
            sections += [_section("Models: what they differ in", [], rows[0], rows[1:])]
        same = [(choice, _shown(value)) for choice, value in values[names[0]].items() if choice not in differing]
        title = "Models: what they share" if len(names) > 1 else f"Model {names[0]}"
        notes = [f"Durations are in millions of images.{_chosen(experiment, chosen)}"]
        sections += [_section(title, notes, ("choice", "value"), same, 2)]
    if published:
        sections += [_section("Imported models", [], ("model", "published file"), published, 2)]
    return sections


def _chosen(experiment: Experiment, models: Iterable[str]) -> str:
    """Which weights of the models are used, a sentence; empty without a choice."""
    named, choice = in_words(models), experiment.choice
    if choice is None or not named:
        return ""
    widths = in_words(f"{width:g}" for width in choice.widths)
    what = "snapshot or EMA width" if choice.snapshots and widths else "EMA width" if widths else "snapshot"
    return f" The best {what} is used of {named}{f' (widths {widths})' if widths else ''}."


def _samplers(experiment: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    """The evaluated grids and the sheets: one row for all models with the same settings."""
    rows: dict[tuple[str, str, tuple[SamplerConfig, ...], str, int], list[str]] = {}
    drawn = ((job.rule, job.key[1], job.key[2]) for job in jobs if job.rule in ("evaluate", "sample"))
    # Each grid of a model once, however many jobs share its points.
    for rule, model, name in dict.fromkeys((rule, model, name.partition("/")[0]) for rule, model, name in drawn):
        if rule == "evaluate":
            given = experiment.grids[name]
            settings = tuple(point.sampler for point in given.points[model])
            origin = f"; the rest as found by search {given.settings_from}" if given.settings_from else ""
            key = ("grid", name, settings, origin, experiment.sampling.images)
        else:
            sheet = experiment.sheets[name]
            key = ("sheet", sheet.name, (sheet.samplers[model],), "", sheet.images)
        rows.setdefault(key, []).append(model)
    table = [(f"{kind} {name}", ", ".join(models), _settings(settings) + origin, _nfe(settings), f"{images:,}")
             for (kind, name, settings, origin, images), models in rows.items()]  # fmt: skip
    head = ("grid or sheet", "models", "settings", "NFE", "images")
    return [_section("Samplers", [], head, table, 3)] if rows else []


def _studies(experiment: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    rows = []
    for job in jobs:
        if job.rule == "search":
            search = experiment.searches[job.key[2]]
            over = "; ".join(f"{name} = {in_words(map(_shown, values))}" for name, values in search.over.items())
            rows.append((f"search {search.name}", job.key[1], f"{search.method}, {search.images:,} images, {over}"))
        elif job.rule == "likelihood":
            one = experiment.likelihoods[job.key[2]]
            told = ", ".join(f"{name} = {_shown(value)}" for name, value in one.settings.items())
            rows.append((f"likelihood {one.name}", job.key[1], f"{one.images:,} images of {one.dataset}, {told}"))
        elif job.rule == "analyse":
            study = experiment.analyses[job.key[2]]
            told = ", ".join(f"{name} = {_shown(value)}" for name, value in study.settings.items())
            name = study.name if study.name == study.kind else f"{study.kind} {study.name}"
            rows.append((name, job.key[1], told))
    return [_section("Searches and studies", [], ("what", "model", "settings"), rows, 3)] if rows else []


def _fields(config: TrainingConfig | SamplerConfig) -> dict[str, Any]:
    """Its fields, and the settings of plugins by their keys."""
    return {name: getattr(config, name, value) for name, value in config.to_dict().items()}


def _settings(samplers: Sequence[SamplerConfig]) -> str:
    """The swept settings, then the others that differ from their defaults: "num_steps = 4, 8; S_noise = 1.007"."""
    default, told = _fields(SamplerConfig()), {}
    stated = [_fields(sampler) for sampler in samplers]
    for name in dict.fromkeys(name for fields in (default, *stated) for name in fields):
        values = list(dict.fromkeys(fields.get(name) for fields in stated))
        if name == "num_steps" or values != [default.get(name)]:
            told[name] = in_words(map(_shown, values))
    if samplers[0].solver == ADAPTIVE:
        del told["num_steps"]
    return "; ".join(f"{name} = {value}" for name, value in told.items())


def _nfe(samplers: Sequence[SamplerConfig]) -> str:
    counts = {sampler.nfe for sampler in samplers if sampler.nfe is not None}
    if any(sampler.nfe is None for sampler in samplers):
        return "adaptive" if all(sampler.solver == ADAPTIVE for sampler in samplers) else "counted"
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)}–{max(counts)}"


def in_words(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return "∞" if math.isinf(value) else f"{value:g}"
    return in_words(map(_shown, value)) if isinstance(value, (list, tuple)) else str(value)
