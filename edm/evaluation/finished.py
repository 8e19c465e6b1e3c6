"""What an interrupted job has already worked out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm.errors import UserError
from edm.files.writing import digest, read_json, write_json

if TYPE_CHECKING:
    from edm.cluster.processes import World


class Finished:
    """The results of the parts of a job that are done, in a file that goes when the job has written its own.

    of: a JSON value of all that the results depend on; a file of something else is written over. known: results that
    need no work, from elsewhere. ``take`` is called by all processes of a run with the same names; the first one reads
    and writes, and tells the others.
    """

    def __init__(self, path: Path, of: Any, world: "World", known: dict[str, Any] | None = None):
        self.path, self.of, self.world = path, digest(of), world
        self._results: dict[str, Any] = {}
        if world.is_first and path.exists():
            try:
                found = read_json(path)
                self._results = found["results"] if found["of"] == self.of else {}
            except (UserError, KeyError, TypeError):
                pass  # no file of ours
        self._results = (known or {}) | self._results

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of that name, a JSON value, worked out only where it is not there yet."""
        known = self.world.share(self._results.get(name) if self.world.is_first else None)
        if known is not None:
            return known
        result = work()
        if self.world.is_first:
            self._results[name] = result
            write_json(self.path, {"of": self.of, "results": self._results})
        return result

    def remove(self) -> None:
        """The job is done."""
        self.path.unlink(missing_ok=True)
