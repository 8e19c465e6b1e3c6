"""Tables and figures say what the results files say."""

import csv
import json
from pathlib import Path

import pytest

import edm
from edm import params
from edm.report.figures import write_figures
from edm.report.results import Results, distances_file
from edm.report.tables import build_table, write_tables

ROOT = Path(__file__).parent.parent


@pytest.fixture
def experiment():
    return params.load(ROOT / "params.yaml").experiment("digits")


def write_result(folder, experiment, model, grid, distances, label="FD (digits-classifier)"):
    points = experiment.grids[grid].points
    path = distances_file(folder, experiment.name, model, grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": p.id, "sampler": p.sampler.to_dict(), "nfe": p.sampler.nfe, "images": 1000, "distance": d}
        for p, d in zip(points, distances, strict=False)
    ]
    record = {
        "format": "edm-distances/1", "experiment": experiment.name, "model": model, "grid": grid, "points": rows,
        "metric": {"label": label, "description": "a test"}, "first_seed": 0, "commit": "c0ffee", "dirty": "false",
        "checkpoint": {"sha256": "abc", "dataset_sha256": "def"},
    }  # fmt: skip
    path.write_text(json.dumps(record))


def test_cells_equal_the_results_files_and_missing_ones_are_dashes(experiment, tmp_path):
    for rung, distance in zip("ABCDE", (5.125, 4.25, 3.5, 3.0, 2.0), strict=True):
        write_result(tmp_path, experiment, f"vp-{rung}", "ladder", [distance])
    write_tables(experiment, tmp_path)
    text = (tmp_path / "digits" / "tables" / "table2.md").read_text()
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line.startswith("|")
    }
    assert [rows[rung] for rung in "ABCDEF"] == ["5.12", "4.25", "3.50", "3.00", "2.00", "–"]
    assert "NFE 35" in text and "This is not FID" in text
    lines = list(csv.DictReader((tmp_path / "digits" / "tables" / "table2.csv").open()))
    assert [float(line["distance"]) for line in lines] == [5.125, 4.25, 3.5, 3.0, 2.0]
    assert lines[0]["commit"] == "c0ffee" and lines[0]["dataset_sha256"] == "def"
    summary = json.loads((tmp_path / "digits" / "metrics.json").read_text())
    assert summary["table2"] == {"A": {"vp": 5.125}, "B": {"vp": 4.25}, "C": {"vp": 3.5}, "D": {"vp": 3.0},
                                 "E": {"vp": 2.0}, "F": {}}  # fmt: skip


def test_table_3_gives_the_least_nfe_within_3_percent_and_table_4_that_of_the_best(experiment, tmp_path):
    write_result(tmp_path, experiment, "vp-A", "heun-edm", [9.0, 2.05, 2.0, 2.5])  # NFE 7, 15, 31, 63
    measured = Results(experiment, tmp_path)
    table3 = build_table(experiment, measured, "table3").rows["+ our schedule & scaling"][0]
    table4 = build_table(experiment, measured, "table4").rows["Deterministic (Algorithm 1)"][0]
    assert (table3.text(True), table4.text(True)) == ("2.00 (15)", "2.00 (31)")


def test_distances_in_different_features_are_not_mixed(experiment, tmp_path):
    write_result(tmp_path, experiment, "vp-A", "ladder", [5.0])
    write_result(tmp_path, experiment, "vp-B", "ladder", [5.0], label="FID")
    with pytest.raises(edm.UserError, match="results in several features"):
        write_tables(experiment, tmp_path)


def test_a_foreign_results_file_is_named(experiment, tmp_path):
    path = distances_file(tmp_path, "digits", "vp-A", "ladder")
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    with pytest.raises(edm.UserError, match=r"ladder\.json: not a file of distances"):
        write_tables(experiment, tmp_path)


def test_figures_are_png_and_svg_and_the_same_bytes_from_the_same_numbers(experiment, tmp_path):
    figures = {name: spec for name, spec in experiment.figures.items() if spec["kind"] in ("curve", "models")}
    experiment = experiment.__class__(**{**experiment.__dict__, "figures": figures})
    write_result(tmp_path, experiment, "vp-A", "heun-edm", [9.0, 4.0, 2.0, 1.9])
    write_result(tmp_path, experiment, "vp-A", "churn-all", [3.0, 2.0, 2.5, 4.0])
    first = {p: p.read_bytes() for p in write_figures(experiment, tmp_path, tmp_path / "runs", tmp_path / "data")}
    second = {p: p.read_bytes() for p in write_figures(experiment, tmp_path, tmp_path / "runs", tmp_path / "data")}
    assert len(first) == 6 and {p.suffix for p in first} == {".png", ".svg"}
    assert first == second
    assert b"our schedule" in first[tmp_path / "digits" / "figures" / "distance-over-nfe.svg"]


def test_no_curve_is_left_out_however_many_there_are(tmp_path):
    experiment = params.load(ROOT / "params.yaml").experiment("digits-full")  # twelve models
    level = {"sigma": [0.1, 1.0], "mean": [0.5, 0.1], "std": [0.1, 0.1], "samples": 2}
    for model in experiment.models:
        path = tmp_path / "runs" / experiment.name / model / "levels.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"before": level, "after": level}))
    experiment = experiment.__class__(**{**experiment.__dict__, "figures": {"levels": {"kind": "levels"}}})
    _, svg = write_figures(experiment, tmp_path, tmp_path / "runs", tmp_path / "data")
    text = svg.read_text()
    assert all(f"<!-- {model} -->" in text for model in experiment.models)
    assert "standard deviation" in text
