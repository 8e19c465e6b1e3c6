"""Partial results of an interrupted job."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm.cluster.preemption import note_kept
from edm.files.documents import ANY, TEXT, DamagedError, Names, read_document
from edm.files.hashes import digest
from edm.files.writing import write_json

if TYPE_CHECKING:
    from edm.cluster.processes import World


class Finished:
    """The results of the completed parts of a job, in a temporary file, deleted when the job completes.

    of: a JSON value of everything that the results depend on; a file with another value, or with a result that lacks
    the shape ``each``, is overwritten. known: results that are available from elsewhere. All processes of a run call
    ``take`` with the same names; rank 0 reads and writes the file and broadcasts the results.
    """

    def __init__(self, path: Path, of: Any, world: "World", known: dict[str, Any] | None = None, each: Any = ANY):
        self.path, self.of, self.world = path, digest(of), world
        self._results: dict[str, Any] = {}
        if world.is_first and path.exists():
            try:
                shape = {"of": TEXT, "results": Names(each)}
                found = read_document(path, None, shape, "a file of partial results", "it is made anew")
                self._results = found["results"] if found["of"] == self.of else {}
            except DamagedError as error:
                print(f"warning: {error}", file=sys.stderr)
        self._results = (known or {}) | self._results

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of that name, a JSON value; calls ``work`` only if there is no stored result."""
        known = self.world.share(self._results.get(name) if self.world.is_first else None)
        if known is not None:
            return known
        result = work()
        if self.world.is_first:
            self._results[name] = result
            write_json(self.path, {"of": self.of, "results": self._results})
            note_kept()
        return result

    def remove(self) -> None:
        """Deletes the file: the job is complete."""
        self.path.unlink(missing_ok=True)
