"""What a table says about the errors of its distances: error bars, what cannot be told apart, what has no bar."""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean, stdev

from edm.evaluation.comparing import difference
from edm.metrics import METRICS, SPLITS
from edm.metrics.jackknife import FEWEST_PER_FEATURE, GROUPS, TELLING, expected_minimum
from edm.report.cells import Cell

Rows = dict[str, list[Cell]]


def marked(rows: Rows) -> Rows:
    """The rows with the lowest distance of every column marked, its equals as shown, and what cannot be told from it.

    A column with a single distance has no mark.
    """
    lowest = [_lowest([cell for cell in column if cell.value is not None])
              for column in zip(*rows.values(), strict=True)]  # fmt: skip
    return {row: [_beside(cell, best) for cell, best in zip(cells, lowest, strict=True)]
            for row, cells in rows.items()}  # fmt: skip


def _lowest(cells: list[Cell]) -> Cell | None:
    return min(cells, key=lambda cell: cell.value or 0) if len(cells) > 1 else None


def _beside(cell: Cell, best: Cell | None) -> Cell:
    if best is None or not cell.text:
        return cell
    if cell is not best and (cell.spread is not None or best.spread is not None):
        return replace(cell, best=cell.text == best.text, tied=not means_differ(cell, best))
    apart = None if cell is best else difference(cell.all, best.all)
    tied = apart is not None and apart.paired and not apart.told_apart
    return replace(cell, best=cell.text == best.text, tied=tied, apart=apart)


def means_differ(cell: Cell, best: Cell) -> bool:
    """Whether two means over training runs differ by more than their spreads explain.

    Welch's statistic; a single training run counts with the spread of the other cell.
    """
    if cell.value is None or best.value is None:
        return True
    known = [one.spread for one in (cell, best) if one.spread is not None]
    variance = sum((known[0] if one.spread is None else one.spread) ** 2 / one.training_runs for one in (cell, best))
    return abs(cell.value - best.value) >= TELLING * math.sqrt(variance)


def notes(columns: list[str], rows: Rows) -> list[str]:
    """The notes of a table of distances on repeats, error bars and marks."""
    cells = [(f"{row}, {column}" if len(columns) > 1 else row, cell) for row, cells in rows.items()
             for column, cell in zip(columns, cells, strict=True) if cell.measured]  # fmt: skip
    found = _of_repeats(cells)
    tied = [cell for _, cell in cells if cell.tied]
    if any(cell.best for _, cell in cells):
        how = []
        if any(cell.apart is not None for cell in tied):
            how.append(f"|z| of the difference is below {TELLING}, from the same seeds")
        if any(cell.apart is None for cell in tied):
            how.append(
                f"means differ by less than {TELLING} √(s₁²/n₁ + s₂²/n₂), a single training run with the other's s"
            )
        told = f", and what cannot be told from it: {'; '.join(how)}." if how else "."
        found.append(f"Bold: the lowest of a column{told}")
    found += _of_trainings([cell for _, cell in cells])
    if any(cell.s is not None for _, cell in cells):
        alone = ", of a single training run" if any(cell.spread is not None for _, cell in cells) else ""
        found.append(f"±{alone}: one standard error over other seeds (jackknife over {GROUPS} groups of seeds); it "
                     "does not cover the noise of the reference images or of the training.")  # fmt: skip
    single = [(name, cell) for name, cell in cells if cell.spread is None]
    few = [name for name, cell in single if cell.measured and cell.measured.few]
    old = [name for name, cell in single if cell.measured and cell.s is None and not cell.measured.few]
    for names, why in ((few, f"fewer than {FEWEST_PER_FEATURE} images per feature"),
                       (old, "measured by a version that had none")):  # fmt: skip
        if names:
            which = "" if len(names) == len(cells) else f" ({'; '.join(names)})"
            found.append(f"No error bar: {why}{which}.")
    return found


def of_a_panel(columns: Mapping[str, list[Cell]]) -> list[str]:
    """The notes of a panel on error bars: what ± is for each metric, and which have none. columns: cells by metric."""
    barred = [name for name, cells in columns.items() if any(cell.s is not None for cell in cells)]
    none = [name for name, cells in columns.items() if name not in barred and any(cell.measured for cell in cells)]
    cells = [cell for column in columns.values() for cell in column]
    shares = [name for name in barred if name in METRICS and METRICS[name].all_images]
    scores = [name for name in barred if name in METRICS and not METRICS[name].all_images]
    how = [f"of distances by the jackknife over {GROUPS} groups of seeds"] if set(barred) - {*shares, *scores} else []
    how += [f"of {', '.join(shares)} √(p (1 − p) / N), p the share, N the images"] if shares else []
    how += [f"of {', '.join(scores)} from {SPLITS} parts of the images"] if scores else []
    found = (
        [f"±: one standard error over other seeds, without the noise of the reference: {'; '.join(how)}."]
        if how
        else []
    )
    if any(cell.measured and cell.measured.few for cell in cells):
        none = [f"distances of fewer than {FEWEST_PER_FEATURE} images per feature", *(n for n in none if n in METRICS)]
    found += [f"No error bar: {', '.join(none)}."] if none else []
    if any(cell.tied for cell in cells):
        found.append(f"Bold too: distances with |z| of the difference from the first below {TELLING}.")
    return found


def _of_trainings(cells: list[Cell]) -> list[str]:
    counts = sorted({cell.training_runs for cell in cells if cell.spread is not None})
    if not counts:
        return []
    return [f"±: mean and standard deviation over {' or '.join(map(str, counts))} training runs of different seeds, at "
            "the setting with the lowest mean."]  # fmt: skip


def _of_repeats(cells: list[tuple[str, Cell]]) -> list[str]:
    """What repeats show: their range, and what the lowest of so many is on average."""
    several = [name for name, cell in cells if cell.repeats > 1 and cell.spread is not None]
    repeated = [
        (name, [m.distance for m in cell.all]) for name, cell in cells if cell.repeats > 1 and cell.spread is None
    ]
    if not repeated:
        return ["Of every training run the lowest of its repeats counts."] if several else []
    means = [f"{name}: {fmean(values):.2f} ± {stdev(values):.2f}"
             + ("" if (low := expected_minimum(values)) is None else f", {low:.2f}")
             for name, values in repeated]  # fmt: skip
    return [
        "The lowest of the repeats is reported; their range stands in square brackets.",
        f"Mean ± standard deviation of the repeats, and the minimum expected of so many: {'; '.join(means)}.",
    ]
