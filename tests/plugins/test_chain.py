"""The four files of docs/extend.md through Snakemake to a table; edited; traced; by hand, in several processes."""

import json
import re

import forking
import pytest
from lab import KINDS, PAGE, ROOT, write_lab

pytestmark = pytest.mark.slow


def run(folder, *words, status=0):
    done = forking.run(words, folder, {"PYTHONPATH": str(ROOT)}, timeout=1800)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def snakemake(folder, *words):
    snakefile = ROOT / "workflow" / "Snakefile"
    return run(folder, "snakemake", "--snakefile", snakefile, "--cores", "2", *words)


def edm(folder, *words, status=0):
    return run(folder, "edm", *words, status=status)


def planned(folder):
    """What a dry run would do, step by step."""
    return sorted(re.findall(r"^would run: (.*)$", snakemake(folder, "-n"), flags=re.M))


def test_the_files_of_the_page_are_short():
    assert [kind for kind in KINDS if not 5 < len(PAGE[kind].splitlines()) <= 30] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a lab")  # with a space, as users have
    write_lab(folder, columns=("my",))
    snakemake(folder)
    return folder


def test_the_four_parts_of_the_page_end_in_a_table(finished):
    table = (finished / "results" / "tiny" / "tables" / "mine.md").read_text()
    assert "| Heun" in table and "| midpoint" in table and "my-nearest" in table
    assert "median distance to the nearest training image" in table
    rows = json.loads((finished / "results/tiny/distances/my-A/mine.json").read_text())["points"]
    assert [row["sampler"]["solver.place"] for row in rows] == [0.4, 0.6]
    assert {row["nfe"] for row in rows} == {3}, "the evaluations that were made: the last step of two takes one"
    assert all(row["my-nearest"] > 0 for row in rows)
    assert not planned(finished)


def test_trace_names_the_file_and_its_hash(finished):
    told = " ".join(edm(finished, "trace", "tiny/mine", "midpoint", "my-A").split())
    for part in ("solver my-midpoint my_lab/solver.py, sha256", "loss my-logistic my_lab/loss.py, sha256",
                 "architecture my-convolutions my_lab/network.py, sha256"):  # fmt: skip
        assert part in told


def test_a_checkpoint_of_plugins_by_hand(finished):
    model = "models/tiny/my-A/model.safetensors"
    words = ["sample", model, "one.png", "--seeds", "0-3", "--solver", "my-midpoint", "--set", "solver.place=0.3",
             "--steps", "2", "--block", "2"]  # fmt: skip
    plugins = [word for kind in KINDS for word in ("--plugins", f"my_lab/{kind}.py")]
    (line,) = edm(finished, *plugins[:2], *words, status=1).splitlines()
    assert f"{model}: needs architecture my-convolutions of the plugin my_lab/network.py (sha256 " in line
    assert line.endswith("or in `edm --plugins FILE`")
    edm(finished, *plugins, *words)
    edm(finished, *plugins, "launch", "--processes", "2", "--", *words[:2], "two.png", *words[3:])
    assert (finished / "one.png").read_bytes() == (finished / "two.png").read_bytes()


def test_an_edited_plugin_makes_again_what_used_it_and_nothing_else(finished):
    path = finished / "my_lab" / "solver.py"
    path.write_text(path.read_text() + "\n# edited\n")
    assert "evaluate tiny/my-A/mine: changed: plugin of solver my-midpoint" in snakemake(finished, "-n")
    first, *rest = planned(finished)
    assert first == "Distances of tiny my-A: mine" and [job.split()[0] for job in rest] == [
        "Headline", "How", "MLflow:", "Table",
    ]  # fmt: skip
    path.write_text(PAGE["solver"])
    assert not planned(finished)
