"""A command as a child process that gets every signal which this process gets."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol

from edm.cluster import forkserver
from edm.cluster.preemption import SIGNALS

FORKED = "EDM_FORKED"  # environment variable: an `edm launch` that was forked does not ask to be forked again


class Child(Protocol):
    """A process that was started."""

    def send_signal(self, number: int, /) -> None: ...

    def wait(self) -> int: ...


def run(command: list[str], environment: dict[str, str], handles: list[int]) -> tuple[int, set[int]]:
    """The status of a command, 128 + the signal that ended it if one did, and the signals that it was passed.

    The fork server forks it, if one is there and can. handles: open files that the command keeps open if it outlives
    this process.
    """

    def start(hear_again: Callable[[], object]) -> Child:
        return (None if handles else forkserver.fork(command, environment)) or subprocess.Popen(
            command, env=environment, preexec_fn=hear_again, pass_fds=handles
        )

    attended = _attend(start)
    assert attended is not None
    return attended


def forked(words: list[str]) -> int | None:
    """The status of ``edm`` with these words, if a fork server forks it; otherwise None, as in what it forked."""
    if FORKED in os.environ:
        return None
    command = [sys.executable, "-m", "edm", *words]
    environment = {**os.environ, forkserver.THREADS: "1", FORKED: "1"}
    attended = _attend(lambda _: forkserver.fork(command, environment))
    return None if attended is None else attended[0]


def _attend(start: Callable[[Callable[[], object]], Child | None]) -> tuple[int, set[int]] | None:
    """Waits for what ``start`` starts and passes signals on to it; None if it starts nothing.

    start: gets a function that unblocks the signals, for the child.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child can get them
    hear_again = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    child = start(hear_again)
    if child is None:
        hear_again()
        return None
    started, heard = child, set[int]()

    def hear(number: int, frame: object) -> None:
        heard.add(number)
        started.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, hear)
    hear_again()
    status = started.wait()
    return status if status >= 0 else 128 - status, heard
