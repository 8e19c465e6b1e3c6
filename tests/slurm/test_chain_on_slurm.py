"""`snakemake --profile slurm cluster` on a real SLURM, disturbed in every way: it gives what an undisturbed run gives.

Jobs are killed, queued again, come near their time limit, and lose their node. The undisturbed run needs no SLURM.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from cluster import ENDING, LIVING, RUNNING, Cluster
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
POLLS = ("--slurm-init-seconds-before-status-checks", "3")  # seconds; jobs end sooner here than on a cluster
MODELS = ("vp-A", "vp-F")


def project(folder, **training):
    """The repository as a user has it, with a site's own CPUs per job, a third of the images, and nothing made yet."""
    folder.mkdir()
    for name in ("edm", "workflow"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "slurm").mkdir()
    profile = (ROOT / "slurm" / "config.yaml").read_text()
    for rule, cpus in (("train", 2), (r"\w+", 1)):  # a thread for each process, here as there
        profile = re.sub(rf"(?m)^(  {rule}: .*cpus_per_task: )(?!2\b)\d+", rf"\g<1>{cpus}", profile)
    (folder / "slurm" / "config.yaml").write_text(profile)
    params, shortened = re.subn(
        r"override: {duration: 0.06}", "override: {duration: 0.02}", (ROOT / "params.yaml").read_text()
    )
    assert shortened == 1
    for name, value in training.items():
        params = re.sub(r"(training: {gpus: 2)(, state_every: 5})", rf"\1, {name}: {value}\2", params)
    (folder / "params.yaml").write_text(params)
    return folder


def snakemake(folder, *words, cluster=None, seconds=2400):
    """What a call of Snakemake printed, on a cluster or without one. If it fails or takes longer, all that is known."""
    environment = {**(cluster.environment if cluster else os.environ), "PYTHONPATH": str(ROOT)}
    with (folder / "snakemake.log").open("w") as log:
        process = subprocess.Popen(["snakemake", *words], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"Snakemake runs after {seconds} s\n{_known(folder, cluster)}", pytrace=False)
        finally:
            process.kill()
    assert status == 0, _known(folder, cluster)
    return (folder / "snakemake.log").read_text()


def _known(folder, cluster, characters=3000):
    """The end of every log of a run, and what Slurm says of its nodes, its last jobs and their processes."""
    logs = [
        folder / "snakemake.log",
        *sorted(folder.glob("runs/**/*.log")),
        *sorted(folder.glob(".snakemake/slurm_logs/**/*.log")),
    ]
    said = [f"== {path.relative_to(folder)}\n{path.read_text(errors='replace')[-characters:]}" for path in logs]
    if cluster:
        said += [cluster.run("sinfo", "-N", "-o", "%N %T %E"), *map(str, cluster.jobs()[-3:])]
        for number in cluster.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
                said.append(f"{number} {Path(f'/proc/{number}/wchan').read_text()} {words[:200]}")
    return "\n".join(said)


@pytest.fixture(scope="module")
def scratch():
    with tempfile.TemporaryDirectory(prefix="edm-") as folder:  # short: SLURM's sockets lie below it
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(scratch):
    folder = project(scratch / "undisturbed")
    snakemake(folder, "--cores", "2", "cluster")
    return folder


