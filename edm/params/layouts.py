"""What stands in a table and a figure: which grid of which model, sheet, search or analysis belongs where.

One source for the workflow (what must be made first), the plan (what that costs) and the report (what is shown).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edm.errors import UserError
from edm.params.experiment import Experiment, Report
from edm.params.resolving import nearest


@dataclass(frozen=True)
class Source:
    """Where a cell, a line or a picture comes from. kind: "grid", "search", "sheet", "analysis", "model" or "levels".

    ``name`` is that of the grid, search, sheet or analysis; empty for the others.
    """

    kind: str
    experiment: Experiment
    model: str
    name: str = ""


@dataclass(frozen=True)
class Layout:
    """A table's columns, and its rows with a source per column; None where the paper has no such cell either."""

    columns: list[str]
    rows: dict[str, list[Source | None]]

    def sources(self) -> Iterator[Source]:
        yield from (source for cells in self.rows.values() for source in cells if source is not None)


def table_layout(report: Report, name: str) -> Layout:
    """What a table shows. Raises UserError where it names what is not there."""
    spec = report.tables[name]
    return _TABLES[spec["kind"]](report, spec)


def figure_sources(report: Report, name: str) -> dict[str, Source]:
    """What a figure shows, by label. Raises UserError where it names what is not there."""
    spec = report.figures[name]
    if spec["kind"] == "curve":
        return curve_lines(report, spec)
    if spec["kind"] == "levels":
        chosen = _labels(spec["models"]) if "models" in spec else {
            f"{role}/{model}" if role else model: f"{role}/{model}" if role else model
            for role, experiment in report.experiments.items() for model in experiment.models
        }  # fmt: skip
        return {label: _model(report, reference, "levels") for label, reference in chosen.items()}
    if spec["kind"] == "sheets":
        return {label: _named(report, reference, "sheet") for label, reference in _labels(spec["panels"]).items()}
    if spec["kind"] in ("truncation", "degradation", "leakage"):
        return {label: _named(report, reference, "analysis") for label, reference in _labels(spec["of"]).items()}
    return {}


def figure_datasets(report: Report, name: str) -> list[Experiment]:
    """The experiments whose dataset a figure shows."""
    spec = report.figures[name]
    if spec["kind"] not in ("noisy", "sheets") or "dataset" not in spec:
        return []
    named = spec["dataset"]
    for role, experiment in report.experiments.items():
        if named == role or (role == "" and named == experiment.dataset):
            return [experiment]
    raise UserError(
        f"dataset {named!r} is not one of {', '.join(r or e.dataset for r, e in report.experiments.items())}"
    )


def curve_lines(report: Report, spec: dict[str, Any]) -> dict[str, Source]:
    """The lines of a curve: stated, or the rows of a table in one column."""
    if "lines" in spec:
        return {label: _named(report, reference, "grid") for label, reference in spec["lines"].items()}
    if spec["table"] not in report.tables:
        raise UserError(f"table {spec['table']!r} is not defined; known: {', '.join(report.tables)}")
    layout = table_layout(report, spec["table"])
    if spec["column"] not in layout.columns:
        raise UserError(f"column {spec['column']!r} is not in {spec['table']}; it has {', '.join(layout.columns)}")
    index = layout.columns.index(spec["column"])
    return {row: cells[index] for row, cells in layout.rows.items() if cells[index] is not None}


def table_spec(report: Report, name: str) -> dict[str, Any]:
    """What decides a table beside the measurements, as plain data."""
    return {"spec": report.tables[name], "sources": _specs(table_layout(report, name).sources())}


def figure_spec(report: Report, name: str) -> dict[str, Any]:
    """What decides a figure beside what it is drawn from, as plain data."""
    return {"spec": report.figures[name], "sources": _specs(figure_sources(report, name).values())}


def _specs(sources: Iterable[Source]) -> list[Any]:
    """Each source with what tells whether it shows something else than before."""
    found = {}
    for source in sources:
        experiment, details = source.experiment, None
        if source.kind == "grid":
            points = experiment.grids[source.name].points[source.model]
            details = {"points": [point.id for point in points], "repeats": experiment.sampling.repeats}
        elif source.kind == "model" and source.model in experiment.models:
            config = experiment.models[source.model]  # Tables 7 and 8 print defaults, too
            details = {"training": config.to_dict(), "network": config.network().to_dict()}
        found[(source.kind, experiment.name, source.model, source.name)] = details
    return [[*key, details] for key, details in found.items()]


def check_report(report: Report) -> None:
    """Raises UserError, naming the table or figure, where one names what is not there."""
    for section, entries, look in (("tables", report.tables, table_layout),
                                   ("figures", report.figures, figure_sources)):  # fmt: skip
        for name in entries:
            try:
                look(report, name)
                if section == "figures":
                    figure_datasets(report, name)
            except UserError as error:
                raise UserError(f"{section}.{name}: {error}") from None


def _configurations(report: Report, spec: dict[str, Any]) -> Layout:
    """Rungs by columns, all in one grid (Table 2)."""
    own = next(iter(report.experiments.values()))
    columns = _labels(spec.get("columns", list(own.columns)))
    found = {}
    for label, reference in columns.items():
        experiment, column = report.refer(reference)
        if column not in experiment.columns:
            there = ", ".join(experiment.columns)
            raise UserError(f"column {reference!r} is not defined; {experiment.name} has {there}")
        found[label] = (experiment, column)
    rungs = list(dict.fromkeys(rung for experiment, _ in found.values() for rung in experiment.rungs))
    rows = {rung: [_if_there(experiment, f"{column}-{rung}", spec["grid"]) for experiment, column in found.values()]
            for rung in rungs}  # fmt: skip
    return _not_empty(Layout(list(columns), rows), spec["grid"], (experiment for experiment, _ in found.values()))


