"""Feeds hostile inputs to one door of the program and counts how each ends: accepted, one clear line, or a fault.

Each ``fuzz_DOOR.py`` here makes the inputs of a door, from a seed, and calls :func:`command`; each test of a door calls
:func:`run` with few of them. An input is a name, which states the seed that makes it again, and a call without
arguments. Each call has a time limit, and all calls together a limit of address space.
"""

import argparse
import contextlib
import io
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm.errors import UserError

SECONDS = 20.0  # of processor time, since other work on the machine must not make a hang
WAITING = 5  # times as many seconds may pass in all, for calls that wait and do nothing
MEMORY = 4 << 30  # bytes of address space that the calls may take beyond the process's own: beyond is a MemoryError
LONGEST = 1000  # characters of a clear line

Inputs = Iterable[tuple[str, Callable[[], Any]]]


class Hang(BaseException):
    """The time limit of a call. Not an Exception, so that handlers of errors do not catch it."""


@dataclass
class Tally:
    """How the inputs of a door ended. peak: MiB of memory beyond the start; largest: the input that reached it."""

    inputs: int = 0
    accepted: int = 0
    clear: int = 0
    tracebacks: int = 0
    hangs: int = 0
    executions: int = 0
    peak: float = 0.0
    largest: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        lines = [
            f"inputs {self.inputs}: accepted {self.accepted}, clear lines {self.clear}, tracebacks {self.tracebacks}, "
            f"hangs {self.hangs}, executions {self.executions}; peak memory {self.peak:.0f} MiB beyond the start"
            + (f" ({self.largest})" if self.largest else ""),
            *self.faults,
        ]
        return "\n".join(lines)


def run(inputs: Inputs, seconds: float = SECONDS, canary: Path | None = None) -> Tally:
    """Makes every call and counts how it ends.

    A call may return None or an exit status. UserError, SystemExit and an exit status other than 0 count as a clear
    line if their text is one line; the text of a status is what the call printed on stderr, without argparse's usage.
    canary: a file that hostile code in the inputs would create.
    """
    tally, start = Tally(), _peak()
    with _limits():
        for name, call in inputs:
            tally.inputs += 1
            outcome, text = _outcome(call, seconds)
            if canary and canary.exists():
                canary.unlink()
                tally.executions += 1
                tally.faults.append(f"{name}: executed hostile code")
            if outcome not in ("accepted", "clear"):
                tally.faults.append(f"{name}: {outcome}: {text[:300]!r}")
            setattr(tally, outcome, getattr(tally, outcome) + 1)
            if (peak := _peak() - start) > tally.peak:
                tally.peak, tally.largest = peak, name
    return tally


def command(generate: Callable[[int, int], Inputs], description: str | None = None, **options: Any) -> int:
    """The command line of a door: ``generate(count, seed)`` makes its inputs; options go to :func:`run`.

    Prints the tally and returns 1 if it holds a fault.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=2000, help="inputs (default 2000)")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs (default 1)")
    args = parser.parse_args()
    tally = run(generate(args.count, args.seed), **options)
    print(tally)
    return 0 if tally.clean else 1


def _outcome(call: Callable[[], Any], seconds: float) -> tuple[str, str]:
    """The field of the tally to which a call counts, and the text with which it ended."""
    out, err = io.StringIO(), io.StringIO()
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds, 5.0)  # again every 5 s, if the call swallows the first
            signal.setitimer(signal.ITIMER_REAL, WAITING * seconds, 5.0)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = call()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except UserError as error:
        return _refused(str(error))
    except SystemExit as stop:
        if isinstance(stop.code, str):
            return _refused(stop.code)
        status = stop.code
    except Hang:
        return "hangs", f"over {seconds:g} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "tracebacks", f"{type(error).__name__}: {error}"
    return _refused(err.getvalue()) if status else ("accepted", "")


def _refused(text: str) -> tuple[str, str]:
    """A refusal counts as clear if its text is one printable line that is not too long."""
    message = text.strip()
    if message.startswith("usage: "):
        message = message.splitlines()[-1]
    clear = 0 < len(message) <= LONGEST and message.isprintable()
    return ("clear" if clear else "tracebacks"), text


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Limits the address space, and has the alarms raise Hang; sets all back at the end."""

    def hang(*_: object) -> None:
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handlers = {number: signal.signal(number, hang) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
