"""Tables, curves and metrics.json of models with several training runs: their mean, their spread, and what it tells."""

import copy
import csv
import io
import json
import statistics
from pathlib import Path

import miniature
import pytest
import yaml
from test_report import FD, cell_of, measure, over_steps, table_of

from edm import params
from edm.chain.jobs import Chain
from edm.params.sources import Source
from edm.report import panels
from edm.report.captions import Captions
from edm.report.cells import rounded
from edm.report.figures import Places, write_figure
from edm.report.results import Results
from edm.report.tables import write_metrics
from edm.report.writers import as_csv, as_html, as_latex, as_markdown

RAW = miniature.raw()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    raw = copy.deepcopy(RAW) | {"experiments": {"digits": copy.deepcopy(RAW["experiments"]["digits"])}}
    raw |= {"pretrained": {}, "reports": {}}
    raw["experiments"]["digits"]["seeds"] = [0, 1, 2]
    for grid in raw["experiments"]["digits"]["grids"].values():
        grid.pop("seeds", None)
    path = tmp_path_factory.mktemp("seeds") / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(path)


@pytest.fixture
def report(loaded):
    return loaded.report("digits")


@pytest.fixture
def places(tmp_path):
    return Places(*(tmp_path / name for name in ("results", "runs", "data", "models")))


def measured(places, report, model, grid, *each, **changes):
    """The results of the training runs of a model, in order: a distance of the only point, or of each step."""
    for name, distances in zip(report.experiments[""].training_runs[model], each, strict=False):
        points = distances if isinstance(distances, dict) else {"only": [distances]}
        measure(places, report.experiments[""], name, grid, points, FD, **changes)


def test_a_cell_is_the_mean_over_the_training_runs_with_their_spread(report, places):
    measured(places, report, "vp-A", "ladder", 5.0, 6.0, 7.0, precision=0.5)
    measured(places, report, "vp-B", "ladder", 4.0)  # the others have not been measured
    cell = cell_of(report, "table2", places, "A", "vp")
    assert (cell.value, cell.spread, cell.training_runs, cell.ours()) == (6.0, 1.0, 3, "6.00 ± 1.00")
    assert cell.measured.model == "vp-A" and cell.measured.distance == 5.0 and cell.more == {"precision": 0.5}
    single = cell_of(report, "table2", places, "B", "vp")
    assert (single.ours(), single.spread) == ("4.00", None)
    notes = table_of(report, "table2", places).notes
    assert "±: mean and standard deviation over 3 training runs of different seeds, at the setting with the " \
           "lowest mean." in notes  # fmt: skip
    assert "B, vp: 1 of 3 measurements so far." in notes


def test_bold_are_all_rows_that_the_spread_cannot_tell_from_the_lowest(report, places):
    """Means 2.0, 2.3 and 3.0, s = 0.2, n = 3: two standard errors are 2 · 0.2 · √(2/3) = 0.327."""
    for rung, mean in (("A", 3.0), ("B", 2.32), ("C", 2.0), ("D", 2.33)):
        measured(places, report, f"vp-{rung}", "ladder", mean - 0.2, mean, mean + 0.2)
    measured(places, report, "vp-E", "ladder", 2.3)  # one training run: with the spread of C, 2 · 0.2 · √(4/3) = 0.46
    table = table_of(report, "table2", places)
    assert [row for row, cells in table.rows.items() if cells[0].best or cells[0].tied] == ["B", "C", "E"]
    assert ("Bold: the lowest of a column, and what cannot be told from it: means differ by less than 2 √(s₁²/n₁ + "
            "s₂²/n₂), a single training run with the other's s.") in table.notes  # fmt: skip
    assert r"less than 2 $\surd$(s$_1$$^2$/n$_1$ + s$_2$$^2$/n$_2$)" in as_latex(table)


