"""When a job should stop early and resume later: after a signal, or near its time limit."""

import math
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from edm.errors import Preempted

if TYPE_CHECKING:  # importing torch takes seconds, in which signals must be handled already
    from edm.cluster.processes import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOK = 2.0  # seconds between two agreements of several processes
EXIT = 5.0  # seconds that a process may need to exit after its state is saved
KEPT = "EDM_KEPT"  # environment variable: the file by which a command tells `edm launch` that it keeps finished work
INSISTING = 1.0  # seconds; a later Ctrl-C counts as pressed again. Launchers pass one on twice within ms


def note_kept() -> None:
    """Call when a part of the work is on disk, where the next attempt finds it: without any, it would only repeat."""
    if path := os.environ.get(KEPT):
        with suppress(OSError), open(path, "ab") as file:
            file.write(b".")


class Notice:
    """Records requests to stop: SIGTERM, SIGUSR1, SIGINT (Ctrl-C), or the time limit.

    As a context manager (main thread only) it handles the signals. A signal raises ``Preempted`` immediately; between
    ``hold`` and ``release``, when work would be lost, it is only recorded. A second Ctrl-C, at least a second later,
    raises KeyboardInterrupt.
    """

    def __init__(self, seconds: float = math.inf):
        """seconds: how long from now this process may run, by the monotonic clock."""
        self.reason: str | None = None
        self.deadline = time.monotonic() + seconds
        self._heard = math.inf  # time of the first signal
        self._held = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # srun and torchrun may both pass on one signal: the second must not change the exit status.
            signal.signal(number, handler if self._heard == math.inf else signal.SIG_IGN)

    def hold(self) -> None:
        """From here on signals are only recorded: stopping immediately would lose work."""
        self._held = True

    def release(self) -> None:
        """Call when everything is saved. Raises Preempted if a signal came in the meantime."""
        self._held = False
        if self._heard < math.inf:
            raise Preempted(f"{self.reason}; everything is saved, the same command continues")

    def near(self, margin: float) -> bool:
        """Whether the time limit is at most ``margin`` seconds away; it then becomes the reason to stop."""
        if time.monotonic() + margin < self.deadline:
            return False
        self.reason = self.reason or "the time limit is near"
        return True

    def _hear(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if now > self._heard + INSISTING and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._heard == math.inf:
            self._heard = now
            self.reason = self.reason or signal.Signals(number).name
            if not self._held:
                raise Preempted(f"{self.reason}; the same command continues")


class Pauses:
    """Decides after which steps the processes of a training run save its state or stop: all after the same step.

    A single process checks after each step. Several processes communicate only about every two seconds, because that
    waits for the GPU; they compute the number of steps until the next check from their measured times.
    """

    def __init__(self, world: "World", notice: Notice, every: float):
        """every: seconds between two states."""
        self.world, self.notice, self.every = world, notice, every
        self._looked = self._saved = time.monotonic()
        self._steps, self._interval = 0, 1

    def after_step(self, cost: float) -> str | None:
        """What all processes do now: "save", "stop" (after saving), or None. cost: seconds to save a state."""
        self._steps += 1
        if self._steps < self._interval:
            return None
        now = time.monotonic()
        elapsed, self._looked = now - self._looked, now
        stop, save = self.notice.reason is not None, False
        if self.world.is_first:  # only rank 0 watches the clock and saves
            save = now - self._saved > self.every
            stop = self.notice.near(EXIT + 2 * cost + 1.5 * elapsed) or stop
        stops, saves, seconds = self.world.total(stop, save, elapsed)
        if self.world.size > 1:
            per_step = max(seconds / self.world.size / self._steps, 1e-9)
            # At most twice the last interval: the first steps (compiling, filling caches) are not representative.
            self._interval = max(1, min(2 * self._interval, int(LOOK / per_step)))
        self._steps = 0
        return "stop" if stops else "save" if saves else None

    def saved(self) -> None:
        """Call when a state was saved: the next is due ``every`` seconds from now."""
        self._saved = time.monotonic()
