"""Samplers by number of evaluations and their orders: Tables S1 and S2, Figure S1, published numbers beside ours."""

import json
from pathlib import Path

import pytest
from test_report import FD, cell_of, measure, over_steps, table_of

import edm
from edm import params
from edm.chain.jobs import Chain
from edm.params.layouts import figure_layout, metrics_layout, table_layout, table_spec
from edm.params.sources import plain
from edm.report import panels
from edm.report.captions import Captions
from edm.report.figures import Places, write_figure
from edm.report.lineage import trace
from edm.report.tables import write_metrics
from edm.report.writers import as_csv, as_latex, as_markdown

ROOT = Path(__file__).parents[2]
SHIPPED, MEMBER = "DPM-Solver++(3M), as shipped", "DPM-Solver++(3M), order 3"


@pytest.fixture(scope="module")
def loaded():
    return params.load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def solvers(loaded):
    return loaded.report("solvers")


@pytest.fixture(scope="module")
def digits(loaded):
    return loaded.report("digits-solvers")


@pytest.fixture
def places(tmp_path):
    return Places(*(tmp_path / name for name in ("results", "runs", "data", "models")))


def few(places, report, grid, *pairs, metric=FD, role=""):
    model = "edm" if role else "vp-E"
    measure(places, report.experiments[role], model, f"few-{grid}", over_steps(*pairs), metric)


def test_a_cell_is_the_distance_at_its_number_of_evaluations(digits, places):
    few(places, digits, "unipc-3", (4, 9.0), (5, 8.0), (10, 4.0), (20, 3.5))
    few(places, digits, "heun", (2, 20.0), (5, 5.0))
    table = table_of(digits, "tableS1", places)
    assert table.columns == ["NFE 4", "NFE 5", "NFE 6", "NFE 8", "NFE 10", "NFE 20"]
    assert [cell.value for cell in table.rows["UniPC-3"]] == [9.0, 8.0, None, None, 4.0, 3.5]
    heun = table.rows["Heun"]  # 2 and 5 steps
    assert [cell.value for cell in heun] == [20.0, None, None, None, 5.0, None]
    assert [cell.ours() for cell in heun] == ["20.00", "–", "not run", "not run", "5.00", "not run"]
    assert [cell.best for cell in table.rows["UniPC-3"]] == [True, False, False, False, True, False]
    notes = " ".join(table.notes)
    assert "This is not FID" in notes and "Settings of the lowest" not in notes
    assert "UniPC-3, NFE 6: 0 of 1" not in notes  # says "not run"


@pytest.mark.slow
def test_orders_stand_before_the_distances(digits, places):
    few(places, digits, "dpmpp-3m", (5, 8.0), (10, 4.0), (20, 3.5))
    table = table_of(digits, "tableS2", places)
    assert table.columns == ["claimed order", "measured order", "error", "NFE 5", "NFE 10", "NFE 20"]
    shown = {row: [cell.text for cell in cells[:3]] for row, cells in table.rows.items()}
    assert shown[SHIPPED] == ["3", "2.00", "4.1e-07"]
    assert shown[MEMBER] == ["3", "3.02", "6.2e-08"]
    assert shown["iPNDM-4"][:2] == ["4", "2.00"] and shown["UniPC-3"][0] == "4" and shown["Heun"][:2] == ["2", "2.00"]
    assert [cell.text for cell in table.rows[MEMBER][3:]] == ["8.00", "4.00", "3.50"]
    assert any(note.startswith("Orders: without a network") for note in table.notes)
    assert "4.1e-07" in as_markdown(table) and "4.1e-07" in as_csv(table) and "3.02" in as_latex(table)


