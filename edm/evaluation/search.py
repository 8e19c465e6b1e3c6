"""The grid search of Table 5 and the choice of a snapshot: what is measured, in which order, and what came out best.

Every value that is measured goes into a history file at once (:mod:`edm.evaluation.history`), so that no
interruption costs more than one of them.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edm.errors import UserError
from edm.evaluation.history import SearchHistory, key_of

METHODS = ("coordinate", "exhaustive")

Settings = dict[str, float | None]
Lists = dict[str, list[float | None]]
Valid = Callable[[Settings], bool]


def makes_sense(settings: Settings) -> bool:
    """Whether S_min ≤ S_max; None, of S_max, is infinity."""
    low, high = settings.get("S_min"), settings.get("S_max")
    return low is None or high is None or low <= high


@dataclass(frozen=True)
class Found:
    """The best settings and their value; how many settings the search has measured, in this run and before.

    converged: whether more sweeps would change nothing; always so where every combination was measured.
    history: the rows of all settings that the search has looked at, in its order; a value of None was not finite.
    """

    settings: Settings
    value: float
    evaluations: int
    converged: bool
    history: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return dict(vars(self))


def search(
    objective: Callable[[Settings], float],
    over: Lists,
    start: Settings,
    method: str,
    history: SearchHistory,
    max_sweeps: int = 10,
    valid: Valid = makes_sense,
) -> Found:
    """The settings of the lowest objective among the listed values (Table 5).

    "coordinate" takes the parameters in the order listed, measures every listed value of one with the others held, and
    goes to the lowest; sweeps are repeated until a whole one changes nothing, at most ``max_sweeps``. "exhaustive"
    measures every combination. Ties keep the settings that the search is at, at first ``start``, then the value listed
    first. Nothing is measured twice, and nothing that is not ``valid``.

    objective: of settings, a number; one that is not finite is never the best. over: the values of each parameter, None
    for infinity. start: one of the combinations.
    Raises UserError where lists, start or method make no sense, and where no value was finite.
    """
    _check(over, start, method, max_sweeps, valid)
    walk = _Walk(objective, history, {name: start[name] for name in over})
    converged = method == "exhaustive"
    if converged:
        walk.best_of(candidates(over, valid), sweep=1, parameter=None)
    sweep = 0
    while not converged and sweep < max_sweeps:
        sweep, before = sweep + 1, walk.at
        for parameter, values in over.items():
            options = [{**walk.at, parameter: value} for value in values]
            walk.best_of([option for option in options if valid(option)], sweep, parameter)
        converged = walk.at == before
    best = walk.value(walk.at)
    if best == math.inf:
        raise UserError(f"{history.path}: no settings gave a finite value; look at what is measured")
    return Found(walk.at, best, len(walk.rows), converged, list(walk.rows.values()))


class _Walk:
    """Where a search is, and what it has looked at on its way."""

    def __init__(self, objective: Callable[[Settings], float], history: SearchHistory, at: Settings):
        self.objective, self.history, self.at = objective, history, at
        self.rows: dict[str, dict[str, Any]] = {}

    def best_of(self, options: list[Settings], sweep: int, parameter: str | None) -> None:
        """Measures all options, where the search is among them, and goes to the lowest if that is any lower."""
        for option in options:
            self._look(option, {"sweep": sweep, "parameter": parameter})
        lowest = min(options, key=self.value)
        if self.value(lowest) < self.value(self.at):
            self.at = lowest

    def value(self, settings: Settings) -> float:
        """The value of settings that were looked at; infinity where it was not finite."""
        value = self.rows[key_of(settings)]["value"]
        return math.inf if value is None else value

    def _look(self, settings: Settings, about: dict[str, Any]) -> None:
        key = key_of(settings)
        if key not in self.rows:
            row = self.history.measure(settings, lambda: self.objective(dict(settings)), **about)
            self.rows[key] = {**row, **about}  # a history made over other lists tells of another way to these settings


def candidates(over: Lists, valid: Valid = makes_sense) -> list[Settings]:
    """Every valid combination of the listed values, the last parameter fastest."""
    combinations = (dict(zip(over, values, strict=True)) for values in itertools.product(*over.values()))
    return [settings for settings in combinations if valid(settings)]


def cost(
    over: Lists, method: str, max_sweeps: int = 10, valid: Valid = makes_sense, start: Settings | None = None
) -> tuple[int, int]:
    """The least and the greatest number of evaluations of a search, before it is begun.

    Exhaustive: every combination. Coordinate: a sweep measures all values of each parameter, of which one is known; the
    first sweep has no others that are known, and alone confirms a start that is the optimum. So the least is
    1 + Σ(nᵢ − 1), and the greatest is that many again for each sweep, as far as there are combinations. Where some
    combinations are not valid, nᵢ is the least or the greatest number of valid values on any line of the grid, in the
    first sweep through those that a search from ``start`` can reach.
    """
    _check(over, start, method, max_sweeps, valid)
    points = candidates(over, valid)
    if not points:
        raise UserError(f"a search over {', '.join(over)}: none of the combinations is valid")
    if method == "exhaustive":
        return len(points), len(points)
    first, any_sweep = [], []
    for place, parameter in enumerate(over):
        lines = _lines(points, parameter)
        later = list(over)[place + 1 :]  # parameters that the first sweep still has where they started
        reached = [line for line in lines if start is None or all(line[0][name] == start[name] for name in later)]
        first.append(min(map(len, reached)) - 1)
        any_sweep.append(max(map(len, lines)) - 1)
    return 1 + sum(first), min(len(points), 1 + max_sweeps * sum(any_sweep))


def _lines(points: list[Settings], parameter: str) -> list[list[Settings]]:
    """The points in groups that differ in one parameter alone."""
    lines = defaultdict(list)
    for point in points:
        lines[tuple(value for name, value in point.items() if name != parameter)].append(point)
    return list(lines.values())


def _check(over: Lists, start: Settings | None, method: str, max_sweeps: int, valid: Valid) -> None:
    if method not in METHODS:
        raise UserError(f"search method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if max_sweeps < 1:
        raise UserError(f"max_sweeps is {max_sweeps}; it must be at least 1")
    if not over:
        raise UserError("a search needs at least one parameter with a list of values")
    for name, values in over.items():
        odd = [value for value in values if not (value is None or _is_number(value))]
        if odd:
            raise UserError(f"search over {name}: {odd[0]!r} is no finite number; infinity is null")
        if not values or len(set(values)) < len(values):
            raise UserError(f"search over {name}: {values} is empty or has a value twice")
    if start is None:
        return
    if start.keys() != over.keys():
        raise UserError(f"search from {', '.join(start)} over {', '.join(over)}: name the same parameters in both")
    for name, value in start.items():
        if value not in over[name]:
            raise UserError(f"search from {name}: {value}, which is not among its values {over[name]}")
    if not valid(start):
        raise UserError(f"search from {start}: not a valid combination; start elsewhere")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Choice of a snapshot -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The best candidate and its full value; all cheap values and those full ones that were measured, by candidate."""

    best: str
    value: float
    cheap: dict[str, float | None]
    full: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; None is a value that was not finite."""
        return dict(vars(self))


def choose(
    candidates: list[str],
    cheap: Callable[[str], float],
    full: Callable[[str], float],
    confirm: int,
    history: SearchHistory,
) -> Choice:
    """The candidate of the lowest full value among the ``confirm`` that are lowest by a cheap one; ties: the earlier.

    Raises UserError where there is nothing to choose from, or no full value was finite.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise UserError("nothing to choose from: no candidates, or one is named twice")
    if confirm < 1:
        raise UserError(f"confirm is {confirm}; at least one candidate must be measured in full")

    def measured(names: Iterable[str], stage: str, objective: Callable[[str], float]) -> dict[str, float | None]:
        rows = {n: history.measure({"candidate": n, "stage": stage}, functools.partial(objective, n)) for n in names}
        return {name: row["value"] for name, row in rows.items()}

    def lowest(values: dict[str, float | None]) -> list[str]:
        numbers = {name: math.inf if value is None else value for name, value in values.items()}
        return sorted(numbers, key=lambda name: numbers[name])

    cheap_values = measured(candidates, "cheap", cheap)
    kept = set(lowest(cheap_values)[:confirm])
    full_values = measured((name for name in candidates if name in kept), "full", full)
    best = lowest(full_values)[0]
    value = full_values[best]
    if value is None:
        raise UserError(f"{history.path}: no candidate gave a finite value; look at what is measured")
    return Choice(best, value, cheap_values, full_values)


def choice_cost(candidates: int, confirm: int) -> tuple[int, int]:
    """How many candidates are measured cheaply and how many in full."""
    return candidates, min(candidates, confirm)
