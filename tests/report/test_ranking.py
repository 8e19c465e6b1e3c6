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
from edm.evaluation.records import Bar, Measurement
from edm.metrics.jackknife import GROUPS
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
    assert "**0.9** (1)" in as_markdown(table)
    for write in WRITERS.values():
        assert "0.9" in write(table)


def test_metrics_have_their_own_error_bars_and_distances_are_compared_by_the_same_seeds(report):
    """Shares by √(p (1 − p) / N), scores by their ten parts, distances in any features by the jackknife."""
    noise = [((7 * group) % 20 - 9.5) / 100 for group in range(GROUPS)]
    bar = lambda distance, own: Bar(
        0.05, distance, distance, tuple(distance + x + own * (-1) ** g for g, x in enumerate(noise))
    )
    names = ["distance", "FD (pixels)", "kid", "precision", "memorisation", "inception_score"]
    more = {"FD (pixels)": 4.0, "kid": 0.01, "precision": 0.64, "memorisation": 10.0, "inception_score": 9.0,
            "inception_score_std": 0.3}  # fmt: skip
    found = {}
    for model, distance, own in (("vp-A", 2.0, 0.0), ("vp-B", 2.001, 0.001), ("vp-C", 2.5, 0.001)):
        one = measurement(model, distance, more)
        found[model] = replace(
            one, images=2500, reference="ab", bar=bar(distance, own), more_bars={"FD (pixels)": bar(4, own)}
        )
    found["vp-D"] = replace(found["vp-C"], model="vp-D", distance=3.0, bar=None, few=True, more_bars={})

    class Barred(Made):
        def of(self, experiment, model, grid):
            return [Repeats((found[model],))] if model in found else []

    layout = table_layout(report, "panel")
    layout = replace(
        layout, columns=[*names, "ranks"], rows={row: [cells[0]] * 7 for row, cells in layout.rows.items()}
    )
    table = panel(layout, Barred())
    a, b, c, d, *_ = table.rows.values()
    assert [cell.ours() for cell in a] == [
        "2.000 ± 0.050 (1)", "4.000 ± 0.050 (1)", "0.01 (1)", "0.6400 ± 0.0096 (1)", "10.00 ± 0.60 (1)",
        "9.00 ± 0.10 (1)", "1–1",
    ]  # fmt: skip
    assert [cell.s for cell in d] == [None, None, None, *(cell.s for cell in a[3:6]), None]
    assert [row[0].tied for row in (a, b, c, d)] == [False, True, False, False]
    assert c[0].apart.z > 2 > abs(b[0].apart.z)
    notes = "\n".join(table.notes)
    assert "of distances by the jackknife over 20 groups of seeds; of precision, memorisation √(p (1 − p) / N)" in notes
    assert "of inception_score from 10 parts of the images" in notes
    assert "No error bar: distances of fewer than 13 images per feature, kid." in notes
    assert "Bold too: distances with |z| of the difference from the first below 2." in notes
    assert "**2.001** ± 0.050 (2)" in as_markdown(table)
    errors = {(row["row"], row["column"]): row["s"] for row in csv.DictReader(io.StringIO(as_csv(table)))}
    assert float(errors["A: baseline", "precision"]) == pytest.approx(0.0096)
    assert errors["A: baseline", "kid"] == ""


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
