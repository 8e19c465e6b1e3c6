"""Tables, figures and `edm compare` say how sure a distance is, and which differ."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import miniature
import numpy as np
import pytest
from test_report import FD, measure, table_of

from edm import params
from edm.cli import main
from edm.errors import UserError
from edm.evaluation.comparing import difference, why_not
from edm.evaluation.records import measurement, read_results
from edm.metrics.jackknife import GROUPS, jackknife
from edm.report.figures import Places, write_figure
from edm.report.results import Repeats, Results
from edm.report.writers import as_csv, as_latex, as_markdown

ROOT = Path(__file__).parents[2]
REFERENCE = {**FD, "reference_sha256": "e" * 64}
SHARED = np.random.default_rng(0).standard_normal(GROUPS)  # what the groups of the same seeds have in common


@pytest.fixture(scope="module")
def digits():
    return params.load(miniature.path()).report("digits")


@pytest.fixture
def places(tmp_path):
    return Places(*(tmp_path / name for name in ("results", "runs", "data", "models")))


def bar(distance, own, shared=0.01):
    """An error bar whose groups vary by ``shared`` with the seeds, and by ``own`` (20 numbers) for the model alone."""
    without = distance + shared * SHARED + np.asarray(own)
    corrected, s = jackknife(distance, without)
    return {"features": 64, "s": s, "corrected": corrected, "limit": distance - 0.5, "without": without.tolist(),
            "prefixes": [[500, distance + 1.0], [1000, distance]]}  # fmt: skip


def own(seed, size):
    noise = np.random.default_rng(seed).standard_normal(GROUPS)
    return size * (noise - noise.mean())


@pytest.fixture
def ladder(digits, places):
    """Configurations A to D: the best; one 0.01 above it, within the noise; one 0.5 above it; one without a bar."""
    experiment = digits.experiments[""]
    barred = {rung: (distance, {"bar": bar(distance, own(seed, 0.003))})
              for seed, (rung, distance) in enumerate({"A": 5.0, "B": 5.01, "C": 5.5}.items(), 1)}  # fmt: skip
    for rung, (distance, more) in (barred | {"D": (7.0, {"bar": {"features": 64}}), "E": (8.0, {})}).items():
        measure(places, experiment, f"vp-{rung}", "ladder", {"only": [distance]}, REFERENCE, **more)
    return places


def of_file(places, rung):
    record = read_results(places.results / f"digits/distances/vp-{rung}/ladder.json")
    return [measurement(record, row) for row in record["points"]]


# Tables and figures


def test_a_table_shows_the_error_marks_what_is_tied_and_says_what_has_no_bar(digits, ladder):
    table = table_of(digits, "table2", ladder)
    s = np.std(bar(5.0, own(1, 0.003))["without"]) * np.sqrt(19)
    rows = {row: cells[0] for row, cells in table.rows.items()}
    assert rows["A"].ours() == f"5.00 ± {s:.2f}" and rows["D"].ours() == "7.00"
    assert [row for row, cell in rows.items() if cell.best] == ["A"]
    assert [row for row, cell in rows.items() if cell.tied] == ["B"]
    assert abs(rows["B"].apart.z) < 2 < rows["C"].apart.z and rows["C"].apart.s < s / 2
    notes = "\n".join(table.notes)
    assert "Bold: the lowest of a column, and what cannot be told from it: |z| of the difference is below 2" in notes
    assert "±: one standard error over other seeds" in notes and "does not cover the noise of the reference" in notes
    assert "No error bar: fewer than 13 images per feature (D)." in table.notes
    assert "No error bar: measured by a version that had none (E)." in table.notes
    assert "**5.01** ± " in as_markdown(table) and r"\textbf{5.01} $\pm$ " in as_latex(table)
    lines = {line["row"]: line for line in csv.DictReader(io.StringIO(as_csv(table)))}
    assert float(lines["C"]["z"]) == rows["C"].apart.z and lines["A"]["z"] == lines["D"]["s"] == ""
    assert float(lines["A"]["limit"]) == 4.5 and float(lines["A"]["s"]) == pytest.approx(s)


def test_repeats_show_their_mean_and_the_minimum_expected(places):
    paper = params.load(ROOT / "params.yaml").report("paper")
    measure(places, paper.experiments["cond"], "vp-F", "ladder", {"only": [1.85, 1.79, 1.82]})
    table = table_of(paper, "table2", places)
    assert any("F, cond. VP: 1.82 ± 0.03, 1.79." in note for note in table.notes)  # 1.82 − 0.8463 · 0.03
    (line,) = [line for line in csv.DictReader(io.StringIO(as_csv(table))) if line["ours"]]
    assert float(line["expected_minimum"]) == pytest.approx(1.82 - 0.8463 * 0.03, abs=1e-5)


def test_the_band_of_a_curve_reaches_1_96_standard_errors_beyond_the_repeats(ladder):
    (m,) = of_file(ladder, "A")
    assert Repeats((m,)).band == pytest.approx((5.0 - 1.96 * m.s, 5.0 + 1.96 * m.s))
    (without,) = of_file(ladder, "E")
    assert Repeats((without,)).band == (8.0, 8.0)


def test_a_curve_is_drawn_with_its_band(digits, places, monkeypatch):
    points = {f"num_steps={steps}": [5.0] for steps in (4, 8)}
    measure(places, digits.experiments[""], "vp-A", "ours", points, REFERENCE, bar=bar(5.0, own(1, 0.01)))
    drawn = []
    monkeypatch.setattr("edm.report.panels.curves", lambda lines, *args, **how: drawn.append(lines))
    write_figure(digits, "figure2", places)
    s = bar(5.0, own(1, 0.01))["s"]
    bands = [point[2:] for line in drawn[0].values() for point in line]
    assert bands and all(band == pytest.approx((5.0 - 1.96 * s, 5.0 + 1.96 * s)) for band in bands)


# Differences


def test_a_difference_of_the_same_seeds_has_the_error_of_what_they_do_not_share(ladder):
    """Its groups differ by own(3) − own(1) alone, whatever the seeds add to both."""
    apart = difference(of_file(ladder, "C"), of_file(ladder, "A"))
    _, s = jackknife(0.5, 0.5 + own(3, 0.003) - own(1, 0.003))
    assert (apart.value, apart.s, apart.paired) == (pytest.approx(0.5), pytest.approx(s), True)
    same = difference(of_file(ladder, "A"), of_file(ladder, "A"))
    assert (same.value, same.s, same.z, same.told_apart) == (0, 0, 0, False)


def test_other_seeds_are_compared_as_independent_and_other_measures_not_at_all(ladder, digits):
    a, c = of_file(ladder, "A"), of_file(ladder, "C")
    moved = [replace(m, first_seed=1000) for m in c]
    apart = difference(moved, a)
    assert not apart.paired and apart.s == pytest.approx(np.hypot(a[0].s, c[0].s))
    assert why_not([replace(c[0], reference="f" * 64)], a) == "different features or reference"
    assert why_not([replace(c[0], images=500)], a) == "different numbers of images"
    assert why_not(of_file(ladder, "E"), a) == "no error bar" and difference(of_file(ladder, "E"), a) is None


def test_an_error_bar_that_is_not_one_is_refused_with_its_file(places, digits):
    short = bar(5.0, own(1, 0.01))
    for wrong in ({**short, "without": short["without"][1:]}, {**short, "s": -1.0}, {"features": 64, "s": 1.0}, {}, 3):
        measure(places, digits.experiments[""], "vp-A", "ladder", {"only": [5.0]}, REFERENCE, bar=wrong)
        with pytest.raises(UserError, match=r"ladder.json: .*bar is .*; expected an error bar"):
            Results(places.results, places.runs).of(digits.experiments[""], "vp-A", "ladder")


# The command


def compared(places, *sides, status=0):
    where = ["--params", str(miniature.path()), "--results", str(places.results), "--runs", str(places.runs)]
    assert main(["compare", *map(str, sides), "--json", *where]) == status


@pytest.mark.parametrize(
    "sides",
    [
        ("{}/digits/distances/vp-C/ladder.json", "{}/digits/distances/vp-A/ladder.json"),
        ("{}/digits/distances/vp-C/ladder.json:only", "{}/digits/distances/vp-A"),
        ("digits/vp-C", "digits/vp-A"),
        ("digits/table2:C", "digits/table2:A:vp"),
    ],
)
def test_compare_takes_cells_rows_models_files_and_folders(ladder, sides, capsys):
    compared(ladder, *(side.format(ladder.results) for side in sides))
    (pair,) = json.loads(capsys.readouterr().out)
    assert (pair["first"], pair["second"], pair["paired"], pair["told_apart"]) == (5.5, 5.0, True, True)
    assert pair["difference"] == pytest.approx(0.5) and pair["z"] == pytest.approx(0.5 / pair["s"])


def test_compare_prints_a_line_per_point(digits, places, capsys):
    experiment = digits.experiments[""]
    points = [point.id for point in experiment.grids["churn-all"].points["vp-A"]]
    for model, distance, seed in (("vp-A", 5.0, 1), ("vp-F", 5.3, 2)):
        distances = {point: [distance] for point in points}
        measure(places, experiment, model, "churn-all", distances, REFERENCE, bar=bar(distance, own(seed, 0.003)))
    where = ["--params", str(miniature.path()), "--results", str(places.results)]
    assert main(["compare", "digits/vp-F", "digits/vp-A", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == points and len(points) > 1
    assert all(line.endswith("  told apart") and "+0.3 " in line for line in lines[1:-1])
    assert main(["compare", "digits/vp-F", "digits/vp-F", *where]) == 0
    assert all(line.endswith("  equal") for line in capsys.readouterr().out.splitlines()[1:-1])


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("nowhere.json", "nowhere.json: no such results; name a results file"),
        ("digits/vp-Z", "digits/vp-Z: no such results"),
        ("digits/table2:Z", "no row or column 'Z'; rows: A; B"),
        ("digits/table2:F", "F has no measurement yet"),
        ("{}/digits/distances/vp-A/ladder.json:other", "ladder.json:other: no such results"),
        (
            "{}/digits/distances/vp-A/gone.json@HEAD",
            r"gone.json@HEAD: not in Git or DVC's cache \(.*not a git repo.*\)",
        ),
    ],
)
def test_what_compare_does_not_find_is_one_line(ladder, side, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    compared(ladder, side.format(ladder.results), "digits/vp-A", status=1)
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.slow
def test_compare_reads_the_file_of_another_commit_from_dvcs_cache(ladder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    git = lambda *words: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True,
                                        capture_output=True)  # fmt: skip
    dvc = lambda *words: subprocess.run(["dvc", *words], check=True, capture_output=True)
    git("init")
    dvc("init")
    file = ladder.results / "digits/distances/vp-A/ladder.json"
    dvc("add", str(ladder.results))
    git("add", ".")
    git("commit", "-m", "first")
    shutil.copy(ladder.results / "digits/distances/vp-C/ladder.json", file)
    then = file.relative_to(tmp_path)
    compared(ladder, f"{then}@HEAD", then)
    (pair,) = json.loads(capsys.readouterr().out)
    assert (pair["first"], pair["second"], pair["paired"]) == (5.0, 5.5, True)
