"""The same numbers as curves in CSV, for `dvc plots`: one row per point, one line per model or grid."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from edm.chain.paths import PLOT_FILES, levels_file
from edm.chain.rules import trained_models
from edm.files.writing import read_json, write_text
from edm.params import Report
from edm.params.layouts import table_layout
from edm.report.results import Results


def write_plots(report: Report, results: Path, runs: Path, models: Path) -> list[Path]:
    """Writes ``results/REPORT/plots/*.csv``, as far as there are results; returns the files.

    loss.csv: training loss over images seen. levels.csv: error per noise level after training. nfe.csv, churn.csv: the
    distances of the grids of the report's tables that vary NFE or S_churn.
    """
    rows: dict[str, list[tuple]] = {name: [] for name in PLOT_FILES}
    for experiment, model in trained_models(report):
        path = models / Path(levels_file(experiment, model)).relative_to("models")
        levels, line = (read_json(path), _name(report, experiment, model)) if path.exists() else ({}, "")
        for name, section, x, y in (("loss", "training", "images", "loss"), ("levels", "after", "sigma", "mean")):
            curve = levels.get(section, {x: [], y: []})
            rows[name] += [(line, *point) for point in zip(curve[x], curve[y], strict=True)]
    measured, seen = Results(results, runs), set()
    sources = (source for table in report.tables for source in table_layout(report, table).sources())
    for source in sources:
        where = (source.experiment.name, source.model, source.name)
        if source.kind != "grid" or where in seen:
            continue
        seen.add(where)
        points = [repeats.lowest for repeats in measured.of(source.experiment, source.model, source.name)]
        line = f"{_name(report, source.experiment, source.model)} {source.name}"
        for name, over in (("nfe", lambda m: m.nfe), ("churn", lambda m: m.sampler["S_churn"])):
            if len({over(point) for point in points}) > 1:
                rows[name] += [(line, over(point), point.distance) for point in points]
    written = []
    for name, header in PLOT_FILES.items():
        path = results / report.name / "plots" / f"{name}.csv"
        write_text(path, _csv([("line", *header), *rows[name]]))
        written.append(path)
    return written


def _name(report: Report, experiment, model: str) -> str:
    role = next(role for role, one in report.experiments.items() if one.name == experiment.name)
    return f"{role}/{model}" if role else model


def _csv(rows: Iterable[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
