"""How far a chain is: the rows that a training run logs, how long steps take, and the time left. Free of torch."""

import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TAIL = 4096  # bytes at the end of a log that hold its last rows
SHORT = 5.0  # seconds of a step without GPU work, before one has finished


@dataclass(frozen=True)
class Row:
    """The last row of a training run's log.jsonl; ``written``: the time of the file.

    seconds: of training, with the time before interruptions.
    """

    images: int
    loss: float
    rate: float
    written: float
    seconds: float = 0.0

    def left(self, total: int) -> float:
        """Seconds until ``total`` images at the present rate."""
        return max(0, total - self.images) / self.rate

    def text(self, total: int | None) -> str:
        """Such as "41 %, 5,120 of 12,800 images, 880 images/s, loss 0.213"."""
        seen = f"{self.images / total:.0%}, {self.images:,} of {total:,}" if total else f"{self.images:,}"
        return f"{seen} images, {self.rate:,.3g} images/s, loss {self.loss:.3g}".replace("%,", " %,", 1)


def last_row(path: str | os.PathLike[str]) -> Row | None:
    """The last whole row of a log.jsonl; None if it has none, or is no regular file."""
    for line in reversed(tail(path).split("\n")):
        try:
            row = json.loads(line)
            numbers = float(row["images"]), float(row["loss"]), float(row["images_per_second"])
            seconds = float(row.get("seconds", 0))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a row that is being written
        if all(map(math.isfinite, (*numbers, seconds))) and numbers[0] >= 0 and numbers[2] > 0:
            return Row(int(numbers[0]), numbers[1], numbers[2], changed(path), seconds)
    return None


def tail(path: str | os.PathLike[str], size: int = TAIL) -> str:
    """The end of a text file, at most ``size`` bytes; empty if it is missing or no regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""


def last_line(path: str | os.PathLike[str]) -> str:
    """The last line of a text file that is not blank."""
    return next((line.strip() for line in reversed(tail(path).splitlines()) if line.strip()), "")


def changed(path: str | os.PathLike[str]) -> float:
    """The time of a file's last change, 0 if it does not exist."""
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


@dataclass
class _Seen:
    count: int = 0
    seconds: float = 0.0
    hours: float = 0.0


class Pace:
    """How long steps take, learned from finished ones.

    The plan's GPU-hours (:mod:`edm.chain.costs`) say how much work a step is; finished steps say how many seconds an
    hour of the plan takes on this machine. Without GPU work, the mean of the rule's steps counts.
    """

    def __init__(self) -> None:
        self._rules: dict[str, _Seen] = {}

    def learn(self, rule: str, hours: float, seconds: float) -> None:
        """A step of the plan's ``hours`` took ``seconds``."""
        seen = self._rules.setdefault(rule, _Seen())
        seen.count, seen.seconds, seen.hours = seen.count + 1, seen.seconds + seconds, seen.hours + hours

    def estimate(self, rule: str, hours: float) -> float | None:
        """Seconds that a step will take; None as long as no step with GPU work has finished."""
        own = self._rules.get(rule)
        if own and hours and own.hours:
            return own.seconds * hours / own.hours
        if own and not hours:
            return own.seconds / own.count
        alike = [seen for seen in self._rules.values() if bool(seen.hours) == bool(hours)]
        if hours:
            return sum(s.seconds for s in alike) * hours / sum(s.hours for s in alike) if alike else None
        return sum(s.seconds for s in alike) / sum(s.count for s in alike) if alike else SHORT

    def left(self, rule: str, hours: float, elapsed: float) -> float | None:
        """Seconds that a running step will still take: at least a tenth of what it should take."""
        whole = self.estimate(rule, hours)
        return None if whole is None else max(whole - elapsed, whole / 10)


def time_left(seconds: Iterable[float | None], at_once: float) -> float | None:
    """Seconds until all steps are done, if ``at_once`` of them run together; None if one of them is not known."""
    every = list(seconds)
    if not every or any(one is None for one in every):
        return None
    known = [one for one in every if one is not None]
    return max(sum(known) / max(at_once, 1), *known)


def span(seconds: float) -> str:
    """A duration for a reader: "38 s", "6 min", "2 h 10 min", "3 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 36 else f"{hours // 24} d {hours % 24} h"


def about(left: float | None) -> str:
    """The end of a line, such as "; about 6 min left"; empty if that is not known or less than a second."""
    return f"; about {span(left)} left" if left and left >= 1 else ""