def test_published_fids_stand_beside_ours(solvers, places):
    few(places, solvers, "ipndm", (5, 13.61), (10, 2.80), metric={"label": "FID", "description": "Inception-v3",
        "dataset_sha256": "d" * 64}, role="cifar10")  # fmt: skip
    cell = cell_of(solvers, "tableS1a", places, "iPNDM-4", "NFE 5")
    assert (cell.value, cell.paper.text, cell.difference) == (13.61, "13.59", "+0.02")
    table = table_of(solvers, "tableS1a", places)
    assert "13.61 / 13.59 / +0.02" in as_markdown(table) and "the paper's" not in as_markdown(table)
    assert any("ours / the published / the difference" in note for note in table.notes)
    assert any("diff-sampler" in note for note in table.notes)
    assert cell_of(solvers, "tableS1b", places, "UniPC-3", "NFE 10").paper.text == "3.84"
    assert cell_of(solvers, "tableS1c", places, "DEIS-tAB3", "NFE 3").paper.text == "44.51"
    assert cell_of(solvers, "tableS1c", places, MEMBER, "NFE 3").paper is None


#: The README of diff-sampler: NFE 5, 6, 8 and 10.
PRINTED = {
    "tableS1a": {
        "Euler": "49.66 35.62 22.32 15.69", "Heun": "- 99.74 38.06 15.93", SHIPPED: "24.97 11.99 4.54 3.00",
        "UniPC-3": "23.98 11.14 3.99 2.89", "DEIS-tAB3": "14.39 9.40 5.55 4.09", "iPNDM-4": "13.59 7.05 3.69 2.77",
        "iPNDM_v-4": "23.58 14.00 7.34 4.95",
    },
    "tableS1b": {
        "Euler": "43.93 35.22 24.39 18.37", SHIPPED: "22.51 13.74 6.04 4.12", "UniPC-3": "21.40 12.85 5.50 3.84",
        "DEIS-tAB3": "17.36 12.25 7.59 5.56", "iPNDM-4": "17.17 10.03 5.52 3.98",
    },
    "tableS1c": {
        "Euler": "43.81 34.03 22.59 16.72", SHIPPED: "25.49 15.06 7.84 5.67", "UniPC-3": "24.36 14.30 7.52 5.53",
        "DEIS-tAB3": "14.75 12.57 6.84 5.34", "iPNDM-4": "18.99 12.92 7.20 5.11",
    },
}  # fmt: skip


@pytest.mark.parametrize("table", PRINTED)
def test_the_published_numbers_are_those_of_the_source(solvers, table):
    layout = table_layout(solvers, table)
    at = [layout.columns.index(f"NFE {nfe}") for nfe in (5, 6, 8, 10)]
    for row, numbers in PRINTED[table].items():
        assert [cell.text if (cell := layout.paper[row][i]) else "-" for i in at] == numbers.split()


def test_every_number_of_evaluations_is_sampled_as_the_published_ones_were(solvers):
    """From 80 to 0.002: EDM's steps for Euler, Heun and iPNDM, else uniform in lambda or in the root of the time."""
    steps = {"few-euler": "edm", "few-heun": "edm", "few-ipndm": "edm", "few-ipndm_v": "edm", "few-deis-tab": "vp-sqrt",
             "few-dpmpp-3m-shipped": "lambda", "few-unipc-3": "lambda"}  # fmt: skip
    for experiment in solvers.experiments.values():
        for grid, discretization in steps.items():
            points = [point.sampler for point in experiment.grids[grid].points["edm"]]
            assert {s.nfe for s in points} >= ({4, 6, 8, 10} if grid == "few-heun" else set(range(3, 11)))
            assert {(s.final, s.discretization, s.sigma_min, s.sigma_max) for s in points} == {
                ("sigma_min", discretization, None, None)
            }
        assert [len(experiment.sampling.seeds(r)) for r in range(experiment.sampling.repeats)] == [50_000]


def test_the_target_needs_no_dataset_and_no_training(loaded):
    chain = Chain(loaded)
    rules = {job.rule for job in chain.needed(chain.targets("solvers"))}
    assert rules == {"download", "published", "evaluate", "table", "figure", "metrics", "about", "track"}


@pytest.fixture
def drawn(monkeypatch):
    """What a figure is told to draw."""
    told = []
    monkeypatch.setattr("edm.report.panels.curves", lambda lines, over, path, written, **how: told.append((lines, how)))
    return told


