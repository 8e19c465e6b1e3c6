"""Tables and figures say what the results files say, and why a number is not there."""

import csv
import io
import json
import math
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import miniature
import numpy as np
import pytest
import torch
import yaml

import edm
from edm import params
from edm.chain import paths as chain
from edm.files.tensors import save_tensors
from edm.files.writing import write_json
from edm.params.layouts import figure_layout
from edm.report import results as results_module
from edm.report.figures import Places, write_figure
from edm.report.results import Results
from edm.report.tables import Cell, Table, build_table, write_metrics, write_table
from edm.report.writers import as_csv, as_html, as_latex, as_markdown
from edm.tracking import Journal

ROOT = Path(__file__).parents[2]
FD = {"label": "FD (digits-classifier)", "description": "a test", "dataset_sha256": "d" * 64}
FID = {"label": "FID", "description": "Inception-v3", "dataset_sha256": "d" * 64}


@pytest.fixture(scope="module")
def whole():
    return params.load(miniature.path())


@pytest.fixture(scope="module")
def digits(whole):
    return whole.report("digits")


@pytest.fixture(scope="module")
def paper(whole):
    return whole.report("paper")


@pytest.fixture
def places(tmp_path):
    return Places(*(tmp_path / name for name in ("results", "runs", "data", "models")))


def measure(places, experiment, model, grid, distances, metric=FID, nfe=None, **changes):
    """Writes the files of `edm evaluate`. distances: {point: a number per repeat}, None for a repeat that is not there.

    nfe: {point: NFE} where the sampler decides it itself. changes: to every row.
    """
    for evaluation in experiment.evaluations_of(model, grid):
        rows = []
        for point, repeat in evaluation.draws:
            values = distances.get(point.id, [])
            if repeat >= len(values) or values[repeat] is None:
                continue
            seeds = experiment.sampling.seeds(repeat)
            evaluations = nfe[point.id] if nfe else point.sampler.nfe
            run = f"{experiment.name}/{model}/{grid}/{point.id}@{repeat}"
            rows.append({"id": point.id, "repeat": repeat, "first_seed": seeds.start, "run": run,
                         "sampler": point.sampler.to_dict(), "images": len(seeds), "nfe": evaluations,
                         "distance": values[repeat], **changes})  # fmt: skip
        if rows:
            record = {
                "format": "edm-distances/2", "experiment": experiment.name, "model": model, "grid": grid,
                "evaluation": evaluation.name, "settings": None, "metric": metric, "more": [], "points": rows,
                "checkpoint": {"path": "model.safetensors", "sha256": "abc123" * 8, "dataset_sha256": "d" * 64},
                "commit": "c0ffee" * 6, "dirty": "false",
            }  # fmt: skip
            write_json(result_file(places, evaluation), record)


def result_file(places, evaluation):
    return places.results / Path(chain.evaluation_file(evaluation)).relative_to("results")


def over_steps(*pairs):
    """{number of steps: distance} as points of a grid over steps, of one repeat."""
    return {f"num_steps={steps}": [value] for steps, value in pairs}


def table_of(report, name, places):
    return build_table(report, name, Results(places.results, places.runs))


def cell_of(report, name, places, row, column):
    table = table_of(report, name, places)
    return table.rows[row][table.columns.index(column)]


# What stands in a cell ------------------------------------------------------------------------------------------------


