"""What steps left behind that params.yaml no longer names: removed configurations, experiments and grid points.

A file is a leftover only if a record in ``steps/`` names it, the chain no longer has that step, no other step makes the
file, and its content is what the step wrote. Logs, journals, snapshots and states of such a step go with it.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm.chain.jobs import Chain
from edm.chain.paths import traces
from edm.chain.rules import RULES
from edm.chain.sidecars import CHANGES, read_sidecar, sidecar_file
from edm.errors import UserError
from edm.files.hashes import Hashes

RECORDS = Path("steps")
_LOCKS = Path(".snakemake/locks")


@dataclass(frozen=True)
class Leftover:
    """A step that the chain no longer has. changed: its outputs with another content, which stay, with the record."""

    name: str
    record: str
    files: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(os.lstat(path).st_size for path in self.files)

    def remove(self) -> None:
        """Removes the files, the folders that become empty, and, if nothing was changed, the record."""
        for path in (*self.files, *(() if self.changed else (self.record,))):
            Path(path).unlink(missing_ok=True)
            _remove_empty(Path(path).parent)


def leftovers(chain: Chain) -> Iterator[Leftover]:
    """Every step with a record that the chain no longer has. Reads the files to compare their contents."""
    present = {sidecar_file(job) for job in chain.by_name.values()}
    traced = {traces(job.rule, job.key) for job in chain.by_name.values()}
    hashes, claimed = Hashes(), set[str]()
    for record in sorted(map(str, RECORDS.rglob("*.json"))):
        _, stage, *rest = Path(record).with_suffix("").parts
        if record in present or len(rest) < 2 or rest[1] not in RULES or RULES[rest[1]].stage != stage:
            continue
        rule, key = rest[1], (rest[0], *rest[2:])
        found = read_sidecar(record)
        if found is None:
            continue
        outputs = {path: known for path, known in found["outputs"].items() if path not in chain.makers}
        same = [path for path, known in outputs.items() if hashes.of(path) == known]
        changed = [path for path in outputs if path not in same and os.path.lexists(path)]
        beside = [path for path in _beginning_with(traces(rule, key)) if not _is_traced(path, traced)]
        own = () if changed else _changes(record, found, present)
        kept = {*changed, *claimed, *chain.makers}
        files = [path for path in dict.fromkeys((*same, *beside, *own)) if path not in kept]
        claimed.update(files)
        yield Leftover(f"{rule} {'/'.join(key)}", record, tuple(files), tuple(changed))
    hashes.save()


def require_idle() -> None:
    """Raises UserError while Snakemake runs in this folder: its jobs write files that have no record yet."""
    if _LOCKS.is_dir() and any(_LOCKS.iterdir()):
        raise UserError(
            "Snakemake runs in this folder; wait until it is done, or `snakemake --unlock` if it was killed"
        )


def _changes(record: str, found: dict[str, Any], present: set[str]) -> Iterator[str]:
    """The files of uncommitted changes that a record names and no present record does."""
    named = _named(found)
    if any(map(os.path.exists, named)):
        beside = map(str, Path(*Path(record).parts[:3]).rglob("*.json"))  # steps/STAGE/OWNER
        named -= {path for other in beside if other in present for path in _named(read_sidecar(other) or {})}
        yield from filter(os.path.exists, sorted(named))


def _named(found: dict[str, Any]) -> set[str]:
    """The files of changes in a record; those of other places are not ours."""
    every = {entry.get("changes") for entry in (found, *found.get("parts", ()))}
    return {path for path in every if path is not None and Path(path).parts[0::3] == (str(RECORDS), CHANGES)}


def _beginning_with(start: str) -> Iterator[str]:
    """The files below a folder, or whose path begins so."""
    folder, _, name = start.rpartition("/")
    for path in sorted(Path(folder).glob(f"{_literal(name)}*")) if name else [Path(folder)]:
        if path.is_dir() and not path.is_symlink():
            yield from (os.path.join(place, file) for place, _, names in os.walk(path) for file in sorted(names))
        elif os.path.lexists(path):
            yield str(path)


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _is_traced(path: str, traced: set[str]) -> bool:
    """Whether a step of the chain writes a file with this path besides its outputs."""
    return any(path[:length] in traced for length in range(len(path), 0, -1))


def _remove_empty(folder: Path) -> None:
    """Removes a folder if it is empty or holds nothing but Snakemake's time stamps, then those above it."""
    while len(folder.parts) > 1 and folder.is_dir():
        if any(each.name != ".snakemake_timestamp" for each in folder.iterdir()):
            return
        shutil.rmtree(folder)
        folder = folder.parent
