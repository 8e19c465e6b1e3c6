"""How each step came to its results, and which steps are stale: times of files play no part in it. Free of torch.

A step is a job of the chain. Its specification is what decides its outcome: its settings in params.yaml, the content of
the raw data that it reads, the number of its code in :data:`edm.chain.rules.RULES`, and the digests of the
specifications of the steps before it. When a step is done, a sidecar in ``steps/`` keeps the specification that it was
started with, the hashes of its inputs and outputs, and where, when and by which commit it was made. A step is fresh
where its sidecar agrees with params.yaml and with the files that exist. Absent files make nothing stale: a clone may
lack raw data and samples.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.rules import RULES
from edm.errors import UserError
from edm.files.writing import digest, sha256_file, write_json, write_text
from edm.tracking import environment_tags

FORMAT = "edm-step/1"
#: What is told of how files were made.
ORIGIN = ("created", "seconds", "commit", "dirty", "host", "slurm_job", "processes", "gpu", "versions")
LOCAL = Path(".edm")  # of this clone alone; may be deleted at any time
SETTLED = 2.0  # seconds after which another change of a file also changes its time, on every file system
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "torch-fidelity")


def sidecar_file(job: Job) -> str:
    """Where a step's sidecar lies: below its stage and the dataset, experiment or report that it belongs to."""
    if job.rule == "shard":  # it goes with what it describes
        return f"{job.outputs[0]}.json"
    owner, *rest = job.key
    return f"{'/'.join(('steps', RULES[job.rule].stage, owner, job.rule, *rest))}.json"


