"""The progress of a training run on stderr: a bar in a terminal, lines elsewhere."""

import sys
import time
from contextlib import suppress

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines


class Progress:
    """Shows how far a run is. Without a terminal, as in the log of a job, it prints a line a minute if asked to.

    path: the folder of the run, for the lines. seen: images before. active: False shows nothing (other ranks). tell:
    whether to print lines.
    """

    def __init__(self, path: object, total: int, seen: int, active: bool, tell: bool):
        self._path, self._total, self._seen = path, total, seen
        self._bar = tqdm(total=total, initial=seen, unit="img", unit_scale=True, disable=None if active else True)
        self._lines = active and tell and self._bar.disable
        self._loss, self._first = "", seen
        self._begun = self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """The run has seen ``count`` more images."""
        self._seen += count
        self._bar.update(count)
        if self._lines and time.monotonic() - self._told > EVERY:
            self.tell()

    def loss(self, mean: float) -> None:
        """The loss of the last images."""
        self._loss = f"loss {mean:.4g}"
        self._bar.set_postfix_str(self._loss)

    def tell(self, event: str = "") -> None:
        """Prints a line now, if lines are printed; a stderr that cannot be written does not end training."""
        if not self._lines:
            return
        self._told = time.monotonic()
        speed = (self._seen - self._first) / max(self._told - self._begun, 1e-9)
        minutes = (self._total - self._seen) / max(speed, 1e-9) / 60
        share = 100 * self._seen // self._total
        parts = [f"{self._seen:,} of {self._total:,} images ({share} %)", self._loss, f"{speed:,.4g} images/s",
                 f"about {minutes:,.0f} min left", event]  # fmt: skip
        with suppress(OSError):
            print(f"{self._path}: {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
