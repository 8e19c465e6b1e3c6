"""The content of each table and figure of a report: entries of params.yaml resolved to layouts.

The workflow (which files to make first), the plan (their cost), the report (its content) and the specification of each
step use the same layouts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edm.errors import UserError
from edm.metrics import WORST
from edm.params.descriptions import HYPERPARAMETERS, NETWORKS, Entries
from edm.params.experiment import ALL, Experiment, Report, training_of
from edm.params.paper import published
from edm.params.resolving import nearest
from edm.params.sources import EACH_RUN, Figure, Layout, Metrics, Source, plain


def table_spec(report: Report, name: str) -> dict[str, Any]:
    """The settings that affect a table, without the measurements, as plain data."""
    return plain(table_layout(report, name))


def figure_spec(report: Report, name: str) -> dict[str, Any]:
    """The settings that affect a figure, without its inputs, as plain data."""
    return plain(figure_layout(report, name))


def metrics_spec(report: Report) -> dict[str, Any]:
    """The settings that affect the headline numbers and curves, without the measurements, as plain data."""
    return plain(metrics_layout(report))


def check_report(report: Report) -> None:
    """Raises UserError, naming the table or figure, if one refers to an undefined name."""
    for section, entries, look in (("tables", report.tables, table_layout),
                                   ("figures", report.figures, figure_layout)):  # fmt: skip
        for name in entries:
            try:
                look(report, name)
            except UserError as error:
                raise UserError(f"{section}.{name}: {error}") from None


def metrics_layout(report: Report) -> Metrics:
    """The content of metrics.json and of the plots of a report."""
    tables, levels, grids = {}, {}, {}
    for name, spec in report.tables.items():
        layout, stated = table_layout(report, name), spec.get("rows", {})
        shown = ["distance"] if layout.kind == "panel" else layout.columns  # a panel has one model in a row
        if not any(source.kind == "grid" for source in layout.sources()):
            continue
        # A short key if the row label is a sentence.
        short = all(isinstance(grid, str) for grid in stated.values()) and len(set(stated.values())) == len(stated)
        tables[name] = {
            (stated.get(row, row) if short else row): {
                column: source
                for column, source in zip(shown, cells[: len(shown)], strict=True)
                if source is not None and source.kind == "grid"
            }
            for row, cells in layout.rows.items()
        }
        for source in (dataclasses.replace(source, nfe=None) for source in layout.sources() if source.kind == "grid"):
            role = next(role for role, one in report.experiments.items() if one.name == source.experiment.name)
            line = f"{role}/{source.model}" if role else source.model
            grids[f"{line} {source.name}"] = source
            if source.model in source.experiment.models:
                levels[line] = Source("levels", source.experiment, source.model)
    return Metrics(tables, levels, grids)


# Tables ---------------------------------------------------------------------------------------------------------------


def table_layout(report: Report, name: str) -> Layout:
    """The layout of a table. Raises UserError for undefined names."""
    spec = report.tables[name]
    columns, rows = _TABLES[spec["kind"]](report, spec)
    further = () if spec["kind"] == "panel" else tuple(spec.get("metrics", ()))  # of a panel they are the columns
    layout = Layout(name, spec["kind"], spec["title"], columns, rows, metrics=further)
    notes = [spec.get("note", ""), selection(layout.sources())]
    layout = dataclasses.replace(layout, note=" ".join(filter(None, notes)))
    if "nfe" in spec:
        for row in spec.get("nfe_of_rows", {}):
            if row not in rows:
                raise UserError(f"nfe_of_rows: row {row!r} is not defined{nearest(row, rows)}")
        layout = dataclasses.replace(layout, nfe=dict.fromkeys(rows, spec["nfe"]) | spec.get("nfe_of_rows", {}))
    if spec["kind"] == "configurations":
        called = {rung: one.called(rung) for one in reversed(report.experiments.values()) for rung in one.names}
        layout = dataclasses.replace(layout, called={row: called[row] for row in rows if row in called})
    if "paper" in spec:
        cells = {row: [published(spec["paper"], row, column) for column in columns] for row in rows}
        layout = dataclasses.replace(layout, paper=cells)
    return layout


def selection(sources: Iterable[Source]) -> str:
    """How the measured models were selected among the snapshots of their training runs; empty if none was."""
    found: dict[str, dict[str, None]] = {}
    for source in sources:
        one, model = source.experiment, source.model
        if source.kind not in ("grid", "likelihood") or model in one.pretrained:
            continue
        told = "an average of its snapshots, of the width named" if training_of(model)[1] else ""
        if one.choice is not None and one.chosen(model):
            told = one.choice.told(len(one.models[model].snapshots), one.sampling.images)
            if source.kind == "likelihood":
                told = f"the likelihood is that of the {told}; the bound is that of the final model"
        found.setdefault(told, {})[f"{one.name}/{model}"] = None
    if len(found) == 1:
        return "".join(f"Each model: {told}." for told in found if told)
    return " ".join(f"{', '.join(models)}: {told or 'the final model'}." for told, models in found.items())


#: The columns of a table of likelihoods: the bound and its terms.
EXACT = "exact"  # the likelihood itself, before them
LIKELIHOOD = ("bound", "diffusion", "prior", "reconstruction")
Content = tuple[list[str], dict[str, list[Source | None]]]
ORDERS = ("claimed order", "measured order", "error")  # the first columns of a table of orders
OVER_WIDTHS = "ema"  # the axis of a curve of averages of snapshots: their relative widths
BY_NFE = ("solvers", "orders")  # tables whose columns are numbers of evaluations


def _configurations(report: Report, spec: dict[str, Any]) -> Content:
    """Rungs (rows of the ladder) by columns, all in one grid (Table 2)."""
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
    if not any(source for cells in rows.values() for source in cells):
        raise UserError(_nowhere(spec["grid"], (experiment for experiment, _ in found.values())))
    return list(columns), rows


def _samplers(report: Report, spec: dict[str, Any]) -> Content:
    """Grids by models (Tables 3 and 4)."""
    if "columns" in spec:
        columns = {label: _model(report, ref) for label, ref in _models(report, spec["columns"]).items()}
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
    return list(columns), rows


def _sampled_by_all(report: Report, rows: dict[str, Any]) -> list[Source]:
    """The models that every row's grid samples, for a table that names no columns."""
    (experiment,) = report.experiments.values()
    for label, grid in rows.items():
        if not isinstance(grid, str):
            raise UserError(f"row {label!r}: a grid per column needs `columns`")
        if grid not in experiment.grids:
            raise UserError(f"row {label!r}: {_nowhere(grid, [experiment])}")
    found = [m for m in experiment.group(ALL) if all(_if_there(experiment, m, grid) for grid in rows.values())]
    if not found:
        raise UserError("no model is sampled by the grids of all of its rows")
    return [Source("model", experiment, model) for model in found]


