"""Plugins run in the jobs of a Slurm: a loss in a training run, a solver and a metric in an evaluation."""

import json
import sys

import pytest
from cluster import Cluster
from test_chain_on_slurm import POLLS, ROOT, project, scratch, snakemake  # noqa: F401 (a fixture)
from test_cluster import living

sys.path.append(str(ROOT / "tests" / "plugins"))
from lab import write_lab, write_params


@pytest.fixture(scope="module")
def finished(scratch):  # noqa: F811
    """The folder of a chain with plugins, the jobs of Slurm that made it, and what is left of the daemons."""
    folder = project(scratch / "lab")
    write_lab(folder, columns=("my",))
    write_params(folder, only_the_solver, columns=("my",))
    with Cluster(scratch / "slurm") as cluster:
        snakemake(folder, "--profile", "slurm", "results/tiny/tables/mine.md", *POLLS, cluster=cluster)
        jobs = cluster.jobs()
    return folder, jobs, living(cluster.configuration)


def only_the_solver(raw):
    tiny = raw["experiments"]["tiny"]
    del tiny["grids"]["ours"], tiny["tables"]["mine"]["rows"]["Heun"]


def test_jobs_of_slurm_use_the_plugins_and_end_in_a_table(finished):
    folder, jobs, _ = finished
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    assert all(any(f"/rule_{rule}/" in job["log"] for job in jobs) for rule in ("train", "evaluate"))
    table = (folder / "results/tiny/tables/mine.md").read_text()
    assert "| midpoint" in table and "my-nearest" in table
    rows = json.loads((folder / "results/tiny/distances/my-A/mine.json").read_text())["points"]
    assert {row["nfe"] for row in rows} == {3} and all(row["my-nearest"] > 0 for row in rows)


def test_their_records_name_the_plugins(finished):
    folder, _, _ = finished
    steps = [json.loads(path.read_text()) for path in (folder / "steps").rglob("*.json")]
    used = {label: file for step in steps for label, file in (step.get("plugins") or {}).items()}
    assert used == {
        "architecture my-convolutions": "my_lab/network.py", "loss my-logistic": "my_lab/loss.py",
        "metric my-nearest": "my_lab/metric.py", "solver my-midpoint": "my_lab/solver.py",
    }  # fmt: skip


def test_nothing_of_the_cluster_is_left(finished):
    assert finished[2] == []