def read_sidecar(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The sidecar at a path; None where there is none or it cannot be read, which are the same to a step."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("digest"), str):
        return None
    whole = all(isinstance(found.get(part), dict) for part in ("specification", "inputs", "outputs"))
    return found if whole else None


class Hashes:
    """SHA-256 of files and folders, remembered for as long as a file keeps its inode, size and times."""

    def __init__(self, path: Path | None = LOCAL / "hashes.json"):
        self.path, self._new = path, False
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def of(self, path: str) -> str | None:
        """The hash of a file, or of the names and contents of a folder; None where there is neither.

        Raises UserError where it cannot be read.
        """
        try:
            mark, newest = _folder_mark(path) if os.path.isdir(path) else _mark(os.stat(path))
        except OSError:
            return None
        known = self._known.get(path)
        if known and known[0] == mark:
            content: str = known[1]
            return content
        try:
            found = _folder_hash(path) if os.path.isdir(path) else sha256_file(path)
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
        if time.time() - newest > SETTLED:
            self._known[path], self._new = [mark, found], True
        return found

    def save(self) -> None:
        """Keeps what was computed for the next process; no matter where that fails."""
        if self.path and self._new:
            with contextlib.suppress(UserError):
                write_text(self.path, json.dumps(self._known))
            self._new = False


class Provenance:
    """Specifications and freshness of the steps of a chain, as things are when they are first asked for."""

    def __init__(self, chain: Chain, hashes: Hashes | None = None):
        self.chain, self.hashes = chain, hashes or Hashes()
        self.sidecar = functools.cache(lambda job: read_sidecar(sidecar_file(job)))
        self.digest = functools.cache(lambda job: digest(self.specification(job)))
        self.why_stale = functools.cache(self._why_stale)
        self._content = functools.cache(self.hashes.of)

    def specification(self, job: Job) -> dict[str, Any]:
        """What decides the outcome of a step as params.yaml, the raw data and the code are now."""
        inputs: dict[str, str | None] = {path: self.digest(maker) for path, maker in made(self.chain, job)}
        # Of raw data that are not here, what was known of them when they were used still holds.
        recorded = (self.sidecar(job) or {}).get("specification", {}).get("inputs", {})
        labels = raw_labels(self.chain, job)
        inputs |= {path: self._content(path) or recorded.get(label) for path, label in labels.items()}
        return _specification(self.chain, job, inputs)

    def _why_stale(self, job: Job) -> str | None:
        """Why a step has to run again, in a few words; None where it is fresh or was never run."""
        found = self.sidecar(job)
        if found is None:  # what was fetched is known by its content
            there = [path for path in job.outputs if job.rule != "download" and os.path.exists(path)]
            return f"nothing tells how {there[0]} was made" if there else None
        if found["digest"] != self.digest(job):
            return f"changed: {', '.join(_differences(found['specification'], self.specification(job)))}"
        if set(found["outputs"]) != set(job.outputs):
            return "it makes other files now"
        for path, content in found["outputs"].items():
            if self._content(path) not in (None, content):
                return f"{path} is not the file that it made"
        for path, maker in made(self.chain, job):
            before = self.sidecar(maker)
            if before is None:
                continue
            if before["outputs"].get(path) != found["inputs"].get(path):
                return f"{path} was made again and is another one"
            if self.why_stale(maker) is not None:
                return f"{path} is stale"
        return "its last delivery left runs behind" if job.rule == "track" and _left_behind(job) else None

    def to_run(self, targets: Iterable[str], forced: Iterable[str] = ()) -> list[Job]:
        """The jobs that have to run for some files, makers before users; ``forced``: files to make again in any case.

        Those are the stale ones, the makers of what is missing and needed, and all that follow from either: what a
        step will make is not known beforehand, so its users count even where it may make the same file again.
        A missing file that nothing needs counts for nothing: a clone may lack samples, models and data.
        """
        targets = list(targets)
        needed, makers = self.chain.needed(targets), self.chain.makers
        found: set[Job] = set()
        stale = {job for job in needed if self.why_stale(job) is not None}
        absent = {path for job in needed for path in (*job.files, *job.parts, *job.outputs)
                  if not os.path.exists(path)}  # fmt: skip
        absent |= {path for job in stale if job.rule == "shard" for path in job.outputs}  # of use to one step alone
        stale = {job for job in stale if not absent.issuperset(job.outputs)}
        wanted, before = absent.intersection(targets).union(forced), -1
        while len(found) != before:
            before = len(found)
            for job in needed:
                follows = any(makers.get(path) in found for path in (*job.files, *job.parts))
                if follows or job in stale or not wanted.isdisjoint(job.outputs):
                    found.add(job)
                    wanted |= absent.intersection((*job.files, *job.parts))
        return [job for job in needed if job in found]

    def planned(
        self, fetched: Iterable[str], known: Callable[[Job], dict[str, Any]] | None = None
    ) -> Callable[[Job], str]:
        """The digests of specifications without the content of files that are ``fetched`` between plan and step.

        known: the specification of a step, where it is not that of params.yaml and the files as they are now.
        """
        known, fetched = known or self.specification, set(fetched)

        @functools.cache
        def without(job: Job) -> str:
            found = known(job)
            inputs = {**found["inputs"], **{path: without(maker) for path, maker in made(self.chain, job)}}
            open_ = (label for path, label in raw_labels(self.chain, job).items() if path in fetched)
            return digest({**found, "inputs": inputs | dict.fromkeys(open_)})

        return without


def made(chain: Chain, job: Job) -> list[tuple[str, Job]]:
    """The inputs of a job that other steps make, each with its step."""
    makers = ((path, chain.makers.get(path)) for path in job.files)
    return [(path, maker) for path, maker in makers if maker is not None and maker.rule != "download"]


def raw(chain: Chain, job: Job) -> list[str]:
    """The inputs of a job that come from outside, be they here or not."""
    own = {path for path, _ in made(chain, job)}
    return [path for path in chain.raw_sources(job) if path not in own]


def raw_labels(chain: Chain, job: Job) -> dict[str, str]:
    """What a specification calls each raw input: moved to another path, equal data are the same."""
    return {path: f"raw data {number}" for number, path in enumerate(raw(chain, job), 1)}


@dataclass
class Started:
    """A step that runs: what it was started with. ``finish`` writes its sidecar."""

    job: Job
    path: str
    specification: dict[str, Any]
    inputs: dict[str, str | None]
    begun: float

    @property
    def digest(self) -> str:
        return digest(self.specification)

    @property
    def made_from(self) -> str:
        """Digest of what decides the outcome beside the step's own settings: its code, all steps and data before it.

        What outlives an interruption carries it. The settings are compared where they are used: a state may be
        continued for a longer training, and what was measured for one grid of a search is true in another. An
        evaluation and its shards have the same.
        """
        own = ("rule", "key", "settings")
        return digest({part: value for part, value in self.specification.items() if part not in own})

    def finish(self, **more: Any) -> None:
        """Seals what the step has made, with what ``more`` is known of it. Raises UserError for a missing output."""
        hashes = Hashes(None)
        outputs = {path: hashes.of(path) for path in self.job.outputs}
        if missing := [path for path, content in outputs.items() if content is None]:
            raise UserError(f"{missing[0]}: the step {self.job.name} did not make it")
        parts = [
            {"job": os.path.basename(path), **_made_by(read_sidecar(f"{path}.json") or {})} for path in self.job.parts
        ]  # their own sidecars go with them
        tags = environment_tags()
        record = {
            "format": FORMAT, "rule": self.job.rule, "key": list(self.job.key), "digest": self.digest,
            "specification": self.specification, "inputs": self.inputs, "outputs": outputs,
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.time() - self.begun, 1),
            "commit": tags.get("commit"), "dirty": tags.get("dirty"), "host": tags.get("host"),
            "slurm_job": tags.get("slurm_job"), "versions": _versions(), "parts": parts or None, **more,
        }  # fmt: skip
        write_json(self.path, {key: value for key, value in record.items() if value is not None})


