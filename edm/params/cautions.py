"""Settings of an experiment that are valid and do not do what they say."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from edm import registry
from edm.config import ADAPTIVE, NULL, ORIGINAL, SamplerConfig
from edm.params.experiment import Experiment

MOST_NAMED = 5  # points in a line
MOST_CHURN = math.sqrt(2) - 1  # per step, of the noise level (Algorithm 2)
_ONE_STEP = "num_steps of 1 is one step of Euler's method, whatever the solver"


def cautions(experiment: Experiment) -> list[str]:
    """One line per model setting or grid, search or sheet: its place in params.yaml, and what happens instead."""
    here = f"experiments.{experiment.name}"
    found = [*_attention(here, experiment)]
    for grid in experiment.grids.values():
        named = ((point.id, point.sampler) for points in grid.points.values() for point in points)
        found += _samplers(f"{here}.grids.{grid.name}", named)
    for search in experiment.searches.values():
        starts = dict.fromkeys(search.samplers.values())
        tried = ((f"S_churn={churn:g}", replace(start, S_churn=churn))
                 for start, churn in itertools.product(starts, search.over.get("S_churn", ())) if churn)  # fmt: skip
        found += _samplers(f"{here}.searches.{search.name}", tried)
    for sheet in experiment.sheets.values():
        found += _samplers(f"{here}.sheets.{sheet.name}", (("", sampler) for sampler in sheet.samplers.values()))
    return [*found, *_null_labels(here, experiment)]


def _null_labels(here: str, experiment: Experiment) -> Iterator[str]:
    """Guides by a null label that training has never shown to the network."""
    used = {f"grids.{name}": {model: experiment.samplers_of(model, name) for model in grid.points}
            for name, grid in experiment.grids.items()}  # fmt: skip
    for kind, entries in (("searches", experiment.searches), ("sheets", experiment.sheets)):
        used |= {f"{kind}.{name}": {model: [sampler] for model, sampler in entry.samplers.items()}
                 for name, entry in entries.items()}  # fmt: skip
    unshown = [model for model, config in experiment.models.items() if not config.label_dropout]
    for place, samplers in used.items():
        without = [model for model, those in samplers.items()
                   if model in unshown and any(one.guide == NULL for one in those)]  # fmt: skip
        if without:
            yield (
                f"{here}.{place}: guide null: {', '.join(without[:MOST_NAMED])}: trained without label_dropout, so the "
                "network does not know the null label"
            )


def _attention(here: str, experiment: Experiment) -> Iterator[str]:
    models: dict[tuple[str, str], list[str]] = {}
    for name, config in experiment.models.items():
        there = config.network().resolutions
        if not registry.is_own("architecture", config.architecture):
            continue
        if config.attn_resolutions and not set(config.attn_resolutions) & set(there):
            key = (str(list(config.attn_resolutions)), ", ".join(map(str, there)))
            models.setdefault(key, []).append(name)
    for (stated, sides), names in models.items():
        yield f"{here}: {', '.join(names)}: attn_resolutions {stated} match no resolution ({sides}): no attention"


def _samplers(here: str, named: Iterable[tuple[str, SamplerConfig]]) -> Iterator[str]:
    points = [(label if label != "only" else "", sampler) for label, sampler in named]
    beyond: dict[SamplerConfig, dict[str, None]] = {}  # by the sampler that they are in effect
    for label, sampler in points:
        if sampler.S_churn > (most := MOST_CHURN * sampler.num_steps):
            beyond.setdefault(replace(sampler, S_churn=most), {})[label] = None
    limit = "churn is at most √2 − 1 per step, reached at S_churn = 0.414 · num_steps; beyond it S_churn has no effect"
    if equal := [label for labels in beyond.values() if len(labels) > 1 for label in labels]:
        yield f"{_place(here, dict.fromkeys(equal))}: points that are the same sampler: {limit}"
    elif beyond:
        yield f"{_place(here, dict.fromkeys(itertools.chain(*beyond.values())))}: {limit}"
    if single := dict.fromkeys(label for label, sampler in points if sampler.num_steps == 1 and _second_order(sampler)):
        yield f"{_place(here, single)}: {_ONE_STEP}"


def _place(here: str, labels: Iterable[str]) -> str:
    named = [label for label in labels if label]
    more = [f"{len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    return f"{here} ({'; '.join([*named[:MOST_NAMED], *more])})" if named else here


def _second_order(sampler: SamplerConfig) -> bool:
    """Whether further steps are of higher order than the last one, to σ = 0, or than the first, without history."""
    if sampler.solver == "heun":
        return sampler.final == "zero"
    return sampler.solver not in ("euler", ADAPTIVE, *ORIGINAL) and sampler.order != 1