def test_a_sweep_is_judged_by_its_means_not_by_one_draw(report, places):
    """The lowest draw is at 4 steps, the lowest mean at 16; 8 steps are within 3 % of it on average only."""
    measured(places, report, "vp-A", "ours", over_steps((4, 1.0), (8, 2.2), (16, 2.1), (32, 9)),
             over_steps((4, 4.0), (8, 2.0), (16, 2.0), (32, 9)),
             over_steps((4, 4.0), (8, 2.0), (16, 1.9), (32, 9)))  # fmt: skip
    three, four = (
        cell_of(report, "table3", places, row, "vp-A") for row in ("+ our schedule & scaling", "Black-box RK45")
    )
    assert three.ours() == f"2.00 ± 0.10 ({2 * 16 - 1})" and four.ours() == "not run"
    measured(places, report, "vp-A", "ours", over_steps((4, 1.0), (8, 2.1), (16, 2.1), (32, 9)),
             over_steps((4, 4.0), (8, 2.0), (16, 2.0), (32, 9)),
             over_steps((4, 4.0), (8, 2.0), (16, 1.9), (32, 9)))  # fmt: skip
    assert cell_of(report, "table3", places, "+ our schedule & scaling", "vp-A").ours() == "2.00 ± 0.10 (15)"


def test_every_format_tells_the_mean_and_csv_how_many_training_runs(report, places):
    measured(places, report, "vp-A", "ladder", 5.0, 6.0, 7.0)
    table = table_of(report, "table2", places)
    assert "6.00 ± 1.00" in as_markdown(table) and r"6.00 $\pm$ 1.00" in as_latex(table)
    assert "mean of 3 training runs; the first: model vp-A," in as_html(table)
    first, second, *_ = csv.DictReader(io.StringIO(as_csv(table)))
    assert (first["ours"], first["training_runs"], first["spread_of_training_runs"], first["model"]) == \
           ("6.0", "3", "1.0", "vp-A")  # fmt: skip
    assert second["training_runs"] == "" and second["missing"] == "not run"


def test_metrics_json_has_the_mean(report, places):
    measured(places, report, "vp-A", "ladder", 5.0, 6.0, 7.0)
    assert json.loads(write_metrics(report, places.results, places.runs).read_text())["table2"]["A"] == {"vp": 6.0}


def test_a_curve_is_the_mean_with_a_band_of_one_standard_deviation(report, places, monkeypatch):
    draws = [2.0, 2.5, 2.7]
    measured(places, report, "vp-A", "churn-all", *({"S_churn=2": [one]} for one in draws))
    drawn = {}
    monkeypatch.setattr(panels, "curves", lambda lines, *_, **__: drawn.update(lines))
    write_figure(report, "figure5b", places)
    mean, spread = statistics.mean(draws), statistics.stdev(draws)
    (point,) = drawn["A: baseline"]
    assert (
        point == pytest.approx((2, mean, mean - spread, mean + spread)) and drawn["F: + non-leaky augmentation"] == []
    )


def test_captions_say_which_spread_it_is(loaded, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    captions = Captions(Chain(loaded))
    assert "± is the standard deviation over training runs of different seeds." in captions.table("digits", "table2")
    assert "shaded one standard deviation over its training runs" in captions.figure("digits", "figure5b")


def test_training_runs_of_a_source_are_those_that_its_grid_evaluates(report):
    digits = report.experiments[""]
    assert [one.model for one in Source("grid", digits, "vp-A", "ours").training_runs()] == ["vp-A", "vp-A@1", "vp-A@2"]
    assert [one.model for one in Source("grid", digits, "vp-A@1", "ours").training_runs()] == ["vp-A@1"]
    assert Results(Path("nowhere")).over(Source("grid", digits, "vp-A", "ours")) == []


@pytest.mark.parametrize("value, s, text", [
    (6.34, 0.068, "6.340"), (328.4, 13.2, "328"), (5.4312, 0.0996, "5.431"), (0.0123, 0.00057, "0.01230"),
    (7.0, 0.0, "7"), (7.12345, None, "7.123"), (7.12345, float("nan"), "7.123"), (1234.5, 120.0, "1234"),
])  # fmt: skip
def test_a_value_has_the_digits_that_its_error_has(value, s, text):
    assert rounded(value, s) == text
