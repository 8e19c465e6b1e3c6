"""What a table says about the errors of its distances: error bars, what cannot be told apart, what has no bar."""

from dataclasses import replace
from statistics import fmean, stdev

from edm.evaluation.comparing import difference
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
    apart = None if cell is best else difference(cell.all, best.all)
    tied = apart is not None and apart.paired and not apart.told_apart
    return replace(cell, best=cell.text == best.text, tied=tied, apart=apart)


def notes(columns: list[str], rows: Rows) -> list[str]:
    """The notes of a table of distances on repeats, error bars and marks."""
    cells = [(f"{row}, {column}" if len(columns) > 1 else row, cell) for row, cells in rows.items()
             for column, cell in zip(columns, cells, strict=True) if cell.measured]  # fmt: skip
    found = _of_repeats(cells)
    tied = any(cell.tied for _, cell in cells)
    if any(cell.best for _, cell in cells):
        found.append("Bold: the lowest of a column" + (f", and what cannot be told from it: |z| of the difference is "
                     f"below {TELLING}, from the same seeds." if tied else "."))  # fmt: skip
    if any(cell.s is not None for _, cell in cells):
        found.append(f"±: one standard error over other seeds (jackknife over {GROUPS} groups of seeds); it does not "
                     "cover the noise of the reference images or of the training.")  # fmt: skip
    few = [name for name, cell in cells if cell.measured and cell.measured.few]
    old = [name for name, cell in cells if cell.measured and cell.s is None and not cell.measured.few]
    for names, why in ((few, f"fewer than {FEWEST_PER_FEATURE} images per feature"),
                       (old, "measured by a version that had none")):  # fmt: skip
        if names:
            which = "" if len(names) == len(cells) else f" ({'; '.join(names)})"
            found.append(f"No error bar: {why}{which}.")
    return found


def _of_repeats(cells: list[tuple[str, Cell]]) -> list[str]:
    """What repeats show: their range, and what the lowest of so many is on average."""
    repeated = [(name, [m.distance for m in cell.all]) for name, cell in cells if cell.repeats > 1]
    if not repeated:
        return []
    means = [f"{name}: {fmean(values):.2f} ± {stdev(values):.2f}"
             + ("" if (low := expected_minimum(values)) is None else f", {low:.2f}")
             for name, values in repeated]  # fmt: skip
    return [
        "The lowest of the repeats is reported; their range stands in square brackets.",
        f"Mean ± standard deviation of the repeats, and the minimum expected of so many: {'; '.join(means)}.",
    ]
