"""Tables in the paper's layout: the content of each cell, from the existing results."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from edm.chain.paths import TABLE_FORMATS, analysis_file, search_file
from edm.checked import fits
from edm.errors import UserError, nearest
from edm.evaluation.records import read_search
from edm.files.writing import write_json, write_text
from edm.metrics import TO_TEST
from edm.metrics.jackknife import TELLING
from edm.params import Report
from edm.params.layouts import BY_NFE, EXACT, LIKELIHOOD, ORDERS, metrics_layout, table_layout
from edm.params.sources import WITHIN, Layout, Source
from edm.report import uncertainty
from edm.report.cells import Cell, Table, rounded, with_error
from edm.report.ranking import panel
from edm.report.results import Measurement, Repeats, Results, about_metrics, metric
from edm.report.writers import WRITERS


def write_table(report: Report, name: str, results: Path, runs: Path) -> list[Path]:
    """Writes a table in every format under ``results/REPORT/tables``; returns the files."""
    table = replace(build_table(report, name, Results(results, runs)), of=report.name)
    written = []
    for suffix in TABLE_FORMATS:
        path = results / report.name / "tables" / f"{name}{suffix}"
        write_text(path, WRITERS[suffix](table))
        written.append(path)
    return written


def write_metrics(report: Report, results: Path, runs: Path) -> Path:
    """Writes the lowest distances of every table as one JSON: {table: {row: {column: distance}}}.

    Of a model with several training runs, the mean.
    """
    measured = Results(results, runs)
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, rows in metrics_layout(report).tables.items():
        seen: list[Measurement] = []
        summary[name] = {row: {} for row in rows}
        for row, cells in rows.items():
            for column, source in cells.items():
                if points := measured.over(source):
                    summary[name][row][column] = best(points).value
                    seen += [m for point in points for m in point.every]
        _one_metric(report, name, seen)
    path = results / report.name / "metrics.json"
    write_json(path, summary)
    return path


def _one_metric(report: Report, name: str, seen: list[Measurement]) -> None:
    try:
        metric(seen)
    except UserError as error:
        raise UserError(f"{report.name}, {name}: {error}") from None


def build_table(report: Report, name: str, results: Results) -> Table:
    """One table of params.yaml, filled with the existing results. Raises UserError for results of several metrics."""
    try:
        layout = table_layout(report, name)
        table = _KINDS[layout.kind](layout, results)
    except UserError as error:
        raise UserError(f"{report.name}, {name}: {error}") from None
    notes = [*table.notes, *([layout.note] if layout.note else [])]
    if not layout.paper:
        return replace(table, notes=notes)
    rows = {row: [replace(cell, paper=paper) for cell, paper in zip(cells, layout.paper[row], strict=True)]
            for row, cells in table.rows.items()}  # fmt: skip
    whose = "the published" if layout.kind in BY_NFE else "the paper's"
    doubtful = any(cell.paper and not cell.paper.verified for cells in rows.values() for cell in cells)
    mark = " ° marks values that no source of the paper states." if doubtful else ""
    return replace(table, rows=rows, notes=[*notes, f"Each cell: ours / {whose} / the difference.{mark}"])


def best(rows: list[Repeats]) -> Repeats:
    """The setting with the lowest distance (Table 4)."""
    return min(rows, key=lambda row: row.value)


def least_nfe(rows: list[Repeats], share: float = 1.03) -> Repeats:
    """The setting with the smallest NFE whose distance is within 3 % of the lowest (Table 3, the dots of Figure 2)."""
    limit = share * best(rows).value
    return min((row for row in rows if row.value <= limit), key=lambda row: row.nfe)


def _measured(layout: Layout, results: Results, nfe: Callable[[str, list[Repeats]], int | None]) -> Table:
    """A table of distances: each cell is the lowest of a grid. nfe: of a row, the setting whose NFE it shows."""
    partial: list[str] = []
    settings: list[str] = []
    seen: list[Measurement] = []
    chosen: dict[tuple[str, str], str] = {}

    def cell(source: Source | None, row: str, column: str) -> Cell:
        if source is None:
            return Cell()
        points = results.over(source)
        if not points:
            return Cell(missing=results.why_missing(source.experiment, source.model, source.name))
        there, wanted = map(sum, zip(*map(results.complete, source.training_runs()), strict=True))
        if there < wanted:
            partial.append(f"{row}, {column}: {there} of {wanted} measurements so far.")
        shown = best(points)
        seen.extend(m for point in points for m in point.every)
        if source.experiment.averages_to_choose(source.model):
            of = source.experiment.name
            chosen.update({(of, m.model): _weights_of(m) for point in points for m in point.every})
        m = shown.lowest
        if len(source.points) > 1:
            settings.append(f"{row}, {column}: {m.point}" if len(layout.columns) > 1 else f"{row}: {m.point}")
        spread = "" if shown.spread is None else f" ± {shown.spread:.2f}"
        return Cell(f"{shown.value:.2f}{spread}", shown.value, nfe(row, points), m.distance, shown.highest.distance,
                    len(shown.all), m, shown.more, all=shown.all, training_runs=len(shown.of_each),
                    spread=shown.spread)  # fmt: skip

    rows = {row: [cell(source, row, column) for column, source in zip(layout.columns, cells, strict=True)]
            for row, cells in layout.rows.items()}  # fmt: skip
    without = [row if not any(sources) else f"{row}, {column}" for row, sources in layout.rows.items()
               for column, source in zip(layout.columns, sources, strict=True) if source is None]  # fmt: skip
    rows = uncertainty.marked(rows)
    corner = "configuration" if layout.kind == "configurations" else "sampler"
    notes = uncertainty.notes(layout.columns, rows)
    notes += [f"{TO_TEST}: the distance of the same images to images held out from training."] * (
        TO_TEST in layout.metrics)  # fmt: skip
    notes += [f"Settings of the lowest distances: {'; '.join(settings)}."] if settings else []
    several = len({of for of, _ in chosen}) > 1
    told = "; ".join(f"{f'{of}/' * several}{model}, {weights}" for (of, model), weights in chosen.items())
    notes += [f"Chosen: {told}."] if chosen else []
    notes += [metric(seen), *about_metrics(seen, layout.metrics), *partial]
    if without and layout.kind in ("configurations", "samplers"):  # of the others, the layout leaves cells free
        named = "; ".join(dict.fromkeys(without))
        notes.append(f"–: not measured, since no grid of the row samples that model: {named}.")
    return Table(layout.name, layout.title, corner, layout.columns, rows, notes, layout.metrics, layout.called)


def _weights_of(measured: Measurement) -> str:
    """The snapshot or the EMA width that a choice took for a model."""
    if measured.ema:
        return f"EMA width {measured.ema['width']:g}"
    return f"the snapshot after {(measured.images_seen or 0) / 1e6:g} Mimg"


def _configurations(layout: Layout, results: Results) -> Table:
    table = _measured(layout, results, lambda row, points: None)
    counts = sorted({cell.measured.nfe for cells in table.rows.values() for cell in cells if cell.measured})
    notes = [f"NFE {', '.join(map(str, counts))}."] if counts else []
    return replace(table, notes=[*notes, *table.notes])


def _samplers(layout: Layout, results: Results) -> Table:
    within = [row for row, rule in layout.nfe.items() if rule == WITHIN]
    pick = lambda row: least_nfe if row in within else best
    table = _measured(layout, results, lambda row, points: pick(row)(points).nfe)
    least, rules = "the least whose distance is within 3 % of the best", "that of the best"
    if within:
        rules = least if len(within) == len(layout.nfe) else f"{rules}; of {', '.join(within)}: {least}"
    return replace(table, notes=[f"Lowest distance on each row's curve; in brackets the NFE: {rules}.", *table.notes])


def _solvers(layout: Layout, results: Results) -> Table:
    """Samplers by number of evaluations (Table S1)."""
    return _measured(layout, results, lambda row, points: None)


def _orders(layout: Layout, results: Results) -> Table:
    """The same, after the claimed order, the measured order and the error of each solver (Table S2)."""
    from edm.analysis.orders import SIGMA_FIRST, SIGMA_LAST, STEPS, measure_order

    own, rows = len(ORDERS), {}
    distances = {row: cells[own:] for row, cells in layout.rows.items()}
    measured = _solvers(replace(layout, columns=layout.columns[own:], rows=distances), results)
    for row, (source, *_) in layout.rows.items():
        assert source is not None  # as edm.params.layouts makes it
        found = measure_order(source.points[0].sampler)
        texts = (str(found.claimed), f"{found.measured:.2f}", f"{found.error:.1e}")
        rows[row] = [*map(Cell, texts), *measured.rows[row]]
    note = (
        f"Orders: without a network, on a mixture of two Gaussians from σ = {SIGMA_FIRST:g} to {SIGMA_LAST:g}, on each "
        f"sampler's own steps, between {STEPS[-2]} and {STEPS[-1]} of them; error: with {STEPS[-1]}."
    )
    return replace(measured, columns=layout.columns, rows=rows, notes=[note, *measured.notes])


def _settings(layout: Layout, results: Results) -> Table:
    """The outcome of a search per column (Table 5)."""
    found, notes = {}, []
    columns = {column: source for cells in layout.rows.values()
               for column, source in zip(layout.columns, cells, strict=True) if source is not None}  # fmt: skip
    for column in layout.columns:
        source = columns[column]
        path = results.results / Path(search_file(source.experiment, source.model, source.name)).relative_to("results")
        if path.exists():
            found[column] = outcome = read_search(path)
            notes.append(f"{column}: {outcome['metric']['label']} {outcome['value']:.4g}, {outcome['method']} search, "
                         f"{outcome['evaluations']} evaluations of {outcome['images']:,} images.")  # fmt: skip
    rows: dict[str, list[Cell]] = {}
    for row, sources in layout.rows.items():
        rows[row] = []
        for column, cell in zip(layout.columns, sources, strict=True):
            if cell is None:
                rows[row].append(Cell())
            elif column not in found:
                rows[row].append(Cell(missing=results.why_not_searched(cell.experiment, cell.model, cell.name)))
            else:
                settings = found[column]["settings"]
                if row not in settings:
                    raise UserError(f"the search of {column} did not vary {row}; delete its outcome and run it again")
                value = settings[row]
                rows[row].append(Cell("∞" if value is None else f"{value:g}", value))
    return Table(layout.name, layout.title, "parameter", layout.columns, rows, notes)


def _likelihood(layout: Layout, results: Results) -> Table:
    """Bits per dimension: the likelihood where stated, the bound from the errors per noise level, and its terms."""
    rows: dict[str, list[Cell]] = {}
    counts: set[int | None] = set()
    spans: set[str] = set()
    exact: dict[str, dict[str, Any]] = {}
    partial: list[str] = []
    for row, sources in layout.rows.items():
        source, rows[row] = sources[-1], []
        assert source is not None
        if layout.columns[0] == EXACT and (first := sources[0]) is not None:
            if there := results.bits_of_runs(first):
                exact[row] = there[0]
                rows[row].append(_mean([one["bits_per_dimension"] for one in there], there[0]["s"]))
                partial += _partial(f"{row}, {EXACT}", len(there), len(first.training_runs()))
            else:
                rows[row].append(Cell(missing=results.why_no_bits(first)))
        found = results.bounds(source)
        if not found:
            missing = results.why_not_trained(source.experiment, source.model)
            rows[row] += [Cell(missing=missing)] * len(LIKELIHOOD)
            continue
        terms = {"bound": "bits"}  # the others are called alike
        each = {name: [getattr(one, terms.get(name, name)) for one in found] for name in LIKELIHOOD}
        errors = {"bound": found[0].s, "diffusion": found[0].s}
        rows[row] += [_mean(each[name], errors.get(name), plain=name not in errors) for name in LIKELIHOOD]
        partial += _partial(f"{row}, bound", len(found), len(source.training_runs()))
        counts.add((results.levels(source) or {}).get("samples"))
        spans |= {f"{one.sigma_min:.3g} to {one.sigma_max:.3g}" for one in found}
    place = layout.columns.index("bound")
    for at in {0, place}:
        known = [value for cells in rows.values() if (value := cells[at].value) is not None]
        for cells in rows.values():
            cells[at] = replace(cells[at], best=len(known) > 1 and cells[at].value == min(known))
    runs = sorted({cell.training_runs for cells in rows.values() for cell in cells if cell.spread is not None})
    notes = [f"±, of a model with several training runs: mean and standard deviation over "
             f"{' or '.join(map(str, runs))} training runs of different seeds."] if runs else []  # fmt: skip
    notes += _notes_of_exact(rows, exact)
    notes += ["Bound: bits per dimension of 8-bit training images, lower is better: an upper bound on −log₂ P in the "
              "mean, and the three terms whose sum it is. No image is sampled."]  # fmt: skip
    if spans:
        images = " or ".join(f"{count:,}" for count in sorted(filter(None, counts)))
        of = f", {images} images at each" if images else ""
        notes.append(f"Noise levels {' or '.join(sorted(spans))}{of}. ±: at most one standard error over images, which "
                     "are the same at all levels.")  # fmt: skip
    return Table(layout.name, layout.title, "model", layout.columns, rows, [*notes, *partial])


def _mean(values: list[float], error: float | None, plain: bool = False) -> Cell:
    """The mean and the spread over training runs, or the value of a single one with its error. plain: without ±."""
    value, several = fmean(values), len(values) > 1
    if not several or plain:
        alone = None if several else error
        return Cell(rounded(value, alone), value, error=alone, training_runs=len(values))
    spread = stdev(values)
    return Cell(with_error(value, spread), value, training_runs=len(values), spread=spread)


def _partial(what: str, there: int, wanted: int) -> list[str]:
    return [f"{what}: {there} of {wanted} training runs so far."] if there < wanted else []


def _notes_of_exact(rows: dict[str, list[Cell]], exact: dict[str, dict[str, Any]]) -> list[str]:
    """The notes on likelihoods; in ``rows``, marks those that cannot be told from the best, image by image."""
    if not exact:
        return []
    best = min(exact, key=lambda row: rows[row][0].value or math.inf)
    comparable = {
        row: one
        for row, one in exact.items()
        if (one["images"], one["dataset_sha256"]) == (exact[best]["images"], exact[best]["dataset_sha256"])
    }
    means = pairs = False
    for row, one in comparable.items():
        if rows[row][0].spread is not None or rows[best][0].spread is not None:
            tied, means = row != best and not uncertainty.means_differ(rows[row][0], rows[best][0]), True
        else:
            apart = [a - b for a, b in zip(one["each"], exact[best]["each"], strict=True)]
            tied = row != best and fmean(apart) < TELLING * stdev(apart) / math.sqrt(len(apart))
            pairs = pairs or row != best
        rows[row][0] = replace(rows[row][0], tied=tied)
    ways = ["by means over training runs"] * means
    ways += ["of two single training runs image by image" if means else "image by image"] * (pairs or not means)
    how = f"|z| below {TELLING}, {', '.join(ways)}"
    told = {
        f"{one['images']:,} images, {one['num_steps']} steps, "
        + ("exact trace" if one["trace"] == "exact" else f"probes: {one['probes']}")
        for one in exact.values()
    }
    spread = max((one["spread"] for one in exact.values() if one["spread"] is not None), default=None)
    over = "" if spread is None else f" Of a single image, the standard error over its probes is at most {spread:.2g}."
    alone = ", of a single training run" if means else ""
    return [f"{EXACT.capitalize()}: bits per dimension by the ODE, with uniform dequantisation, of the images that the "
            f"likelihood names ({'; '.join(sorted(told))}). ±{alone}: one standard error over images. Bold: the "
            f"lowest, and what cannot be told from it ({how}).{over}"]  # fmt: skip


def _study(layout: Layout, results: Results) -> Table:
    """The numbers of studies."""
    from edm.analysis.studies import read_numbers  # loads torch

    rows: dict[str, list[Cell]] = {}
    for row, sources in layout.rows.items():
        rows[row] = []
        for source in filter(None, sources):
            path = Path(analysis_file(source.experiment, source.model, source.name))
            file = results.runs / path.relative_to("runs")
            if not file.exists():
                rows[row].append(Cell(missing=results.why_not_trained(source.experiment, source.model)))
                continue
            found = read_numbers(file, source.experiment.analyses[source.name].kind)
            value = found.get(source.text)
            if not fits(value, float):
                there = [name for name, one in found.items() if fits(one, float)]
                raise UserError(f"{row}: {source.name} gives no number {source.text!r}{nearest(source.text, there)}")
            rows[row].append(Cell(f"{value:.4g}", value))
    return Table(layout.name, layout.title, "study", layout.columns, rows, [])


def _described(layout: Layout, results: Results) -> Table:
    number = lambda text: float(text) if text.replace(".", "", 1).isdigit() else None
    rows = {row: [Cell(source.text, number(source.text)) for source in cells if source is not None]
            for row, cells in layout.rows.items()}  # fmt: skip
    notes = ["As resolved from params.yaml; nothing here is measured."]
    return Table(layout.name, layout.title, "choice", layout.columns, rows, notes)


_KINDS = {"configurations": _configurations, "samplers": _samplers, "cells": _samplers, "settings": _settings,
          "hyperparameters": _described, "networks": _described, "panel": panel,
          "likelihood": _likelihood, "solvers": _solvers, "orders": _orders, "study": _study}  # fmt: skip
