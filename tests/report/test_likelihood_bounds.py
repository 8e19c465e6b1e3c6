"""The bound on the likelihood of every training: its table, its figure, and where a number comes from."""

import csv
import io
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.chain.paths import levels_file
from edm.errors import UserError
from edm.params.layouts import figure_layout, table_layout
from edm.report import panels
from edm.report.captions import Captions
from edm.report.figures import Places, write_figure
from edm.report.lineage import trace
from edm.report.lineage_text import as_text
from edm.report.results import Results
from edm.report.tables import build_table
from edm.report.writers import WRITERS, as_csv
from edm.training.bound import bound
from edm.training.curves import write_curves

ROOT = Path(__file__).parents[2]
SIGMA = np.geomspace(0.0025, 100, 24)


def curve(c, spread=0.5):
    """The errors of data N(0, c²), over 64 images."""
    mean = SIGMA**2 * c**2 / (SIGMA**2 + c**2)
    return {"sigma": SIGMA.tolist(), "mean": mean.tolist(), "std": (spread * mean).tolist(), "samples": 64}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Digits with a table and a figure of bounds; A and B of its models are trained."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["experiments"] = {"digits": raw["experiments"]["digits"]}
    raw |= {"reports": {}, "pretrained": {}, "run": ["digits"]}
    digits = raw["experiments"]["digits"]
    digits["tables"]["bounds"] = {"kind": "likelihood", "title": "Bits per dimension", "models": "ladder"}
    digits["figures"]["bits"] = {"kind": "bits", "models": ["vp-A", "vp-B", "vp-C"]}
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    loaded = params.load("params.yaml")
    for model, c in (("vp-A", 0.5), ("vp-B", 0.4)):
        path = Path(levels_file(loaded.experiment("digits"), model))
        path.parent.mkdir(parents=True)
        write_curves(path, curve(0.7), curve(c), {"images": [1], "loss": [1.0]})
    return loaded


def test_a_table_has_the_bound_of_every_training_with_its_error_and_its_terms(loaded):
    report = loaded.report("digits")
    table = build_table(report, "bounds", Results(Path("results"), Path("runs")))
    assert table.columns == ["bound", "diffusion", "prior", "reconstruction"]
    rows = {row[0]: cells for row, cells in table.rows.items()}
    found = bound(curve(0.5))
    assert rows["A"][0].ours() == f"{found.bits:.2f} ± {found.s:.2f}"
    assert [cell.value for cell in rows["A"]] == pytest.approx(
        [found.bits, found.diffusion, found.prior, found.reconstruction]
    )
    assert rows["A"][0].value == pytest.approx(sum(cell.value for cell in rows["A"][1:]))
    assert [row for row, cells in rows.items() if cells[0].best] == ["B"]
    assert {cell.ours() for cell in rows["C"]} == {"not run"}
    notes = " ".join(table.notes)
    assert "Noise levels 0.0025 to 100, 64 images at each." in notes and "No image is sampled" in notes
    lines = {(row["row"][0], row["column"]): row for row in csv.DictReader(io.StringIO(as_csv(table)))}
    assert float(lines["A", "bound"]["s"]) == pytest.approx(found.s) and lines["A", "prior"]["s"] == ""
    assert repr(found.bits) in as_csv(table)
    for suffix, write in WRITERS.items():
        assert suffix == ".csv" or f"{found.bits:.2f}" in write(table)


def test_the_steps_of_table_and_figure_read_the_curves_of_the_trainings(loaded):
    chain = Chain(loaded)
    for name in ("table digits/bounds", "figure digits/bits"):
        assert set(chain.by_name[name].files) <= {levels_file(chain.experiments["digits"], model)
                                                  for model in chain.experiments["digits"].models}  # fmt: skip
        assert "models/digits/vp-A/levels.json" in chain.by_name[name].files
    captions = Captions(chain)
    assert "bits per dimension" in captions.table("digits", "bounds")
    assert "Bits per dimension and e-fold of noise" in captions.figure("digits", "bits")
    assert {source.kind for source in table_layout(loaded.report("digits"), "bounds").sources()} == {"levels"}
    assert next(iter(figure_layout(loaded.report("digits"), "bits").shown)).startswith("A")


def test_a_figure_shows_the_bits_of_every_noise_level_with_the_bound_in_its_legend(loaded, monkeypatch):
    report, drawn = loaded.report("digits"), {}
    places = Places(*map(Path, ("results", "runs", "data", "models")))
    draw = panels.bits_per_level
    monkeypatch.setattr(panels, "bits_per_level", lambda curves, *how: (drawn.update(curves), draw(curves, *how)))
    written = write_figure(report, "bits", places)
    assert all(path.stat().st_size > 1000 for path in written) and len(written) == 2
    found = bound(curve(0.5))
    (label,) = [label for label in drawn if label.startswith("A")]
    assert label.endswith(f": {found.bits:.2f} ± {found.s:.2f}") and len(drawn) == 2
    assert drawn[label]["mean"][0] == pytest.approx(1 / math.log(2), rel=1e-3)  # e is σ² far below the data's scale
    assert drawn[label]["s"][3] == pytest.approx(drawn[label]["mean"][3] / 16)


def test_a_bound_is_traced_to_its_training_and_computed_again(loaded, monkeypatch):
    cell, _, absent, *_ = build_table(loaded.report("digits"), "bounds", Results(Path("results"), Path("runs"))).rows
    lineage = trace(loaded, "digits/bounds", cell, "bound")
    assert lineage["cell"]["value"] == bound(curve(0.5)).bits
    assert lineage["steps"][0]["step"] == "train digits/vp-A"
    (command,) = lineage["measure_again"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    words = [sys.executable, *shlex.split(command)[1:]]
    again = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert float(again.stdout) == pytest.approx(lineage["cell"]["value"], rel=1e-12)
    assert "Measure it again" in as_text(lineage)
    with pytest.raises(UserError, match="not run; it is made by `snakemake models/digits/vp-C/levels"):
        trace(loaded, "digits/bounds", absent, "bound")
