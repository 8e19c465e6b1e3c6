"""The training log, log.jsonl: one row of sums per tick."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from edm.files.writing import write_text


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
        rows = path.read_text(encoding="utf-8", errors="replace").splitlines() if seen and path.exists() else []
        kept = "".join(f"{row}\n" for row in rows if _images_of(row) <= seen)
        write_text(path, kept)
        self._size = len(kept.encode())

    def write(self, row: dict[str, Any]) -> None:
        if self.active:
            self._pending += json.dumps(row).encode() + b"\n"
            self._flush(sync=False)

    def sync(self) -> None:
        """Forces all rows to disk: a saved state must not be newer than the log on disk."""
        if self.active:
            self._flush(sync=True)

    def curve(self, name: str) -> dict[str, list[float]]:
        """A quantity vs. images seen, from the rows on disk."""
        rows = [json.loads(row) for row in self.path.read_text(encoding="utf-8").splitlines()]
        return {"images": [row["images"] for row in rows], name: [row[name] for row in rows]}

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


def _images_of(row: str) -> float:
    try:
        images: float = json.loads(row)["images"]
        return images
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line torn by a kill
