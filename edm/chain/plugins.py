"""The plugins that a step uses: their hashes are in its specification, so it is stale when one of them changes."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from edm import registry
from edm.chain.job import Job
from edm.params.studies import STUDIES
from edm.registry import Part

if TYPE_CHECKING:
    from edm.chain.jobs import Chain


def hashes(chain: "Chain", job: Job) -> dict[str, str]:
    """The parts of plugins that a step uses, such as "solver lab-midpoint", each with the SHA-256 of its file.

    A step that reads a model does not name the parts that the model was trained with: the model's step does.
    """
    return {part.label: part.source.sha256 for part in used(chain, job) if part.source}


def files(chain: "Chain", job: Job) -> dict[str, str]:
    """The files, or the modules, of the parts in :func:`hashes`."""
    return {part.label: part.source.file for part in used(chain, job) if part.source}


def used(chain: "Chain", job: Job) -> list[Part]:
    """The parts of plugins that a step uses, each once, by kind and name."""
    if not registry.plugins():
        return []
    return sorted({part.label: part for part in _named(chain, job)}.values(), key=lambda part: part.label)


def _named(chain: "Chain", job: Job) -> Iterator[Part]:
    if job.rule == "prepare":
        source = chain.params.dataset(job.key[0])["source"]
        yield from (part for part in registry.plugins("source") if part.name == source)
        return
    if job.rule == "reference":
        yield from _extractors([chain.references[job.outputs[0]][1]])
    if job.key[0] not in chain.experiments:
        return
    experiment = chain.experiments[job.key[0]]
    if job.rule == "train":
        yield from experiment.models[job.key[1]].parts()
    elif job.rule == "choose":
        yield from experiment.grids[experiment.choice_of(job.key[1]).grid].points[job.key[1]][0].sampler.parts()
    elif job.rule == "search":
        yield from experiment.searches[job.key[2]].samplers[job.key[1]].parts()
    elif job.rule == "sample":
        yield from experiment.sheets[job.key[2]].samplers[job.key[1]].parts()
    elif job.rule == "analyse":
        kind = experiment.analyses[job.key[2]].kind
        yield from (part for part in registry.plugins("study") if part.name == kind)
        if STUDIES[kind].trained:
            yield from (part for part in experiment.models[job.key[1]].parts() if part.kind == "augmentation")
        yield from _extractors([experiment.features] if STUDIES[kind].features else [])
    elif job.rule in ("evaluate", "shard"):
        for point, _ in experiment.evaluation(*job.key[1:3]).draws:
            yield from point.sampler.parts()
        yield from (part for part in registry.plugins("metric") if part.name in experiment.metrics)
    if job.rule in ("choose", "search", "evaluate", "shard"):
        yield from _extractors([experiment.features, *experiment.more_features])


def _extractors(names: Collection[str]) -> Iterator[Part]:
    return (part for part in registry.plugins("features") if part.name in names)
