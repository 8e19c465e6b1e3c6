"""Tables in the paper's form: what stands in each cell, from whatever results there are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edm.chain.paths import TABLE_FORMATS, search_file
from edm.errors import UserError
from edm.evaluation.history import FORMAT as SEARCH_FORMAT
from edm.files.writing import read_json, write_json, write_text
from edm.params import Report
from edm.params.layouts import Source, table_layout
from edm.report.cells import Cell, Table
from edm.report.descriptions import HYPERPARAMETERS, NETWORKS
from edm.report.paper import published
from edm.report.results import Measurement, Repeats, Results, metric
from edm.report.writers import WRITERS


def write_table(report: Report, name: str, results: Path, runs: Path) -> list[Path]:
    """Writes a table in every format under ``results/REPORT/tables``; returns the files."""
    table = build_table(report, name, Results(results, runs))
    written = []
    for suffix in TABLE_FORMATS:
        path = results / report.name / "tables" / f"{name}{suffix}"
        write_text(path, WRITERS[suffix](table))
        written.append(path)
    return written


def write_metrics(report: Report, results: Path, runs: Path) -> Path:
    """Writes the lowest distances of every table as one JSON: {table: {row: {column: distance}}}."""
    measured, summary = Results(results, runs), {}
    for name, spec in report.tables.items():
        grids = spec.get("rows", {})  # a short key where the row is a sentence
        short = all(isinstance(grid, str) for grid in grids.values()) and len(set(grids.values())) == len(grids)
        table = build_table(report, name, measured)
        rows = {
            (grids.get(row, row) if short else row): {
                column: cell.value for column, cell in zip(table.columns, cells, strict=True) if cell.measured
            }
            for row, cells in table.rows.items()
        }
        if any(rows.values()) or spec["kind"] in ("configurations", "samplers", "cells"):
            summary[name] = rows
    path = results / report.name / "metrics.json"
    write_json(path, summary)
    return path


def build_table(report: Report, name: str, results: Results) -> Table:
    """One table of params.yaml, filled with what there is. Raises UserError for results that cannot stand together."""
    spec = report.tables[name]
    try:
        table = _KINDS[spec["kind"]](report, name, results)
    except UserError as error:
        raise UserError(f"{report.name}, {name}: {error}") from None
    if "paper" not in spec:
        return table
    rows = {
        row: [
            replace(cell, paper=published(spec["paper"], row, column))
            for column, cell in zip(table.columns, cells, strict=True)
        ]
        for row, cells in table.rows.items()
    }
    doubtful = any(cell.paper and not cell.paper.verified for cells in rows.values() for cell in cells)
    mark = " ° marks numbers of the paper that nobody has checked against its PDF yet." if doubtful else ""
    return replace(table, rows=rows, notes=[*table.notes, f"Each cell: ours / the paper's / the difference.{mark}"])


def best(rows: list[Repeats]) -> Repeats:
    """The setting with the lowest distance (Table 4)."""
    return min(rows, key=lambda row: row.lowest.distance)


def least_nfe(rows: list[Repeats], share: float = 1.03) -> Repeats:
    """The setting of the least NFE whose distance is within 3 % of the lowest (Table 3, the dots of Figure 2)."""
    limit = share * best(rows).lowest.distance
    return min((row for row in rows if row.lowest.distance <= limit), key=lambda row: row.lowest.nfe)


def _measured(report: Report, name: str, results: Results, nfe: Callable[[list[Repeats]], int | None]) -> Table:
    """A table of distances: each cell is the lowest of a grid."""
    layout = table_layout(report, name)
    spec = report.tables[name]
    partial: list[str] = []
    seen: list[Measurement] = []

    def cell(source: Source | None, row: str, column: str) -> Cell:
        if source is None:
            return Cell()
        where = (source.experiment, source.model, source.name)
        points = results.of(*where)
        if not points:
            return Cell(missing=results.why_missing(*where))
        there, wanted = results.complete(*where)
        if there < wanted:
            partial.append(f"{row}, {column}: {there} of {wanted} measurements so far.")
        shown = best(points)
        seen.extend(m for point in points for m in point.all)
        m = shown.lowest
        return Cell(f"{m.distance:.2f}", m.distance, nfe(points), m.distance, shown.highest.distance, len(shown.all), m,
                    m.more)  # fmt: skip

    rows = {row: [cell(source, row, column) for column, source in zip(layout.columns, cells, strict=True)]
            for row, cells in layout.rows.items()}  # fmt: skip
    corner = "configuration" if spec["kind"] == "configurations" else "sampler"
    notes = [] if not any(c.repeats > 1 for cells in rows.values() for c in cells) else [
        "The lowest of the repeats is reported; their range stands in square brackets."]  # fmt: skip
    return Table(name, spec["title"], corner, layout.columns, rows, [*notes, metric(seen), *partial],
                 tuple(spec.get("metrics", ())))  # fmt: skip


def _configurations(report: Report, name: str, results: Results) -> Table:
    table = _measured(report, name, results, lambda points: None)
    counts = sorted({cell.measured.nfe for cells in table.rows.values() for cell in cells if cell.measured})
    notes = [f"NFE {', '.join(map(str, counts))}."] if counts else []
    return replace(table, notes=[*notes, *table.notes])


def _samplers(report: Report, name: str, results: Results) -> Table:
    note, pick = ("that of the best", best)
    if report.tables[name]["nfe"] != "of the best":
        note, pick = ("the least whose distance is within 3 % of the best", least_nfe)
    table = _measured(report, name, results, lambda points: pick(points).lowest.nfe)
    return replace(table, notes=[f"Lowest distance on each row's curve; in brackets the NFE: {note}.", *table.notes])


def _settings(report: Report, name: str, results: Results) -> Table:
    """The outcome of a search per column (Table 5)."""
    layout = table_layout(report, name)
    found, notes = {}, []
    for column, source in zip(layout.columns, next(iter(layout.rows.values())), strict=True):
        path = results.results / Path(search_file(source.experiment, source.model, source.name)).relative_to("results")
        if path.exists():
            found[column] = outcome = read_json(path)
            if not isinstance(outcome, dict) or outcome.get("format") != SEARCH_FORMAT:
                raise UserError(f"{path}: not the outcome of a search; delete it and run snakemake again")
            notes.append(f"{column}: {outcome['metric']['label']} {outcome['value']:.4g}, {outcome['method']} search, "
                         f"{outcome['evaluations']} evaluations of {outcome['images']:,} images.")  # fmt: skip
    rows = {}
    for row, sources in layout.rows.items():
        rows[row] = []
        for column, source in zip(layout.columns, sources, strict=True):
            if column not in found:
                rows[row].append(Cell(missing=results.why_not_searched(source.experiment, source.model, source.name)))
            elif row not in source.experiment.searches[source.name].over:
                rows[row].append(Cell())
            else:
                value = found[column]["settings"][row]
                rows[row].append(Cell("∞" if value is None else f"{value:g}", value))
    return Table(name, report.tables[name]["title"], "parameter", layout.columns, rows, notes)


def _described(entries: dict[str, Callable]) -> Callable[[Report, str, Results], Table]:
    def build(report: Report, name: str, results: Results) -> Table:
        layout = table_layout(report, name)
        configs = [source.experiment.models[source.model] for source in next(iter(layout.rows.values()))]
        rows = {}
        for row, entry in entries.items():
            values = [entry(config) for config in configs]
            numbers = [float(v) if v.replace(".", "", 1).isdigit() else None for v in values]
            rows[row] = [Cell(text, number) for text, number in zip(values, numbers, strict=True)]
        notes = ["As resolved from params.yaml; nothing here is measured."]
        return Table(name, report.tables[name]["title"], "choice", layout.columns, rows, notes)

    return build


_KINDS = {"configurations": _configurations, "samplers": _samplers, "cells": _samplers, "settings": _settings,
          "hyperparameters": _described(HYPERPARAMETERS), "networks": _described(NETWORKS)}  # fmt: skip