def _cells(report: Report, spec: dict[str, Any]) -> Content:
    """Cells named one by one (the ImageNet headline)."""
    columns = list(dict.fromkeys(column for cells in spec["rows"].values() for column in cells))
    rows = {
        label: [_named(report, cells[column], "grid") if column in cells else None for column in columns]
        for label, cells in spec["rows"].items()
    }
    return columns, rows


def _settings(report: Report, spec: dict[str, Any]) -> Content:
    """The outcome of a search per column (Table 5)."""
    columns = {label: _named(report, ref, "search") for label, ref in _labels(spec["columns"]).items()}
    over = {label: source.experiment.searches[source.name].over for label, source in columns.items()}
    names = dict.fromkeys(name for searched in over.values() for name in searched)
    rows = {name: [source if name in over[label] else None for label, source in columns.items()] for name in names}
    return list(columns), rows


def _panel(report: Report, spec: dict[str, Any]) -> Content:
    """The models of a grid, in all experiments that have it, by their metrics, and a column of ranks."""
    grid, known = spec["grid"], {"distance": None}
    rows: dict[str, Source] = {}
    for role, experiment in report.experiments.items():
        if grid in experiment.grids:
            known |= dict.fromkeys([*experiment.metrics, *(f"FD ({name})" for name in experiment.more_features)])
            for model in experiment.grids[grid].models:
                source = Source("grid", experiment, model, grid)
                rows[_called(f"{role}/{model}" if role else model, source)] = source
    if not rows:
        raise UserError(_nowhere(grid, report.experiments.values()))
    columns = spec.get("metrics", list(known))
    for column in columns:
        if column not in known:
            raise UserError(f"metric {column!r} is not measured{nearest(column, known)}; there are {', '.join(known)}")
    return [*columns, "ranks"], {row: [source] * len(columns) + [None] for row, source in rows.items()}


