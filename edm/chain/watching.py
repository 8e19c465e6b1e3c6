"""The state of the steps that are not done, from files only: sidecars, training logs, journals and logs.

It asks neither Snakemake nor Slurm, so it works on any machine that sees the files. Free of torch.
"""

import glob
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from edm.chain.job import SHARES, Job
from edm.chain.jobs import Chain
from edm.chain.paths import traces
from edm.chain.plan import weights
from edm.chain.progress import Pace, about, changed, last_line, last_row, span, time_left
from edm.chain.provenance import Provenance
from edm.chain.sidecars import sidecar_file
from edm.tracking import read_journal

RUNNING, INTERRUPTED, FAILED, WAITING = "running", "interrupted", "failed", "waiting"
SILENT = 1800.0  # seconds without a sign after which a step counts as interrupted
TICKS = 5  # training runs: this many times the time between two rows, but at least
LEAST = 300.0  # seconds


@dataclass(frozen=True)
class Sight:
    """A step that is not done. sign: seconds since its last sign, such as a logged row; left: seconds to its end."""

    job: Job
    state: str
    sign: float | None = None
    told: str = ""
    left: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """The steps of some targets: how many there are, those that are not done, and the seconds until all are."""

    steps: int
    sights: tuple[Sight, ...]
    left: float | None

    @property
    def done(self) -> int:
        return self.steps - len(self.sights)


def look(chain: Chain, targets: Iterable[str]) -> Snapshot:
    """The present state of the steps that the target files need."""
    targets, provenance = list(targets), Provenance(chain)
    jobs, pending = chain.needed(targets), provenance.to_run(targets)
    costs = {job: weights(chain, [job]).get(job.outputs[0], (0.0, 0)) for job in jobs}
    pace, unfinished = Pace(), set(pending)
    for job in jobs:
        seconds = (provenance.sidecar(job) or {}).get("seconds")
        if job not in unfinished and isinstance(seconds, int | float):
            pace.learn(job.rule, costs[job][0], seconds)
    sights = [_sight(chain, job, costs[job][1], unfinished) for job in pending]
    for sight in sights:
        row = last_row(_training(sight.job)) if sight.left is not None else None
        if row:  # its rate tells how long its like will take
            pace.learn(sight.job.rule, costs[sight.job][0], costs[sight.job][1] / row.rate)
    left = [pace.estimate(s.job.rule, costs[s.job][0]) if s.left is None else s.left for s in sights]
    running = sum(sight.state == RUNNING for sight in sights)
    return Snapshot(len(jobs), tuple(sights), time_left(left, running))


def as_text(name: str, snapshot: Snapshot) -> str:
    """The snapshot as lines: each step that runs or ended early, then the waiting ones by rule."""
    states = Counter(sight.state for sight in snapshot.sights)
    told = [f"{states[state]} {state}" for state in (RUNNING, INTERRUPTED, FAILED, WAITING) if states[state]]
    head = ", ".join([f"{snapshot.done} of {snapshot.steps} steps done", *told])
    lines = [f"{name}: {head}{about(snapshot.left)}"]
    for state in (RUNNING, INTERRUPTED, FAILED):
        for sight in (sight for sight in snapshot.sights if sight.state == state):
            parts = [sight.told] if sight.told else []
            parts += [f"about {span(sight.left)} left"] if sight.left and state == RUNNING else []
            parts += [f"last sign {span(sight.sign)} ago"] if sight.sign is not None else []
            lines.append(f"{state:<11}  {sight.job.name}: {', '.join(parts)}")
    waiting = Counter(sight.job.rule for sight in snapshot.sights if sight.state == WAITING)
    if waiting:
        lines.append(f"{WAITING:<11}  {', '.join(f'{count} {rule}' for rule, count in waiting.items())}")
    return "\n".join(lines)


def _sight(chain: Chain, job: Job, images: int, unfinished: set[Job]) -> Sight:
    if any(chain.makers.get(path) in unfinished for path in (*job.files, *job.parts)):
        return Sight(job, WAITING)  # for the steps before it
    files = [path for path in glob.glob(f"{glob.escape(traces(job.rule, job.key))}*")
             if path.endswith((".log", ".jsonl")) and os.path.isfile(path)]  # fmt: skip
    step = chain.by_name[f"{SHARES[job.rule]} {'/'.join(job.key[:-1])}"] if job.rule in SHARES else job
    sign = max(map(changed, files), default=0.0)
    if sign <= changed(sidecar_file(step)):  # nothing has been tried since the step was last done
        return Sight(job, WAITING)
    since = max(0.0, time.time() - sign)
    return _train(job, images, since) if job.rule == "train" else _other(job, files, since)


def _train(job: Job, images: int, since: float) -> Sight:
    """A training run: its last row, and what attempts.log says of its last attempt."""
    row, folder = last_row(_training(job)), traces(job.rule, job.key)
    attempt = last_line(f"{folder}attempts.log").partition(": ")[2] or "started"
    told = row.text(images) if row else "no row yet"
    if attempt not in ("started", "done"):
        kind = INTERRUPTED if attempt.startswith("stopped: ") else FAILED
        return Sight(job, kind, since, f"{told}; {attempt}", row.left(images) if row else None)
    quiet = max(LEAST, TICKS * images / 100 / row.rate) if row else SILENT
    state = RUNNING if since < quiet else INTERRUPTED
    return Sight(job, state, since, told, row.left(images) if row else None)


def _other(job: Job, files: list[str], since: float) -> Sight:
    """A step without a training log: the status in its journal, and the last line of its log."""
    said = next((last_line(path) for path in files if path.endswith(".log")), "")
    records = [record for path in files if path.endswith("journal.jsonl") for record in read_journal(path)]
    newest = max(records, key=lambda record: record.updated, default=None)
    measured = (
        [f"{len(records)} setting{'s' * (len(records) != 1)} begun"] if job.rule == "evaluate" and records else []
    )
    told = ", ".join([*measured, *([said] if said else [])])
    if said.startswith("error: ") or (newest and newest.status == "FAILED"):
        return Sight(job, FAILED, since, told)
    if since >= SILENT or said.startswith("stopped: ") or (newest and newest.status == "KILLED"):
        return Sight(job, INTERRUPTED, since, told)
    return Sight(job, RUNNING, since, told)


def _training(job: Job) -> str:
    return f"{traces('train', job.key)}log.jsonl"