def test_published_numbers_are_points_beside_the_lines(solvers, places, drawn):
    fid = {"label": "FID", "description": "Inception-v3", "dataset_sha256": "d" * 64}
    few(places, solvers, "ipndm", (5, 13.6), (20, 2.5), metric=fid, role="cifar10")
    write_figure(solvers, "figureS1a", places)
    ((lines, how),) = drawn
    assert lines["iPNDM-4"] == [(5, 13.6, 13.6, 13.6), (20, 2.5, 2.5, 2.5)]  # all points, also those of no column
    assert how["published"]["iPNDM-4"][:2] == [(3, 47.98), (4, 24.82)] and len(how["published"]) == 7
    assert how["published"]["Heun"] == [(4, 319.87), (6, 99.74), (8, 38.06), (10, 15.93)]


def test_published_fids_share_no_axis_with_other_distances(loaded, places, drawn):
    report = loaded.report("rehearsal-solvers")
    few(places, report, "ipndm", (5, 13.6), role="cifar10", metric={**FD, "label": "FD (pixels)"})
    write_figure(report, "figureS1a", places)
    assert drawn[0][1]["published"] == {} and drawn[0][1]["ylabel"] == "FD (pixels), lower is better"


def test_the_figure_marks_published_points_in_the_colour_of_their_line(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **how: shown.append(figure) or Path(args[0]).touch())
    lines = {"a": [(5, 10.0, 9.5, 10.5), (10, 3.0, 2.9, 3.1)], "b": []}
    panels.curves(lines, "nfe", tmp_path / "f", [], published={"a": [(5, 11.0)], "b": [(5, 100.0), (10, 40.0)]})
    axes = shown[0].axes[0]
    ours, published, alone, key = axes.lines
    assert published.get_color() == ours.get_color() and published.get_linestyle() == "None"
    assert published.get_marker() == ours.get_marker() and published.get_markerfacecolor() == ours.get_color()
    assert list(alone.get_ydata()) == [100.0, 40.0] and alone.get_label() == "b"
    assert key.get_label() == "filled: published"
    assert axes.get_yscale() == "log" and axes.get_ylim()[1] > 100  # the published points are within the axis


def test_metrics_hold_the_distances_by_evaluations(digits, places):
    few(places, digits, "unipc-3", (5, 8.0), (10, 4.0))
    found = json.loads(write_metrics(digits, places.results, places.runs).read_text())
    assert found["tableS1"]["few-unipc-3"] == {"NFE 5": 8.0, "NFE 10": 4.0} == found["tableS2"]["few-unipc-3"]
    assert all(source.nfe is None for source in metrics_layout(digits).grids.values())


def test_a_published_number_and_a_setting_of_a_solver_are_in_the_specification(loaded, solvers, digits):
    assert [5, 13.59] in [list(point) for name, points in plain(figure_layout(solvers, "figureS1a"))["published"]
                          for point in points if name == "iPNDM-4"]  # fmt: skip
    assert "published" not in plain(figure_layout(loaded.report("paper"), "figure2a"))
    spec = json.dumps(table_spec(digits, "tableS2"))
    assert '["order", "solver=ipndm, order=4, final=sigma_min"]' in spec and '["num_steps=20"]' in spec


def test_captions_say_what_the_columns_are_and_do_not_credit_the_paper(loaded):
    captions = Captions(Chain(loaded))
    text = captions.table("solvers", "tableS1a") + captions.table("solvers", "tableS2")
    assert "each column a number of network evaluations" in text and "the order that its authors claim" in text
    assert text.count("The paper has no such table.") == 2 and "of the paper" not in text


@pytest.mark.slow
def test_no_file_is_behind_an_order(loaded, digits, places, monkeypatch):
    monkeypatch.chdir(places.results.parent)
    few(places, digits, "ipndm", (5, 8.0))
    with pytest.raises(edm.UserError, match="tableS2, Heun, error: no file is behind it; `edm orders` measures it"):
        trace(loaded, "digits-solvers/tableS2", "Heun", "error")
