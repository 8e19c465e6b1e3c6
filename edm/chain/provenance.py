"""The provenance and staleness of each step, by content hashes, not by timestamps. Free of torch.

A step is a job of the chain. Its specification contains everything that affects its result: its settings in
params.yaml, the content of the raw data that it reads, the version number of its code in
:data:`edm.chain.rules.RULES`, the content of the plugins that it uses, and the digests of the specifications of the
steps before it. When a step ends, a sidecar in ``steps/`` records the specification that the step started with, the
hashes of its inputs and outputs, host, date and commit. A step is up to date if its sidecar agrees with params.yaml
and with the existing files. Missing files do not make a step stale: a clone may lack raw data and samples.
"""

import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from edm.chain import plugins
from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.rules import RULES
from edm.chain.sidecars import FORMAT, ORIGIN, changes_file, read_sidecar, sidecar_file
from edm.errors import UserError
from edm.files.documents import ANY, DamagedError, Maybe, read_document
from edm.files.hashes import Hashes, digest
from edm.files.writing import atomic_write, write_json
from edm.tracking import environment_tags, origin, uncommitted

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "torch-fidelity")


class Provenance:
    """Specifications and staleness of the steps of a chain; each is computed at its first use and cached."""

    def __init__(self, chain: Chain, hashes: Hashes | None = None):
        self.chain, self.hashes = chain, hashes or Hashes()
        self.sidecar = functools.cache(lambda job: read_sidecar(sidecar_file(job)))
        self.digest = functools.cache(lambda job: digest(self.specification(job)))
        self.why_stale = functools.cache(self._why_stale)
        self._content = functools.cache(self.hashes.of)

    def specification(self, job: Job) -> dict[str, Any]:
        """The specification of a step by the current params.yaml, raw data and code."""
        inputs: dict[str, str | None] = {path: self.digest(maker) for path, maker in made(self.chain, job)}
        # For missing raw data, the hash that the sidecar recorded at their use still counts.
        recorded = (self.sidecar(job) or {}).get("specification", {}).get("inputs", {})
        labels = raw_labels(self.chain, job)
        inputs |= {path: self._content(path) or recorded.get(label) for path, label in labels.items()}
        return _specification(self.chain, job, inputs)

    def _why_stale(self, job: Job) -> str | None:
        """Why a step has to run again, in a few words; None if it is up to date or never ran."""
        found = self.sidecar(job)
        if found is None:  # the content of a download identifies it
            there = [path for path in job.outputs if job.rule != "download" and os.path.exists(path)]
            return f"no record of how {there[0]} was made" if there else None
        if found["digest"] != self.digest(job):
            return f"changed: {', '.join(_differences(found['specification'], self.specification(job)))}"
        if set(found["outputs"]) != set(job.outputs):
            return "the step makes other files now"
        for path, content in found["outputs"].items():
            if self._content(path) not in (None, content):
                return f"{path} is not the file that the step made"
        for path, maker in made(self.chain, job):
            before = self.sidecar(maker)
            if before is None:
                continue
            if before["outputs"].get(path) != found["inputs"].get(path):
                return f"{path} was made again with other content"
            if self.why_stale(maker) is not None:
                return f"{path} is stale"
        return "the last delivery to MLflow was incomplete" if job.rule == "track" and _left_behind(job) else None

    def to_run(self, targets: Iterable[str], forced: Iterable[str] = ()) -> list[Job]:
        """The jobs that have to run for some files, makers before users; ``forced``: files to make again in any case.

        These are the stale jobs, the makers of missing files that are needed, and all jobs that depend on either:
        a step's output cannot be predicted, so its users run even if it may make the same file again. A missing file
        that no job needs has no effect: a clone may lack samples, models and data.
        """
        targets = list(targets)
        needed, makers = self.chain.needed(targets), self.chain.makers
        found: set[Job] = set()
        stale = {job for job in needed if self.why_stale(job) is not None}
        absent = {path for job in needed for path in (*job.files, *job.parts, *job.outputs)
                  if not os.path.exists(path)}  # fmt: skip
        absent |= {path for job in stale if not RULES[job.rule].kept for path in job.outputs}  # only one step uses them
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

        known: the specifications of steps that differ from those by the current params.yaml and files.
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
    makers = ((path, chain.maker(path)) for path in job.files)
    return [(path, maker) for path, maker in makers if maker is not None and maker.rule != "download"]