class Disturber(threading.Thread):
    """Does each of its disturbances once, as soon as there is something to disturb."""

    def __init__(self, cluster, folder):
        super().__init__(daemon=True)
        self.cluster, self.folder = cluster, folder
        self.over, self.failure = threading.Event(), None
        self.done: list[str] = []
        self.left = [self.kill_training, self.requeue_training, self.shorten_limit, self.kill_shard, self.lose_node]

    def run(self):
        try:
            while self.left and not self.over.wait(0.5):
                running = [job for job in self.cluster.jobs() if job["state"] in RUNNING]
                for disturb in list(self.left):
                    if said := disturb(running):
                        self.left.remove(disturb)
                        self.done.append(said)
                        break
        except Exception as error:  # seen by the test
            self.failure = error

    def training(self, running, model, images):
        """The running job that trains a model, once it has saved a state after so many images."""
        for job in running:
            if f"rule_train/cluster_{model}/" in job["log"] and self.images(model) > images:
                return job
        return None

    def images(self, model):
        """Images seen by the newer state of a training; −1 without one."""
        seen = [-1]
        for state in (self.folder / "runs" / "cluster" / model).glob("state-?.safetensors"):
            with contextlib.suppress(OSError), safe_open(state, "pt") as file:
                seen.append(json.loads(file.metadata()["edm"])["images"])
        return max(seen)

    def kill_training(self, running):
        if job := self.training(running, "vp-A", 0):
            self.killed_at = self.images("vp-A")
            count = self.kill_nine(job, "train")
            return f"kill -9 of {count} processes of job {job['id']}: train vp-A, after {self.killed_at:,} images"

    def processes_of(self, job, command):
        """Numbers of the processes of a job that run a command of `edm`."""
        return [number for number in self.cluster.processes(SLURM_JOB_ID=job["id"]) if _runs(number, command)]

    def kill_nine(self, job, command):
        """Kills the processes of a job that run a command of `edm`, waits until the job is over, returns how many."""
        processes = self.processes_of(job, command)
        _signal(processes, signal.SIGKILL)
        while processes and self.cluster.job(job["id"])["state"] in RUNNING + ENDING:
            if self.over.wait(0.5):
                return 0
        return len(processes)

    def requeue_training(self, running):
        if job := self.training(running, "vp-F", 0):
            self.cluster.run("scontrol", "requeue", job["id"])
            return f"requeue of job {job['id']}: train vp-F, after {self.images('vp-F'):,} images"

    def shorten_limit(self, running):
        if self.kill_training in self.left or not (job := self.training(running, "vp-A", self.killed_at)):
            return None
        processes = self.processes_of(job, "train")
        if not processes:  # it has just ended
            return None
        _signal(processes, signal.SIGSTOP)  # Slurm looks at limits every 30 s: a fast machine would end the run first
        try:
            self.cluster.run("scontrol", "update", f"JobId={job['id']}", "TimeLimit=2")
            limited = self.images("vp-A")
            while not all(_asked_to_stop(number) for number in processes):
                if self.over.wait(0.1):
                    return None
        finally:
            _signal(processes, signal.SIGCONT)
        while self.cluster.job(job["id"])["restarts"] == "0":  # until it has saved its state and gone back to the queue
            if self.over.wait(0.5):
                return None
        self.cluster.run("scontrol", "update", f"JobId={job['id']}", "TimeLimit=60")
        return f"time limit of job {job['id']} lowered to 2 minutes: train vp-A, after {limited:,} images and more"

    def kill_shard(self, running):
        for job in running:
            if "/rule_shard/" in job["log"] and self.kill_nine(job, "evaluate"):
                return f"kill -9 of job {job['id']}: {_step(job)}"
        return None

    def lose_node(self, running):
        """Not while a job with GPUs may be on its way to the node: Slurm 22.05 would count them as used for ever."""
        with_gpus = (job for job in self.cluster.jobs() if "gpu" in job["tres"])
        if self.left != [self.lose_node] or any(job["state"] in LIVING for job in with_gpus):
            return None
        drawing = [job for job in running if re.search("/rule_(shard|evaluate|sample)/", job["log"])]
        if not drawing:
            return None
        node = drawing[0]["node"]
        lost = [job for job in drawing if job["node"] == node]
        self.cluster.lose(node)
        while any(self.cluster.job(job["id"])["state"] in RUNNING for job in lost):
            if self.over.wait(0.5):
                return None
        self.cluster.revive(node)
        return f"node {node} lost with " + ", ".join(f"job {job['id']} ({_step(job)})" for job in lost)


