"""Steps other than training runs that come to their time limit on a real SLURM: they go back to the queue and resume.

A solver of the test's own holds each step at a certain draw until Slurm ends the attempt, so that nothing depends on
speed, and notes every draw, so that a step that draws anything twice is seen.
"""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from test_chain_on_slurm import POLLS, project, scratch, snakemake  # noqa: F401 (a fixture)

SOLVER = '''
import sys
import time
from itertools import pairwise
from pathlib import Path

import edm

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
        "sampling": {"images": 16, "block": 16},
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
    """Lowers the time limit of each step's job once it holds; lets all go on when those that can are queued again."""

    def __init__(self, cluster, folder):
        super().__init__(daemon=True)
        self.cluster, self.folder, self.over, self.ended = cluster, folder, threading.Event(), []

    def run(self):
        held = {"choose": "choose-1", "search": "search-1", "evaluate": "evaluate-1", "long": "evaluate-0"}
        limited = {}
        while not self.over.wait(0.3):
            for name, file in held.items():
                draws = self.folder / f"{file}.draws"
                if name not in limited and draws.exists() and draws.stat().st_size == int(file[-1]) + 1:
                    limited[name] = next(job["id"] for job in self.cluster.jobs() if LOGS[name] in job["log"])
                    self.cluster.run("scontrol", "update", f"JobId={limited[name]}", "TimeLimit=2")
            jobs = [self.cluster.job(number) for number in limited.values()]
            if len(jobs) == len(held) and all(job["restarts"] != "0" or job["state"] == "FAILED" for job in jobs):
                self.ended = jobs
                for job in jobs:
                    if job["state"] != "FAILED":
                        self.cluster.run("scontrol", "update", f"JobId={job['id']}", "TimeLimit=60")
                (self.folder / "hold").unlink()
                return


@pytest.fixture(scope="module")
def finished(scratch):  # noqa: F811
    """The folders of the undisturbed and of the limited run, the jobs of the latter, and its training run's files."""
    calm = project(scratch / "calm")
    write_params(calm)
    snakemake(calm, "--cores", "2", *STEPS.values())
    limited = project(scratch / "limited")
    write_params(limited)
    for name in ("data", "models", "steps", "runs"):  # one training run for both
        shutil.copytree(calm / name, limited / name)
    for name in ("models/chosen", "steps/train/chosen", "steps/evaluate"):  # all but the training run
        shutil.rmtree(limited / name)
    for path in (limited / "runs").rglob("*.history.jsonl"):
        path.unlink()
    (limited / "hold").touch()
    with Cluster(scratch / "slurm") as cluster:
        limiter = Limiter(cluster, limited)
        limiter.start()
        words = ["snakemake", "--profile", "slurm", *STEPS.values(), LONG, "--retries", "0", *POLLS]
        environment = {**cluster.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
        try:
            done = subprocess.run(words, cwd=limited, env=environment, capture_output=True, text=True, timeout=600)
        finally:
            limiter.over.set()
            limiter.join(30)
        jobs = cluster.jobs()
    return calm, limited, jobs, done


def test_evaluations_choices_and_searches_resume_after_their_time_limit(finished):
    calm, limited, jobs, done = finished
    for rule, path in STEPS.items():
        assert (limited / path).exists(), done.stdout + done.stderr
        (job,) = (job for job in jobs if LOGS[rule] in job["log"])
        assert (job["restarts"], job["state"]) == ("1", "COMPLETED")
        assert _numbers(limited / path) == _numbers(calm / path)
        # The draw at which the step was held is the only one that was repeated.
        assert len((limited / f"{rule}-1.draws").read_text()) == DRAWS + 1
        assert len((calm / f"{rule}-1.draws").read_text()) == DRAWS


def test_a_step_that_finished_nothing_before_its_limit_is_an_error_and_not_repeated_for_ever(finished):
    _, limited, jobs, done = finished
    (job,) = (job for job in jobs if LOGS["long"] in job["log"])
    assert (job["restarts"], job["state"]) == ("0", "FAILED")
    assert done.returncode == 1 and not (limited / LONG).exists()
    assert "evaluate: the time limit came before any part was finished" in done.stdout + done.stderr
    assert (limited / "evaluate-0.draws").read_text() == "."


def _numbers(path):
    """What a results file says without what differs between two runs of the same: times, runs' keys."""
    found = json.loads(path.read_text())

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if key not in ("seconds", "run", "commit", "dirty")}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return plain(found)
