"""Steps other than training runs that come to their time limit on a real SLURM: they go back to the queue and resume.
So does a whole Snakemake in an allocation, by the job script of slurm/, whose steps share a node's copy of the data.

A solver of the test's own holds each step at a certain draw until Slurm ends the attempt, so that nothing depends on
speed, and notes every draw, so that a step that draws anything twice is seen.
"""

import json
import shutil
import subprocess
import sys
import threading
import time

import pytest
import yaml
from cluster import LIVING, Cluster
from test_chain_on_slurm import POLLS, ROOT, project, scratch, snakemake  # noqa: F401 (a fixture)

SOLVER = '''
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import edm
from edm.data import archive

if "EDM_CACHE" in os.environ:
    archive.SHARED = 0  # the digits are small
DRAWN = []


@edm.register("solver", "patient", evaluations=1)
def patient(denoise, latents, sigmas, noise, *, free: int = 1):
    """Euler's method; while a file `hold` exists, a process draws only so many times."""
    step = next(word for word in sys.argv if word in ("evaluate", "choose", "search"))
    DRAWN.append(step)
    with open(f"{step}-{free}.draws", "a") as file:
        file.write(".")
    while len(DRAWN) > free and Path("hold").exists():
        time.sleep(0.1)
    x = latents * sigmas[0]
    for now, after in pairwise(sigmas):
        x = x + (after - now) * (x - denoise(x, now)) / now
    return x
'''
STEPS = {
    "choose": "models/chosen/vp-A/choice.json",
    "search": "results/plain/searches/vp-A/walk.json",
    "evaluate": "results/plain/distances/vp-A/points.json",
}
LONG = "results/plain/distances/vp-A/long.json"  # its only point is never finished in time
DRAWS = 3  # of each of them: two snapshots, the better one again; three settings; three points
LOGS = {"choose": "/rule_choose/", "search": "/rule_search/", "evaluate": "/rule_evaluate/plain_vp-A_points/",
        "long": "/rule_evaluate/plain_vp-A_long/"}  # fmt: skip


def write_params(folder):
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    plain = {
        "dataset": "digits", "features": "pixels",
        "base": {"model_channels": 8, "num_blocks": 1, "attn_resolutions": [], "channel_mult": [1], "duration": 1.28e-3,
                 "snapshot_every": 4.8e-4, "batch_size": 64, "level_samples": 16, "lr_rampup": 0, "conditional": False},
        "columns": {"vp": {"architecture": "ddpmpp", "preconditioning": "edm", "loss": "edm"}}, "ladder": {"A": {}},
        "sampling": {"images": 16, "block": 16, "gpus": 0}, "training": {"gpus": 0},
    }  # fmt: skip
    solver = {"solver": "patient", "num_steps": 2}
    grids = {"points": {"models": ["vp-A"], "solver": "patient", "num_steps": [2, 3, 4]},
             "long": {"models": ["vp-A"], **solver, "solver.free": 0}}  # fmt: skip
    searches = {
        "walk": {"models": ["vp-A"], **solver, "images": 16, "over": {"rho": [5, 7, 9]}, "method": "exhaustive"}
    }
    chosen = {"extends": "plain", "grids": {"points": None, "long": None, "first": {"models": ["vp-A"], **solver}},
              "searches": {"walk": None}, "choose": {"grid": "first", "images": 16, "confirm": 1}}  # fmt: skip
    raw = {"plugins": ["patient.py"], "run": ["plain"], "datasets": {"digits": raw["datasets"]["digits"]},
           "experiments": {"plain": plain | {"grids": grids, "searches": searches}, "chosen": chosen}}  # fmt: skip
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (folder / "patient.py").write_text(SOLVER)


class Limiter(threading.Thread):
    """Lowers the time limit of each step's job once it holds, and raises it again when the job is back in the queue, so
    that no job meets it twice; lets all go on when those that can are queued again."""

    def __init__(self, cluster, folder):
        super().__init__(daemon=True)
        self.cluster, self.folder, self.over = cluster, folder, threading.Event()

    def run(self):
        held = {"choose": "choose-1", "search": "search-1", "evaluate": "evaluate-1", "long": "evaluate-0"}
        limited, stopped = {}, set()
        while not self.over.wait(0.3):
            for name, file in held.items():
                draws = self.folder / f"{file}.draws"
                if name not in limited and draws.exists() and draws.stat().st_size == int(file[-1]) + 1:
                    limited[name] = next(job["id"] for job in self.cluster.jobs() if LOGS[name] in job["log"])
                    self.limit(limited[name], 2)
            for number in set(limited.values()) - stopped:
                job = self.cluster.job(number)
                if job["state"] == "FAILED":
                    stopped.add(number)
                elif job["restarts"] != "0":
                    self.limit(number, 60)
                    stopped.add(number)
            if len(stopped) == len(held):
                (self.folder / "hold").unlink()
                return

    def limit(self, job, minutes):
        self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


