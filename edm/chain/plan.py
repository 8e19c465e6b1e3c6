"""The cost of a target, estimated before anything runs from the same jobs that the workflow runs.

GPU-hours come from a throughput table: measured on your own GPU by `edm bench`, else labelled as an estimate. They
count only networks, not reading data, features and start-up.
"""

import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from edm.chain.costs import NOTHING, Cost
from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, made
from edm.chain.rules import RULES
from edm.chain.throughput import Throughput
from edm.config import RK45_NFE
from edm.errors import UserError
from edm.params import Params

LEAST = 0.01  # GPU-hours that are told as a number


@dataclass
class Plan:
    """Costs by rule, in the order of the chain; the longest single job; the number of up-to-date jobs."""

    target: str
    by_rule: dict[str, Cost] = field(default_factory=dict)
    longest: tuple[float, str] = (0.0, "")
    done: int = 0

    @property
    def total(self) -> Cost:
        return sum(self.by_rule.values(), NOTHING)


def make_plan(
    params: Params, target: str, throughput: str | None = None, everything: bool = False, gpu: str | None = None
) -> Plan:
    """The cost of the jobs that Snakemake would run for a target, or with ``everything`` of all its jobs.

    throughput: file of `edm bench`. gpu: one of ``PEAKS``; default: the GPU measured last, else the paper's V100.
    Raises UserError for a target that no job makes.
    """
    chain, plan = Chain(params), Plan(target)
    rates, targets = Throughput.load(throughput, gpu), chain.targets(target)
    jobs = chain.needed(targets)
    to_run = jobs if everything else Provenance(chain).to_run(targets)
    plan.done = len(jobs) - len(to_run)
    for job in to_run:
        found = RULES[job.rule].cost(chain, job, rates)
        plan.by_rule[job.rule] = plan.by_rule.get(job.rule, NOTHING) + found
        if found.hours[1] > plan.longest[0]:
            plan.longest = (found.hours[1], f"{job.rule} {' '.join(job.key)}")
    return plan


def reasons(provenance: Provenance, to_run: Iterable[Job]) -> dict[str, tuple[str, str, str]]:
    """Output file → rule, name and kind of reason of each step that has to run, for Snakemake's logger plugin."""
    jobs, found = dict.fromkeys(to_run), dict[str, tuple[str, str, str]]()
    for job in jobs:
        if any(maker in jobs for _, maker in made(provenance.chain, job)):
            kind = "follow a step that runs"
        elif provenance.why_stale(job) is not None:
            kind = "changed"
        else:
            kind = "asked for" if all(map(os.path.exists, job.outputs)) else "files missing"
        found |= dict.fromkeys(job.outputs, (job.rule, job.name, kind))
    return found


def weights(chain: Chain, to_run: Iterable[Job]) -> dict[str, tuple[float, int]]:
    """Output file → GPU-hours and images of training of each step, for Snakemake's logger plugin."""
    rates, found = Throughput.load(None), dict[str, tuple[float, int]]()
    for job in to_run:
        with suppress(UserError):  # a pretrained model of unknown cost
            cost = RULES[job.rule].cost(chain, job, rates)
            found |= dict.fromkeys(job.outputs, (cost.hours[1], cost.trained))
    return found


def as_text(plan: Plan, gpus: int) -> str:
    """The plan as a table for a terminal, with explanations of its numbers."""
    head = ("rule", "jobs", "images trained", "images drawn", "network evaluations", "GPU-hours", "disk")
    rows = [head, *(_row(rule, found) for rule, found in plan.by_rule.items()), _row("total", plan.total)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.insert(-1, lines[1])
    low, high = (hours / gpus for hours in plan.total.hours)
    lines += ["", f"{plan.target}: {plan.total.jobs:,} jobs; {plan.done:,} more are up to date."]
    lines.append("Units: k, M, G, T are 10^3, 10^6, 10^9, 10^12 images or evaluations of one image.")
    if 0 < high * gpus < LEAST:
        lines.append(f"GPU-hours below {LEAST:g}: a CPU does it, too. `edm watch {plan.target}` shows the time left.")
    elif high:
        shared = f"{_span((low, high), _hours)} hours if {gpus} GPUs share it evenly"
        lines.append(f"Wall time: {shared}, but at least that of the longest job: "
                     f"{_hours(plan.longest[0])} GPU-hours ({plan.longest[1]}).")  # fmt: skip
    if high:
        lines += [f"GPU-hours: {source}." for source in sorted(plan.total.sources)]
        lines.append("For two numbers, the outcome of a search decides. RK45 chooses its number of evaluations; "
                     f"the plan assumes {RK45_NFE} per image.")  # fmt: skip
    return "\n".join(lines)


def _row(rule: str, found: Cost) -> tuple[str, ...]:
    sampled = (_span(found.drawn, _count), _span(found.evaluations, _count))
    return (rule, f"{found.jobs:,}", _count(found.trained), *sampled, _span(found.hours, _hours), _bytes(found.disk))


def _span(bounds: Iterable[float], show: Callable[[float], str]) -> str:
    low, high = map(show, bounds)
    return low if low == high else f"{low} to {high}"


def _hours(hours: float) -> str:
    if hours == 0:
        return "–"
    if hours < LEAST:
        return f"< {LEAST:g}"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _count(number: float) -> str:
    return _scaled(number, (("T", 1e12, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3)))


def _bytes(number: float) -> str:
    return _scaled(number, ((" TB", 1e12, 1e12), (" GB", 1e9, 1e9), (" MB", 1e6, 1e6), (" kB", 1e3, 1e3)))


def _scaled(number: float, units: Iterable[tuple[str, float, float]]) -> str:
    """A number in the first of the units (name, least number, size) that is small enough."""
    if not number:
        return "–"
    for unit, least, size in units:
        if number >= least:
            digits = max(0, 2 - int(math.log10(number / size)))
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:g}"
