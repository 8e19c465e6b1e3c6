"""What a target would cost, before anyone spends a GPU-hour. Counted from the same jobs that the workflow runs.

GPU-hours come from a throughput table: measured on your own GPU by `edm bench`, else estimated and labelled so. They
are those of networks alone: reading data, features and start-up are not in them.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from edm.chain.jobs import Chain, Job, final_model
from edm.chain.provenance import Provenance
from edm.chain.throughput import Throughput
from edm.config import RK45_NFE, SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.evaluation.search import choice_cost, cost
from edm.networks.flops import parameters
from edm.params import Experiment, Params

FLOAT = 4  # bytes


@dataclass
class Cost:
    """Work of some jobs. Bounds (least, greatest) differ where an outcome decides how much is needed.

    trained: images seen in training; drawn: images sampled; evaluations: of the network in sampling; hours: of one GPU;
    disk: bytes that stay.
    """

    jobs: int = 0
    trained: int = 0
    drawn: tuple[int, int] = (0, 0)
    evaluations: tuple[int, int] = (0, 0)
    hours: tuple[float, float] = (0.0, 0.0)
    disk: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        pair = lambda a, b: (a[0] + b[0], a[1] + b[1])
        return Cost(self.jobs + other.jobs, self.trained + other.trained, pair(self.drawn, other.drawn),
                    pair(self.evaluations, other.evaluations), pair(self.hours, other.hours),
                    self.disk + other.disk)  # fmt: skip


@dataclass
class Plan:
    """Costs by rule, in the order of the chain; the longest single job; where the rates come from."""

    target: str
    by_rule: dict[str, Cost] = field(default_factory=dict)
    longest: tuple[float, str] = (0.0, "")
    sources: set[str] = field(default_factory=set)
    done: int = 0

    @property
    def total(self) -> Cost:
        return sum(self.by_rule.values(), Cost())


def make_plan(params: Params, target: str, throughput: str | None = None, everything: bool = False) -> Plan:
    """The cost of a target; of what Snakemake would not run nothing is counted, unless ``everything`` is.

    Raises UserError for a target that nothing makes.
    """
    chain, plan = Chain(params), Plan(target)
    rates = Throughput.load(throughput if throughput and os.path.exists(throughput) else None)
    jobs = chain.needed(chain.targets(target))
    to_run = jobs if everything else Provenance(chain).to_run(chain.targets(target))
    plan.done = len(jobs) - len(to_run)
    for job in to_run:
        found = _cost(chain, job, rates, plan.sources)
        found.jobs = 1
        plan.by_rule[job.rule] = plan.by_rule.get(job.rule, Cost()) + found
        if found.hours[1] > plan.longest[0]:
            plan.longest = (found.hours[1], f"{job.rule} {' '.join(job.key)}")
    return plan


def as_text(plan: Plan, gpus: int) -> str:
    """The plan as a table for a terminal, with what its numbers mean."""
    head = ("rule", "jobs", "images trained", "images drawn", "network evaluations", "GPU-hours", "disk")
    rows = [head, *(_row(rule, found) for rule, found in plan.by_rule.items()), _row("total", plan.total)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.insert(-1, lines[1])
    low, high = (hours / gpus for hours in plan.total.hours)
    lines += ["", f"{plan.target}: {plan.total.jobs:,} jobs; {plan.done:,} more are there already."]
    if high:
        shared = f"{_span((low, high), _hours)} if {gpus} GPUs share it evenly"
        lines.append(f"Wall time: {shared}, and not below the longest job on however many GPUs it uses: "
                     f"{_hours(plan.longest[0])} GPU-hours ({plan.longest[1]}).")  # fmt: skip
        lines += [f"GPU-hours: {source}." for source in sorted(plan.sources)]
        lines.append("Where two numbers stand, the outcome of a search decides. RK45 decides its evaluations itself; "
                     f"{RK45_NFE} per image are assumed.")  # fmt: skip
    return "\n".join(lines)


def _cost(chain: Chain, job: Job, rates: Throughput, sources: set[str]) -> Cost:
    if job.rule == "train":
        return _training(chain.experiments[job.key[0]], job.key[1], rates, sources)
    if job.rule == "published":
        config = _config(chain, chain.experiments[job.key[0]], job.key[1])
        return Cost(disk=FLOAT * parameters(config))
    if job.rule not in ("choose", "search", "shard", "evaluate", "sample", "analyse"):
        return Cost()
    experiment, model = chain.experiments[job.key[0]], job.key[1]
    config = _config(chain, experiment, model)
    drawn, evaluations = _SAMPLING[job.rule](experiment, *job.key[1:])
    rate = rates.evaluations(config.network(), "fp32")
    sources.add(rate.source)
    hours = tuple(count / rate.per_second / 3600 for count in evaluations)
    disk = {"choose": FLOAT * parameters(config)}.get(job.rule, 0)
    if job.rule == "sample":
        disk = drawn[1] * config.channels * config.resolution**2
    return Cost(drawn=drawn, evaluations=evaluations, hours=hours, disk=disk)


def _training(experiment: Experiment, model: str, rates: Throughput, sources: set[str]) -> Cost:
    config = experiment.models[model]
    images = config.steps * config.batch_size
    rate = rates.training(config)
    sources.add(rate.source)
    hours = images / rate.per_second / 3600
    disk = FLOAT * parameters(config) * (1 + len(config.snapshots))
    return Cost(trained=images, hours=(hours, hours), disk=disk)


def _choosing(experiment: Experiment, model: str) -> tuple[tuple[int, int], tuple[int, int]]:
    count = len(experiment.models[model].snapshots)
    cheap, full = choice_cost(count, experiment.choice.confirm)
    drawn = cheap * experiment.choice.images + full * experiment.sampling.images
    nfe = experiment.grids[experiment.choice.grid].points[model][0].sampler.expected_nfe
    return (drawn, drawn), (drawn * nfe, drawn * nfe)


def _searching(experiment: Experiment, model: str, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    search = experiment.searches[name]
    over = {key: list(values) for key, values in search.over.items()}
    bounds = cost(over, search.method, search.max_sweeps)
    nfe = search.samplers[model].expected_nfe
    return tuple(b * search.images for b in bounds), tuple(b * search.images * nfe for b in bounds)


def _evaluating(experiment: Experiment, model: str, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    if experiment.sampling.shards > 1:
        return (0, 0), (0, 0)  # it only adds them up
    drawn, evaluations = _evaluated(experiment, model, name)
    return (drawn, drawn), (evaluations, evaluations)


def _sharing(experiment: Experiment, model: str, name: str, shard: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """A shard's part of an evaluation, as even as counts allow; those of all shards add up to the whole."""
    number, count = int(shard.partition("-")[0]), experiment.sampling.shards
    whole = _evaluated(experiment, model, name)
    drawn, evaluations = (n * number // count - n * (number - 1) // count for n in whole)
    return (drawn, drawn), (evaluations, evaluations)


def _evaluated(experiment: Experiment, model: str, name: str) -> tuple[int, int]:
    """Images drawn for an evaluation, and evaluations of the network."""
    draws, images = experiment.evaluation(model, name).draws, experiment.sampling.images
    return images * len(draws), sum(images * point.sampler.expected_nfe for point, _ in draws)


def _sampling(experiment: Experiment, model: str, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    sheet = experiment.sheets[name]
    evaluations = sheet.images * sheet.samplers[model].expected_nfe
    return (sheet.images,) * 2, (evaluations, evaluations)


def _analysing(experiment: Experiment, model: str, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    analysis = experiment.analyses[name]
    s = analysis.settings
    nfe = SamplerConfig(num_steps=s.get("num_steps", 18)).nfe  # of the images that a study starts from
    if analysis.kind == "truncation":
        steps = len(s.get("rhos", range(6))) * (s.get("num_steps", 64) - 1)  # the last step, to 0, is left out
        drawn = s.get("samples", 200)
        evaluations = drawn * steps * (s.get("substeps", 200) + 3)  # the truth, an Euler step, a Heun step
    elif analysis.kind == "degradation":
        drawn, counts = s.get("images", 8), s["repetitions"]
        levels = len(s["sigmas"]) * len(s.get("S_noise", [1]))
        evaluations = drawn * (nfe + levels * (2 * max(counts) + len(counts)))
    else:
        drawn = s["images"]
        evaluations = drawn * nfe
    return (drawn, drawn), (evaluations, evaluations)


_SAMPLING = {"choose": _choosing, "search": _searching, "shard": _sharing, "evaluate": _evaluating,
             "sample": _sampling, "analyse": _analysing}  # fmt: skip


def _config(chain: Chain, experiment: Experiment, model: str) -> TrainingConfig:
    """The configuration of a model; of a pre-trained one, that which params.yaml says it is like."""
    if model in experiment.models:
        return experiment.models[model]
    file = chain.published_file(experiment.name, model)
    other, _, name = chain.params.pretrained[file].get("like", "").partition("/")
    if other not in chain.experiments or name not in chain.experiments[other].models:
        raise UserError(
            f"pretrained.{file}: state `like: EXPERIMENT/MODEL` in params.yaml, a trained model of the same network, "
            f"to plan {final_model(experiment, model)}"
        )
    return chain.experiments[other].models[name]


def _row(rule: str, found: Cost) -> tuple[str, ...]:
    sampled = (_span(found.drawn, _count), _span(found.evaluations, _count))
    return (rule, f"{found.jobs:,}", _count(found.trained), *sampled, _span(found.hours, _hours), _bytes(found.disk))


def _span(bounds: Iterable[float], show) -> str:
    low, high = map(show, bounds)
    return low if low == high else f"{low} to {high}"


def _hours(hours: float) -> str:
    if hours == 0:
        return "–"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _count(number: float) -> str:
    return _scaled(number, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)), 1000)


def _bytes(number: float) -> str:
    return _scaled(number, ((" TB", 1e12), (" GB", 1e9), (" MB", 1e6), (" kB", 1e3)), 1000)


def _scaled(number: float, units, base: int) -> str:
    if not number:
        return "–"
    for unit, size in units:
        if number >= size:
            size = 1e3 if unit == "k" else size
            digits = max(0, 2 - int(math.log10(number / size)))
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:g}"