def raw(chain: Chain, job: Job) -> list[str]:
    """The inputs of a job that no step makes, existing or not."""
    own = {path for path, _ in made(chain, job)}
    return [path for path in chain.raw_sources(job) if path not in own]


def raw_labels(chain: Chain, job: Job) -> dict[str, str]:
    """The name of each raw input in a specification, independent of its path: moved data are the same data."""
    return {path: f"raw data {number}" for number, path in enumerate(raw(chain, job), 1)}


@dataclass
class Started:
    """A running step and the specification that it started with. ``finish`` writes its sidecar.

    plugins: the files of the plugins that it uses. changes: the uncommitted changes of the code, as ``git apply``
    takes them.
    """

    job: Job
    path: str
    specification: dict[str, Any]
    inputs: dict[str, str | None]
    begun: float
    plugins: dict[str, str] = field(default_factory=dict)
    changes: bytes | None = None

    @property
    def digest(self) -> str:
        return digest(self.specification)

    @property
    def made_from(self) -> str:
        """Digest of everything but the step's settings that affects its result: its code, all steps and data before it.

        All files for resuming contain it. The commands compare the settings themselves: a longer training run may
        resume from a state, and a value measured for one grid of a search is valid in another. An evaluation and
        its shards have the same digest.
        """
        own = ("rule", "key", "settings")
        return digest({part: value for part, value in self.specification.items() if part not in own})

    def finish(self, **more: Any) -> None:
        """Writes the sidecar of the step's outputs, with the fields ``more``. Raises UserError for a missing output."""
        hashes = Hashes(None)
        outputs = {path: hashes.of(path) for path in self.job.outputs}
        if missing := [path for path, content in outputs.items() if content is None]:
            raise UserError(f"{missing[0]}: the step {self.job.name} did not make it")
        parts = [
            {"job": os.path.basename(path), **_made_by(read_sidecar(f"{path}.json") or {})} for path in self.job.parts
        ]  # the sidecars of the parts are deleted with them
        tags = environment_tags()
        record = {
            "format": FORMAT, "rule": self.job.rule, "key": list(self.job.key), "digest": self.digest,
            "specification": self.specification, "inputs": self.inputs, "outputs": outputs,
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.time() - self.begun, 1),
            "commit": tags.get("commit"), "dirty": tags.get("dirty"), "changes": self._keep_changes(),
            "image": tags.get("image"), "host": tags.get("host"),
            "slurm_job": tags.get("slurm_job"), "versions": _versions(), "parts": parts or None,
            "plugins": self.plugins or None, **more,
        }  # fmt: skip
        write_json(self.path, {key: value for key, value in record.items() if value is not None})

    def _keep_changes(self) -> str | None:
        """Writes the uncommitted changes, if there are any, and returns the path."""
        if self.changes is None:
            return None
        path = changes_file(self.job, self.changes)
        if not os.path.exists(path):
            with atomic_write(path) as temporary:
                temporary.write_bytes(self.changes)
        return path


