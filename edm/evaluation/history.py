"""The values that a search has measured, in a file that survives interruptions."""

import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm.cluster.preemption import note_kept
from edm.errors import UserError
from edm.files.documents import AMOUNT, LARGEST, NUMBER, TEXT, Kind, Names, misfit, parse
from edm.files.hashes import canonical_json, digest
from edm.files.reading import read_regular
from edm.files.writing import write_text

if TYPE_CHECKING:  # planning does not import torch
    from edm.cluster.processes import World

FORMAT = "edm-search-history/1"
_EARLIER = "edm-search/1"  # an earlier name of the format, which the outcome of a search also had
_SPEC = re.compile("[0-9a-f]{1,64}")  # it becomes part of a file's name
_HEADER = {"format": Kind(FORMAT, lambda value: value in (FORMAT, _EARLIER)),
           "spec": Kind("a digest", lambda value: isinstance(value, str) and bool(_SPEC.fullmatch(value)))}  # fmt: skip
_SETTING = Kind("a setting", lambda value: value is None or TEXT.fits(value) or NUMBER.fits(value))
_ROW = {"settings": Names(_SETTING), "value": AMOUNT.or_null(), "seconds": AMOUNT}


class SearchHistory:
    """The values measured so far, in a file of JSON lines: the spec of the search, then one line per value.

    spec: a JSON value of everything besides the settings that a value depends on (model, sampler, images, seeds). A
    file with another spec is renamed after that spec, and used again when the spec returns. The spec excludes lists,
    method and start: a value measured for one grid is valid in another.
    Raises UserError if the file is not a history, or if a line other than an incomplete last one is damaged.
    """

    def __init__(self, path: str | Path, spec: Any, world: "World | None" = None):
        """world: processes that share the history; rank 0 reads and writes it and broadcasts its rows."""
        self.path, self.spec, self._world = Path(path), digest(spec), world
        self._rows: dict[str, dict[str, Any]] = {}
        if not self._writes:
            return
        content = self._content()
        found = self._spec_of(content) if content is not None else None
        if found not in (None, self.spec):
            aside = self._aside(str(found))
            print(f"{self.path} is the history of another search: moved to {aside.name}", file=sys.stderr)
            self.path.replace(aside)
            content = None
        if content is None and self._aside(self.spec).exists():
            self._aside(self.spec).replace(self.path)
            content = self._content()
        if content is not None:
            self._read(content)
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
                note_kept()
        self._rows[key] = row
        return row

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _writes(self) -> bool:
        return self._world is None or self._world.is_first

    def _aside(self, spec: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{spec}{self.path.suffix}")

    def _content(self) -> bytes | None:
        return read_regular(self.path, LARGEST, "the history of a search") if os.path.lexists(self.path) else None

    def _spec_of(self, content: bytes) -> str:
        line, end, _ = content.partition(b"\n")
        try:
            header = parse(line)
        except ValueError:
            header = None
        if not end or misfit(header, _HEADER):
            raise UserError(f"{self.path}: not the history of a search; move it away and run again")
        return str(header["spec"])

    def _read(self, content: bytes) -> None:
        """Takes all rows and cuts off an incomplete last line, left by an interruption."""
        self._spec_of(content)
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines()[1:], 2):
            try:
                row = parse(line)
                wrong = misfit(row, _ROW)
            except ValueError as error:
                wrong = str(error)
            if wrong:
                raise UserError(f"{self.path}: line {number} is damaged ({wrong}); delete that line and run again")
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
