"""The provenance pages of a report: configuration, environment and runtime.

Their sources are params.yaml and the sidecars of the steps.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from edm.chain.choices import choices, in_words
from edm.chain.jobs import Chain
from edm.chain.paths import advice_file
from edm.chain.provenance import raw
from edm.chain.rules import RULES
from edm.chain.sidecars import read_sidecar, sidecar_file
from edm.chain.throughput import Throughput
from edm.files.documents import NUMBER, read_document
from edm.files.writing import write_text
from edm.params import Report
from edm.report.done import Done, done_jobs, kept_jobs
from edm.report.page import grid, heading, page, paragraphs
from edm.report.spending import Spending, spending

LONGEST = 20  # number of jobs that the runtime page lists


def write_about(chain: Chain, report: Report, results: Path) -> list[Path]:
    """Writes the pages under ``results/REPORT/about``; returns the files."""
    done, rates = done_jobs(chain, report), Throughput.load("throughput.json")
    pages = {"configuration": configuration(chain, report), "environment": environment(chain, report, done),
             "runtime": runtime(report, done, spending(chain, report, rates))}  # fmt: skip
    written = []
    for name, text in pages.items():
        written.append(results / report.name / "about" / f"{name}.html")
        write_text(written[-1], text)
    return written


def configuration(chain: Chain, report: Report) -> str:
    """Every model and every sampler that the report uses, with all their settings."""
    parts = []
    for section in choices(chain, report):
        parts += [heading(section["title"]), paragraphs(*section["notes"])]
        parts += [grid(section["head"], section["rows"], text=section["words"])] if section["head"] else []
    return page(f"Configuration: {report.title}", *parts)


# Environment ----------------------------------------------------------------------------------------------------------


def environment(chain: Chain, report: Report, done: list[Done]) -> str:
    """The code, machines, software and data of a report."""
    code = _counted(
        done, lambda one: ((one.commit or "unknown"), {"true": "yes", "false": "no"}.get(one.dirty or "", "–"))
    )
    machines = _counted(done, lambda one: (one.host, one.gpu or "–", str(one.processes)))
    software = Counter((name, version) for one in done for name, version in one.versions.items())
    data: dict[str, tuple[str, str | None]] = {}
    for job in kept_jobs(chain, report):
        sidecar = read_sidecar(sidecar_file(job)) or {"inputs": {}, "outputs": {}}
        data |= {path: ("as given", sidecar["inputs"].get(path)) for path in raw(chain, job)}
        if RULES[job.rule].stage == "data":
            data |= {path: (f"made by {job.rule}", content) for path, content in sidecar["outputs"].items()}
        elif RULES[job.rule].stage == "train":
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
        *_advice(chain, report),
        heading("Data and models"), grid(("file", "origin", "SHA-256"), rows, text=3),
    )  # fmt: skip


def _advice(chain: Chain, report: Report) -> list[str]:
    """A table of the settings that ``edm advise`` derived for the datasets of a report; empty without any."""
    names = ("sigma_data", "sigma_min", "sigma_max", "P_mean", "P_std", "P_mean_new", "P_std_new")
    rows = []
    for name in dict.fromkeys(experiment.dataset for experiment in report.experiments.values()):
        if name in chain.advised and Path(advice_file(name)).exists():
            shape = dict.fromkeys(names, NUMBER.or_null())
            found = read_document(advice_file(name), None, shape, "the advice for a dataset", "run snakemake again")
            rows.append((name, *("–" if found[one] is None else f"{found[one]:.3g}" for one in names)))
    note = ("Settings that fit the images, from the errors of the best linear denoiser and of the ideal one. The first "
            "P_mean and P_std count what only memorisation wins, the second what so few images show of new ones; "
            "`edm advise --levels` derives them from a training run.")  # fmt: skip
    return [heading("Advice for the data"), grid(("dataset", *names), rows), paragraphs(note)] if rows else []


def _counted(done: Iterable[Done], of: Callable[[Done], tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(*what, f"{count:,}") for what, count in Counter(map(of, done)).items()]


# Runtime --------------------------------------------------------------------------------------------------------------


def runtime(report: Report, done: list[Done], spent: dict[tuple[str, str, str], Spending] | None = None) -> str:
    """The duration of the jobs of each rule, the longest jobs, and planned and used GPU-hours per cell."""
    rules: dict[str, list[Done]] = {}
    unknown = [one.name for one in done if one.seconds is None]
    done = [one for one in done if one.seconds is not None]
    for one in done:
        rules.setdefault(one.rule, []).append(one)
    on_gpus = any(one.gpu for one in done)
    rows = [_row(rule, jobs, on_gpus) for rule, jobs in rules.items()] + [_row("all", done, on_gpus)]
    head = ("rule", "jobs", "total", "median", "longest", *(["GPU-hours"] if on_gpus else []))
    longest = sorted(done, key=lambda one: -(one.seconds or 0.0))[:LONGEST]
    listed = [(one.name, one.gpu or "CPU", str(one.processes), duration(one.seconds or 0.0)) for one in longest]
    notes = ("Wall time of each job from its start to its last file, as the job recorded it; start-up counts, "
             "waiting for a machine does not. Jobs run side by side: the total is not how long one waits. "
             "A training run that was interrupted counts from its last start.")  # fmt: skip
    hours = "GPU-hours: wall time times GPUs." if on_gpus else "No job recorded a GPU."
    missing = f"Not counted, since their files were adopted: {in_words(unknown)}." if unknown else ""
    return page(f"Runtime: {report.title}", grid(head, rows, total=True), paragraphs(notes, hours, missing),
                heading("The longest jobs"), grid(("job", "on", "processes", "wall time"), listed, text=2),
                *_planned_and_used(spent or {}))  # fmt: skip


def _planned_and_used(spent: dict[tuple[str, str, str], Spending]) -> list[str]:
    """The table of planned and used GPU-hours per cell, with what it can and cannot say."""
    if not spent:
        return []
    head = ("table", "row", "columns", "planned GPU-hours", "used GPU-hours", "used CPU-hours", "steps with a record")
    rows = [(*cell, _planned(one), _hours(one.on_gpus), _hours(one.on_cpus), f"{one.recorded} of {one.steps}")
            for cell, one in spent.items()]  # fmt: skip
    notes = ["Of each cell all training runs, choices, searches, evaluations and reference statistics behind it; what "
             "several cells share counts in each, and once in the last row. Used: wall time times processes, "
             "one per GPU; time that a killed job lost is not recorded.",
             "Planned: as by `edm plan`, of networks alone, for the GPU whose throughput it knows; for two numbers the "
             "outcome of a search decides."]  # fmt: skip
    if any(one.on_cpus for one in spent.values()):
        notes.append("Hours on CPUs are those of processes without a GPU. They cannot be compared with the plan.")
    return [heading("Planned and used GPU-hours"), grid(head, rows, text=3, total=True), paragraphs(*notes)]


def _planned(one: Spending) -> str:
    if one.planned is None:
        return "unknown"
    low, high = map(_hours, one.planned)
    return low if low == high else f"{low} to {high}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}" if hours else "–"


def _row(rule: str, jobs: list[Done], on_gpus: bool) -> tuple[str, ...]:
    seconds = [one.seconds or 0.0 for one in jobs] or [0.0]
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