def start(chain: Chain, name: str, expected: str | None = None, fetched: Iterable[str] = ()) -> Started:
    """A step ("train digits/vp-F") at its start, with its inputs by the sidecars of the steps before it.

    expected: the digest of its planned specification, without the content of ``fetched``, the files that were still to
    be downloaded. Raises UserError if the digest has changed since, or if no sidecar records how an input was made.
    """
    begun, provenance = time.time(), Provenance(chain)
    job = chain.job(name)
    if job is None:
        raise UserError(f"{name}: params.yaml no longer has this step; run snakemake again")
    digests: dict[str, str | None] = {path: provenance.hashes.of(path) for path in raw(chain, job)}
    inputs = dict(digests)
    for path, maker in made(chain, job):
        before = provenance.sidecar(maker)
        if before is None:
            raise UserError(f"{path}: no record of how it was made; run snakemake again, or `edm adopt {path}`")
        digests[path], inputs[path] = before["digest"], before["outputs"].get(path)
    used = plugins.files(chain, job)
    # Now, and not when the step ends: the user may commit or edit the code while it runs.
    changes = uncommitted() if origin()["dirty"] == "true" else None
    started = Started(job, sidecar_file(job), _specification(chain, job, digests), inputs, begun, used, changes)
    if expected is not None and expected != (_planned(provenance, started, fetched) if fetched else started.digest):
        raise UserError(f"{name}: params.yaml or the data changed after the plan; run snakemake again")
    return started


def _planned(provenance: Provenance, started: Started, fetched: Iterable[str]) -> str:
    """The planned digest of a started step, if all steps before it ran as planned."""

    def known(job: Job) -> dict[str, Any]:
        if job == started.job:
            return started.specification
        return (provenance.sidecar(job) or {}).get("specification") or provenance.specification(job)

    return provenance.planned(fetched, known)(started.job)


def adopt(chain: Chain, targets: Iterable[str]) -> list[Job]:
    """Marks existing files of stale steps as up to date although their settings or code changed.

    The user vouches that the change does not affect the results. Returns the steps; their sidecars record the adoption.
    """
    adopted, provenance = [], Provenance(chain)
    for job in chain.needed(targets):
        if not RULES[job.rule].kept or not all(map(os.path.exists, job.outputs)) or provenance.why_stale(job) is None:
            continue
        inputs = {path: (provenance.sidecar(maker) or {"outputs": {}})["outputs"].get(path)
                  for path, maker in made(chain, job)}  # fmt: skip
        inputs |= {path: provenance.hashes.of(path) for path in raw(chain, job)}
        old = provenance.sidecar(job) or {}
        if old.get("outputs") != {path: provenance.hashes.of(path) for path in job.outputs}:
            old = {}  # it describes other files: the origin of these is unknown
        origin = {key: old.get(key) for key in (*ORIGIN, "parts")}
        started = Started(job, sidecar_file(job), provenance.specification(job), inputs, time.time(),
                          plugins.files(chain, job))  # fmt: skip
        started.finish(adopted=datetime.now(UTC).isoformat(timespec="seconds"), **origin)
        adopted.append(job)
        provenance.sidecar.cache_clear()
        provenance.why_stale.cache_clear()
    provenance.hashes.save()
    return adopted


def _left_behind(job: Job) -> bool:
    """Whether some local runs are not delivered to MLflow yet."""
    if not os.path.exists(job.outputs[0]):
        return False
    try:
        summary = read_document(job.outputs[0], None, {"reason": Maybe(ANY)}, "a summary of a delivery", "make it anew")
    except DamagedError:
        return False
    return "reason" in summary and os.path.isdir(f"runs/{job.key[0]}")


def _made_by(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Host, date, versions and duration."""
    return {name: sidecar[name] for name in ORIGIN if name in sidecar}


def _specification(chain: Chain, job: Job, inputs: dict[str, str | None]) -> dict[str, Any]:
    labels = raw_labels(chain, job)
    inputs = {labels.get(path, path): content for path, content in inputs.items()}
    specification = {"rule": job.rule, "key": list(job.key), "code": RULES[job.rule].code,
                     "settings": chain.specification(job), "inputs": inputs}  # fmt: skip
    used = plugins.hashes(chain, job)
    return {**specification, "plugins": used} if used else specification


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """The names of the settings and inputs in which two specifications differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [place or "its specification"]
    found = []
    for key in dict.fromkeys((*old, *new)):
        inner = key if not place or place == "settings" or place == "inputs" else f"{place}.{key}"
        inner = f"plugin of {key}" if place == "plugins" else inner
        found += _differences(old.get(key), new.get(key), inner)
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
