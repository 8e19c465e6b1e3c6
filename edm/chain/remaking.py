"""What is done before Snakemake makes files again: it goes by times, and removes a step's outputs before it starts.

So it gets a marker that is newer than all that is to be made again, and what the chain did not make is set aside.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator

from edm.chain.jobs import Chain, Job
from edm.chain.provenance import LOCAL, Provenance, raw
from edm.errors import UserError
from edm.files.writing import write_text

SET_ASIDE = "runs/set-aside"
AHEAD = 60.0  # seconds by which another machine's clock may be ahead


def new_marker(outputs: Iterable[str]) -> str:
    """A file of this process that is newer than ``outputs``, even where these come from a clock that is ahead.

    Its text was in no file before: Snakemake forgives a newer input whose content it knows.
    """
    marker = LOCAL / f"stale-{os.getpid()}"
    write_text(marker, f"{time.time_ns()} {os.getpid()} {os.urandom(8).hex()}\n")
    newest = max((os.lstat(path).st_mtime for path in outputs if os.path.lexists(path)), default=0.0)
    if newest >= (now := time.time()) - 1:
        os.utime(marker, (now, newest + 1))
    return str(marker)


def to_present(paths: Iterable[str]) -> None:
    """Sets files of the chain that come from the future to now: Snakemake fails a step whose input is newer than it."""
    now = time.time()
    for path in paths:
        if os.path.exists(path) and os.stat(path).st_mtime > now:
            os.utime(path, (now, now))


def check_sources(chain: Chain, jobs: Iterable[Job]) -> None:
    """Raises UserError where steps would fail, some after hours, for what they are made from.

    Where it is not to be had and files are here, which Snakemake would remove first; or where it comes from the future.
    """
    for job in jobs:
        for path in raw(chain, job):
            if not os.path.exists(path) and path not in chain.makers and any(map(os.path.exists, job.outputs)):
                raise UserError(
                    f"{path}: not there, and {job.name} has to run again; put it there, or keep what was made: "
                    f"`edm adopt {job.outputs[0]}`"
                )
            if os.path.exists(path) and os.stat(path).st_mtime > time.time() + AHEAD:
                raise UserError(f"{path}: its date is in the future, which Snakemake refuses; `touch {path}`")


def set_aside(provenance: Provenance, jobs: Iterable[Job]) -> Iterator[tuple[str, str]]:
    """Moves outputs away that the chain did not make, as far as sidecars tell; yields each with its new place."""
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
