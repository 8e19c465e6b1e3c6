"""The same numbers as curves in CSV, for `dvc plots`: one row per point, one line per model or grid."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from edm.chain.paths import PLOT_FILES, levels_file
from edm.files.writing import write_text
from edm.params import Report
from edm.params.layouts import metrics_layout
from edm.report.results import Results
from edm.training.curves import read_curves


def write_plots(report: Report, results: Path, runs: Path, models: Path) -> list[Path]:
    """Writes ``results/REPORT/plots/*.csv``, from the existing results; returns the files.

    loss.csv: training loss vs. images seen. levels.csv: error per noise level after training. nfe.csv, churn.csv: the
    distances of the grids of the report's tables that vary NFE or S_churn.
    """
    rows: dict[str, list[tuple]] = {name: [] for name in PLOT_FILES}
    layout, measured = metrics_layout(report), Results(results, runs)
    for line, source in layout.levels.items():
        path = models / Path(levels_file(source.experiment, source.model)).relative_to("models")
        levels = read_curves(path) if path.exists() else {}
        for name, section, x, y in (("loss", "training", "images", "loss"), ("levels", "after", "sigma", "mean")):
            curve = levels.get(section) or {x: [], y: []}
            rows[name] += [(line, *point) for point in zip(curve[x], curve[y], strict=True)]
    for line, source in layout.grids.items():
        points = [repeats.lowest for repeats in measured.of(source.experiment, source.model, source.name)]
        for name, over in (("nfe", lambda m: m.nfe), ("churn", lambda m: m.sampler["S_churn"])):
            if len({over(point) for point in points}) > 1:
                rows[name] += [(line, over(point), point.distance) for point in points]
    written = []
    for name, header in PLOT_FILES.items():
        path = results / report.name / "plots" / f"{name}.csv"
        write_text(path, _csv([("line", *header), *rows[name]]))
        written.append(path)
    return written


def _csv(rows: Iterable[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