def start(chain: Chain, name: str, expected: str | None = None, fetched: Iterable[str] = ()) -> Started:
    """What a step ("train digits/vp-F") is about to be made from, by the sidecars of the steps before it.

    expected: the digest of the specification that it was planned with, but for the content of ``fetched``: files that
    were to be fetched first. Raises UserError where it is another one by now, or where nothing tells how an input was
    made.
    """
    begun, provenance = time.time(), Provenance(chain)
    if name not in chain.by_name:
        raise UserError(f"{name}: params.yaml has no such step any more; run snakemake again")
    job = chain.by_name[name]
    digests: dict[str, str | None] = {path: provenance.hashes.of(path) for path in raw(chain, job)}
    inputs = dict(digests)
    for path, maker in made(chain, job):
        before = provenance.sidecar(maker)
        if before is None:
            raise UserError(f"{path}: nothing tells how it was made; run snakemake again, or `edm adopt {path}`")
        digests[path], inputs[path] = before["digest"], before["outputs"].get(path)
    started = Started(job, sidecar_file(job), _specification(chain, job, digests), inputs, begun)
    if expected is not None and expected != (_planned(provenance, started, fetched) if fetched else started.digest):
        raise UserError(f"{name}: params.yaml or its data were changed after this was planned; run snakemake again")
    return started


def _planned(provenance: Provenance, started: Started, fetched: Iterable[str]) -> str:
    """The digest that a step which has started was planned with, if all before it was made as planned."""

    def known(job: Job) -> dict[str, Any]:
        if job == started.job:
            return started.specification
        return (provenance.sidecar(job) or {}).get("specification") or provenance.specification(job)

    return provenance.planned(fetched, known)(started.job)


def adopt(chain: Chain, targets: Iterable[str]) -> list[Job]:
    """Takes the files of stale steps, as far as they are there, for what params.yaml and the code would make now.

    For whoever knows that a change makes no difference. Returns the steps; their sidecars say that they were adopted.
    """
    adopted = []
    for job in chain.needed(targets):
        provenance = Provenance(chain)  # anew: a step before may just have been adopted
        if not RULES[job.rule].kept or not all(map(os.path.exists, job.outputs)) or provenance.why_stale(job) is None:
            continue
        inputs = {path: (provenance.sidecar(maker) or {"outputs": {}})["outputs"].get(path)
                  for path, maker in made(chain, job)}  # fmt: skip
        inputs |= {path: provenance.hashes.of(path) for path in raw(chain, job)}
        old = provenance.sidecar(job) or {}
        if old.get("outputs") != {path: provenance.hashes.of(path) for path in job.outputs}:
            old = {}  # it tells of other files: how these came about nobody knows
        origin = {key: old.get(key) for key in (*ORIGIN, "parts")}
        started = Started(job, sidecar_file(job), provenance.specification(job), inputs, time.time())
        started.finish(adopted=datetime.now(UTC).isoformat(timespec="seconds"), **origin)
        adopted.append(job)
    return adopted


def _left_behind(job: Job) -> bool:
    """Whether runs that are here are still to be delivered to MLflow."""
    try:
        with open(job.outputs[0], encoding="utf-8") as file:
            return "reason" in json.load(file) and os.path.isdir(f"runs/{job.key[0]}")
    except (OSError, ValueError):
        return False


def _made_by(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Where, when, with what and for how long."""
    return {name: sidecar[name] for name in ORIGIN if name in sidecar}


def _specification(chain: Chain, job: Job, inputs: dict[str, str | None]) -> dict[str, Any]:
    labels = raw_labels(chain, job)
    inputs = {labels.get(path, path): content for path, content in inputs.items()}
    return {"rule": job.rule, "key": list(job.key), "code": RULES[job.rule].code, "settings": chain.specification(job),
            "inputs": inputs}  # fmt: skip


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two specifications differ: names of settings and of inputs."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [place or "its specification"]
    found = []
    for key in dict.fromkeys((*old, *new)):
        inner = key if not place or place == "settings" or place == "inputs" else f"{place}.{key}"
        found += _differences(old.get(key), new.get(key), inner)
    return found


def _mark(status: os.stat_result) -> tuple[list[int | str], float]:
    """What changes with a file, and the time of its last change."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns], status.st_ctime


def _files(folder: str) -> list[str]:
    found = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if os.path.basename(path) != ".snakemake_timestamp")


def _folder_mark(folder: str) -> tuple[list[int | str], float]:
    whole, newest, count = hashlib.sha256(), 0.0, 0
    for path in _files(folder):
        mark, changed = _mark(os.stat(path))
        whole.update(f"{path}\0{mark}\n".encode(errors="surrogateescape"))
        newest, count = max(newest, changed), count + 1
    return [count, whole.hexdigest()], newest


def _folder_hash(folder: str) -> str:
    whole = hashlib.sha256()
    for path in _files(folder):
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        whole.update(f"{name}\0{sha256_file(path)}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