def _solvers(report: Report, spec: dict[str, Any]) -> Content:
    """Samplers of one model by number of evaluations (Table S1); of the kind "orders", their orders first (S2)."""
    model, evaluations = _model(report, spec["model"]), spec["evaluations"]
    rows: dict[str, list[Source | None]] = {}
    for label, grid in spec["rows"].items():
        source = _if_there(model.experiment, model.model, grid) if isinstance(grid, str) else None
        if source is None:
            raise UserError(f"row {label!r}: {_nowhere(str(grid), [model.experiment])}")
        there = [dataclasses.replace(source, nfe=nfe) for nfe in evaluations]
        first = [_order(label, source)] * len(ORDERS) if spec["kind"] == "orders" else []
        rows[label] = [*first, *(one if one.points else None for one in there)]
    columns = [*(ORDERS if spec["kind"] == "orders" else ()), *(f"NFE {nfe}" for nfe in evaluations)]
    for column, cells in zip(columns, zip(*rows.values(), strict=True), strict=True):
        if not any(cells):
            raise UserError(f"evaluations: no row has {column}; see num_steps of its grids")
    return columns, rows


def _order(label: str, source: Source) -> Source:
    """The source of the order of a grid's solver, with its settings."""
    found = [{key: value for key, value in point.sampler.changes().items() if key != "num_steps"}
             for point in source.points]  # fmt: skip
    if any(one != found[0] for one in found) or source.points[0].sampler.claimed_order is None:
        what = f"row {label!r}: grid {source.name!r}"
        raise UserError(f"{what} is not of one solver with an order; sweep num_steps alone")
    told = ", ".join(f"{key}={value}" for key, value in found[0].items())
    return dataclasses.replace(source, kind="order", text=told)


def _likelihood(report: Report, spec: dict[str, Any]) -> Content:
    """Models by the bound on their likelihood, and the terms of it; before these, where stated, by the likelihood."""
    rows: dict[str, list[Source | None]] = {}
    first = [EXACT] if "likelihood" in spec else []
    for label, source in _of_levels(report, spec, EACH_RUN).items():
        exact = [_exact(source, spec["likelihood"])] if first else []
        rows[_called(label, source)] = [*exact, *[source] * len(LIKELIHOOD)]
    return [*first, *LIKELIHOOD], rows


def _exact(source: Source, name: str) -> Source:
    """The likelihood of a model. Raises UserError for one that the experiment does not compute."""
    one = source.experiment.likelihoods.get(name)
    if one is None:
        there = ", ".join(source.experiment.likelihoods) or "none"
        raise UserError(f"likelihood {name!r} is not defined; {source.experiment.name} has {there}")
    if source.model not in one.models:
        raise UserError(f"likelihood {name!r} of {source.experiment.name} is not computed for model {source.model!r}")
    return dataclasses.replace(source, kind="likelihood", name=name, text="")


