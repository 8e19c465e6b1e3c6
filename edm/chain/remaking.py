"""Preparations before Snakemake makes files again.

Snakemake compares timestamps and removes a step's outputs before the step starts. So this module gives it a marker that
is newer than all files to be made again, and moves files that the chain did not make to another folder.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator

from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, raw
from edm.errors import UserError
from edm.files.hashes import LOCAL
from edm.files.writing import write_text

SET_ASIDE = "runs/set-aside"
AHEAD = 60.0  # seconds by which another machine's clock may be ahead


def new_marker(outputs: Iterable[str]) -> str:
    """A file of this process that is newer than ``outputs``, even if these come from a clock that is ahead.

    Its text is unique, because Snakemake ignores a newer input whose content it knows.
    """
    marker = LOCAL / f"stale-{os.getpid()}"
    write_text(marker, f"{time.time_ns()} {os.getpid()} {os.urandom(8).hex()}\n")
    newest = max((os.lstat(path).st_mtime for path in outputs if os.path.lexists(path)), default=0.0)
    if newest >= (now := time.time()) - 1:
        os.utime(marker, (now, newest + 1))
    return str(marker)


def to_present(paths: Iterable[str]) -> None:
    """Sets future times of the chain's files to now: a step whose input is newer than its output fails in Snakemake."""
    now = time.time()
    for path in paths:
        if os.path.exists(path) and os.stat(path).st_mtime > now:
            os.utime(path, (now, now))


def check_sources(chain: Chain, jobs: Iterable[Job]) -> None:
    """Raises UserError if steps would fail, some after hours, because of their raw data.

    Either the data are missing and Snakemake would first remove existing outputs, or their date is in the future.
    """
    for job in jobs:
        for path in raw(chain, job):
            if not os.path.exists(path) and path not in chain.makers and any(map(os.path.exists, job.outputs)):
                raise UserError(
                    f"{path}: missing, and {job.name} has to run again; put it there, or keep the existing files: "
                    f"`edm adopt {job.outputs[0]}`"
                )
            if os.path.exists(path) and os.stat(path).st_mtime > time.time() + AHEAD:
                raise UserError(f"{path}: its date is in the future, which Snakemake rejects; `touch {path}`")


def set_aside(provenance: Provenance, jobs: Iterable[Job]) -> Iterator[tuple[str, str]]:
    """Moves away outputs that the chain did not make, according to the sidecars; yields each with its new path."""
    for job in jobs:
        known = (provenance.sidecar(job) or {}).get("outputs", {})
        for path in job.outputs:
            if os.path.lexists(path) and (path not in known or provenance.hashes.of(path) != known[path]):
                place = _free(os.path.join(SET_ASIDE, path))
                os.makedirs(os.path.dirname(place), exist_ok=True)
                shutil.move(path, place)
                yield path, place


def _free(place: str) -> str:
    stem, suffix = os.path.splitext(place)
    number = 1
    while os.path.lexists(place):
        number += 1
        place = f"{stem}.{number}{suffix}"
    return place
