"""Planned and used GPU-hours behind each cell of a report's tables."""

from dataclasses import dataclass, replace

from edm.chain import paths
from edm.chain.job import SHARES, Job
from edm.chain.jobs import Chain
from edm.chain.progress import last_row
from edm.chain.rules import RULES, made_from
from edm.chain.throughput import Throughput
from edm.errors import UserError
from edm.params import Report
from edm.params.layouts import table_layout
from edm.report.done import Done, told_by


@dataclass(frozen=True)
class Spending:
    """What some steps cost: training runs, choices, searches, evaluations and reference statistics.

    planned: GPU-hours by the plan, least and greatest; None if the plan does not know a model. on_gpus: used GPU-hours,
    wall time times GPUs. on_cpus: hours of processes without a GPU. recorded: steps whose time is known, of ``steps``.
    """

    planned: tuple[float, float] | None
    on_gpus: float
    on_cpus: float
    recorded: int
    steps: int


def spending(chain: Chain, report: Report, rates: Throughput) -> dict[tuple[str, str, str], Spending]:
    """(table, row, columns) → cost of the steps behind these cells; the last entry, ("all", "", ""), counts each once.

    Cells of a row with the same steps are one entry. Cells of one step share it: each counts it in full.
    """
    memory: dict[Job, Spending] = {}
    found, every = dict[tuple[str, str, str], Spending](), dict[Job, None]()
    for table in report.tables:
        layout = table_layout(report, table)
        for row, sources in layout.rows.items():
            groups: dict[tuple[Job, ...], list[str]] = {}
            for column, source in zip(layout.columns, sources, strict=True):
                files = [] if source is None else made_from(source.training_runs())
                jobs = tuple(job for job in chain.needed(files) if RULES[job.rule].computes)
                if jobs:
                    groups.setdefault(jobs, []).append(column)
            for jobs, columns in groups.items():
                every |= dict.fromkeys(jobs)
                found[table, layout.called.get(row, row), ", ".join(columns)] = _sum(chain, jobs, rates, memory)
    return found | {("all", "", ""): _sum(chain, tuple(every), rates, memory)} if every else {}


def _sum(chain: Chain, jobs: tuple[Job, ...], rates: Throughput, memory: dict[Job, Spending]) -> Spending:
    low, high, known = 0.0, 0.0, True
    gpus, cpus, recorded, steps = 0.0, 0.0, 0, 0
    for job in jobs:
        if job.rule in SHARES:  # the evaluation that merges the shards records them
            planned = _planned(chain, job, rates)
        else:
            if job not in memory:
                memory[job] = _of(chain, job, rates)
            one = memory[job]
            planned, gpus, cpus = one.planned, gpus + one.on_gpus, cpus + one.on_cpus
            recorded, steps = recorded + one.recorded, steps + one.steps
        known = known and planned is not None
        low, high = (low + planned[0], high + planned[1]) if planned else (low, high)
    return Spending((low, high) if known else None, gpus, cpus, recorded, steps)


def _of(chain: Chain, job: Job, rates: Throughput) -> Spending:
    done = [_with_earlier_starts(chain, job, one) for one in told_by(job)]
    hours = [one.processes * (one.seconds or 0.0) / 3600 for one in done]
    gpus = sum(hour for hour, one in zip(hours, done, strict=True) if one.gpu)
    recorded = bool(done) and all(one.seconds is not None for one in done)
    return Spending(_planned(chain, job, rates), gpus, sum(hours) - gpus, int(recorded), 1)


def _with_earlier_starts(chain: Chain, job: Job, done: Done) -> Done:
    """A training run with the time before interruptions, which its log holds if the run was made on this machine."""
    if job.rule != "train" or done.seconds is None:
        return done
    config = chain.experiments[job.key[0]].models[job.key[1]]
    row = last_row(f"{paths.traces('train', job.key)}log.jsonl")
    complete = row is not None and row.images == config.steps * config.batch_size
    return replace(done, seconds=max(done.seconds, row.seconds)) if row is not None and complete else done


def _planned(chain: Chain, job: Job, rates: Throughput) -> tuple[float, float] | None:
    try:
        return RULES[job.rule].cost(chain, job, rates).hours
    except UserError:  # a pretrained model of unknown cost
        return None