def _runs(process, command):
    """Whether a process is `edm COMMAND` itself, not what started it."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
        return words[1:4] == ["-m", "edm", command] or words[2:5] == ["-m", "edm", command]
    return False


def _signal(processes, number):
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _asked_to_stop(process):
    """Whether a process that is held by SIGSTOP has a SIGTERM waiting for it, or is gone."""
    with contextlib.suppress(OSError):
        waiting = re.findall(r"(?m)^S[hi][dg]Pnd:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
        return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in waiting)
    return True


def _step(job):
    return re.search(r"rule_(\w+/.*)/", job["log"])[1].replace("/", " ")


@pytest.fixture(scope="module")
def cluster(scratch):
    with Cluster(scratch / "slurm") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def disturbed(scratch, cluster):
    """The folder of the disturbed run, what was done to it, and its jobs."""
    folder = project(scratch / "disturbed")
    disturber = Disturber(cluster, folder)
    disturber.start()
    try:
        snakemake(folder, "--profile", "slurm", "cluster", *POLLS, cluster=cluster)
    finally:
        disturber.over.set()
        disturber.join(60)
    assert disturber.failure is None
    assert not disturber.left, f"never happened: {[disturb.__name__ for disturb in disturber.left]}"
    return folder, disturber.done, cluster.jobs()


def test_a_disturbed_run_gives_the_tables_of_an_undisturbed_one(undisturbed, disturbed, capsys):
    folder, done, jobs = disturbed
    for suffix in (".md", ".csv", ".tex", ".html"):
        table = f"results/cluster/tables/cluster{suffix}"
        assert (folder / table).read_text() == (undisturbed / table).read_text()
    distances = sorted(path.relative_to(folder) for path in (folder / "results").rglob("distances/**/*.json"))
    assert len(distances) == 6
    for path in distances:
        ours, theirs = (json.loads((root / path).read_text()) for root in (folder, undisturbed))
        assert ours["points"] == theirs["points"]
    with capsys.disabled():
        print(f"\n{len(jobs)} jobs of Slurm:")
        steps = Counter((_step(job).split()[0], re.sub(r"(mem|billing|node)=[^,]*,?", "", job["tres"])) for job in jobs)
        for (rule, asked), count in sorted(steps.items()):
            print(f"  {count:3} × {rule:10} {asked}")
        print(f"{len(done)} disturbances:", *done, sep="\n  ")
        restarts, failed = sum(int(job["restarts"]) for job in jobs), sum(job["state"] == "FAILED" for job in jobs)
        print(f"{restarts} restarts by Slurm, {failed} failed and repeated by Snakemake; the results are equal.")


@pytest.mark.parametrize("model", MODELS)
def test_a_disturbed_training_ends_with_the_same_weights_and_log(undisturbed, disturbed, model):
    folder, _, _ = disturbed
    ours, theirs = (load_file(root / f"models/cluster/{model}/model.safetensors") for root in (folder, undisturbed))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    times = {"seconds", "images_per_second"}
    logs = [[{k: v for k, v in json.loads(row).items() if k not in times} for row in
             (root / f"runs/cluster/{model}/log.jsonl").read_text().splitlines()]
            for root in (folder, undisturbed)]  # fmt: skip
    assert logs[0] == logs[1]


def test_jobs_ask_for_what_params_yaml_states(disturbed):
    """Trainings for two GPUs each, the others for none; only the steps that take no time run where Snakemake does."""
    _, _, jobs = disturbed
    for job in jobs:
        assert ("gres:gpu:2" in job["tres"]) == ("/rule_train/" in job["log"])
        assert "gpu" not in job["tres"] or "/rule_train/" in job["log"]
    rules = Counter(_step(job).split()[0] for job in jobs)
    assert rules["shard"] >= 12 and rules["evaluate"] >= 6 and not {"table", "metrics", "about", "track"} & rules.keys()


def test_what_was_stopped_by_its_time_limit_says_so(disturbed):
    folder, _, _ = disturbed
    attempts = (folder / "runs/cluster/vp-A/attempts.log").read_text()
    stopped = r"job \d+: stopped: SIGTERM, after [\d,]+ images; the state is saved, the same command continues\n"
    assert re.search(stopped, attempts), attempts
    assert attempts.count(": started\n") >= 3 and attempts.endswith(": done\n")


def test_there_is_nothing_left_to_do(disturbed, cluster):
    folder, _, _ = disturbed
    said = snakemake(folder, "--profile", "slurm", "cluster", cluster=cluster)
    assert "Nothing to be done" in said


def test_a_training_on_two_nodes_is_that_on_one(undisturbed, cluster, scratch):
    folder = project(scratch / "nodes", nodes=2)
    (folder / "data").mkdir()
    shutil.copy(undisturbed / "data" / "digits.zip", folder / "data")
    shutil.copytree(undisturbed / "steps" / "data", folder / "steps" / "data")
    cluster.settle()
    before = len(cluster.jobs())
    model = "models/cluster/vp-F/model.safetensors"
    snakemake(folder, "--profile", "slurm", model, *POLLS, cluster=cluster, seconds=600)
    (job,) = cluster.jobs()[before:]
    assert job["node"] == "n[1-2]" and "gres:gpu:2" in job["tres"]
    ours, theirs = load_file(folder / model), load_file(undisturbed / model)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_failing_rank_ends_the_job_and_its_error_is_shown(cluster, scratch, undisturbed):
    """A dataset that cannot be read: both processes fail, the job ends at once, and Snakemake shows the reason."""
    folder = project(scratch / "failing")
    (folder / "data").mkdir()
    (folder / "data" / "digits.zip").write_bytes((undisturbed / "data" / "digits.zip").read_bytes()[:1000])
    subprocess.run([sys.executable, "-m", "edm", "adopt", "data/digits.zip"], cwd=folder, check=True)
    begun = time.monotonic()
    with pytest.raises(AssertionError):
        snakemake(folder, "--profile", "slurm", "models/cluster/vp-F/model.safetensors", "--retries", "0", *POLLS,
                  cluster=cluster)  # fmt: skip
    assert time.monotonic() - begun < 900  # a process that waits for the other ends after half an hour
    assert cluster.jobs()[-1]["state"] == "FAILED"
    said = (folder / "snakemake.log").read_text()
    assert "error: data/digits.zip: " in said and "runs/cluster/vp-F/train.log" in said