def _of_levels(report: Report, spec: dict[str, Any], text: str = "") -> dict[str, Source]:
    """The errors per noise level of models that the chain trains."""
    return {label: dataclasses.replace(_trained(report, ref, f"model {label!r}"), kind="levels", text=text)
            for label, ref in _models(report, spec.get("models", ALL)).items()}  # fmt: skip


def _study(report: Report, spec: dict[str, Any]) -> Content:
    """Studies by the numbers that they give."""
    columns = _labels(spec["columns"])
    rows: dict[str, list[Source | None]] = {}
    for label, source in _studied(report, spec["of"]).items():
        rows[label] = [dataclasses.replace(source, text=number) for number in columns.values()]
    return list(columns), rows


def _studied(report: Report, references: list[str] | dict[str, str]) -> dict[str, Source]:
    return {label: _named(report, reference, "analysis") for label, reference in _labels(references).items()}


def _described(entries: Entries) -> Callable[[Report, dict[str, Any]], Content]:
    """Resolved configurations (Tables 7 and 8): no result is needed."""

    def content(report: Report, spec: dict[str, Any]) -> Content:
        stated = _models(report, spec["columns"])
        columns = {label: _trained(report, ref, f"column {label!r}") for label, ref in stated.items()}
        rows: dict[str, list[Source | None]] = {}
        for row, entry in entries.items():
            texts = [entry(s.experiment.models[s.model], s.experiment.training) for s in columns.values()]
            rows[row] = [dataclasses.replace(s, text=text) for s, text in zip(columns.values(), texts, strict=True)]
        return list(columns), rows

    return content


_TABLES = {"configurations": _configurations, "samplers": _samplers, "cells": _cells, "panel": _panel,
           "solvers": _solvers, "orders": _solvers, "likelihood": _likelihood, "settings": _settings,
           "study": _study,
           "hyperparameters": _described(HYPERPARAMETERS), "networks": _described(NETWORKS)}  # fmt: skip


# Figures --------------------------------------------------------------------------------------------------------------


def figure_layout(report: Report, name: str) -> Figure:
    """The layout of a figure. Raises UserError for undefined names."""
    spec = report.figures[name]
    if spec["kind"] == "likelihood":
        shown = {_called(label, source): source for label, source in _of_levels(report, spec, EACH_RUN).items()}
        bits = {label: _exact(source, spec["likelihood"]) for label, source in shown.items()}
        return Figure(name, "likelihood", {EXACT: bits, LIKELIHOOD[0]: shown})
    if spec["kind"] == "curve" and spec["over"] == OVER_WIDTHS:
        return Figure(name, "curve", _by_width(report, spec), over=OVER_WIDTHS)
    options: dict[str, Any] = {key: spec[key] for key in ("over", "mark", "images", "x", "y") if key in spec}
    if "metrics" in spec:
        options["metrics"] = tuple(spec["metrics"])
    if spec["kind"] == "pairs":
        options.setdefault("images", WORST)
    rows = spec.get("rows", {"": _panels(report, spec.get("panels", {}))})
    distances = {row: _named(report, reference, "grid") for row, reference in spec.get("distances", {}).items()}
    for row in distances:
        if row not in rows:
            raise UserError(f"distances: row {row!r} is not defined{nearest(row, rows)}")
    found = {
        label: {_called(one, source): source for one, source in _figure_row(report, spec, _labels(panels)).items()}
        for label, panels in rows.items()
    }
    for metric in options.get("metrics", ()):
        _check_measured(spec["kind"], metric, found[""].values())
    if spec["kind"] == "curve" and "lines" not in spec:
        options["published"] = _published_points(report, spec["table"])
    return Figure(name, spec["kind"], found, distances=distances, **options)


def _published_points(report: Report, table: str) -> dict[str, list[tuple[int, float]]]:
    """The published numbers of a table by number of evaluations, as points of a curve."""
    spec = report.tables[table]
    if spec["kind"] not in BY_NFE or "paper" not in spec:
        return {}
    found = {row: [(nfe, cell.value) for nfe, cell in zip(spec["evaluations"], cells, strict=True)
                   if cell is not None and cell.value is not None]
             for row, cells in table_layout(report, table).paper.items()}  # fmt: skip
    return {row: points for row, points in found.items() if points}


