"""How much of a command is done, on stderr: a bar in a terminal, a line from time to time elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self, TypeVar

EVERY = 20.0  # seconds between two lines
_MINUTE = 60.0
_Batch = TypeVar("_Batch")


class Counting:
    """Shows how many of ``total`` images are done, and the time left. As a context manager it ends the bar.

    what: the name in front. active: False shows nothing (other ranks). of: what is counted, if no images. delay:
    seconds before a bar appears. Parts of an image count, too: an image of which half the steps are done is half done.
    """

    def __init__(self, what: str, total: int, active: bool = True, of: str = "images", delay: float = 0.0):
        from tqdm import tqdm  # `edm --help` needs none

        self._what, self._total, self._done, self._of = what, total, 0.0, of
        unit = {"images": "img"}.get(of, f" {of}")
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=what, delay=delay,
                         disable=None if active else True)  # fmt: skip
        self._lines = active and self._bar.disable
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: float) -> None:
        """So many more images are done; at most ``total`` are."""
        count = min(count, self._total - self._done)
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._told > EVERY and self._done < self._total:
            self._told = now
            left = (now - self._begun) * (self._total - self._done) / max(self._done, 1e-9)
            about = f"{left:,.0f} s" if left < 2 * _MINUTE else f"{left / _MINUTE:,.0f} min"
            share = int(100 * self._done / self._total)
            with suppress(OSError):  # a stderr that cannot be written does not end the work
                done = f"{int(self._done):,} of {self._total:,} {self._of} ({share} %)"
                print(f"{self._what}: {done}, about {about} left", file=sys.stderr, flush=True)


def counted_batches(batches: Iterable[_Batch], what: str, total: int, active: bool = True) -> Iterator[_Batch]:
    """The same batches of images, in order; each counts as done when the next one is asked for."""
    with Counting(what, total, active) as counting:
        for batch in batches:
            yield batch
            counting.advance(len(batch))  # type: ignore[arg-type]  # tensors and arrays have a length