@pytest.fixture(scope="module")
def calm(scratch):  # noqa: F811
    """The folder of the undisturbed run, without Slurm."""
    folder = project(scratch / "calm")
    write_params(folder)
    snakemake(folder, "--cores", "2", *STEPS.values())
    return folder


def held(calm, name, *kept):
    """A folder as that of the undisturbed run, with some of its results, in which every step will be held."""
    folder = project(calm.parent / name)
    write_params(folder)
    for path in kept:
        shutil.copytree(calm / path, folder / path)
    (folder / "hold").touch()
    return folder


@pytest.fixture(scope="module")
def cluster(scratch):  # noqa: F811
    with Cluster(scratch / "slurm") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def limited(calm, cluster):
    """The folder of the limited run, which has the training run of the undisturbed one, its jobs, and its output."""
    folder = held(
        calm, "limited", "data", "models/plain", "steps/data", "steps/train/plain", "runs/plain/vp-A/snapshots"
    )
    limiter = Limiter(cluster, folder)
    limiter.start()
    words = ["snakemake", "--profile", "slurm", *STEPS.values(), LONG, "--retries", "0", *POLLS]
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        limiter.over.set()
        limiter.join(30)
    return folder, cluster.jobs(), done


def test_evaluations_choices_and_searches_resume_after_their_time_limit(calm, limited):
    folder, jobs, done = limited
    for rule, path in STEPS.items():
        assert (folder / path).exists(), done.stdout + done.stderr
        (job,) = (job for job in jobs if LOGS[rule] in job["log"])
        assert (job["restarts"], job["state"]) == ("1", "COMPLETED")
        assert _numbers(folder / path) == _numbers(calm / path)
        # The draw at which the step was held is the only one that was repeated.
        assert len((folder / f"{rule}-1.draws").read_text()) == DRAWS + 1
        assert len((calm / f"{rule}-1.draws").read_text()) == DRAWS


def test_a_step_that_finished_nothing_before_its_limit_is_an_error_and_not_repeated_for_ever(limited):
    folder, jobs, done = limited
    (job,) = (job for job in jobs if LOGS["long"] in job["log"])
    assert (job["restarts"], job["state"]) == ("0", "FAILED")
    assert done.returncode == 1 and not (folder / LONG).exists()
    assert "evaluate: the time limit came before any part was finished" in done.stdout + done.stderr
    assert (folder / "evaluate-0.draws").read_text() == "."


def test_snakemake_in_an_allocation_stops_before_its_limit_and_the_next_one_continues(calm, cluster):
    """The job script of docs/site.md, as it stands, but for what the command line of sbatch states."""
    folder = held(calm, "inside", "data", "steps/data")
    script = "slurm/allocation.sh"
    assert f"```bash\n{(ROOT / script).read_text()}```" in (ROOT / "docs" / "site.md").read_text()
    shutil.copy(ROOT / script, folder / script)
    (folder / ".venv").symlink_to(sys.prefix)
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "EDM_CACHE": str(folder / "local")}

    def submit():
        asked = ("--parsable", "--gpus-per-node=1", script, *STEPS.values())
        return cluster.run("sbatch", *asked, cwd=folder, env=environment).strip()

    def wait(ready, job, seconds=400):
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, (folder / f"edm-{job}.log").read_text()
            time.sleep(0.5)

    def over():
        return cluster.job(job)["state"] not in LIVING

    job = submit()
    draws = [folder / f"{step}-1.draws" for step in STEPS]
    wait(lambda: over() or any(file.exists() and file.stat().st_size == 2 for file in draws), job)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=15")
    wait(over, job)
    said = (folder / f"edm-{job}.log").read_text()
    assert cluster.job(job)["state"] == "FAILED" and cluster.job(job)["restarts"] == "0", said
    assert any("stopped: SIGINT" in log.read_text() for log in (folder / "runs").rglob("*.log")), said
    assert [path.suffix for path in (folder / "local").glob("*.u8")] == [".u8"]  # of the training run
    (folder / "hold").unlink()
    job = submit()
    wait(over, job)
    assert cluster.job(job)["state"] == "COMPLETED", (folder / f"edm-{job}.log").read_text()
    for path in STEPS.values():
        assert _numbers(folder / path) == _numbers(calm / path)
    counts = {file.stat().st_size for file in draws}  # no step drew anything twice but that at which it was held
    assert DRAWS + 1 in counts <= {DRAWS, DRAWS + 1}


def _numbers(path):
    """What a results file says without what differs between two runs of the same: times, runs' keys."""
    found = json.loads(path.read_text())

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if key not in ("seconds", "run", "commit", "dirty")}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return plain(found)
