"""Reuse of points evaluated by jobs of another layout: `one_job_per` splits the work and changes no result."""

import os
import re
from collections.abc import Iterator
from typing import Any

from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.evaluation.records import read_results
from edm.files.documents import ANY, Names, misfit
from edm.files.hashes import canonical_json
from edm.params import Evaluation, Experiment
from edm.params.experiment import AND_MORE

_OF_POINTS = {"settings": {"points": Names(ANY)}}  # shape of the specification of an evaluation
_OF_THE_JOB = ("id", "repeat", "first_seed", "sampler", "run", "from")  # fields of a row that are not results
_SEVERAL = re.compile(rf"{AND_MORE}\d+-[0-9a-f]{{6}}\.json$")


def measured_before(chain: Chain, job: Job) -> dict[tuple[str, int], dict[str, Any]]:
    """(point, repeat) → results and the file they are ``from``, for the draws of an evaluation that need no new images.

    A file counts if its sidecar records the same settings, code number and inputs, all by content.
    """
    name, model, evaluation = job.key[0], job.key[1], "/".join(job.key[2:])
    experiment, provenance = chain.experiments[name], Provenance(chain)
    wanted = experiment.evaluation(model, evaluation)
    present, found = provenance.specification(job), {}
    for other in _others(experiment, wanted):
        path = f"results/{name}/distances/{model}/{other}.json"
        told = provenance.sidecar(Job("evaluate", (name, model, other), job.inputs, (path,)))
        if (
            told is None
            or misfit(told["specification"], _OF_POINTS)
            or _shared(told["specification"]) != _shared(present)
            or any(told["inputs"].get(file) != provenance.hashes.of(file) for file in job.files)
            or told["outputs"].get(path) != provenance.hashes.of(path)
        ):
            continue
        before, now = told["specification"]["settings"]["points"], present["settings"]["points"]
        same = {point for point, sampler in now.items() if before.get(point) == sampler}
        for row in read_results(path)["points"]:
            if row["id"] in same:
                results = {key: value for key, value in row.items() if key not in _OF_THE_JOB}
                found[row["id"], row["repeat"]] = results | {"from": path}
    draws = {(point.id, repeat) for point, repeat in wanted.draws}
    return {draw: results for draw, results in found.items() if draw in draws}


def _others(experiment: Experiment, wanted: Evaluation) -> Iterator[str]:
    """The evaluations of other layouts that may hold a draw: the grid's, those of several points, the draw's own."""
    grid, names = wanted.grid, dict.fromkeys([wanted.grid])
    folder = f"results/{experiment.name}/distances/{wanted.model}/{grid}"
    if os.path.isdir(folder):
        several = sorted(file for file in os.listdir(folder) if _SEVERAL.search(file))
        names |= dict.fromkeys(f"{grid}/{file.removesuffix('.json')}" for file in several)
    names |= dict.fromkeys(f"{grid}/{experiment.of_draws([draw])}" for draw in wanted.draws)
    yield from (name for name in names if name != wanted.name)


def _shared(specification: dict[str, Any]) -> str:
    """The specification that jobs of all layouts share: everything except the points that they evaluate."""
    settings = {key: value for key, value in specification["settings"].items() if key not in ("points", "repeats")}
    return canonical_json({**specification, "key": None, "settings": settings})
