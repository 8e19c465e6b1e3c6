"""The values that a search has measured, in a file that survives interruptions."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm.errors import UserError
from edm.files.hashes import canonical_json, digest
from edm.files.writing import write_text

if TYPE_CHECKING:  # planning does not import torch
    from edm.cluster.processes import World

FORMAT = "edm-search-history/1"
_EARLIER = "edm-search/1"  # an earlier name of the format, which the outcome of a search also had


class SearchHistory:
    """The values measured so far, in a file of JSON lines: the spec of the search, then one line per value.

    spec: a JSON value of everything besides the settings that a value depends on (model, sampler, images, seeds). A
    file with another spec is renamed after that spec, and used again when the spec returns. The spec excludes lists,
    method and start: a value measured for one grid is valid in another.
    Raises UserError if the file is not a history, or if a line other than the last is damaged.
    """

    def __init__(self, path: str | Path, spec: Any, world: "World | None" = None):
        """world: processes that share the history; rank 0 reads and writes it and broadcasts its rows."""
        self.path, self.spec, self._world = Path(path), digest(spec), world
        self._rows: dict[str, dict[str, Any]] = {}
        if not self._writes:
            return
        found = self._spec_of_file()
        if found not in (None, self.spec):
            aside = self._aside(found)
            print(f"{self.path} is the history of another search: moved to {aside.name}", file=sys.stderr)
            self.path.replace(aside)
        if not self.path.exists() and self._aside(self.spec).exists():
            self._aside(self.spec).replace(self.path)
        if self.path.exists():
            self._read()
        else:
            write_text(self.path, canonical_json({"format": FORMAT, "spec": self.spec}) + "\n")

    def measure(self, settings: dict[str, Any], objective: Callable[[], float], **about: Any) -> dict[str, Any]:
        """The row of these settings: {settings, value, seconds, …about}, measured only if the history lacks it.

        value: None if the objective was not finite. The row is on disk when this returns. All ranks call it together;
        the objective must return the same value on every rank.
        """
        key = key_of(settings)
        row = self._rows.get(key)
        row = self._world.share(row) if self._world else row
        if row is None:
            start = time.monotonic()
            value = float(objective())
            seconds = round(time.monotonic() - start, 3)
            row = {"settings": settings, "value": value if math.isfinite(value) else None, "seconds": seconds, **about}
            if self._writes:
                self._append(canonical_json(row))
        self._rows[key] = row
        return row

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _writes(self) -> bool:
        return self._world is None or self._world.is_first

    def _aside(self, spec: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{spec}{self.path.suffix}")

    def _spec_of_file(self) -> str | None:
        try:
            with open(self.path, encoding="utf-8") as file:
                line = file.readline()
            header = json.loads(line)
            # The spec becomes part of a file's name.
            if (
                line.endswith("\n")
                and header["format"] in (FORMAT, _EARLIER)
                and re.fullmatch("[0-9a-f]+", header["spec"])
            ):
                return str(header["spec"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self.path}: not the history of a search; move it away and run again")

    def _read(self) -> None:
        """Reads all rows and cuts off an incomplete last line, left by an interruption."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines()[1:], 2):
            try:
                row = json.loads(line)
                number_or_none = row["value"] is None or math.isfinite(row["value"])
                if not (number_or_none and isinstance(row["settings"], dict) and math.isfinite(row["seconds"])):
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path}: line {number} is damaged; delete that line and run again") from None
            self._rows[key_of(row["settings"])] = row
        if whole < len(content):
            os.truncate(self.path, whole)

    def _append(self, line: str) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); mend that and run again") from None


def key_of(settings: dict[str, Any]) -> str:
    """A key that is the same for equal settings: 1 equals 1.0, and the order does not matter."""
    return canonical_json({k: float(v) if isinstance(v, (int, float)) else v for k, v in settings.items()})
