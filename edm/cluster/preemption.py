"""When a job should stop before its end, to be continued: a signal came, or its time limit is near."""

import math
import signal
import time
from typing import TYPE_CHECKING, Self

from edm.errors import Preempted

if TYPE_CHECKING:  # signals must be heard before the seconds that torch takes to load
    from edm.cluster.processes import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOK = 2.0  # seconds between two times that several processes ask each other
EXIT = 5.0  # seconds that a process may take from its saved state to its end
INSISTING = 1.0  # seconds after which Ctrl-C counts as pressed again; launchers pass one on twice, within milliseconds


class Notice:
    """Whether this process was asked to stop: by SIGTERM, SIGUSR1 or SIGINT (Ctrl-C), or by the end of its time.

    As a context manager (main thread only) it takes the signals. One that comes while nothing would be lost raises
    ``Preempted`` at once; between ``hold`` and ``release`` it is only noted. Ctrl-C once more, at least a second
    later, is a KeyboardInterrupt.
    """

    def __init__(self, seconds: float = math.inf):
        """seconds: how long from now this process may run. Later jumps of the clock change nothing."""
        self.reason: str | None = None
        self.deadline = time.monotonic() + seconds
        self._heard = math.inf  # when the first signal came
        self._held = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # Who asked once may ask again (srun and torchrun both pass a signal on): it must not change how we end.
            signal.signal(number, handler if self._heard == math.inf else signal.SIG_IGN)

    def hold(self) -> None:
        """From here on signals are noted: ending at once would lose work."""
        self._held = True

    def release(self) -> None:
        """Everything is saved. Raises Preempted where a signal came in the meantime."""
        self._held = False
        if self._heard < math.inf:
            raise Preempted(f"{self.reason}; everything is saved, the same command continues")

    def near(self, margin: float) -> bool:
        """Whether the time ends within ``margin`` seconds; from then on this is the reason to stop."""
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
    """After which steps the processes of a training save its state, and after which they stop: all after the same.

    Alone, a process looks after each step. Several ask each other about every two seconds only, since the answer
    waits for the GPU; the number of steps until the next time follows from what all of them measured.
    """

    def __init__(self, world: "World", notice: Notice, every: float):
        """every: seconds between two states."""
        self.world, self.notice, self.every = world, notice, every
        self._looked = self._saved = time.monotonic()
        self._steps, self._interval = 0, 1

    def after_step(self, cost: float) -> str | None:
        """What every process does now: "save", "stop" (and save before), or None. cost: seconds that saving takes."""
        self._steps += 1
        if self._steps < self._interval:
            return None
        now = time.monotonic()
        elapsed, self._looked = now - self._looked, now
        stop, save = self.notice.reason is not None, False
        if self.world.is_first:  # it keeps the clock, and saves
            save = now - self._saved > self.every
            stop = self.notice.near(EXIT + 2 * cost + 1.5 * elapsed) or stop
        stops, saves, seconds = self.world.total(stop, save, elapsed)
        if self.world.size > 1:
            per_step = max(seconds / self.world.size / self._steps, 1e-9)
            # At most twice as far as last time: the first steps (compiling, filling caches) say little.
            self._interval = max(1, min(2 * self._interval, int(LOOK / per_step)))
        self._steps = 0
        return "stop" if stops else "save" if saves else None

    def saved(self) -> None:
        """A state was saved: the next is due ``every`` seconds from now."""
        self._saved = time.monotonic()
