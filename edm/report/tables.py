"""Tables in the paper's form: Markdown to read, CSV to compute with, one JSON of headline numbers to compare."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from edm.files import write_json, write_text
from edm.params import Experiment
from edm.report.results import Measurement, Results

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A table's cell: the measurement shown, and the NFE shown with it. Empty where nothing was measured."""

    shown: Measurement | None = None
    nfe: int | None = None

    def text(self, with_nfe: bool) -> str:
        if self.shown is None:
            return MISSING
        return f"{self.shown.distance:.2f} ({self.nfe})" if with_nfe else f"{self.shown.distance:.2f}"


@dataclass(frozen=True)
class Table:
    """Rows by label, columns by name, and one cell for each pair."""

    name: str
    title: str
    corner: str
    columns: list[str]
    rows: dict[str, list[Cell]]
    with_nfe: bool
    notes: list[str]


def write_tables(experiment: Experiment, results: Path) -> list[Path]:
    """Writes every table of the experiment, and metrics.json, under ``results/EXPERIMENT``; returns the files."""
    measured = Results(experiment, results)
    folder = results / experiment.name
    written, summary = [], {}
    for name in experiment.tables:
        table = build_table(experiment, measured, name)
        for suffix, text in ((".md", as_markdown(table)), (".csv", as_csv(table))):
            path = folder / "tables" / f"{name}{suffix}"
            write_text(path, text)
            written.append(path)
        grids = experiment.tables[name].get("rows", {})  # a short key where the row is a sentence
        grids = grids if len(set(grids.values())) == len(grids) else {}
        summary[name] = {
            grids.get(row, row): {
                column: cell.shown.distance for column, cell in zip(table.columns, cells, strict=True) if cell.shown
            }
            for row, cells in table.rows.items()
        }
    write_json(folder / "metrics.json", summary)
    return [*written, folder / "metrics.json"]


def build_table(experiment: Experiment, measured: Results, name: str) -> Table:
    """One table of params.yaml, filled with what there is."""
    spec = experiment.tables[name]
    if spec["kind"] == "configurations":
        columns, rows = list(experiment.columns), {}
        for rung in experiment.rungs:
            rows[rung] = [best(measured.of(f"{column}-{rung}", spec["grid"])) for column in columns]
        counts = sorted({cell.nfe for cells in rows.values() for cell in cells if cell.nfe})
        notes = [f"NFE {', '.join(map(str, counts))}."] if counts else []
        return Table(name, spec["title"], "configuration", columns, rows, False, [*notes, measured.metric()])
    grids = spec["rows"]
    columns = [m for m in experiment.models if all(m in experiment.grids[grid].models for grid in grids.values())]
    pick = best if spec["nfe"] == "of the best" else best_with_least_nfe
    rows = {row: [pick(measured.of(model, grid)) for model in columns] for row, grid in grids.items()}
    meaning = "of the best" if spec["nfe"] == "of the best" else "the least whose distance is within 3 % of the best"
    notes = [f"Lowest distance on each row's curve; in brackets the NFE {meaning}.", measured.metric()]
    return Table(name, spec["title"], "sampler", columns, rows, True, notes)


def best(rows: list[Measurement]) -> Cell:
    """The lowest distance, with its own NFE (Table 4)."""
    if not rows:
        return Cell()
    lowest = min(rows, key=lambda row: row.distance)
    return Cell(lowest, lowest.nfe)


def best_with_least_nfe(rows: list[Measurement]) -> Cell:
    """The lowest distance, with the least NFE whose distance is within 3 % of it (Table 3)."""
    if not rows:
        return Cell()
    lowest = min(rows, key=lambda row: row.distance)
    return Cell(lowest, min(row.nfe for row in rows if row.distance <= 1.03 * lowest.distance))


def as_markdown(table: Table) -> str:
    """A heading, the table, its notes."""
    lines = [f"## {table.name}: {table.title}", ""]
    grid = [[table.corner, *table.columns]]
    grid += [[row, *(cell.text(table.with_nfe) for cell in cells)] for row, cells in table.rows.items()]
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (grid[0], rule, *grid[1:]):
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *table.notes]) + "\n"


def as_csv(table: Table) -> str:
    """One line per cell that was measured, with what leads back to its origin."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["row", "column", "distance", "metric", "nfe", "model", "grid", "point", "images", "first_seed", "commit",
         "dirty", "checkpoint_sha256", "dataset_sha256"]
    )  # fmt: skip
    for row, cells in table.rows.items():
        for column, cell in zip(table.columns, cells, strict=True):
            if (m := cell.shown) is not None:
                writer.writerow(
                    [row, column, repr(m.distance), m.label, cell.nfe, m.model, m.grid, m.point, m.images,
                     m.first_seed, m.commit, m.dirty, m.checkpoint, m.dataset]
                )  # fmt: skip
    return buffer.getvalue()
