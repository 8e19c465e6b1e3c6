"""The grid search of Table 5 and the choice of a snapshot: order of the measurements and selection of the best.

Every measured value is written to a history file at once (:mod:`edm.evaluation.history`), so that an interruption
loses at most one.
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
EVERY = "all"  # every snapshot is measured in full

Settings = dict[str, float | None]
Lists = dict[str, list[float | None]]
Valid = Callable[[Settings], bool]


def makes_sense(settings: Settings) -> bool:
    """Whether S_min ≤ S_max; S_max None is infinity."""
    low, high = settings.get("S_min"), settings.get("S_max")
    return low is None or high is None or low <= high


@dataclass(frozen=True)
class Found:
    """The best settings and their value; ``evaluations`` counts the measured settings, including earlier runs.

    converged: whether more sweeps would change nothing; always true of an exhaustive search.
    history: the rows of all settings that the search visited, in order; value None means not finite.
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
    """The settings with the lowest objective among the listed values (Table 5).

    "coordinate" takes the parameters in the order listed, measures every listed value of one with the others fixed,
    and moves to the lowest; it repeats sweeps until one changes nothing, at most ``max_sweeps``. "exhaustive"
    measures every combination. Ties keep the current settings (initially ``start``), else the value listed first.
    No combination is measured twice, and only ``valid`` ones are measured.

    objective: maps settings to a number; a non-finite number is never the best. over: the values of each parameter,
    None for infinity. start: one of the combinations.
    Raises UserError if lists, start or method are invalid, or if no value was finite.
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
        raise UserError(f"{history.path}: no settings gave a finite value; check the model and the metric")
    return Found(walk.at, best, len(walk.rows), converged, list(walk.rows.values()))


class _Walk:
    """The current settings of a search, and the rows of all settings it has visited."""

    def __init__(self, objective: Callable[[Settings], float], history: SearchHistory, at: Settings):
        self.objective, self.history, self.at = objective, history, at
        self.rows: dict[str, dict[str, Any]] = {}

    def best_of(self, options: list[Settings], sweep: int, parameter: str | None) -> None:
        """Measures all options, which include the current settings, and moves to the lowest if it is strictly lower."""
        for option in options:
            self._look(option, {"sweep": sweep, "parameter": parameter})
        lowest = min(options, key=self.value)
        if self.value(lowest) < self.value(self.at):
            self.at = lowest

    def value(self, settings: Settings) -> float:
        """The value of visited settings; infinity if it was not finite."""
        value = self.rows[key_of(settings)]["value"]
        return math.inf if value is None else value

    def _look(self, settings: Settings, about: dict[str, Any]) -> None:
        key = key_of(settings)
        if key not in self.rows:
            row = self.history.measure(settings, lambda: self.objective(dict(settings)), **about)
            self.rows[key] = {**row, **about}  # a search over other lists may have written other sweep numbers


def candidates(over: Lists, valid: Valid = makes_sense) -> list[Settings]:
    """Every valid combination of the listed values; the last parameter varies fastest."""
    combinations = (dict(zip(over, values, strict=True)) for values in itertools.product(*over.values()))
    return [settings for settings in combinations if valid(settings)]


def cost(
    over: Lists, method: str, max_sweeps: int = 10, valid: Valid = makes_sense, start: Settings | None = None
) -> tuple[int, int]:
    """The minimum and maximum number of evaluations of a search, computed in advance.

    Exhaustive: every combination. Coordinate: a sweep measures all nᵢ values of each parameter; one of them is already
    known. In the first sweep no others are, and if the start is the optimum, that sweep suffices: the minimum is
    1 + Σ(nᵢ − 1). The maximum adds Σ(nᵢ − 1) for every further sweep, up to the number of combinations. If some
    combinations are invalid, nᵢ is the minimum or maximum number of valid values on any line of the grid; for the
    first sweep, on the lines that a search from ``start`` can reach.
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
        later = list(over)[place + 1 :]  # parameters that the first sweep has not changed yet
        reached = [line for line in lines if start is None or all(line[0][name] == start[name] for name in later)]
        first.append(min(map(len, reached)) - 1)
        any_sweep.append(max(map(len, lines)) - 1)
    return 1 + sum(first), min(len(points), 1 + max_sweeps * sum(any_sweep))


def _lines(points: list[Settings], parameter: str) -> list[list[Settings]]:
    """The points in groups that differ in one parameter only."""
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
            raise UserError(f"search over {name}: {odd[0]!r} is not a finite number; infinity is null")
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
    """The best candidate and its full value; all cheap values and the measured full values, by candidate."""

    best: str
    value: float
    cheap: dict[str, float | None]
    full: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; None means not finite."""
        return dict(vars(self))


def choose(
    candidates: list[str],
    cheap: Callable[[str], float],
    full: Callable[[str], float],
    confirm: int | str,
    history: SearchHistory,
) -> Choice:
    """The candidate with the lowest full value among the ``confirm`` with the lowest cheap values; ties: the earlier.

    confirm: ``EVERY`` measures all in full, and none cheaply.
    Raises UserError if there are no candidates, or if no full value was finite.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise UserError("nothing to choose from: no candidates, or one is named twice")
    if confirm != EVERY and not (isinstance(confirm, int) and confirm >= 1):
        raise UserError(f"confirm is {confirm}; at least one candidate must be measured in full")

    def measured(names: Iterable[str], stage: str, objective: Callable[[str], float]) -> dict[str, float | None]:
        rows = {n: history.measure({"candidate": n, "stage": stage}, functools.partial(objective, n)) for n in names}
        return {name: row["value"] for name, row in rows.items()}

    def lowest(values: dict[str, float | None]) -> list[str]:
        numbers = {name: math.inf if value is None else value for name, value in values.items()}
        return sorted(numbers, key=lambda name: numbers[name])

    cheap_values = {} if confirm == EVERY else measured(candidates, "cheap", cheap)
    kept = set(candidates if isinstance(confirm, str) else lowest(cheap_values)[:confirm])
    full_values = measured((name for name in candidates if name in kept), "full", full)
    best = lowest(full_values)[0]
    value = full_values[best]
    if value is None:
        raise UserError(f"{history.path}: no candidate gave a finite value; check the model and the metric")
    return Choice(best, value, cheap_values, full_values)


def choice_cost(candidates: int, confirm: int | str) -> tuple[int, int]:
    """The number of candidates measured cheaply, and the number measured in full."""
    return (0, candidates) if isinstance(confirm, str) else (candidates, min(candidates, confirm))
