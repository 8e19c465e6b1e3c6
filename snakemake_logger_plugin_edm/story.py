"""What Snakemake reports, as lines that a person reads. Knows nothing of Snakemake's classes."""

import copy
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edm.chain.progress import Pace, Row, about, last_row, span, tail, time_left

LOG_LINES = 20  # of a failed step's log
KINDS = ("changed", "files missing", "follow a step that runs", "asked for", "other")


@dataclass(frozen=True)
class Step:
    """A step that Snakemake has started. hours: of one GPU by the plan; images: that a training run will see."""

    rule: str
    text: str
    outputs: tuple[str, ...]
    logs: tuple[str, ...]
    begun: float
    hours: float = 0.0
    images: int = 0

    def row(self) -> Row | None:
        """The last logged row, if the step is a training run and has logged one since it was started."""
        row = last_row(os.path.join(os.path.dirname(self.logs[0]), "log.jsonl")) if self.images and self.logs else None
        return row if row and row.written >= self.begun else None


@dataclass
class Story:
    """The state of one call of Snakemake. Its methods take what Snakemake reports and return lines to print.

    planned: output file → rule and kind of reason, as the Snakefile tells them; costs: output file → GPU-hours and
    images of training. Both may stay empty: then the numbers of steps come from Snakemake, and durations from steps.
    """

    clock: Callable[[], float] = time.time
    planned: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    costs: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    targets: frozenset[str] = frozenset()
    remote: bool = False
    total: int = 0
    done: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    running: dict[int, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begun = self.clock()
        self._pace, self._names, self._log = Pace(), dict[int, str](), ""
        self._made, self._places, self._busy = set[str](), dict[str, None](), 0.0
        self._reasons: Counter[str] = Counter()

    # What will be done ------------------------------------------------------------------------------------------------

    def begin(self, stats: Mapping[str, int]) -> list[str]:
        """The first line: how many steps of which rules."""
        self.begun = self.clock()
        counts = Counter({rule: count for rule, count in stats.items() if rule not in {"total", *self.targets}})
        self.total = sum(counts.values())
        if self.planned and self.total == len(names := dict.fromkeys(name for _, name, _ in self.planned.values())):
            counts = Counter(name.partition(" ")[0] for name in names)
        rules = ", ".join(f"{count} {rule}" for rule, count in counts.items())
        return [f"{_steps(self.total)} to run: {rules}"]

    def would_run(self, rule: str, text: str, outputs: Iterable[str]) -> list[str]:
        """The line of a step in a dry run."""
        found = next((self.planned[path] for path in outputs if path in self.planned), None)
        if rule not in self.targets:
            self._reasons[found[2] if found else "other"] += 1
        return [] if rule in self.targets else [f"would run: {text}"]

    def would_run_all(self) -> list[str]:
        """The end of a dry run: the reasons by kind."""
        reasons = ", ".join(f"{self._reasons[kind]} {kind}" for kind in KINDS if self._reasons[kind])
        total = sum(self._reasons.values())
        return [f"Dry run: {_steps(total)} would run ({reasons}); nothing was run"] if total else []

    # Steps ------------------------------------------------------------------------------------------------------------

    def start(self, number: int, rule: str, text: str, outputs: Iterable[str], logs: Iterable[str]) -> list[str]:
        """A step starts, or starts again. Long ones get a line: the training runs, and the first step of all."""
        outputs = tuple(outputs)
        self._names[number] = text
        if rule in self.targets:
            return []
        hours, images = next((self.costs[path] for path in outputs if path in self.costs), (0.0, 0))
        rule = next((self.planned[path][0] for path in outputs if path in self.planned), rule)
        self.running[number] = Step(rule, text, outputs, tuple(logs), self.clock(), hours, images)
        verb = "submitted" if self.remote else "starts"
        if number in self.failed:
            return [self._line(f"{text}: {verb} again")]
        self.total = max(self.total, self.done + len(self.running))
        told = images or self.done + len(self.running) == 1
        return [self._line(f"{text}: {verb}{f', {images:,} images' if images else ''}")] if told else []

    def finish(self, number: int) -> list[str]:
        """A step has finished."""
        step = self.running.pop(number, None)
        if step is None:
            return []
        seconds = self.clock() - step.begun
        self.done, self._busy = self.done + 1, self._busy + seconds
        self._pace.learn(step.rule, step.hours, seconds)
        self.failed.pop(number, None)
        for path in step.outputs:
            self._made.add(path)
            if place := re.match(r"results/[^/]+/(tables|figures)(?=/)", path):
                self._places[place[0]] = None
        if step.rule == "track":
            self._places["make ui"] = None
        row = step.row()
        told = f", {row.rate:,.3g} images/s, loss {row.loss:.3g}" if row else ""
        return [self._line(f"{step.text}: {span(seconds)}{told}", self._left())]

    def fail(self, number: int, rule: str, outputs: Iterable[str], logs: Iterable[str], command: str | None,
             more: Mapping[str, Any]) -> list[str]:  # fmt: skip
        """One block for a failed step: its name and rule, the end of its log, the paths, the command."""
        step, logs = self.running.pop(number, None), list(logs)
        text = step.text if step else self._names.get(number, rule)
        self.failed[number] = text
        after = f" after {span(self.clock() - step.begun)}" if step else ""
        lines = [f"FAILED{after}: {text} (rule {rule}, job {number})"]
        for path in logs:
            lines += [f"  | {line}" for line in _what_matters(tail(path, 1 << 16).splitlines())] or [
                "  | (an empty log)"
            ]
            lines.append(f"  log: {path}")
        lines += [f"  output: {', '.join(outputs)}"]
        lines += [f"  command: {command}"] if command else []
        return lines + [f"  {name}: {value}" for name, value in more.items() if value]

    def again(self, number: int) -> list[str]:
        return [self._line(f"{self._names.get(number, f'job {number}')}: will be tried again")]

    # Between and after ------------------------------------------------------------------------------------------------

    def now(self) -> list[str]:
        """A line on what runs: each training run with its rate and loss, the other steps by rule."""
        training = [(step, row) for step in self.running.values() if (row := step.row())]
        told = [f"{step.text} {row.text(step.images)}" for step, row in training[:4]]
        others = [step for step in self.running.values() if all(step is not one for one, _ in training[:4])]
        if len(others) <= 2:
            told += [f"{step.text} for {span(self.clock() - step.begun)}" for step in others]
        else:
            told.append(", ".join(f"{n} {rule}" for rule, n in Counter(step.rule for step in others).items()))
        return [self._line(f"running: {'; '.join(told)}", self._left())] if self.running else []

    def log(self, path: str) -> list[str]:
        """Where Snakemake keeps its own log."""
        self._log = path
        return []

    def end(self) -> list[str]:
        """The last lines: what is done, and where to look."""
        took = span(self.clock() - self.begun)
        if self.failed or self.done < self.total:
            lines = [f"Stopped after {took}: {self.done} of {_steps(self.total)} done, {len(self.failed)} failed"]
            lines += [f"  failed: {text}" for text in self.failed.values()]
            return [*lines, f"  The same command continues. Snakemake's log: {self._log or '.snakemake/log'}"]
        places = {"tables": "Tables", "figures": "Figures", "make ui": "Runs in MLflow"}
        told = [f"  {places[place.rpartition('/')[2]]}: {place}" for place in self._places]
        return [f"Done: {_steps(self.done)} in {took}", *told[:8]]

    def _left(self) -> float | None:
        """Seconds until all steps are done, as far as the steps so far tell."""
        now, pace, left = self.clock(), copy.deepcopy(self._pace), list[float | None]()
        rows = [(step, step.row()) for step in self.running.values()]
        for step, row in rows:
            if row:  # its rate tells how long its like will take
                pace.learn(step.rule, step.hours, step.images / row.rate)
        for step, row in rows:
            left.append(row.left(step.images) if row else pace.left(step.rule, step.hours, now - step.begun))
        started = {path for step in self.running.values() for path in step.outputs} | self._made
        waiting = {name: path for path, (_, name, _) in self.planned.items() if path not in started}
        for path in waiting.values():
            left.append(pace.estimate(self.planned[path][0], self.costs.get(path, (0.0, 0))[0]))
        unplanned = max(0, self.total - self.done - len(self.running) - len(waiting))
        left += [pace.estimate("", 0.0)] * unplanned
        busy = self._busy + sum(now - step.begun for step in self.running.values())
        return time_left(left, busy / max(now - self.begun, 1e-9))

    def _line(self, text: str, left: float | None = None) -> str:
        width = len(str(self.total))
        return f"[{self.done:{width}}/{self.total}] {text}{about(left)}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _what_matters(log: list[str]) -> list[str]:
    """The end of a log, and before it the errors that stand earlier: torch's launcher reports at length after them."""
    errors = list(dict.fromkeys(line for line in log[:-LOG_LINES] if line.startswith("error: ")))
    return [*errors[-LOG_LINES:], *(["…"] if errors else []), *log[-LOG_LINES:]]
