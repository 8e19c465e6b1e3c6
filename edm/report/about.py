"""How a report came about: what was configured, where it was computed, how long that took.

From params.yaml and the sidecars of the steps.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from edm.chain.jobs import Chain, Job
from edm.chain.provenance import raw, read_sidecar, sidecar_file
from edm.config import SamplerConfig, TrainingConfig
from edm.files.writing import write_text
from edm.params import Experiment, Report
from edm.report.page import grid, heading, page, paragraphs

LONGEST = 20  # jobs that are named one by one


@dataclass(frozen=True)
class Done:
    """A job that was done, as its sidecar tells. processes: side by side, one per GPU where there were GPUs.

    seconds: None where nobody knows, as of files that were adopted from elsewhere.
    """

    rule: str
    key: tuple[str, ...]
    seconds: float | None = None
    created: str = ""
    host: str = "unknown"
    processes: int = 1
    gpu: str | None = None
    commit: str | None = None
    dirty: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str | None] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.rule} {'/'.join(self.key)}"

    @property
    def ended(self) -> float:
        """In seconds since 1970."""
        return datetime.fromisoformat(self.created).timestamp()

    @property
    def gpu_hours(self) -> float:
        return self.processes * (self.seconds or 0.0) / 3600 if self.gpu else 0.0


def write_about(chain: Chain, report: Report, results: Path) -> list[Path]:
    """Writes the pages under ``results/REPORT/about``; returns the files."""
    done = done_jobs(chain, report)
    pages = {"configuration": configuration(chain, report), "environment": environment(chain, report, done),
             "runtime": runtime(report, done)}  # fmt: skip
    written = []
    for name, text in pages.items():
        written.append(results / report.name / "about" / f"{name}.html")
        write_text(written[-1], text)
    return written


def done_jobs(chain: Chain, report: Report) -> list[Done]:
    """The jobs that a report was made by, in the order of the chain, each shard of an evaluation for itself."""
    return [one for job in _needed(chain, report) for one in told_by(job)]


def told_by(job: Job) -> list[Done]:
    """A job as its sidecar tells, after the shards that it merged; nothing where there is no sidecar."""
    sidecar = read_sidecar(sidecar_file(job))
    if sidecar is None:
        return []
    parts = [(part["job"].removesuffix(".safetensors"), part) for part in sidecar.get("parts", ()) if "seconds" in part]
    return [*(_done("shard", (*job.key, name), part) for name, part in parts), _done(job.rule, job.key, sidecar)]


def _needed(chain: Chain, report: Report) -> list[Job]:
    return [job for job in chain.needed(chain.about_inputs(report.name)) if job.rule not in ("download", "shard")]


def _done(rule: str, key: tuple[str, ...], sidecar: dict[str, Any]) -> Done:
    known = {entry.name for entry in dataclasses.fields(Done)} - {"rule", "key"}
    return Done(rule, key, **{name: value for name, value in sidecar.items() if name in known})


# Configuration --------------------------------------------------------------------------------------------------------


def configuration(chain: Chain, report: Report) -> str:
    """Every model and every sampler that the report rests on, with the value of every choice."""
    jobs, parts = _needed(chain, report), []
    for experiment in report.experiments.values():
        own = [job for job in jobs if job.key[0] == experiment.name]
        parts += [heading(f"Experiment {experiment.name}"), paragraphs(_experiment(experiment))]
        parts += [*_models(chain, experiment, own), *_samplers(experiment, own), *_studies(experiment, own)]
    defaults = [(name, _shown(value)) for name, value in _fields(SamplerConfig()).items()]
    parts += [heading("What is not named of a sampler"), grid(("choice", "value"), defaults, text=2)]
    return page(f"Configuration: {report.title}", *parts)


def _experiment(experiment: Experiment) -> str:
    sampling = experiment.sampling
    repeats = f", {sampling.repeats} times" if sampling.repeats > 1 else ""
    more = in_words([*experiment.metrics, *experiment.more_features])
    return (f"Dataset {experiment.dataset}. Each number is measured on {sampling.images:,} images{repeats}, from seed "
            f"{sampling.first_seed:,} on, in the features of {experiment.features}"
            f"{f'; beside it {more}' if more else ''}.")  # fmt: skip


def _models(chain: Chain, experiment: Experiment, jobs: list[Job]) -> list[str]:
    names = [job.key[1] for job in jobs if job.rule == "train"]
    chosen = {job.key[1] for job in jobs if job.rule == "choose"}
    published = [(job.key[1], chain.published_file(*job.key)) for job in jobs if job.rule == "published"]
    parts = []
    if names:
        values = {name: _fields(experiment.models[name]) for name in names}
        differing = [choice for choice in values[names[0]] if len({str(values[name][choice]) for name in names}) > 1]
        if differing:
            rows = [("model", *differing), *((name, *(_shown(values[name][choice]) for choice in differing))
                                             for name in names)]  # fmt: skip
            if len(names) <= len(differing):  # the longer side downwards
                rows = list(zip(*rows, strict=True))
            parts += [heading("Models: what they differ in"), grid(rows[0], rows[1:])]
        same = [(choice, _shown(value)) for choice, value in values[names[0]].items() if choice not in differing]
        title = "Models: what they share" if len(names) > 1 else f"Model {names[0]}"
        notes = [f"Durations are in millions of images. The best snapshot is used of {in_words(chosen)}." if chosen else
                 "Durations are in millions of images."]  # fmt: skip
        parts += [heading(title), paragraphs(*notes), grid(("choice", "value"), same, text=2)]
    if published:
        parts += [heading("Imported models"), grid(("model", "published file"), published, text=2)]
    return parts


def _samplers(experiment: Experiment, jobs: list[Job]) -> list[str]:
    """The grids that were measured and the sheets that were drawn: a row for the models that share the settings."""
    rows: dict[tuple, list[str]] = {}
    for job in jobs:
        if job.rule == "evaluate":
            grid_name = job.key[2].partition("/")[0]
            given = experiment.grids[grid_name]
            settings = tuple(point.sampler for point in given.points[job.key[1]])
            origin = f"; the rest as found by search {given.settings_from}" if given.settings_from else ""
            key = ("grid", grid_name, settings, origin, experiment.sampling.images)
        elif job.rule == "sample":
            sheet = experiment.sheets[job.key[2]]
            key = ("sheet", sheet.name, (sheet.samplers[job.key[1]],), "", sheet.images)
        else:
            continue
        models = rows.setdefault(key, [])
        models += [job.key[1]] if job.key[1] not in models else []
    if not rows:
        return []
    table = [(f"{kind} {name}", ", ".join(models), _settings(settings) + origin, _nfe(settings), f"{images:,}")
             for (kind, name, settings, origin, images), models in rows.items()]  # fmt: skip
    return [heading("Samplers"), grid(("grid or sheet", "models", "settings", "NFE", "images"), table, text=3)]


def _studies(experiment: Experiment, jobs: list[Job]) -> list[str]:
    rows = []
    for job in jobs:
        if job.rule == "search":
            search = experiment.searches[job.key[2]]
            over = "; ".join(f"{name} = {in_words(map(_shown, values))}" for name, values in search.over.items())
            rows.append((f"search {search.name}", job.key[1], f"{search.method}, {search.images:,} images, {over}"))
        elif job.rule == "analyse":
            study = experiment.analyses[job.key[2]]
            told = ", ".join(f"{name} = {_shown(value)}" for name, value in study.settings.items())
            name = study.name if study.name == study.kind else f"{study.kind} {study.name}"
            rows.append((name, job.key[1], told))
    return [heading("Searches and studies"), grid(("what", "model", "settings"), rows, text=3)] if rows else []


def _fields(config: TrainingConfig | SamplerConfig) -> dict[str, Any]:
    return {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}


def _settings(samplers: Sequence[SamplerConfig]) -> str:
    """What is swept, then what else is not the default: "num_steps = 4, 8, 16; S_noise = 1.007"."""
    default, told = SamplerConfig(), {}
    for name in _fields(default):
        values = list(dict.fromkeys(getattr(sampler, name) for sampler in samplers))
        if name == "num_steps" or values != [getattr(default, name)]:
            told[name] = in_words(map(_shown, values))
    if samplers[0].solver == "rk45":
        del told["num_steps"]
    return "; ".join(f"{name} = {value}" for name, value in told.items())


def _nfe(samplers: Sequence[SamplerConfig]) -> str:
    counts = {sampler.nfe for sampler in samplers}
    if None in counts:
        return "adaptive"
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)}–{max(counts)}"


# Environment ----------------------------------------------------------------------------------------------------------


def environment(chain: Chain, report: Report, done: list[Done]) -> str:
    """Which code, on which machines, with which software, from which data."""
    code = _counted(done, lambda one: ((one.commit or "unknown"), {"true": "yes", "false": "no"}.get(one.dirty, "–")))
    machines = _counted(done, lambda one: (one.host, one.gpu or "–", str(one.processes)))
    software = Counter((name, version) for one in done for name, version in one.versions.items())
    data = {}
    for job in _needed(chain, report):
        sidecar = read_sidecar(sidecar_file(job)) or {"inputs": {}, "outputs": {}}
        data |= {path: ("as given", sidecar["inputs"].get(path)) for path in raw(chain, job)}
        if job.rule in ("prepare", "features", "reference"):
            data |= {path: (f"made by {job.rule}", content) for path, content in sidecar["outputs"].items()}
        elif job.rule in ("train", "choose", "published"):
            data |= {path: (f"made by {job.rule}", content) for path, content in sidecar["outputs"].items()
                     if path.endswith(".safetensors")}  # fmt: skip
    rows = [(path, origin, content or "not known") for path, (origin, content) in data.items()]
    versions = [(name, version, f"{count:,}") for (name, version), count in software.items()]
    return page(
        f"Environment: {report.title}",
        paragraphs("As each job recorded it when it was done."),
        heading("Code"), grid(("commit", "uncommitted changes", "jobs"), code, text=2),
        heading("Software"), grid(("package", "version", "jobs"), versions, text=2),
        heading("Machines"), grid(("host", "GPU", "processes per job", "jobs"), machines, text=2),
        heading("Data and models"), grid(("file", "origin", "SHA-256"), rows, text=3),
    )  # fmt: skip


def _counted(done: Iterable[Done], of: Callable[[Done], tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(*what, f"{count:,}") for what, count in Counter(map(of, done)).items()]


# Runtime --------------------------------------------------------------------------------------------------------------


def runtime(report: Report, done: list[Done]) -> str:
    """How long the jobs of each rule took, and the longest of all."""
    rules: dict[str, list[Done]] = {}
    unknown = [one.name for one in done if one.seconds is None]
    done = [one for one in done if one.seconds is not None]
    for one in done:
        rules.setdefault(one.rule, []).append(one)
    on_gpus = any(one.gpu for one in done)
    rows = [_row(rule, jobs, on_gpus) for rule, jobs in rules.items()] + [_row("all", done, on_gpus)]
    head = ("rule", "jobs", "total", "median", "longest", *(["GPU-hours"] if on_gpus else []))
    longest = sorted(done, key=lambda one: -one.seconds)[:LONGEST]
    listed = [(one.name, one.gpu or "CPU", str(one.processes), duration(one.seconds)) for one in longest]
    notes = ("Wall time of each job from its start to its last file, as the job recorded it; start-up counts, "
             "waiting for a machine does not. Jobs run side by side: the total is not how long one waits. "
             "A training that was interrupted counts from its last start.")  # fmt: skip
    hours = "GPU-hours: wall time times GPUs." if on_gpus else "No job recorded a GPU."
    missing = f"Not counted, since their files were adopted: {in_words(unknown)}." if unknown else ""
    return page(f"Runtime: {report.title}", grid(head, rows, total=True), paragraphs(notes, hours, missing),
                heading("The longest jobs"), grid(("job", "on", "processes", "wall time"), listed, text=2))  # fmt: skip


def _row(rule: str, jobs: list[Done], on_gpus: bool) -> tuple[str, ...]:
    seconds = [one.seconds for one in jobs] or [0.0]
    hours = [f"{sum(one.gpu_hours for one in jobs):,.2f}"] if on_gpus else []
    times = map(duration, (sum(seconds), statistics.median(seconds), max(seconds)))
    return (rule, f"{len(jobs):,}", *times, *hours)


def duration(seconds: float) -> str:
    """Such as 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours:,} h {minutes_rest:02} min" if hours else f"{minutes} min {rest:02} s"


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
