"""What a job costs: images, network evaluations, GPU-hours, disk. The entries of ``RULES`` name these functions."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from edm.chain.job import SHARES, Job
from edm.chain.throughput import Throughput
from edm.config import SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.evaluation.search import choice_cost, cost
from edm.metrics import WORST
from edm.networks.flops import BACKWARD, parameters
from edm.params import Experiment
from edm.params.experiment import training_of

if TYPE_CHECKING:
    from edm.chain.jobs import Chain

FLOAT = 4  # bytes

Bounds = tuple[int, int]

_Number = TypeVar("_Number", int, float)


def _both(a: tuple[_Number, _Number], b: tuple[_Number, _Number]) -> tuple[_Number, _Number]:
    return a[0] + b[0], a[1] + b[1]


@dataclass(frozen=True)
class Cost:
    """Work of some jobs. The bounds (least, greatest) differ if an outcome decides the amount of work.

    trained: images seen in training; drawn: images sampled; evaluations: of the network in sampling; hours: of one GPU;
    disk: bytes kept; sources: where the rates behind the hours come from.
    """

    jobs: int = 1
    trained: int = 0
    drawn: Bounds = (0, 0)
    evaluations: Bounds = (0, 0)
    hours: tuple[float, float] = (0.0, 0.0)
    disk: int = 0
    sources: frozenset[str] = frozenset()

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.jobs + other.jobs, self.trained + other.trained, _both(self.drawn, other.drawn),
                    _both(self.evaluations, other.evaluations), _both(self.hours, other.hours),
                    self.disk + other.disk, self.sources | other.sources)  # fmt: skip


NOTHING = Cost(jobs=0)

CostOf = Callable[["Chain", Job, Throughput], Cost]


def nothing(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    return Cost()


def training(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    experiment = chain.experiments[job.key[0]]
    config = experiment.models[job.key[1]]
    images = config.steps * config.batch_size
    rate = rates.training(config)
    again = 1 / (1 + BACKWARD) if experiment.training.recompute else 0.0  # a forward pass more
    hours = images / rate.per_second / 3600 * (1 + again)
    disk = FLOAT * parameters(config) * (1 + len(config.snapshots) * (1 + len(config.ema_widths)))
    source = rate.source + (", and a third for recompute" if again else "")
    return Cost(trained=images, hours=(hours, hours), disk=disk, sources=frozenset({source}))


def importing(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    return Cost(disk=FLOAT * parameters(_config(chain, job)))


def averaging(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    return Cost(disk=FLOAT * parameters(_config(chain, job)))


def choosing(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    experiment, model = _of(chain, job)
    choice = experiment.choice_of(model)
    cheap, full = choice_cost(choice.candidates(len(experiment.models[model].snapshots)), choice.confirm)
    drawn = cheap * choice.images + full * experiment.sampling.images
    nfe = experiment.grids[choice.grid].points[model][0].sampler.expected_nfe
    disk = FLOAT * parameters(experiment.models[model])
    return _sampled(chain, job, rates, (drawn, drawn), (drawn * nfe, drawn * nfe), disk)


def searching(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    experiment, model = _of(chain, job)
    search = experiment.searches[job.key[2]]
    low, high = _searched(tuple(search.over.items()), search.method, search.max_sweeps)
    drawn, nfe = (low * search.images, high * search.images), search.samplers[model].expected_nfe
    return _sampled(chain, job, rates, drawn, (drawn[0] * nfe, drawn[1] * nfe))


@functools.cache  # models share searches, of thousands of combinations
def _searched(over: tuple[tuple[str, tuple[float | None, ...]], ...], method: str, max_sweeps: int) -> Bounds:
    return cost({name: list(values) for name, values in over}, method, max_sweeps)


def evaluating(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    """Work of an evaluation in one job. With shards, the job only merges their results."""
    drawn, evaluations = (0, 0) if job.parts else _evaluated(chain, job)
    return _sampled(chain, job, rates, (drawn, drawn), (evaluations, evaluations))


def sharing(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    """A shard's part of an evaluation. The parts are as equal as counts allow and add up to the whole."""
    number, count = int(job.key[3].partition("-")[0]), chain.experiments[job.key[0]].sampling.shards
    drawn, evaluations = (n * number // count - n * (number - 1) // count for n in _evaluated(chain, job))
    return _sampled(chain, job, rates, (drawn, drawn), (evaluations, evaluations))


def likelihood(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    """Evaluations of a likelihood or of a part of one, a backward pass per probe counted as ``BACKWARD`` of them.

    With parts, the job only merges them. Without probes there is a backward pass for every pixel.
    """
    experiment = chain.experiments[job.key[0]]
    one = experiment.likelihoods[job.key[2]]
    config, steps = _config(chain, job), one.settings["num_steps"] * (1 + (one.settings["solver"] == "heun"))
    exact = one.settings["trace"] == "exact"
    probes = config.channels * config.resolution**2 if exact else one.settings["probes"]
    images = 0 if job.parts else one.images
    if job.rule in SHARES:
        number, _, count = job.key[3].partition("-of-")
        images = one.images * int(number) // int(count) - one.images * (int(number) - 1) // int(count)
    evaluations = images * steps * (1 + BACKWARD * probes)
    return _sampled(chain, job, rates, (0, 0), (evaluations, evaluations))


def sampling(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    experiment, model = _of(chain, job)
    sheet, config = experiment.sheets[job.key[2]], _config(chain, job)
    evaluations = sheet.images * sheet.samplers[model].expected_nfe
    disk = sheet.images * config.channels * config.resolution**2
    return _sampled(chain, job, rates, (sheet.images, sheet.images), (evaluations, evaluations), disk)


def analysing(chain: "Chain", job: Job, rates: Throughput) -> Cost:
    analysis = chain.experiments[job.key[0]].analyses[job.key[2]]
    s = analysis.settings
    nfe = SamplerConfig(num_steps=s.get("num_steps", 18)).nfe  # of the initial images of a study
    if analysis.kind == "truncation":
        steps = len(s.get("rhos", range(6))) * (s.get("num_steps", 64) - 1)  # without the last step, to 0
        drawn = s.get("samples", 200)
        evaluations = drawn * steps * (s.get("substeps", 200) + 3)  # reference solution, Euler step, Heun step
    elif analysis.kind == "degradation":
        drawn, counts = s.get("images", 8), s["repetitions"]
        levels = len(s["sigmas"]) * len(s.get("S_noise", [1]))
        evaluations = drawn * (nfe + levels * (2 * max(counts) + len(counts)))
    elif analysis.kind == "memorisation":
        points = chain.experiments[job.key[0]].grids[s["grid"]].points[job.key[1]]
        drawn = s.get("images", WORST)
        evaluations = drawn * max(point.sampler.expected_nfe for point in points)
    elif analysis.kind == "leakage":
        drawn = s["images"]
        evaluations = drawn * nfe
    else:  # only a plugin's author knows
        drawn = evaluations = 0
    return _sampled(chain, job, rates, (drawn, drawn), (evaluations, evaluations))


def _sampled(chain: "Chain", job: Job, rates: Throughput, drawn: Bounds, evaluations: Bounds, disk: int = 0) -> Cost:
    rate = rates.evaluations(_config(chain, job).network(), "fp32")
    low, high = (count / rate.per_second / 3600 for count in evaluations)
    return Cost(drawn=drawn, evaluations=evaluations, hours=(low, high), disk=disk, sources=frozenset({rate.source}))


def _of(chain: "Chain", job: Job) -> tuple[Experiment, str]:
    return chain.experiments[job.key[0]], job.key[1]


def _evaluated(chain: "Chain", job: Job) -> tuple[int, int]:
    """Images sampled for an evaluation, and evaluations of the network."""
    experiment, model = _of(chain, job)
    draws, images = experiment.evaluation(model, job.key[2]).draws, experiment.sampling.images
    return images * len(draws), sum(images * point.sampler.expected_nfe for point, _ in draws)


def _config(chain: "Chain", job: Job) -> TrainingConfig:
    """The configuration of a job's model; for a pretrained model, that of its `like` in params.yaml."""
    experiment, model = _of(chain, job)
    model, _ = training_of(model)
    if model in experiment.models:
        return experiment.models[model]
    other, _, name = chain.pretrained(experiment.name, model).get("like", "").partition("/")
    if other not in chain.experiments or name not in chain.experiments[other].models:
        raise UserError(
            f"pretrained.{experiment.pretrained[model]}: state `like: EXPERIMENT/MODEL` in params.yaml, a trained "
            f"model of the same network, to plan {experiment.name}/{model}"
        )
    return chain.experiments[other].models[name]
