"""Benchmarks run, at their smallest: each ends well and leaves rows that say what was measured and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALLEST = {
    "preparation": ["--images", "20", "--rounds", "1"],
    "workflow": ["--evaluations", "2", "--report", "digits", "--chain", "data-digits", "--rounds", "1"],
    "startup": ["--rounds", "1"],
    "neighbours": ["--images", "60", "--dimension", "8", "--rounds", "1", "--whole"],
    "metrics": ["--images", "4", "--dimension", "8", "--rounds", "1"],
}
TINY = ["--channels", "8", "--batch", "2", "--rounds", "1", "--experiment", "digits", "--model", "vp-C"]


def run(*words):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.slow
def test_a_benchmark_prints_a_table_and_leaves_its_rows_with_their_origin(name, tmp_path):
    done = run(ROOT / "bench" / f"{name}.py", *SMALLEST[name], "--output", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["question"] in done.stdout and "| variant" in done.stdout
    assert found["settings"]["rounds"] == 1 and found["machine"]["cores"] and found["machine"]["versions"]["torch"]
    assert len(found["rows"]) >= 3
    for row in found["rows"]:
        assert row["rounds"] == 1 and row["low"] == row["median"] == row["high"], row
    if name == "preparation":
        assert [row["images unlike the loop's"] for row in found["rows"]] == [0, 0, 0]
    if name == "neighbours":
        precisions = [row["precision"] for row in found["rows"]]
        assert precisions == pytest.approx([precisions[0]] * 3, rel=1e-6)
    if name == "metrics":
        assert found["features, largest relative difference"] < 1e-6


TOOL = """
import argparse, io, pathlib, zipfile
from PIL import Image
parser = argparse.ArgumentParser()
for name in ("--source", "--dest", "--resolution", "--transform"):
    parser.add_argument(name, required=True)
args = parser.parse_args()
assert (args.resolution, args.transform) == ("64x64", "center-crop")
with zipfile.ZipFile(args.dest, "w") as archive:
    for number, path in enumerate(sorted(pathlib.Path(args.source).rglob("*.png"))):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.LANCZOS)
        image.save(picture := io.BytesIO(), format="PNG", compress_level=0)
        archive.writestr(f"{number:08d}.png", picture.getvalue())
"""


@pytest.mark.slow
def test_a_whole_command_is_compared_with_that_of_another(tmp_path):
    """In place of the authors' tool, a short one of the same options. That of FID takes a minute and is run by hand."""
    (tmp_path / "dataset_tool.py").write_text(TOOL)
    done = run(ROOT / "bench" / "commands.py", "preparation", "--images", "6", "--rounds", "1", "--peer", tmp_path,
               "--output", tmp_path / "found.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs, *_, ours = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert ours["ours is so many times as fast"] == 1 and theirs["processor"] > 0 and theirs["rounds"] == 1
    assert ours["images unlike theirs"] == 0 and theirs["archive (bytes)"] > 6 * 64 * 64 * 3


@pytest.mark.slow
def test_recompute_keeps_less_for_equal_gradients(tmp_path):
    done = run(
        ROOT / "bench" / "recompute.py", "--models", "digits/vp-C", "--rounds", "1", "--output", tmp_path / "f.json"
    )
    assert done.returncode == 0, done.stderr
    plain, again = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert again["kept per image (MiB)"] < plain["kept per image (MiB)"] / 2 and plain["times"] == 1


@pytest.mark.parametrize("name", ["training", "sampling"])
@pytest.mark.slow
def test_training_and_sampling_are_compared_with_the_reference(name, tmp_path):
    done = run(ROOT / "bench" / f"{name}.py", *TINY, "--each-core", "--output", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["variant"] for row in found["rows"]} == {"reference", "fp32", "fp32, one per core"}
    assert found["settings"]["batch"] == 2
    for row in found["rows"]:
        assert row["images/s"] > 0 and row["peak memory (MiB)"] > 50
        assert row["variant"] != "reference" or row["times the reference"] == 1
        assert name == "training" or row["largest difference (of 255)"] < 0.01


@pytest.mark.slow
def test_the_fast_training_and_the_reference_learn_the_same(digits_archive, tmp_path):
    """Two seeds of each: what the variants differ by is of the size of what seeds differ by."""
    done = run(ROOT / "bench" / "loss_curves.py", "--data", digits_archive, "--mimg", "0.0064", "--picture",
               tmp_path / "loss.png", "--output", tmp_path / "found.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["rows"]) == 6 and (tmp_path / "loss.png").exists()
    assert all(0.2 < row["of the noise"] < 3 for row in found["rows"])
    assert all(sum(losses[-10:]) / 10 < 0.8 * losses[0] for losses in found["losses"].values())


@pytest.mark.slow
def test_the_script_for_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    """Its two shortest sections; all six with ``bench/gpu.sh --tiny``."""
    for section in ("golden", "features"):
        done = subprocess.run([ROOT / "bench" / "gpu.sh", "--tiny", "--only", section, "--out", tmp_path],
                              env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0 and f"== {section}: status 0" in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["section"] for row in found["sections"]} == {"golden", "features"}
    assert all(row["holds"] for row in found["golden"])
    assert {(row["precision"], row["compile"]) for row in found["golden"]} == {
        (precision, "no") for precision in ("fp32", "tf32", "bf16", "fp16")
    }


@pytest.mark.slow
def test_the_comparison_with_the_authors_code_needs_a_checkout_of_it(tmp_path):
    done = run(ROOT / "bench" / "peer.py", tmp_path)
    assert done.returncode == 2 and "give a checkout of github.com/NVlabs/edm" in done.stderr


@pytest.mark.slow
def test_every_benchmark_says_how_it_is_used():
    """Those that take options; in one process, since most of them load torch."""
    takes_options = [path for path in sorted((ROOT / "bench").glob("*.py")) if "__doc__" in path.read_text()]
    assert {path.stem for path in takes_options} >= {*SMALLEST, "tracking", "kill_training"}
    code = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    sys.argv, said = [path, "--help"], io.StringIO()
    sys.path[0] = path.rpartition("/")[0]
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, path
    assert said.getvalue().startswith("usage: "), path
"""
    done = run("-c", code, *takes_options)
    assert done.returncode == 0, done.stderr
