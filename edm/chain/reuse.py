"""Reuse of points evaluated by jobs of the other layout: `one_job_per` splits the work and changes no result."""

import dataclasses
from typing import Any

from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.paths import evaluation_file
from edm.chain.provenance import Provenance
from edm.evaluation.records import read_results
from edm.files.documents import ANY, Names, misfit
from edm.files.hashes import canonical_json

_OF_POINTS = {"settings": {"points": Names(ANY)}}  # shape of the specification of an evaluation
_OF_THE_JOB = ("id", "repeat", "first_seed", "sampler", "run", "from")  # fields of a row that are not results


def measured_before(chain: Chain, job: Job) -> dict[tuple[str, int], dict[str, Any]]:
    """(point, repeat) → results and the file they are ``from``, for the draws of an evaluation that need no new images.

    A file counts if its sidecar records the same settings, code number and inputs, all by content.
    """
    name, model, evaluation = job.key[0], job.key[1], "/".join(job.key[2:])
    experiment, provenance = chain.experiments[name], Provenance(chain)
    wanted = experiment.evaluation(model, evaluation)
    per = "point" if experiment.sampling.one_job_per == "grid" else "grid"
    sampling = dataclasses.replace(experiment.sampling, one_job_per=per)
    present, found = provenance.specification(job), {}
    for other in dataclasses.replace(experiment, sampling=sampling).evaluations_of(model, wanted.grid):
        maker = Job("evaluate", (name, model, other.name), job.inputs, (evaluation_file(other),))
        told, path = provenance.sidecar(maker), maker.outputs[0]
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


def _shared(specification: dict[str, Any]) -> str:
    """The specification that jobs of both layouts share: everything except the points that they evaluate."""
    settings = {key: value for key, value in specification["settings"].items() if key not in ("points", "repeats")}
    return canonical_json({**specification, "key": None, "settings": settings})