def _samplers(report: Report, spec: dict[str, Any]) -> Layout:
    """Grids by models (Tables 3 and 4)."""
    if "columns" in spec:
        columns = {label: _model(report, ref, "model") for label, ref in _labels(spec["columns"]).items()}
    else:
        columns = {source.model: source for source in _sampled_by_all(report, spec["rows"])}
    rows = {}
    for label, grids in spec["rows"].items():
        grids = grids if isinstance(grids, dict) else dict.fromkeys(columns, grids)
        for grid in dict.fromkeys(grids.values()):
            if not any(
                grid == grids.get(name) and _if_there(c.experiment, c.model, grid) for name, c in columns.items()
            ):
                raise UserError(f"row {label!r}: {_nowhere(grid, (c.experiment for c in columns.values()))}")
        rows[label] = [_if_there(column.experiment, column.model, grids.get(name)) for name, column in columns.items()]
    return Layout(list(columns), rows)


def _sampled_by_all(report: Report, rows: dict[str, Any]) -> list[Source]:
    """The models that every row's grid samples, for a table that names no columns."""
    (experiment,) = report.experiments.values()
    for label, grid in rows.items():
        if not isinstance(grid, str):
            raise UserError(f"row {label!r}: a grid per column needs `columns`")
        if grid not in experiment.grids:
            raise UserError(f"row {label!r}: {_nowhere(grid, [experiment])}")
    found = [m for m in experiment.all_models if all(_if_there(experiment, m, grid) for grid in rows.values())]
    if not found:
        raise UserError("no model is sampled by the grids of all of its rows")
    return [Source("model", experiment, model) for model in found]


def _cells(report: Report, spec: dict[str, Any]) -> Layout:
    """Cells named one by one (the ImageNet headline)."""
    columns = list(dict.fromkeys(column for cells in spec["rows"].values() for column in cells))
    rows = {
        label: [_named(report, cells[column], "grid") if column in cells else None for column in columns]
        for label, cells in spec["rows"].items()
    }
    return Layout(columns, rows)


def _settings(report: Report, spec: dict[str, Any]) -> Layout:
    """The outcome of a search per column (Table 5); every row reads the same file."""
    columns = {label: _named(report, ref, "search") for label, ref in _labels(spec["columns"]).items()}
    names = dict.fromkeys(name for s in columns.values() for name in s.experiment.searches[s.name].over)
    return Layout(list(columns), {name: list(columns.values()) for name in names})


def _descriptions(report: Report, spec: dict[str, Any]) -> Layout:
    """Resolved configurations (Tables 7 and 8): no result is needed; the rows are the report's to name."""
    columns = {label: _model(report, ref, "model") for label, ref in _labels(spec["columns"]).items()}
    for label, source in columns.items():
        if source.model not in source.experiment.models:
            raise UserError(f"column {label!r}: {source.model} is pre-trained and has no configuration here")
    return Layout(list(columns), {"": list(columns.values())})


_TABLES = {"configurations": _configurations, "samplers": _samplers, "cells": _cells, "settings": _settings,
           "hyperparameters": _descriptions, "networks": _descriptions}  # fmt: skip


def _labels(references: list[str] | dict[str, str]) -> dict[str, str]:
    return references if isinstance(references, dict) else {reference: reference for reference in references}


def _model(report: Report, reference: str, kind: str) -> Source:
    experiment, model = report.refer(reference)
    if model not in experiment.all_models:
        raise UserError(f"model {reference!r} is not defined; {experiment.name} has {', '.join(experiment.all_models)}")
    return Source(kind, experiment, model)


def _named(report: Report, reference: str, kind: str) -> Source:
    experiment, model, name = report.refer_to_grid(reference)
    sections = {"grid": experiment.grids, "search": experiment.searches, "sheet": experiment.sheets,
                "analysis": experiment.analyses}  # fmt: skip
    entries = sections[kind]
    if name not in entries:
        raise UserError(f"{kind} {name!r} is not defined; {experiment.name} has {', '.join(entries) or 'none'}")
    models = getattr(entries[name], "models", None) or entries[name].samplers
    if model not in models:
        raise UserError(f"{kind} {name!r} of {experiment.name} is not made for model {model!r}")
    return Source(kind, experiment, model, name)


def _if_there(experiment: Experiment, model: str, grid: str) -> Source | None:
    there = grid in experiment.grids and model in experiment.grids[grid].points
    return Source("grid", experiment, model, grid) if there else None


def _not_empty(layout: Layout, grid: str, experiments: Iterable[Experiment]) -> Layout:
    if not any(layout.sources()):
        raise UserError(_nowhere(grid, experiments))
    return layout


def _nowhere(grid: str, experiments: Iterable[Experiment]) -> str:
    names = list(dict.fromkeys(name for experiment in experiments for name in experiment.grids))
    return f"grid {grid!r} is not defined for any of its models{'' if grid in names else nearest(grid, names)}"
