"""A panel: models in rows, metrics in columns, the ranks of every metric, and where the metrics disagree."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edm.evaluation.comparing import difference
from edm.metrics import lower_is_better, metric_error
from edm.params.sources import Layout
from edm.report import uncertainty
from edm.report.cells import Cell, Table, rounded
from edm.report.results import Measurement, Results, about_metrics, metric

DISPUTED = 5  # pairs of rows that the notes name
DISTANCE = "distance"

#: By column, the value of each row; None for a missing one.
Columns = Mapping[str, Sequence[float | None]]


def panel(layout: Layout, results: Results) -> Table:
    """The metrics of the draw with the lowest distance of each model, their errors, their ranks, and notes."""
    shown: dict[str, Measurement | None] = {}
    missing, notes = {}, []
    for row, sources in layout.rows.items():
        source = next(one for one in sources if one is not None)
        where = (source.experiment, source.model, source.name)
        draws = [draw for repeats in results.of(*where) for draw in repeats.all]
        shown[row] = min(draws, key=lambda draw: draw.distance, default=None)
        missing[row] = "" if draws else results.why_missing(*where)
        if len(draws) > 1:
            notes = ["All metrics of a row are of the draw with the lowest distance."]
    seen = [one for one in shown.values() if one is not None]
    names = layout.columns[:-1]  # the last one has the ranks
    columns = {name: [_value(one, name) for one in shown.values()] for name in names}
    places = {name: ranks(values, lower_is_better(name)) for name, values in columns.items()}
    rows: dict[str, list[Cell]] = {}
    for at, (row, one) in enumerate(shown.items()):
        rows[row] = [_cell(one, name, columns[name][at], places[name][at], missing[row]) for name in names]
    for at in range(len(names)):
        first = next((cells[at] for cells in rows.values() if cells[at].best), Cell())
        for cells in rows.values():
            cells[at] = _beside(cells[at], first)
    errors = uncertainty.of_a_panel({name: [cells[at] for cells in rows.values()] for at, name in enumerate(names)})
    for at, (row, cells) in enumerate(rows.items()):
        there = sorted(rank for name in names if (rank := places[name][at]) is not None)
        cells.append(Cell(f"{there[0]}–{there[-1]}" if there else "", missing=missing[row]))
    lower = [name for name in names if lower_is_better(name)]
    notes.append(
        f"In brackets the ranks, bold the first; lower is better of {', '.join(lower) or 'none'}, higher of the others."
    )
    notes += errors
    notes += [*disagreements(_short(list(shown)), columns), metric(seen), *about_metrics(seen, names)]
    return Table(layout.name, layout.title, "model", layout.columns, rows, notes)


def _short(rows: list[str]) -> list[str]:
    """ "A" for "A: baseline", where that still tells the rows apart."""
    short = [row.partition(": ")[0] for row in rows]
    return short if len(set(short)) == len(rows) else rows


def _value(measured: Measurement | None, name: str) -> float | None:
    if measured is None:
        return None
    return measured.distance if name == DISTANCE else measured.more.get(name)


def _cell(measured: Measurement | None, name: str, value: float | None, rank: int | None, missing: str) -> Cell:
    if measured is None or value is None or rank is None:
        return Cell(missing=missing or "not measured")
    error = metric_error(name, measured.more, measured.images)
    if name != DISTANCE:  # the draw as this metric sees it: its name, its value, its error bar
        measured = replace(measured, label=name, distance=value, bar=measured.more_bars.get(name), few=False)
    cell = Cell(f"{value:.4g}", value, low=value, high=value, repeats=1, measured=measured, best=rank == 1, rank=rank,
                all=(measured,), error=error)  # fmt: skip
    return replace(cell, text=rounded(value, cell.s))


def _beside(cell: Cell, first: Cell) -> Cell:
    """The cell with its difference from the first of its column, if both are distances with error bars."""
    apart = None if cell.best else difference(cell.all, first.all)
    return replace(cell, apart=apart, tied=apart is not None and apart.paired and not apart.told_apart)


def ranks(values: Sequence[float | None], lower: bool) -> list[int | None]:
    """The rank of each value, 1 for the best; equal values share the better one. None stays None."""
    known = [value for value in values if value is not None]
    return [None if value is None else 1 + sum(other < value if lower else other > value for other in known)
            for value in values]  # fmt: skip


def orders(values: Sequence[float | None], lower: bool) -> dict[tuple[int, int], int]:
    """Of every pair (i, j) of known values: 1 if i is better, −1 if j is, 0 if they are equal."""
    places = ranks(values, lower)
    return {(i, j): (a < b) - (a > b) for (i, a), (j, b) in itertools.combinations(enumerate(places), 2)
            if a is not None and b is not None}  # fmt: skip


def kendall(one: Mapping[tuple[int, int], int], other: Mapping[tuple[int, int], int]) -> float | None:
    """Kendall's τ of two orders: pairs ordered alike minus pairs ordered otherwise, over all pairs that both know."""
    both = one.keys() & other.keys()
    return sum(one[pair] * other[pair] for pair in both) / len(both) if both else None


def disagreements(rows: Sequence[str], columns: Columns) -> list[str]:
    """Sentences: how far each metric orders the rows as the first one does, and the pairs that metrics dispute."""
    found = {name: orders(values, lower_is_better(name)) for name, values in columns.items()}
    pairs = list(dict.fromkeys(pair for order in found.values() for pair in order))
    if len(columns) < 2 or not pairs:
        return []
    first, *others = found
    alike = {name: kendall(found[first], found[name]) for name in others}
    told = ", ".join(f"{name} {value:.2f}" for name, value in alike.items() if value is not None)
    disputed = []
    for i, j in pairs:
        sides = {side: [name for name, order in found.items() if order.get((i, j)) == side] for side in (1, -1)}
        if sides[1] and sides[-1]:
            disputed.append((min(len(sides[1]), len(sides[-1])), f"{rows[i]} before {rows[j]} by "
                             f"{', '.join(sides[1])}, the reverse by {', '.join(sides[-1])}"))  # fmt: skip
    disputed.sort(key=lambda one: -one[0])
    which = f": {'; '.join(text for _, text in disputed[:DISPUTED])}" if disputed else ""
    rest = f"; and {len(disputed) - DISPUTED} more" if len(disputed) > DISPUTED else ""
    return [f"Kendall's τ with the order by {first} (1: the same, −1: the reverse): {told}.",
            f"The metrics disagree on {len(disputed)} of {len(pairs)} pairs of rows{which}{rest}."]  # fmt: skip
