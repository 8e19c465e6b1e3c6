"""The completed jobs of a report, from their sidecars."""

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from edm.chain.job import SHARES, Job
from edm.chain.jobs import Chain
from edm.chain.rules import RULES
from edm.chain.sidecars import read_sidecar, sidecar_file
from edm.params import Report


@dataclass(frozen=True)
class Done:
    """A completed job, from its sidecar. processes: in parallel, one per GPU if the job used GPUs.

    seconds: None if unknown, as for adopted files.
    """

    rule: str
    key: tuple[str, ...]
    seconds: float | None = None
    created: str = ""
    host: str = "unknown"
    processes: int = 1
    gpu: str | None = None
    commit: str | None = None
    dirty: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str | None] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.rule} {'/'.join(self.key)}"

    @property
    def ended(self) -> float:
        """In seconds since 1970."""
        return datetime.fromisoformat(self.created).timestamp()

    @property
    def gpu_hours(self) -> float:
        return self.processes * (self.seconds or 0.0) / 3600 if self.gpu else 0.0


def done_jobs(chain: Chain, report: Report) -> list[Done]:
    """The completed jobs of a report, in the order of the chain; each shard of an evaluation is a separate job."""
    return [one for job in kept_jobs(chain, report) for one in told_by(job)]


def told_by(job: Job) -> list[Done]:
    """A job from its sidecar, after the shards that it merged; nothing without a sidecar."""
    sidecar = read_sidecar(sidecar_file(job))
    if sidecar is None:
        return []
    rule = next((shard for shard, whole in SHARES.items() if whole == job.rule), job.rule)
    parts = [(part["job"].partition(".")[0], part) for part in (sidecar.get("parts") or ()) if "seconds" in part]
    return [*(_done(rule, (*job.key, name), part) for name, part in parts), _done(job.rule, job.key, sidecar)]


def kept_jobs(chain: Chain, report: Report) -> list[Job]:
    needed = chain.needed(chain.by_name[f"about {report.name}"].files)
    return [job for job in needed if RULES[job.rule].kept]


def _done(rule: str, key: tuple[str, ...], sidecar: dict[str, Any]) -> Done:
    known = {entry.name for entry in dataclasses.fields(Done)} - {"rule", "key"}
    return Done(rule, key, **{name: value for name, value in sidecar.items() if name in known and value is not None})
