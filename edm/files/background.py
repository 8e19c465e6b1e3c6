"""Writes files in a background thread, so that training does not wait for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self


class Background:
    """Runs functions in one thread, one at a time and in order. As a context manager it waits for them at the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background")
        self._last: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def do(self, work: Callable[[], None]) -> None:
        """Waits for the previous work, then starts ``work``: memory holds one copy, not a queue.

        Raises the exception of the previous work.
        """
        self.wait()
        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Waits for the last work and raises its exception."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()