def test_a_row_that_no_grid_measures_has_a_note(tmp_path, places):
    raw = miniature.raw()
    raw["experiments"]["digits"]["grids"]["ladder"]["models"] = ["vp-A", "vp-F"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    report = params.load(tmp_path / "params.yaml").report("digits")
    measure(places, report.experiments[""], "vp-A", "ladder", {"only": [5.0]}, FD)
    table = table_of(report, "table2", places)
    assert table.rows["B"][0].ours() == "–" and table.rows["F"][0].ours() == "not run"
    assert "–: not measured, since no grid of the row samples that model: B; C; D; E." in table.notes


def test_cells_equal_the_results_files(digits, places):
    experiment = digits.experiments[""]
    for rung, distance in zip("ABCDE", (5.125, 4.25, 3.5, 3.0, 2.0), strict=True):
        measure(places, experiment, f"vp-{rung}", "ladder", {"only": [distance]}, FD)
    table = table_of(digits, "table2", places)
    assert {row: cells[0].value for row, cells in table.rows.items()} == {
        "A": 5.125, "B": 4.25, "C": 3.5, "D": 3.0, "E": 2.0, "F": None,
    }  # fmt: skip
    assert table.rows["B"][0].ours() == "4.25" and table.rows["F"][0].ours() == "not run"
    assert "NFE 35." in table.notes and any("This is not FID" in note for note in table.notes)


def test_table_3_gives_the_least_nfe_within_3_percent_of_the_lowest_and_table_4_that_of_the_best(digits, places):
    """Except for the first row of Table 4, which repeats Table 3."""
    distances = over_steps((4, 2.07), (8, 2.06), (16, 2.0), (32, 2.5))
    measure(places, digits.experiments[""], "vp-A", "ours", distances, FD)
    churned = {f"S_churn={value}": [distance] for value, distance in ((2, 2.01), (4, 2.0))}
    measure(places, digits.experiments[""], "vp-A", "churn", churned, FD, nfe={"S_churn=2": 40, "S_churn=4": 63})
    first = "Deterministic (Algorithm 1)"
    table3 = cell_of(digits, "table3", places, "+ our schedule & scaling", "vp-A")
    table4 = cell_of(digits, "table4", places, first, "vp-A")
    assert (table3.value, table3.nfe) == (2.0, 15)  # 8 steps; 4 of them, NFE 7, are 3.5 % above
    assert (table4.value, table4.nfe) == (2.0, 15)
    below = cell_of(digits, "table4", places, "Algorithm 2, all noise levels, S_noise = 1", "vp-A")
    assert (below.value, below.nfe) == (2.0, 63)
    assert (
        f"that of the best; of {first}: the least whose distance is within 3 % of the best."
        in (table_of(digits, "table4", places).notes[0])
    )


def test_an_adaptive_solver_is_shown_with_the_nfe_that_it_took(digits, places):
    distances = {"tolerance=0.1": [4.0], "tolerance=0.01": [3.0], "tolerance=0.001": [2.99]}
    taken = {"tolerance=0.1": 40, "tolerance=0.01": 61, "tolerance=0.001": 118}
    measure(places, digits.experiments[""], "vp-A", "rk45", distances, FD, nfe=taken)
    assert cell_of(digits, "table3", places, "Black-box RK45", "vp-A").ours() == "2.99 (61)"


def test_the_lowest_of_the_repeats_is_reported_with_its_origin_and_the_range(paper, places):
    measure(places, paper.experiments["cond"], "vp-F", "ladder", {"only": [1.85, 1.7903, 1.82]})
    cell = cell_of(paper, "table2", places, "F", "cond. VP")
    assert cell.ours() == "1.79 [1.79–1.85]"
    assert (cell.value, cell.low, cell.high, cell.repeats) == (1.7903, 1.7903, 1.85, 3)
    assert (cell.measured.repeat, cell.measured.first_seed) == (1, 50_000)
    assert cell.measured.run == "cifar10-cond/vp-F/ladder/only@1"
    assert any("lowest of the repeats is reported" in note for note in table_of(paper, "table2", places).notes)


def test_the_best_setting_is_the_one_whose_lowest_repeat_is_lowest(paper, places):
    distances = {"num_steps=18": [2.99, 2.93, 2.95], "num_steps=24": [2.94, 2.94, 2.94]}
    measure(places, paper.experiments["uncond"], "vp-A", "ours", distances)
    cell = cell_of(paper, "table4", places, "Deterministic (Algorithm 1)", "CIFAR-10 VP")
    assert cell.ours() == "2.93 [2.93–2.99] (35)" and cell.paper.shown() == "2.93 (35)"


def test_the_papers_number_and_the_difference_stand_beside_ours(paper, places):
    measure(places, paper.experiments["uncond"], "vp-A", "original", {"num_steps=256": [3.0, 3.1, 3.2]})
    measure(places, paper.experiments["uncond"], "ve-A", "euler", {"num_steps=8192": [4.5, 4.5, 4.5]})
    cell = cell_of(paper, "table3", places, "Original sampler", "CIFAR-10 VP")
    assert (cell.paper.value, cell.paper.nfe, cell.paper.verified, cell.difference) == (2.85, 256, True, "+0.15")
    cell = cell_of(paper, "table3", places, "Our reimplementation", "CIFAR-10 VE")
    assert (cell.paper.shown(), cell.difference) == ("4.78 (8192)", "-0.28")


def test_another_distance_than_fid_is_not_subtracted_from_the_papers(paper, places):
    metric, distances = {**FID, "label": "FD (pixels)"}, {"num_steps=256": [3.0, 3.1, 3.2]}
    measure(places, paper.experiments["uncond"], "vp-A", "original", distances, metric)
    cell = cell_of(paper, "table3", places, "Original sampler", "CIFAR-10 VP")
    assert cell.paper.text == "2.85" and cell.difference == ""


def test_partial_repeats_and_points_are_shown_and_noted(paper, places):
    experiment = paper.experiments["cond"]
    measure(places, experiment, "vp-F", "ladder", {"only": [None, 1.82, None]})
    measure(
        places, paper.experiments["uncond"], "vp-A", "ours", {"num_steps=18": [3.0, 3.1, 3.2], "num_steps=4": [90.0]}
    )
    assert cell_of(paper, "table2", places, "F", "cond. VP").ours() == "1.82"
    assert "F, cond. VP: 1 of 3 measurements so far." in table_of(paper, "table2", places).notes
    notes = table_of(paper, "table3", places).notes
    assert "+ our schedule & scaling, CIFAR-10 VP: 4 of 51 measurements so far." in notes  # 17 settings, three times


def test_a_complete_grid_has_no_note(paper, places):
    measure(places, paper.experiments["cond"], "vp-F", "ladder", {"only": [1.79, 1.82, 1.81]})
    assert not any("so far" in note for note in table_of(paper, "table2", places).notes)


def test_further_metrics_have_columns_of_their_own_where_a_table_asks_for_them(digits, places):
    experiment = digits.experiments[""]
    measure(places, experiment, "vp-A", "ladder", {"only": [5.0]}, FD, kid=0.0125, more={"dinov2-vit-b-14": 77.25})
    measure(places, experiment, "vp-B", "ladder", {"only": [4.0]}, FD)
    spec = {**digits.tables["table2"], "metrics": ["kid", "FD (dinov2-vit-b-14)"]}
    table = table_of(replace(digits, tables={"table2": spec}), "table2", places)
    rows = markdown_rows(as_markdown(table))
    assert rows[0] == ["configuration", "vp", "vp kid", "vp FD (dinov2-vit-b-14)"]
    assert rows[1] == ["A: baseline", "5.00", "0.0125", "77.25"]
    assert rows[2] == ["B: + adjusted hyperparameters", "**4.00**", "–", "–"]
    lines = list(csv.DictReader(io.StringIO(as_csv(table_of(digits, "table2", places)))))
    assert (lines[0]["kid"], lines[0]["FD (dinov2-vit-b-14)"], lines[1]["kid"]) == ("0.0125", "77.25", "")


# What is not there ----------------------------------------------------------------------------------------------------

KEY = "cifar10-cond/vp-F"
EVALUATION = f"{KEY}/distances/ladder/only@1.journal.jsonl"
TRAINING = f"{KEY}/journal.jsonl"


def journal(places, path, end, key=KEY):
    """A run as a job leaves it: finished, failed, killed, or still open."""
    run = Journal(places.runs / path).run(key, params={"images": 50_000})
    run.metrics({"distance": 2.0}, step=1)
    if end == "failed":
        with suppress(RuntimeError), run:
            raise RuntimeError("out of memory")
    elif end == "killed":
        with suppress(KeyboardInterrupt), run:
            raise KeyboardInterrupt
    elif end == "finished":
        run.finish()


@pytest.mark.parametrize(
    "runs, why",
    [
        ({}, "not run"),
        ({TRAINING: "open"}, "training"),
        ({TRAINING: "failed"}, "training failed"),
        ({TRAINING: "killed"}, "training interrupted"),
        ({TRAINING: "finished"}, "not run"),
        ({TRAINING: "finished", EVALUATION: "open"}, "running"),
        ({TRAINING: "finished", EVALUATION: "failed"}, "failed"),
        ({TRAINING: "finished", EVALUATION: "killed"}, "interrupted"),
        ({TRAINING: "finished", EVALUATION: "finished"}, "not run"),  # measured once, and its file deleted
        ({TRAINING: "finished", EVALUATION: "failed", EVALUATION.replace("@1", "@2"): "open"}, "failed"),
        ({f"{KEY}/distances/nfe/num_steps=4@0.journal.jsonl": "failed"}, "not run"),  # another grid's
    ],
)
def test_a_missing_cell_says_why(paper, places, runs, why):
    for path, end in runs.items():
        journal(places, path, end)
    assert cell_of(paper, "table2", places, "F", "cond. VP").missing == why
    assert cell_of(paper, "table2", places, "E", "cond. VP").missing == "not run"


def test_a_job_that_failed_and_runs_again_is_running(paper, places):
    journal(places, EVALUATION, "failed")
    journal(places, EVALUATION, "open")
    assert cell_of(paper, "table2", places, "F", "cond. VP").missing == "running"


@pytest.mark.parametrize("path, why", [(EVALUATION, "interrupted"), (TRAINING, "training interrupted")])
def test_a_job_that_has_said_nothing_for_a_day_counts_as_interrupted(paper, places, monkeypatch, path, why):
    """A node that goes down writes no farewell."""
    journal(places, path, "open")
    now = results_module.time.time()
    monkeypatch.setattr(results_module.time, "time", lambda: now + 2 * 86_400)
    assert cell_of(paper, "table2", places, "F", "cond. VP").missing == why


def test_a_missing_cell_keeps_the_papers_number_and_has_no_difference(paper, places):
    cell = cell_of(paper, "table2", places, "F", "cond. VP")
    assert cell.paper.text == "1.79" and cell.difference == ""
    for text in (as_markdown, as_html):
        assert "not run / 1.79" in text(table_of(paper, "table2", places))


def test_a_cell_that_the_paper_lacks_too_is_a_dash(paper, places):
    cell = cell_of(paper, "table3", places, "+ our schedule & scaling", "ImageNet-64")
    assert cell.ours() == "–" and cell.paper is None


# What does not belong there -------------------------------------------------------------------------------------------


def test_extra_results_change_nothing(digits, paper, places):
    """Points that are no longer in the grid, other models' files, notes and hidden files in the folder."""
    one, other = digits.experiments[""], paper.experiments["uncond"]
    measure(places, one, "vp-A", "ours", over_steps((8, 3.0), (16, 2.5)), FD)
    measure(places, other, "vp-A", "ours", {"num_steps=18": [3.0, 3.1, 3.2]})
    before = [as_csv(table_of(report, "table3", places)) for report in (digits, paper)]

    path = result_file(places, one.evaluation("vp-A", "ours"))
    record = json.loads(path.read_text())
    record["points"] += [{**record["points"][0], "id": "num_steps=999", "distance": 0.1},
                         {**record["points"][0], "repeat": 7, "distance": 0.2}]  # fmt: skip
    path.write_text(json.dumps(record))
    (path.parent / "ours-old.json").write_text(json.dumps(record))
    (path.parent / "notes.json").write_text("[]")
    (path.parent.parent / "vp-Z").mkdir()
    (path.parent.parent / "vp-Z" / "ours.json").write_text("not JSON")
    folder = result_file(places, other.evaluation("vp-A", "ours/num_steps=18@0")).parent
    for name in ("num_steps=999@0.json", "num_steps=18@3.json", "num_steps=18.json", ".num_steps=18@0.json"):
        shutil.copy(folder / "num_steps=18@0.json", folder / name)
    assert [as_csv(table_of(report, "table3", places)) for report in (digits, paper)] == before


def test_a_number_measured_with_other_settings_than_the_grid_now_states_is_not_shown(digits, places):
    experiment = digits.experiments[""]
    measure(places, experiment, "vp-A", "ladder", {"only": [5.0]}, FD)
    measure(places, experiment, "vp-B", "ladder", {"only": [4.0]}, FD)
    (point,) = experiment.grids["ladder"].points["vp-A"]
    changed = replace(point, sampler=replace(point.sampler, rho=5.0))
    grid = replace(experiment.grids["ladder"], points={**experiment.grids["ladder"].points, "vp-A": (changed,)})
    now = replace(experiment, grids={**experiment.grids, "ladder": grid})
    report = replace(digits, experiments={"": now})
    assert cell_of(report, "table2", places, "A", "vp").missing == "not run"
    assert cell_of(report, "table2", places, "B", "vp").value == 4.0


def test_settings_that_a_search_filled_in_belong_to_the_grid(paper, places):
    experiment = paper.experiments["uncond"]
    point = experiment.grids["stochastic-noise"].points["vp-A"][0]
    found = {**point.sampler.to_dict(), "S_churn": 20.0}
    measure(places, experiment, "vp-A", "stochastic-noise", {point.id: [2.5, 2.6, 2.7]}, sampler=found)
    cell = cell_of(paper, "table4", places, "Algorithm 2, all noise levels", "CIFAR-10 VP")
    assert cell.value == 2.5 and cell.measured.sampler["S_churn"] == 20.0


def test_distances_in_different_features_are_not_mixed(digits, places):
    experiment = digits.experiments[""]
    measure(places, experiment, "vp-A", "ladder", {"only": [5.0]}, FD)
    measure(places, experiment, "vp-B", "ladder", {"only": [5.0]}, FID)
    with pytest.raises(edm.UserError, match=r"digits, table2: results in several features \(FD .*, FID\)"):
        write_table(digits, "table2", places.results, places.runs)
    assert not (places.results / "digits").joinpath("tables").exists()


@pytest.mark.parametrize("text", ["[]", '{"format": "edm-distances/1", "points": []}', '{"points": []}'])
def test_a_foreign_results_file_in_place_of_ours_is_named(digits, places, text):
    path = result_file(places, digits.experiments[""].evaluation("vp-A", "ladder"))
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(edm.UserError, match=r"ladder\.json: not a file of distances \(its format is .*\); delete it"):
        write_table(digits, "table2", places.results, places.runs)


# Four formats, the same numbers ---------------------------------------------------------------------------------------


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [
        [cell.strip().replace("\\|", "|").replace("\\<", "<") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    assert all(set(cell) <= {"-", ":"} for cell in rows[1])
    return [rows[0], *rows[2:]]


#: LaTeX's spelling of a text, and back.
LATEX = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"$^\circ$": "°",
         r"$\infty$": "∞", r"$\mid$": "|", r"$\sigma$": "σ", r"$\rho$": "ρ", r"$\le$": "≤", r"\'e": "é",
         "--": "–"} | {f"\\{letter}": letter for letter in "&%$#_{}"}  # fmt: skip


def from_latex(text):
    pattern = "|".join(re.escape(command) for command in sorted(LATEX, key=len, reverse=True))
    return re.sub(pattern, lambda match: LATEX[match[0]], text)


def latex_rows(text):
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
    return [[from_latex(cell) for cell in re.split(r"(?<!\\) & ", line)] for line in lines]


class Page(HTMLParser):
    """Rows of cells, their titles, and the items of lists; asserts that elements are closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.titles, self.items, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.titles.append(dict(attributes).get("title"))
        elif tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "li" in self.open:
            self.items[-1] += data


@pytest.fixture
def mixed(paper, places):
    """Table 3 with what a table can hold: repeats, one repeat, a failed cell, one that the paper lacks, odd letters."""
    uncond = paper.experiments["uncond"]
    measure(places, uncond, "vp-A", "ours", {"num_steps=18": [2.931, 2.95, 2.97], "num_steps=24": [2.94, 2.96, 2.95]})
    measure(places, uncond, "ve-A", "ours", {"num_steps=14": [3.5], "num_steps=64": [1234.5]})
    measure(places, uncond, "vp-A", "heun", {"num_steps=64": [2.88, 2.88, 2.88], "num_steps=128": [2.8, 2.8, 2.8]})
    journal(places, "imagenet/adm-published/distances/heun/num_steps=40@0.journal.jsonl", "failed")
    spec = {**paper.tables["table3"], "title": r"50 % of {a_b} & $c$ #1 ~x^2 \n <i>é</i> σ|ρ ≤ 3°"}
    return table_of(replace(paper, tables={"table3": spec}), "table3", places)


def test_every_format_says_the_same(mixed):
    bold = {"2.80"}  # the lowest of the only column with two
    marked = [markdown_rows(as_markdown(mixed)), latex_rows(as_latex(mixed))]
    for mark, rows in zip((r"\*\*(.*?)\*\*", r"\\textbf{(.*?)}"), marked, strict=True):
        assert set(re.findall(mark, str(rows).replace("\\\\", "\\"))) == bold
    assert set(re.findall("<b>([0-9.]+)</b>", as_html(mixed))) == bold
    texts = [[cell.replace("**", "") for cell in row] for row in marked[0]]
    assert [[re.sub(r"\\textbf{(.*?)}", r"\1", cell) for cell in row] for row in marked[1]] == texts
    assert Page(as_html(mixed)).rows == texts
    assert texts[0] == ["sampler", "CIFAR-10 VP", "CIFAR-10 VE", "ImageNet-64"]
    assert texts[3] == ["+ Heun & our time steps", "2.80 [2.80–2.80] (127) / 2.88 (255) / -0.08",
                        "not run / 4.23 (191)", "failed / 2.64 (79)"]  # fmt: skip
    assert texts[4] == ["+ our schedule & scaling", "2.93 [2.93–2.97] (35) / 2.93 (35) / +0.00",
                        "3.50 (27) / 3.73 (27) / -0.23", "–"]  # fmt: skip

    lines = list(csv.DictReader(io.StringIO(as_csv(mixed))))
    assert [(line["row"], line["column"]) for line in lines] == [
        (row[0], column) for row in texts[1:] for column in texts[0][1:]
    ]
    for line, text in zip(lines, (cell for row in texts[1:] for cell in row[1:]), strict=True):
        ours, *others = text.split(" / ")
        if line["ours"]:
            assert ours.startswith(f"{float(line['ours']):.2f}") and f"({line['nfe']})" in ours
            assert not line["missing"]
        else:
            assert line["missing"] == ("not in the paper" if ours == "–" else ours)
        if others:
            mark = "" if line["verified"] == "true" else "°"
            assert others[0] == f"{line['paper']} ({line['paper_nfe']}){mark}"
        assert others[1:] == ([line["difference"]] if line["difference"] else [])


def test_csv_keeps_the_numbers_whole_and_where_they_come_from(mixed):
    line = next(line for line in csv.DictReader(io.StringIO(as_csv(mixed))) if line["ours"] == "2.931")
    assert (line["row"], line["column"]) == ("+ our schedule & scaling", "CIFAR-10 VP")
    assert (line["lowest"], line["highest"], line["repeats"]) == ("2.931", "2.97", "3")
    assert (line["nfe"], line["paper"], line["paper_nfe"], line["verified"]) == ("35", "2.93", "35", "true")
    assert (line["model"], line["grid"], line["point"]) == ("vp-A", "ours", "num_steps=18")
    assert (line["images"], line["first_seed"]) == ("50000", "0")
    assert (line["commit"], line["dirty"], line["dataset_sha256"]) == ("c0ffee" * 6, "false", "d" * 64)
    assert line["checkpoint_sha256"] == "abc123" * 8
    assert line["mlflow_run"] == "cifar10-uncond/vp-A/ours/num_steps=18@0"


def test_latex_is_booktabs_with_balanced_braces_and_no_bare_special_letter(mixed):
    text = as_latex(mixed)
    rules = [line for line in text.splitlines() if line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"] and "booktabs" in text.splitlines()[0]
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    columns = re.search(r"\\begin{tabular}{(\w+)}", text)[1]
    for line in text.splitlines()[1:]:
        without = re.sub(r"\\[&%$#_{}]|\$\^?\\[a-z]+\$|\\textascii\w+{}", "", line)
        assert not re.search(r"[%$#_^~]", without), line
        assert without.count("&") == (len(columns) - 1 if line.endswith(r"\\") else 0), line
    caption = re.search(r"\\caption{(.*)}", text)[1]
    assert from_latex(caption) == mixed.title


def test_html_lists_the_origin_of_every_number_and_tells_that_of_every_cell(mixed):
    text = as_html(mixed)
    page = Page(text)
    assert len(page.items) == 3  # two of DDPM++, one of NCSN++
    heun, ours, ve = page.items
    assert ve.startswith("+ our schedule & scaling, CIFAR-10 VE: model ve-A, ours num_steps=14")
    assert ours.startswith("+ our schedule & scaling, CIFAR-10 VP: model vp-A, ours num_steps=18")
    for part in ("50,000 images from seed 0", "NFE 35", "commit c0ffee", "dataset dddd", "checkpoint abc123",
                 "edm.key=cifar10-uncond/vp-A/ours/num_steps=18@0"):  # fmt: skip
        assert part in ours
    cells = [row[1:] for row in page.rows[1:]]
    told = np.array([title for title in page.titles if title is not None]).reshape(5, 3).tolist()
    assert told[3][0] in ours and told[2][0] in heun
    assert [cells[2][2].split(" / ")[0], told[2][2]] == ["failed", "failed"]
    assert told[3][2] == "not in the paper" and told[0] == ["not run"] * 3
    assert "<i>" not in text and "&lt;i&gt;" in text  # the title's letters are letters


def test_uncommitted_changes_are_told(digits, places):
    evaluation = digits.experiments[""].evaluation("vp-A", "ladder")
    measure(places, digits.experiments[""], "vp-A", "ladder", {"only": [5.0]}, FD)
    path = result_file(places, evaluation)
    path.write_text(path.read_text().replace('"dirty": "false"', '"dirty": "true"'))
    table = table_of(digits, "table2", places)
    assert "with uncommitted changes" in as_html(table)
    assert next(csv.DictReader(io.StringIO(as_csv(table))))["dirty"] == "true"


def test_letters_that_a_format_takes_for_its_own_stand_for_themselves():
    odd = r"p(y|x) < 1 & 2 > <b> 50 % $x_{a}^b$ #~\n"
    table = Table("t", odd, odd, [odd], {odd: [Cell(text=odd)]}, [odd])
    assert (
        markdown_rows(as_markdown(table)) == latex_rows(as_latex(table)) == Page(as_html(table)).rows == [[odd] * 2] * 2
    )
    assert next(csv.DictReader(io.StringIO(as_csv(table))))["ours"] == odd


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5", "table7", "table8", "imagenet"])
def test_every_table_of_the_paper_is_written_in_every_format_from_nothing(paper, places, name):
    files = write_table(paper, name, places.results, places.runs)
    assert [file.name for file in files] == [f"{name}{suffix}" for suffix in (".md", ".csv", ".tex", ".html")]
    markdown, table, latex, html = (file.read_text(encoding="utf-8") for file in files)
    assert markdown_rows(markdown) == latex_rows(latex) == Page(html).rows
    lines = list(csv.DictReader(io.StringIO(table)))
    assert len(lines) == sum(len(row) - 1 for row in markdown_rows(markdown)[1:])
    measured = name not in ("table7", "table8")
    assert all((line["missing"] != "") == measured for line in lines)
    assert all(line["missing"] in ("not run", "not in the paper") for line in lines if measured)


# Table 5 and the summary ----------------------------------------------------------------------------------------------


def search(places, experiment, model, name, settings, **changes):
    record = {"format": "edm-search/1", "experiment": experiment.name, "model": model, "search": name, "metric": FID,
              "settings": settings, "value": 2.2712, "method": "coordinate", "images": 10_000, "evaluations": 57,
              "converged": True, "checkpoint": {"sha256": "abc123" * 8}, **changes}  # fmt: skip
    path = places.results / Path(chain.search_file(experiment, model, name)).relative_to("results")
    write_json(path, record)
    return path


def test_table_5_is_the_outcome_of_the_searches(paper, places):
    uncond, imagenet = paper.experiments["uncond"], paper.experiments["imagenet"]
    search(places, uncond, "vp-A", "table5", {"S_churn": 30, "S_min": 0.02, "S_max": None, "S_noise": 1.007})
    journal(places, "cifar10-uncond/ve-A/searches/table5.journal.jsonl", "failed")
    journal(places, "imagenet/adm-E/journal.jsonl", "open")
    table = table_of(paper, "table5", places)
    shown = {row: [cell.ours() for cell in cells] for row, cells in table.rows.items()}
    others = ["failed", "not run", "training"]
    assert shown == {"S_churn": ["30", *others], "S_min": ["0.02", *others], "S_max": ["∞", *others],
                     "S_noise": ["1.007", *others]}  # fmt: skip
    assert [cells[0].difference for cells in table.rows.values()] == ["", "+0.01", "differs", ""]
    assert "CIFAR-10 VP: FID 2.271, coordinate search, 57 evaluations of 10,000 images." in table.notes
    assert [cells[3].paper.text for cells in table.rows.values()] == ["40", "0.05", "50", "1.003"]
    search(places, imagenet, "adm-E", "table5-retrained", {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003})
    assert [cells[3].ours() for cells in table_of(paper, "table5", places).rows.values()] == [
        "40",
        "0.05",
        "50",
        "1.003",
    ]


def test_a_foreign_file_in_place_of_a_search_is_named(paper, places):
    search(places, paper.experiments["uncond"], "vp-A", "table5", {}, format="something else")
    with pytest.raises(edm.UserError, match=r"paper, table5: .*table5\.json: not the outcome of a search"):
        table_of(paper, "table5", places)
    search(places, paper.experiments["uncond"], "vp-A", "table5", {"S_churn": "30"})
    with pytest.raises(edm.UserError, match=r"table5\.json: settings\.S_churn is '30'; expected a number from"):
        table_of(paper, "table5", places)
    search(places, paper.experiments["uncond"], "vp-A", "table5", {"S_churn": 30})
    with pytest.raises(edm.UserError, match=r"the search of CIFAR-10 VP did not vary S_min; delete its outcome"):
        table_of(paper, "table5", places)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [("distance", "2.5", "distance is '2.5'; expected a number"), ("distance", -1.0, "distance is -1.0; expected"),
     ("images", [35], "images is a list; expected a whole number"), ("kid", "low", "kid is 'low'; expected a number"),
     ("sampler", {"num_steps": -4}, "sampler is a dictionary; expected the settings of a sampler")],
)  # fmt: skip
def test_a_damaged_measurement_is_named_and_not_shown(digits, places, place, value, told):
    measure(places, digits.experiments[""], "vp-A", "ladder", {"only": [5.0]}, FD, **{place: value})
    with pytest.raises(edm.UserError, match=rf"ladder\.json: .*{told}.*; delete it and run snakemake again"):
        table_of(digits, "table2", places)


def test_damaged_curves_and_studies_are_named_and_not_drawn(drawable, places):
    experiment = drawable.experiments[""]
    levels(places, experiment, "vp-A", height=-1.0)
    with pytest.raises(edm.UserError, match=r"levels\.json: before\.mean\.1 is -1\.0; expected a number"):
        write_figure(drawable, "figure5a", places)
    analysis(places, experiment, "vp-F", "truncation", {}, {"num_steps": 4})
    with pytest.raises(edm.UserError, match=r"truncation\.safetensors: numbers\.curves is missing; delete it"):
        write_figure(drawable, "figure13", places)
    analysis(places, experiment, "vp-F", "degradation", {}, {"sigmas": [1], "repetitions": [0], "S_noise": [1.0]})
    with pytest.raises(edm.UserError, match=r"has no float32 images '1' of the expected size; delete it"):
        write_figure(drawable, "figure14", places)


def test_metrics_json_has_the_lowest_distance_of_every_cell(digits, paper, places):
    experiment = digits.experiments[""]
    measure(places, experiment, "vp-A", "ladder", {"only": [5.125]}, FD)
    measure(places, experiment, "vp-A", "ours", over_steps((8, 2.0), (16, 1.75)), FD)
    path = write_metrics(digits, places.results, places.runs)
    summary = json.loads(path.read_text())
    assert path == places.results / "digits" / "metrics.json"
    assert summary["table2"] == {"A": {"vp": 5.125}, "B": {}, "C": {}, "D": {}, "E": {}, "F": {}}
    assert summary["table3"] == {"original": {}, "euler": {}, "heun": {}, "ours": {"vp-A": 1.75}, "rk45": {}}
    measure(places, paper.experiments["cond"], "vp-F", "ladder", {"only": [1.85, 1.7903, 1.82]})
    summary = json.loads(write_metrics(paper, places.results, places.runs).read_text())
    assert summary["table2"]["F"] == {"cond. VP": 1.7903}
    assert set(summary) == {"table2", "table3", "table4", "imagenet"}  # the others measure nothing


# Figures --------------------------------------------------------------------------------------------------------------


def levels(places, experiment, model, height=0.5):
    curve = {"sigma": [0.1, 1.0, 10.0], "mean": [height, 0.2, 0.4], "std": [0.1, 0.1, 0.2], "samples": 2}
    file = Path(chain.levels_file(experiment, model)).relative_to("models")
    write_json(places.models / file, {"before": curve, "after": curve})


def images(seed, count=12, shape=(1, 8, 8)):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def sheet(places, experiment, model, name, seed):
    path = places.run_file(chain.sheet_file(experiment, model, name))
    save_tensors(path, {"images/only": images(seed), "seeds": torch.arange(12)}, {"format": "edm-samples/1"})


def analysis(places, experiment, model, name, tensors, numbers):
    path = places.run_file(chain.analysis_file(experiment, model, name))
    save_tensors(path, tensors, {"format": "edm-analysis/1", "numbers": numbers})


@pytest.fixture
def drawable(digits, places, digits_archive):
    """Made data for every kind of figure of the digits; some of it is missing."""
    experiment = digits.experiments[""]
    measure(places, experiment, "vp-A", "ours", over_steps((4, 9.0), (8, 4.0), (16, 2.0), (32, 1.9)), FD)
    measure(places, experiment, "vp-A", "euler", over_steps((8, 60.0), (32, 20.0)), FD)
    for model in ("vp-A", "vp-F"):
        churn = {f"S_churn={value}": [distance] for value, distance in ((2, 3.0), (4, 2.0), (8, 2.5), (12, 4.0))}
        measure(places, experiment, model, "churn-all", churn, FD)
    for model in ("vp-A", "vp-B"):
        levels(places, experiment, model)
        sheet(places, experiment, model, "samples", seed=1)
    places.data.mkdir()
    shutil.copy(digits_archive, places.data / "digits.zip")
    curve = lambda size: {"mean": [3 * size, 2 * size, size], "std": [0.1 * size] * 3}
    curves = [
        {"rho": rho, "sigma": [10.0, 1.0, 0.1], "euler": curve(0.3), "heun": curve(0.03)} for rho in (1.0, 3.0, 7.0)
    ]
    analysis(places, experiment, "vp-F", "truncation", {}, {"num_steps": 4, "curves": curves})
    sigmas, repetitions, noises = [2, 0.5, 0.1], [0, 10, 100, 300], [1.0, 1.007]
    degraded = {f"{noise:g}": torch.linspace(-1, 1, 3 * 4 * 2 * 64).reshape(3, 4, 2, 1, 8, 8) for noise in noises}
    analysis(places, experiment, "vp-F", "degradation", degraded,
             {"sigmas": sigmas, "repetitions": repetitions, "S_noise": noises})  # fmt: skip
    leaked = {kind: images(seed) for seed, kind in enumerate(("dataset", "augmented", "generated"))}
    distances = {"generated-clean": 1.25, "generated-augmented": 80.5, "clean-augmented": 79.0}
    analysis(
        places, experiment, "leak", "leakage", leaked, {"distances": distances, "metric": "FD (digits-classifier)"}
    )
    return digits


def words(svg):
    """Text in an SVG: matplotlib writes it as outlines, and as a comment."""
    return set(re.findall(r"<!-- (.*?) -->", svg.read_text()))


#: A figure of the digits of each kind, and words that it must hold of its data and of what is not there.
SHOWN = {
    "figure1": set(),
    "figure2": {"+ our schedule &amp; scaling", "Euler, original steps and schedule", "Black-box RK45 (not measured)",
                "+ Heun &amp; our time steps (not measured)"},
    "figure3": set(),
    "figure4": {"Algorithm 2, all settings", "Algorithm 2, S_noise = 1 (not measured)"},
    "figure5a": {"A: baseline", "B: + adjusted hyperparameters", "before training: A, B"},
    "figure5b": {"A: baseline", "F: + non-leaky augmentation"},
    "figure9": {"A: baseline", "C: + redistributed capacity", "digits", "not there yet"},
    "figure13": {"(a) Euler's method", "(b) Heun's 2nd-order method"},
    "figure14": {"300"},
    "leakage": {"(c) generated"},
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.first(2)
def test_every_kind_of_figure_is_drawn_from_its_files_the_same_bytes_twice(drawable, places, name):
    first = {path: path.read_bytes() for path in write_figure(drawable, name, places)}
    assert [path.name for path in first] == [f"{name}.png", f"{name}.svg"]
    png, svg = first
    assert png.parent == places.results / "digits" / "figures" and first[png].startswith(b"\x89PNG")
    assert SHOWN[name] <= words(svg), words(svg)
    assert {path: path.read_bytes() for path in write_figure(drawable, name, places)} == first


def test_the_figures_above_are_all_kinds_there_are(digits, paper):
    kinds = {digits.figures[name]["kind"] for name in SHOWN}
    assert kinds == {spec["kind"] for spec in paper.figures.values()} and set(SHOWN) == set(digits.figures)


def test_the_sheet_of_pairs_is_drawn_from_the_study_of_memorisation(whole, places):
    report = whole.report("digits-metrics")
    pairs = [{"seed": at, "training": 2 * at, "distance": 1.0, "ratio": at / 100} for at in range(20)]
    numbers = {"pairs": pairs, "images": 1000, "k": 50, "below": 0.5, "share": 2.5, "share_of_reference": 30.0,
               "reference_features": 1797, "description": "a classifier"}  # fmt: skip
    shown = {"generated": images(1), "training": images(2)}
    numbers["pairs"] = pairs[: len(shown["generated"])]
    analysis(places, report.experiments[""], "vp-F", "memorisation", shown, numbers)
    _, svg = write_figure(report, "pairs", places)
    assert {"0.03", "3, 6"} <= words(svg)
    analysis(places, report.experiments[""], "vp-F", "memorisation", shown, {**numbers, "pairs": pairs * 10})
    with pytest.raises(edm.UserError, match="does not hold the images of its 64 pairs"):
        write_figure(report, "pairs", places)


@pytest.mark.slow
def test_figures_change_with_their_data(drawable, places):
    """Else the same bytes twice would be told of figures that draw nothing."""
    experiment = drawable.experiments[""]
    before = {name: write_figure(drawable, name, places)[1].read_bytes() for name in ("figure2", "figure5a", "figure9")}
    measure(places, experiment, "vp-A", "euler", over_steps((8, 50.0), (32, 20.0)), FD)
    levels(places, experiment, "vp-A", height=0.7)
    sheet(places, experiment, "vp-B", "samples", seed=2)
    for name, bytes_before in before.items():
        assert write_figure(drawable, name, places)[1].read_bytes() != bytes_before, name


@pytest.mark.parametrize("name", ["figure1", "figure5a", "figure9", "figure13", "figure14", "leakage"])
def test_a_figure_of_nothing_is_refused_in_one_line_and_leaves_no_file(digits, places, name):
    with pytest.raises(edm.UserError) as caught:
        write_figure(digits, name, places)
    assert "\n" not in str(caught.value)
    assert not list(places.results.rglob("*.png")) and not list(places.results.rglob("*.svg"))


def test_a_curve_of_nothing_says_so(digits, places):
    _, svg = write_figure(digits, "figure2", places)
    assert "nothing measured yet" in words(svg) and "Black-box RK45 (not measured)" in words(svg)


@pytest.fixture
def curves(monkeypatch):
    """What figures of curves are told to draw."""
    told = []
    monkeypatch.setattr("edm.report.panels.curves", lambda lines, over, path, written, **how: told.append((lines, how)))
    return told


def test_curves_are_the_lowest_of_the_repeats_with_the_range_shaded(paper, places, curves):
    uncond = paper.experiments["uncond"]
    measure(places, uncond, "vp-A", "ours", {"num_steps=18": [2.95, 2.93, 2.97], "num_steps=14": [2.96, 2.97, 2.98],
                                            "num_steps=4": [90.0, 91.0, 92.0]})  # fmt: skip
    write_figure(paper, "figure2a", places)
    ((lines, how),) = curves
    assert sorted(lines["+ our schedule & scaling"]) == [
        (7, 90, 90, 92),
        (27, 2.96, 2.96, 2.98),
        (35, 2.93, 2.93, 2.97),
    ]
    assert how["marked"] == {"+ our schedule & scaling": 27} and how["ylabel"] == "FID, lower is better"
    assert [label for label, line in lines.items() if line == []] == [
        "Original sampler", "Our reimplementation", "+ Heun & our time steps", "Black-box RK45",
    ]  # fmt: skip


def test_stochastic_curves_are_marked_at_the_lowest_and_sweeps_lie_over_what_is_swept(paper, places, curves):
    uncond = paper.experiments["uncond"]
    point = "num_steps={}"
    distances = {
        point.format(64): [2.5, 2.4, 2.6],
        point.format(128): [2.42, 2.43, 2.44],
        point.format(256): [2.3, 2.35, 2.4],
    }
    measure(places, uncond, "vp-A", "stochastic-all", distances)
    measure(places, uncond, "vp-A", "rho", {"rho=3": [3.0, 3.1, 3.2], "rho=7": [2.93, 2.95, 2.97]})
    write_figure(paper, "figure4a", places)
    write_figure(paper, "figure13c", places)
    (_, stochastic), (rho, _) = curves
    assert stochastic["marked"] == {"Algorithm 2, optimal settings": 511}
    assert rho["CIFAR-10 VP, N = 18"] == [(3, 3.0, 3.0, 3.2), (7, 2.93, 2.93, 2.97)]


def test_a_line_that_is_not_swept_over_the_axis_is_a_level(digits, places, curves):
    """Figure 4 of the digits lies over S_churn: Algorithm 1 has none, and is what the others are compared with."""
    measure(places, digits.experiments[""], "vp-A", "ours", over_steps((8, 2.0), (16, 1.75)), FD)
    write_figure(digits, "figure4", places)
    assert curves[0][0]["Deterministic (Algorithm 1)"] == 1.75


def test_curves_in_different_features_share_no_axis(digits, places):
    measure(places, digits.experiments[""], "vp-A", "ours", over_steps((8, 2.0)), FD)
    measure(places, digits.experiments[""], "vp-A", "heun", over_steps((8, 2.0)), FID)
    with pytest.raises(edm.UserError, match="results in several features"):
        write_figure(digits, "figure2", places)
    assert not places.results.joinpath("digits", "figures").exists()


@pytest.mark.slow
def test_no_curve_is_left_out_however_many_there_are(whole, places):
    report = whole.report("digits-full")
    experiment = report.experiments[""]
    for model in experiment.models:
        levels(places, experiment, model)
    report = replace(report, figures={"levels": {"kind": "levels"}})
    _, svg = write_figure(report, "levels", places)
    assert len(experiment.models) == 13 and set(figure_layout(report, "levels").shown) <= words(svg)
    assert {"vp-A: baseline", "ve-A: baseline", "leak"} <= words(svg)
    assert "standard deviation" in svg.read_text()


def test_each_model_has_its_own_weighting_noise_levels_and_start(whole, places, monkeypatch):
    """Figure 5a: λ(σ) and p_train as the model was trained with, Table 1; nothing of one model stands for another."""
    report = whole.report("digits-full")
    experiment = report.experiments[""]
    own = replace(experiment.models["vp-F"], P_mean=-0.4, P_std=0.8, sigma_data=1.0)
    experiment = replace(experiment, models={**experiment.models, "vp-F": own}, names={})
    shown = {name: f"{name}" for name in ("vp-A", "ve-A", "vp-B", "vp-F", "vp-E")}
    report = replace(report, experiments={"": experiment}, figures={"f": {"kind": "levels", "models": shown}})
    for number, model in enumerate(shown):
        levels(places, experiment, model, height=0.5 + number)
    told = []
    monkeypatch.setattr("edm.report.panels.loss_levels", lambda *args, **how: told.append(args))
    write_figure(report, "f", places)
    before, after, densities, *_ = told[0]
    edm_weight = lambda sigma, data: (sigma**2 + data**2) / (sigma * data) ** 2
    weights = {"vp-A": lambda s: 1 / s**2, "ve-A": lambda s: 1 / s**2, "vp-B": lambda s: 1 / s**2,
               "vp-F": lambda s: edm_weight(s, 1.0), "vp-E": lambda s: edm_weight(s, 0.5)}  # fmt: skip
    for number, (model, weight) in enumerate(weights.items()):
        for curve in (before[model], after[model]):
            assert curve["mean"] == pytest.approx([(0.5 + number) * weight(0.1), 0.2 * weight(1.0), 0.4 * weight(10.0)])
            assert curve["std"][1] == pytest.approx(0.1 * weight(1.0))
    names = [label.rpartition(": ")[2] for label in densities]
    assert names == ["vp-A, vp-B", "ve-A", "vp-F", "vp-E"]  # models of one distribution share its curve
    normal = lambda mean, std: (
        lambda s: math.exp(-(((math.log(s) - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    )
    root = lambda s: math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(s**2))  # β_min + β_d σ⁻¹(σ), of VP
    expected = [lambda s: 2 * s**2 / ((1 + s**2) * root(s) * (1 - 1e-5)), lambda s: 1 / math.log(100 / 0.02),
                normal(-0.4, 0.8), normal(-1.2, 1.2)]  # fmt: skip
    for curve, density in zip(densities.values(), expected, strict=True):
        assert (curve["sigma"][0], curve["sigma"][-1]) == (pytest.approx(0.1), pytest.approx(10.0))
        assert curve["density"] == pytest.approx([density(sigma) for sigma in curve["sigma"]])


def test_a_model_that_was_not_trained_here_has_no_loss_per_level(paper):
    report = replace(paper, figures={"f": {"kind": "levels", "models": {"A": "uncond/vp-A"}}})
    with pytest.raises(edm.UserError, match="model 'A': vp-A is pretrained"):
        figure_layout(report, "f")


def test_the_distance_of_a_sheet_stands_below_it(paper, places, monkeypatch):
    """Figure 12: the same latents at several NFE; the distance is that of the grid's point with the same settings."""
    told = []
    monkeypatch.setattr("edm.report.panels.sheets", lambda rows, *args, **how: told.append((rows, how)))
    cond = paper.experiments["cond"]
    measure(places, cond, "vp-F", "nfe", {"num_steps=7": [9.5, 9.25, 9.75], "num_steps=18": [1.79, 1.8, 1.85]})
    for name in ("nfe-13", "nfe-35"):
        sheet(places, cond, "vp-F", name, seed=1)
    write_figure(paper, "figure12a", places)
    ((rows, how),) = told
    assert list(rows) == ["ImageNet", "CIFAR-10 cond.", "FFHQ", "AFHQv2"]
    assert all(list(cells) == ["NFE 13", "NFE 19", "NFE 35", "NFE 79"] for cells in rows.values())
    assert how["feet"]["CIFAR-10 cond."] == {"NFE 13": "FID 9.25", "NFE 19": "", "NFE 35": "FID 1.79", "NFE 79": ""}
    assert [images is None for images in rows["CIFAR-10 cond."].values()] == [False, True, False, True]
