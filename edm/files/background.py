"""Files written beside the training: it goes on while a disk is waited for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self


class Background:
    """Does one thing at a time in a thread, in the order asked for. As a context manager it is done at the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background")
        self._last: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def do(self, work: Callable[[], None]) -> None:
        """Begins ``work`` when what came before is done, which is waited for: one copy is in memory, not a queue.

        Raises what the work before raised.
        """
        self.wait()
        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Returns when all is done. Raises what the last work raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()
