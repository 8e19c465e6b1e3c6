"""The sidecar of a step, in ``steps/``: how its files were made. Free of torch."""

import hashlib
import os
from datetime import datetime
from typing import Any

from edm.chain.job import SHARES, Job
from edm.chain.rules import RULES
from edm.files.documents import ANY, TEXT, DamagedError, Kind, Maybe, Names, between, read_document, whole

FORMAT = "edm-step/1"
CHANGES = "changes"  # folder, beside those of the rules
#: The fields of a sidecar that record how the files were made.
ORIGIN = (
    "created", "seconds", "commit", "dirty", "changes", "image", "host", "slurm_job", "processes", "gpu", "versions",
)  # fmt: skip
_SECONDS = between(0, 1e12)
_DATE = Kind("a date and time", lambda value: _is_date(value))
_TEXTS = ("commit", "dirty", "changes", "image", "host", "slurm_job", "gpu")
_ORIGIN = {"created": Maybe(_DATE), "seconds": Maybe(_SECONDS), "processes": Maybe(whole(1)),
           "versions": Maybe(Names(TEXT)), **{name: Maybe(TEXT) for name in _TEXTS}}  # fmt: skip
_SIDECAR = {
    "digest": TEXT, "specification": {"settings": ANY, "inputs": Names(TEXT.or_null())},
    "inputs": Names(TEXT.or_null()), "outputs": Names(TEXT), "adopted": Maybe(TEXT),
    "plugins": Maybe(Names(TEXT)), "parts": Maybe([{"job": TEXT, **_ORIGIN}]), **_ORIGIN,
}  # fmt: skip


def sidecar_file(job: Job) -> str:
    """The path of a step's sidecar: below its stage and its dataset, experiment or report."""
    if job.rule in SHARES:  # deleted together with the shard
        return f"{job.outputs[0]}.json"
    owner, *rest = job.key
    return f"{'/'.join(('steps', RULES[job.rule].stage, owner, job.rule, *rest))}.json"


def changes_file(job: Job, content: bytes) -> str:
    """The path of the uncommitted changes that a step ran with: by their content, one for all steps of an owner."""
    name = hashlib.sha256(content).hexdigest()[:16]
    return f"steps/{RULES[job.rule].stage}/{job.key[0]}/{CHANGES}/{name}.diff"


def read_sidecar(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The sidecar at a path; None if it is missing or damaged, which have the same effect.

    Raises UserError if it cannot be read, or if a later version of this program wrote it: the step may be up to date.
    """
    if not os.path.exists(path):
        return None
    try:
        found: dict[str, Any] = read_document(
            os.fspath(path), FORMAT, _SIDECAR, "the record of a step", "it counts as missing"
        )
    except DamagedError:
        return None
    return {name: value for name, value in found.items() if value is not None}


def _is_date(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).timestamp() >= 0
    except (TypeError, ValueError, OverflowError, OSError):
        return False
