"""The training log, log.jsonl: one row of sums per tick."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edm.files.documents import AMOUNT, NUMBER, misfit, parse
from edm.files.reading import read_regular
from edm.files.writing import atomic_write

_LARGEST = 256 << 20  # bytes: a row for each of a million ticks


class TrainingLog:
    """log.jsonl: one row per tick. A resumed run drops the rows after its state, so that no row is repeated.

    Rows that cannot be written (full disk) are kept in memory and written as soon as possible; a failing log does not
    stop training.
    """

    def __init__(self, path: Path, seen: int, active: bool):
        self.path, self.active = path, active
        self._pending, self._size, self._warned = b"", 0, False
        if not active:
            return
        rows = self._rows() if seen and path.exists() else ()
        kept = b"".join(line + b"\n" for line, row in rows if row["images"] <= seen)
        with atomic_write(path) as temporary:
            temporary.write_bytes(kept)
        self._size = len(kept)

    def write(self, row: dict[str, Any]) -> None:
        if self.active:
            self._pending += json.dumps(row).encode() + b"\n"
            self._flush(sync=False)

    def sync(self) -> None:
        """Forces all rows to disk: a saved state must not be newer than the log on disk."""
        if self.active:
            self._flush(sync=True)

    def curve(self, name: str) -> dict[str, list[float]]:
        """A quantity vs. images seen, from the rows on disk; rows without it are damaged and left out."""
        rows = [row for _, row in self._rows() if misfit(row.get(name), NUMBER) is None]
        return {"images": [row["images"] for row in rows], name: [row[name] for row in rows]}

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The rows on disk, each with its line. Leaves out damaged lines, such as one torn by a kill."""
        for line in read_regular(self.path, _LARGEST, "the log of a training run").splitlines():
            try:
                row = parse(line)
            except ValueError:
                continue
            if misfit(row, {"images": AMOUNT}) is None:
                yield line, row

    def _flush(self, sync: bool) -> None:
        try:
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                file.seek(self._size)
                file.truncate()  # remove a row that a full disk cut short
                file.write(self._pending)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            if not self._warned:
                self._warned = True
                print(f"warning: {self.path}: not all rows are written yet ({error.strerror})", file=sys.stderr)
        else:
            self._size, self._pending = self._size + len(self._pending), b""