def _check_measured(kind: str, metric: str, sources: Iterable[Source]) -> None:
    """Raises UserError unless a curve shows models for which a metric is measured."""
    if kind != "curve":
        raise UserError("metrics belong to a curve, which shows a panel of each")
    for experiment in (source.experiment for source in sources):
        if metric not in experiment.metrics:
            there = ", ".join(experiment.metrics) or "none"
            raise UserError(f"metric {metric!r} is not measured in {experiment.name}; it has {there}")


def _by_width(report: Report, spec: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """The averages of each line of a curve over their widths: a row each, labelled by the width (Figure E1)."""
    if "lines" not in spec or "mark" in spec or "metrics" in spec:
        raise UserError(f"a curve over {OVER_WIDTHS} takes lines, MODEL:GRID each, and no table, mark or metrics")
    found = {}
    for label, reference in spec["lines"].items():
        experiment, model, name = report.refer_to_grid(reference)
        grid = experiment.grids.get(name)
        there = {width: one for one in (grid.points if grid else ()) for run, width in [training_of(one)]
                 if run == model and width}  # fmt: skip
        if grid is None or not there:
            raise UserError(f"{reference!r}: no grid of {experiment.name} evaluates averages of {model} by that name")
        if any(len(grid.points[one]) > 1 for one in there.values()):
            raise UserError(f"{reference!r}: grid {name!r} has several points of each width; a curve takes one")
        line = {width: Source("grid", experiment, one, name) for width, one in there.items()}
        found[_called(label, Source("model", experiment, model))] = line
    return found


def _called(label: str, source: Source) -> str:
    """A label that is a model, or its rung, with the name of the rung: "A: baseline" for "vp-A" and for "A".

    With several columns, "vp-A" stays distinct: "vp-A: baseline".
    """
    experiment, rung = source.experiment, source.model.partition("-")[2]
    if rung not in experiment.names or label.rpartition("/")[2] not in (source.model, rung):
        return label
    alone = label == source.model and len(experiment.columns) == 1
    return experiment.called(rung) if alone else f"{label}: {experiment.names[rung]}"


def _panels(report: Report, panels: str | list[str] | dict[str, str]) -> list[str] | dict[str, str]:
    """The panels of a figure of sheets; all of the sheet that is named, each with its rung if there is one column."""
    if not isinstance(panels, str):
        return panels
    experiment, name = report.refer(panels)
    if name not in experiment.sheets:
        there = ", ".join(experiment.sheets) or "none"
        raise UserError(f"sheet {panels!r} is not defined; {experiment.name} has {there}")
    role = panels.removesuffix(name)
    rungs = {f"{column}-{rung}": rung for column in experiment.columns for rung in experiment.rungs}
    short = rungs if len(experiment.columns) == 1 else {}
    return {short.get(model, model): f"{role}{model}:{name}" for model in experiment.sheets[name].samplers}


def _figure_row(report: Report, spec: dict[str, Any], panels: dict[str, str]) -> dict[str, Source]:
    kind = spec["kind"]
    named = spec.get("dataset", kind == "noisy")
    shown = _dataset(report, named) if named and kind in ("noisy", "sheets") else {}
    if kind == "curve":
        return curve_lines(report, spec)
    if kind in ("levels", "bits"):
        return _of_levels(report, spec)
    if kind == "sheets":
        return shown | {label: _named(report, reference, "sheet") for label, reference in panels.items()}
    if kind in ("truncation", "degradation", "leakage", "pairs", "study"):
        return _studied(report, spec["of"])
    return shown


def _dataset(report: Report, named: str | bool) -> dict[str, Source]:
    """The dataset that a figure shows, by its name, or the experiment's own."""
    for role, experiment in report.experiments.items():
        if named == role or (role == "" and named in (True, experiment.dataset)):
            return {experiment.dataset: Source("dataset", experiment)}
    raise UserError(
        f"dataset {named!r} is not one of {', '.join(r or e.dataset for r, e in report.experiments.items())}"
    )


def curve_lines(report: Report, spec: dict[str, Any]) -> dict[str, Source]:
    """The lines of a curve: as stated, or the rows of a table in one column."""
    if "lines" in spec:
        return {label: _named(report, reference, "grid") for label, reference in spec["lines"].items()}
    if spec["table"] not in report.tables:
        raise UserError(f"table {spec['table']!r} is not defined; known: {', '.join(report.tables)}")
    layout = table_layout(report, spec["table"])
    if layout.kind in BY_NFE and "column" in spec:
        raise UserError(f"table {spec['table']!r} is of one model, and a curve shows all of its rows; leave column out")
    if layout.kind in BY_NFE:
        return {row: dataclasses.replace(source, nfe=None) for row, cells in layout.rows.items()
                for source in cells if source is not None and source.kind == "grid"}  # fmt: skip
    if "column" not in spec:
        raise UserError(f"key 'column' is missing; {spec['table']} has {', '.join(layout.columns)}")
    if spec["column"] not in layout.columns:
        raise UserError(f"column {spec['column']!r} is not in {spec['table']}; it has {', '.join(layout.columns)}")
    index = layout.columns.index(spec["column"])
    return {row: source for row, cells in layout.rows.items() if (source := cells[index]) is not None}


# References -----------------------------------------------------------------------------------------------------------


def _labels(references: list[str] | dict[str, str]) -> dict[str, str]:
    return references if isinstance(references, dict) else {reference: reference for reference in references}


def _models(report: Report, references: str | list[str] | dict[str, str]) -> dict[str, str]:
    """References to models by label; a word stands for the models of every experiment that the chain trains."""
    if not isinstance(references, str):
        return _labels(references)
    found = [f"{role}/{model}" if role else model for role, experiment in report.experiments.items()
             for model in experiment.group(references) if model in experiment.models]  # fmt: skip
    return _labels(found)


def _model(report: Report, reference: str) -> Source:
    experiment, model = report.refer(reference)
    if model not in experiment.all_models:
        raise UserError(f"model {reference!r} is not defined; {experiment.name} has {', '.join(experiment.all_models)}")
    return Source("model", experiment, model)


def _trained(report: Report, reference: str, what: str) -> Source:
    source = _model(report, reference)
    if source.model not in source.experiment.models:
        raise UserError(f"{what}: {source.model} is pretrained and has no configuration here")
    return source


def _named(report: Report, reference: str, kind: str) -> Source:
    experiment, model, name = report.refer_to_grid(reference)
    sections: dict[str, Mapping[str, Any]] = {
        "grid": experiment.grids, "search": experiment.searches, "sheet": experiment.sheets,
        "analysis": experiment.analyses,
    }  # fmt: skip
    entries = sections[kind]
    if name not in entries:
        raise UserError(f"{kind} {name!r} is not defined; {experiment.name} has {', '.join(entries) or 'none'}")
    models = getattr(entries[name], "models", None) or entries[name].samplers
    if model not in models:
        raise UserError(f"{kind} {name!r} of {experiment.name} is not made for model {model!r}")
    return Source(kind, experiment, model, name)


def _if_there(experiment: Experiment, model: str, grid: str | None) -> Source | None:
    if grid is None or grid not in experiment.grids or model not in experiment.grids[grid].points:
        return None
    return Source("grid", experiment, model, grid)


def _nowhere(grid: str, experiments: Iterable[Experiment]) -> str:
    names = list(dict.fromkeys(name for experiment in experiments for name in experiment.grids))
    return f"grid {grid!r} is not defined for any of its models{'' if grid in names else nearest(grid, names)}"
