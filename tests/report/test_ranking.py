"""The panel of metrics: ranks, and what it says of metrics that order the models differently."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import miniature
import pytest
import yaml

import edm
from edm import params
from edm.evaluation.records import Measurement
from edm.params.layouts import metrics_layout, table_layout
from edm.report.ranking import disagreements, kendall, orders, panel, ranks
from edm.report.results import Repeats
from edm.report.writers import WRITERS, as_csv, as_markdown

ROOT = Path(__file__).parents[2]
VALUES = {"vp-A": {"density": 0.5, "kid": 0.003}, "vp-B": {"density": 0.7, "kid": 0.001},
          "vp-C": {"density": 0.9, "kid": 0.002}}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    raw = miniature.raw()
    raw["experiments"] = {name: raw["experiments"][name] for name in ("digits", "digits-metrics")}
    raw |= {"reports": {}, "pretrained": {}, "run": ["digits-metrics"]}
    raw["experiments"]["digits-metrics"]["tables"]["panel"]["metrics"] = ["distance", "kid", "density"]
    path = tmp_path_factory.mktemp("panel") / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(path).report("digits-metrics")


def measurement(model, distance, more):
    settings = {"density": {"k": 5}}
    return Measurement(
        model, "ladder", "num_steps=18", 0, distance, 35, 1000, 0, {}, "FD (digits-classifier)", "a classifier",
        None, None, "ab", None, None, more, settings, 1797,
    )  # fmt: skip


DISTANCES = {"vp-A": [8.0], "vp-B": [3.0, 2.0], "vp-C": [1.0]}


class Made:
    """Results of three models, of which the second has two repeats."""

    def of(self, experiment, model, grid):
        assert grid == "ladder"
        shift = lambda at: {name: value + at for name, value in VALUES.get(model, {}).items()}
        # The lowest distance of B is that of its second repeat.
        draws = [measurement(model, distance, shift(len(DISTANCES[model]) - 1 - at))
                 for at, distance in enumerate(DISTANCES.get(model, []))]  # fmt: skip
        return [Repeats(tuple(draws))] if draws else []

    def why_missing(self, experiment, model, grid):
        return "training failed"


def test_ranks_and_orders():
    assert ranks([3.0, None, 1.0, 3.0], lower=True) == [2, None, 1, 2]
    assert ranks([3.0, None, 1.0, 3.0], lower=False) == [1, None, 3, 1]
    one, other = orders([1, 2, 3], lower=True), orders([1, 2, 3], lower=False)
    assert (kendall(one, one), kendall(one, other)) == (1, -1)
    assert kendall(one, orders([1, 3, 2], lower=True)) == pytest.approx(1 / 3)
    assert kendall(one, orders([None, None, 2], lower=True)) is None


def test_a_panel_has_the_metrics_of_one_draw_per_model_with_ranks_and_says_where_they_disagree(report):
    layout = table_layout(report, "panel")
    table = panel(layout, Made())
    assert table.columns == ["distance", "kid", "density", "ranks"]
    assert {row: [cell.ours() for cell in cells] for row, cells in table.rows.items()} == {
        "A: baseline": ["8 (3)", "0.003 (3)", "0.5 (3)", "3–3"],
        "B: + adjusted hyperparameters": ["2 (2)", "0.001 (1)", "0.7 (2)", "1–2"],
        "C: + redistributed capacity": ["1 (1)", "0.002 (2)", "0.9 (1)", "1–2"],
        **dict.fromkeys(
            ("D: + our preconditioning", "E: + our loss", "F: + non-leaky augmentation"), ["training failed"] * 4
        ),
    }
    assert [cell.best for cell in table.rows["C: + redistributed capacity"]] == [True, False, True, False]
    notes = " ".join(table.notes)
    assert "All metrics of a row are of the draw with the lowest distance." in table.notes
    assert "lower is better of distance, kid, higher of the others" in notes
    assert "Kendall's τ with the order by distance (1: the same, −1: the reverse): kid 0.33, density 1.00." in notes
    told = "B before C by kid, the reverse by distance, density"
    assert f"The metrics disagree on 1 of 3 pairs of rows: {told}." in notes
    assert "density (k = 5): balls of the reference with an image, over k" in notes
    assert "Neighbours: 1,000 images against 1,797 training images." in notes
    assert "features: a classifier" in notes


def test_every_format_has_the_panel_and_the_csv_names_each_metric(report):
    table = panel(table_layout(report, "panel"), Made())
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    found = {(row["row"], row["column"]): (row["ours"], row["metric"]) for row in rows}
    assert found["C: + redistributed capacity", "density"] == ("0.9", "density")
    assert found["C: + redistributed capacity", "distance"] == ("1.0", "FD (digits-classifier)")
    assert found["A: baseline", "ranks"] == ("3–3", "")
    assert "**0.9 (1)**" in as_markdown(table)
    for write in WRITERS.values():
        assert "0.9" in write(table)


def test_many_disputes_are_counted_and_the_closest_are_named():
    rows = [f"m{i}" for i in range(6)]
    columns = {"distance": [1, 2, 3, 4, 5, 6], "kid": [6, 5, 4, 3, 2, 1]}
    _, told = disagreements(rows, columns)
    assert told.startswith("The metrics disagree on 15 of 15 pairs of rows: m0 before m1 by distance, the reverse by")
    assert told.endswith("; and 10 more.")
    assert disagreements(rows, {"distance": columns["distance"]}) == []


def test_the_headline_number_of_a_model_is_its_distance(report):
    (cells,) = {tuple(cells) for cells in metrics_layout(report).tables["panel"].values()}
    assert cells == ("distance",)


def test_a_metric_that_is_not_measured_is_no_column(report):
    spec = {**report.tables["panel"], "metrics": ["distance", "densiti"]}
    with pytest.raises(edm.UserError, match="metric 'densiti' is not measured; did you mean 'density'"):
        table_layout(replace(report, tables={"panel": spec}), "panel")
