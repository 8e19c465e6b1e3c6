"""Plugins in a folder outside the package, through Snakemake to a table; edited, removed, and by several processes."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())
KINDS = ("solver", "loss", "network", "metric")
PAGE = dict(re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), flags=re.DOTALL))
pytestmark = pytest.mark.slow


def run(folder, *words, status=0):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def snakemake(folder, *words, status=0):
    call = (sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--cores", "2", *words)
    return run(folder, *call, status=status)


def edm(folder, *words, status=0):
    return run(folder, sys.executable, "-m", "edm", *words, status=status)


def planned(folder):
    """The steps that a dry run would make."""
    return {" ".join(job.split(":")[0].split()[:2]) for job in re.findall(r"^would run: (.*)$", snakemake(folder, "-n"),
                                                                         flags=re.M)}  # fmt: skip


def stale(folder):
    """The steps that are stale themselves, in Snakemake's words."""
    return sorted(re.findall(r"^(.*): changed: (.*)$", snakemake(folder, "-n"), flags=re.M))


def write_params(folder, change=lambda raw: None):
    digits = copy.deepcopy(RAW["experiments"]["digits"])
    tiny = {
        "dataset": "digits",
        "features": "pixels",
        "base": {"model_channels": 8, "num_blocks": 1, "attn_resolutions": [4], "duration": 1.28e-3,
                 "level_samples": 16},
        "columns": {
            "vp": digits["columns"]["vp"],
            "my": {"architecture": "my-convolutions", "architecture.width": 8, "loss": "my-logistic", "loss.width": 0.8,
                   "preconditioning": "edm"},
        },
        "ladder": {"A": {**digits["ladder"]["A"], "lr_rampup": 0.004, "ema_halflife": 0.005, "batch_size": 32}},
        "sampling": {"images": 40, "block": 20, "shards": 2},
        "grids": {
            "ours": {"models": ["vp-A", "my-A"], "num_steps": [2, 4]},
            "mine": {"models": ["vp-A", "my-A"], "solver": "my-midpoint", "solver.place": [0.4, 0.6], "num_steps": 2},
        },
        "metrics": ["my-nearest"],
        "metric_settings": {"my-nearest": {"quantile": 0.9}},
        "tables": {
            "mine": {"kind": "samplers", "title": "Mine", "nfe": "of the best", "metrics": ["my-nearest"],
                     "rows": {"Heun": "ours", "midpoint": "mine"}},
        },
        "figures": {"levels": {"kind": "levels"}},
    }  # fmt: skip
    raw = {
        "plugins": [f"my_lab/{kind}.py" for kind in KINDS],
        "run": ["tiny"],
        "datasets": {"digits": RAW["datasets"]["digits"]},
        "experiments": {"tiny": tiny},
    }
    change(raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def test_the_files_of_the_page_are_short():
    assert [kind for kind in KINDS if not 5 < len(PAGE[kind].splitlines()) <= 30] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a lab")
    (folder / "my_lab").mkdir()
    for kind in KINDS:
        (folder / "my_lab" / f"{kind}.py").write_text(PAGE[kind])
    write_params(folder)
    snakemake(folder)
    return folder


@pytest.fixture
def unchanged(finished):
    """The finished chain; a test may edit its plugins and its params.yaml."""
    kept = [finished / "params.yaml", *(finished / "my_lab").glob("*.py")]
    before = {path: path.read_bytes() for path in kept}
    yield finished
    for path, content in before.items():
        path.write_bytes(content)


def test_the_four_parts_of_the_page_end_in_a_table(finished):
    table = (finished / "results" / "tiny" / "tables" / "mine.md").read_text()
    assert "| Heun" in table and "| midpoint" in table and "my-nearest" in table
    assert "median distance to the nearest training image" in table
    rows = json.loads((finished / "results/tiny/distances/my-A/mine.json").read_text())["points"]
    assert [row["sampler"]["solver.place"] for row in rows] == [0.4, 0.6]
    assert {row["nfe"] for row in rows} == {3}, "the evaluations that were made: the last step of two takes one"
    assert all(row["my-nearest"] > 0 for row in rows)
    assert not planned(finished)


@pytest.mark.parametrize(
    "kind, steps, first",
    [
        ("solver", {"Distances of", "Table tiny", "Headline numbers", "How tiny", "MLflow"}, "solver my-midpoint"),
        ("metric", {"Distances of", "Table tiny", "Headline numbers", "How tiny", "MLflow"}, "metric my-nearest"),
        (
            "loss",
            {"Train tiny/my-A", "Distances of", "Table tiny", "Figure tiny", "Headline numbers", "How tiny", "MLflow"},
            "loss my-logistic",
        ),
        (
            "network",
            {"Train tiny/my-A", "Distances of", "Table tiny", "Figure tiny", "Headline numbers", "How tiny", "MLflow"},
            "architecture my-convolutions",
        ),
    ],
)
def test_an_edited_plugin_makes_again_what_used_it_and_nothing_else(unchanged, kind, steps, first):
    path = unchanged / "my_lab" / f"{kind}.py"
    path.write_text(path.read_text() + "\n# edited\n")
    told = stale(unchanged)
    assert {why for _, why in told} == {f"plugin of {first}"}
    used = {
        "solver": ["evaluate tiny/my-A/mine", "evaluate tiny/vp-A/mine"],
        "metric": [f"evaluate tiny/{model}/{grid}" for model in ("my-A", "vp-A") for grid in ("mine", "ours")],
    }.get(kind, ["train tiny/my-A"])
    assert sorted({step for step, _ in told} - {step for step, _ in told if step.startswith("shard")}) == used
    assert {" ".join(job.split()[:2]).rstrip(":") for job in planned(unchanged)} == steps


def test_a_file_that_no_step_uses_makes_nothing_again(unchanged):
    other = unchanged / "my_lab" / "other.py"
    other.write_text(PAGE["solver"].replace("my-midpoint", "other"))
    write_params(unchanged, lambda raw: raw["plugins"].append("my_lab/other.py"))
    assert not planned(unchanged)
    other.write_text(other.read_text() + "\n# edited\n")
    assert not planned(unchanged)


def test_a_removed_plugin_is_said_in_one_line(unchanged):
    (unchanged / "my_lab" / "solver.py").rename(unchanged / "my_lab" / "kept")
    assert "my_lab/solver.py: no such plugin file; correct `plugins`" in snakemake(unchanged, "-n", status=1)
    (unchanged / "my_lab" / "kept").rename(unchanged / "my_lab" / "solver.py")
    write_params(unchanged, lambda raw: raw["plugins"].remove("my_lab/solver.py"))
    assert "unknown key 'solver.place': no plugin has that setting; name its file under `plugins`" in edm(
        unchanged, "check", status=1
    )
    write_params(unchanged, lambda raw: raw["plugins"].remove("my_lab/metric.py"))
    assert "'my-nearest' is not one of" in edm(unchanged, "check", status=1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tiny: tiny["grids"]["mine"].update({"solver.plase": 1}), "did you mean 'solver.place'?"),
        (lambda tiny: tiny["grids"]["mine"].update({"solver.place": "half"}), "solver.place: 'half' is not of type"),
        (lambda tiny: tiny["grids"]["mine"].update({"solver": "my-midpont"}), "did you mean 'my-midpoint'?"),
        (lambda tiny: tiny["columns"]["my"].update({"loss.width": None}), "is None"),
        (lambda tiny: tiny["grids"]["ours"].update({"solver.place": 0.5}), "solver.place: solver heun is edm's own"),
        (lambda tiny: tiny["metric_settings"]["my-nearest"].update(q=1), "no setting metric.q"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_a_plugin_names_its_place(unchanged, change, message):
    write_params(unchanged, lambda raw: change(raw["experiments"]["tiny"]))
    (line,) = edm(unchanged, "check", status=1).splitlines()
    assert line.startswith("error: params.yaml: experiments.tiny.") and message in line


def test_trace_names_the_file_and_its_hash(finished):
    told = " ".join(edm(finished, "trace", "tiny/mine", "midpoint", "my-A").split())
    for part in ("solver my-midpoint my_lab/solver.py, sha256", "loss my-logistic my_lab/loss.py, sha256",
                 "architecture my-convolutions my_lab/network.py, sha256"):  # fmt: skip
        assert part in told


def test_a_checkpoint_of_plugins_by_hand(finished):
    model = "models/tiny/my-A/model.safetensors"
    words = ["sample", model, "sheet.png", "--seeds", "0-3", "--solver", "my-midpoint", "--set", "solver.place=0.3",
             "--steps", "2"]  # fmt: skip
    (line,) = edm(finished, *words, status=1).splitlines()
    assert line.startswith("error: solver 'my-midpoint' is unknown")
    plugins = [word for kind in KINDS for word in ("--plugins", f"my_lab/{kind}.py")]
    (line,) = edm(finished, *plugins[:2], *words, status=1).splitlines()
    assert f"{model}: needs architecture my-convolutions of the plugin my_lab/network.py (sha256 " in line
    assert "edm --plugins FILE" in line
    edm(finished, *plugins, *words)
    edm(finished, *plugins, "launch", "--processes", "2", "--", *words[:2], "sheet2.png", *words[3:])
    assert (finished / "sheet.png").read_bytes() == (finished / "sheet2.png").read_bytes()
