"""A Workflow Run RO-Crate of a table: its steps by their sidecars, its small files, hashes of all others.

Profiles: RO-Crate 1.1, Workflow RO-Crate 1.0, Process Run Crate 0.5 and Workflow Run Crate 0.5
(https://www.researchobject.org/workflow-run-crate/).
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.chain.rules import RULES
from edm.chain.sidecars import sidecar_file
from edm.errors import UserError
from edm.files.hashes import sha256_file

METADATA = "ro-crate-metadata.json"
MAIN = "workflow/Snakefile"
LARGEST = 1 << 20  # bytes of a file that the crate contains by default
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_FORMATS = {".json": "application/json", ".csv": "text/csv", ".html": "text/html", ".md": "text/markdown",
            ".tex": "application/x-tex", ".yaml": "application/yaml", ".zip": "application/zip", ".diff": "text/x-diff",
            ".npz": "application/octet-stream", ".safetensors": "application/octet-stream",
            ".pkl": "application/octet-stream", ".png": "image/png"}  # fmt: skip
_SNAKEMAKE = "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"
_NO_LICENCE = {"@id": "#licence", "@type": "CreativeWork", "name": "No licence is stated; ask the authors",
               "description": "Without a licence nothing but reading is granted."}  # fmt: skip


def write_crate(chain: Chain, table: str, output: Path, largest: int = LARGEST, licence: str | None = None) -> int:
    """Writes the crate of "REPORT/TABLE" into a new folder; returns the number of its steps.

    largest: bytes of a file that the crate contains; larger ones, and missing ones, are described by path and SHA-256.
    licence: address of the licence of the crate. Raises UserError if the folder exists, if the table is not as its step
    made it, or if the workflow is not in this folder.
    """
    if os.path.lexists(output):
        raise UserError(f"{output}: exists; name a new folder")
    if not os.path.isfile(MAIN):
        raise UserError(f"{MAIN}: not here; run `edm crate` in the folder of the workflow")
    crate = _Crate(chain, table, largest)
    graph = crate.graph(licence)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name another folder") from error
    try:
        for path in crate.contained:
            (begun / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, begun / path)
        text = json.dumps({"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph}, indent=1)
        (begun / METADATA).write_text(text + "\n", encoding="utf-8")
        begun.chmod(0o755)
        begun.rename(output)
    except OSError as error:
        shutil.rmtree(begun, ignore_errors=True)
        raise UserError(f"{output}: cannot be written ({error.strerror}); nothing was left") from error
    return len(crate.done)


class _Crate:
    """contained: the files to copy, with their entities. done: step → sidecar, makers before users."""

    def __init__(self, chain: Chain, table: str, largest: int):
        targets = chain.targets(table)
        self.chain, self.table, self.targets, self.largest = chain, table, targets, largest
        self.hashes = Provenance(chain).hashes
        self.contained: dict[str, dict[str, Any]] = {}
        self.elsewhere: dict[tuple[str, str | None], dict[str, Any]] = {}
        self.done: dict[Job, dict[str, Any]] = {}
        provenance = Provenance(chain, self.hashes)
        for job in chain.needed(targets):
            sidecar = provenance.sidecar(job) if RULES[job.rule].kept else None
            if sidecar is not None:
                self.done[job] = sidecar
        for path in targets:
            made = self.done.get(chain.makers[path])
            if made is None or made["outputs"].get(path) != self.hashes.of(path):
                raise UserError(f"{path}: not there as a step made it; run `snakemake {path}` first")

    def graph(self, licence: str | None) -> list[dict[str, Any]]:
        actions = [self._action(number, job, sidecar) for number, (job, sidecar) in enumerate(self.done.items(), 1)]
        ends = [action["endTime"] for action in actions if "endTime" in action]
        begins = [action["startTime"] for action in actions if "startTime" in action]
        main = self._file(MAIN)
        main |= {"@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"], "name": "EDM pipeline",
                 "programmingLanguage": {"@id": _SNAKEMAKE}}  # fmt: skip
        for path in sorted(Path("workflow").rglob("*.smk")):
            self._file(str(path))
        settings = self._settings()
        results = [self._reference(path, self.hashes.of(path)) for path in self.targets]
        whole = {"@id": "#run", "@type": "CreateAction", "name": f"Run of the workflow for {self.table}",
                 "instrument": {"@id": MAIN}, "object": [settings, *self._raw()], "result": results,
                 "actionStatus": "http://schema.org/CompletedActionStatus", **_times(begins, ends)}  # fmt: skip
        licensed = {"@id": licence, "@type": "CreativeWork", "name": licence} if licence else _NO_LICENCE
        tools = {rule: {"@id": f"#edm-{rule}", "@type": "SoftwareApplication", "name": f"edm: {rule}",
                        "softwareVersion": f"code number {RULES[rule].code}",
                        "url": "https://arxiv.org/abs/2206.00364"}
                 for rule in dict.fromkeys(job.rule for job in self.done)}  # fmt: skip
        files = list(self.contained.values())
        root = {
            "@id": "./", "@type": "Dataset", "name": f"{self.table}: how it was made",
            "description": f"The table {self.table}, the {len(self.done)} steps behind it as their records state them, "
            "its small files, and the SHA-256 of all others.",
            "datePublished": max(ends, default=datetime.now().astimezone().isoformat(timespec="seconds")),
            "license": {"@id": licensed["@id"]}, "conformsTo": _ids(_PROFILES),
            "hasPart": _ids(file["@id"] for file in files),
            "mainEntity": {"@id": MAIN}, "mentions": _ids(action["@id"] for action in (whole, *actions)),
        }  # fmt: skip
        descriptor = {"@id": METADATA, "@type": "CreativeWork", "about": {"@id": "./"}, "conformsTo": _ids(
            ("https://w3id.org/ro/crate/1.1", "https://w3id.org/workflowhub/workflow-ro-crate/1.0"))}  # fmt: skip
        profiles = [{"@id": at, "@type": "CreativeWork", "name": name, "version": version}
                    for at, (name, version) in _PROFILES.items()]  # fmt: skip
        language = {"@id": _SNAKEMAKE, "@type": "ComputerLanguage", "name": "Snakemake", "alternateName": "Snakemake",
                    "identifier": {"@id": "https://doi.org/10.1093/bioinformatics/bts480"},
                    "url": {"@id": "https://snakemake.readthedocs.io"}}  # fmt: skip
        others = [*files, *self.elsewhere.values(), language, licensed, *tools.values(), *profiles]
        return [descriptor, root, whole, *actions, *others]

    def _action(self, number: int, job: Job, sidecar: dict[str, Any]) -> dict[str, Any]:
        record = self._file(sidecar_file(job))
        told = [
            f"{key.replace('_', ' ')} {sidecar[key]}"
            for key in ("commit", "image", "gpu", "processes")
            if key in sidecar
        ]
        told += ["with uncommitted changes"] * (sidecar.get("dirty") == "true")
        told += [f"{name} {version}" for name, version in sidecar.get("versions", {}).items()]
        used = [self._reference(*one) for one in sidecar["inputs"].items()]
        if "changes" in sidecar and os.path.isfile(sidecar["changes"]):
            used.append({"@id": self._file(sidecar["changes"])["@id"]})
        action: dict[str, Any] = {"@id": f"#step-{number}", "@type": "CreateAction", "name": job.name,
                  "description": ", ".join(told) or "nothing more is recorded",
                  "instrument": {"@id": f"#edm-{job.rule}"}, "object": used,
                  "result": [self._reference(*one) for one in sidecar["outputs"].items()],
                  "subjectOf": {"@id": record["@id"]},
                  "actionStatus": "http://schema.org/CompletedActionStatus"}  # fmt: skip
        if "created" in sidecar:
            end = datetime.fromisoformat(sidecar["created"])
            begin = end - timedelta(seconds=sidecar.get("seconds", 0))
            action |= _times([begin.isoformat(timespec="seconds")], [end.isoformat(timespec="seconds")])
        return action

    def _raw(self) -> list[dict[str, Any]]:
        """The inputs of the steps that no step made."""
        made = {path for sidecar in self.done.values() for path in sidecar["outputs"]}
        raw = {path: content for sidecar in self.done.values() for path, content in sidecar["inputs"].items()
               if path not in made}  # fmt: skip
        return [self._reference(path, content) for path, content in raw.items()]

    def _settings(self) -> dict[str, Any]:
        """params.yaml; its hash alone if it holds a login."""
        path = os.path.relpath(self.chain.params.path)
        if "@" in urlsplit(self.chain.params.tracking_uri).netloc or path.startswith(".."):
            return self._outside(os.path.basename(path), sha256_file(path))
        return {"@id": self._file(path)["@id"]}

    def _reference(self, path: str, content: str | None) -> dict[str, Any]:
        """A file of a step: contained if it is here as the step saw it, and small."""
        small = os.path.isfile(path) and not os.path.isabs(path) and os.path.getsize(path) <= self.largest
        inside = small and not os.path.relpath(path).startswith("..")
        if inside and content is not None and self.hashes.of(path) == content:
            return {"@id": self._file(path)["@id"]}
        return self._outside(path, content)

    def _file(self, path: str) -> dict[str, Any]:
        path = os.path.normpath(path)
        if path not in self.contained:
            self.contained[path] = {
                "@id": quote(path), "@type": "File", "name": path, "contentSize": str(os.path.getsize(path)),
                "identifier": f"sha256:{sha256_file(path)}",
                "encodingFormat": _FORMATS.get(Path(path).suffix, "text/plain"),
            }  # fmt: skip
        return self.contained[path]

    def _outside(self, path: str, content: str | None) -> dict[str, Any]:
        name = f"#{quote(path)}{f'-{content[:16]}' if content else ''}"
        entity = {"@id": name, "@type": "CreativeWork", "name": path}
        entity |= {"identifier": f"sha256:{content}"} if content else {}
        self.elsewhere.setdefault((path, content), entity)
        return {"@id": name}


def _ids(names: Iterable[str]) -> list[dict[str, str]]:
    return [{"@id": name} for name in names]


def _times(begins: list[str], ends: list[str]) -> dict[str, str]:
    return {"startTime": min(begins), "endTime": max(ends)} if begins and ends else {}
