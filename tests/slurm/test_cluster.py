"""The private SLURM that the other tests of this folder run on."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cluster import NODES, Cluster, UserError

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def living(configuration):
    """Processes that carry a cluster's configuration in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_CONF={configuration}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("c") / "s"


def test_jobs_run_wait_for_gpus_and_leave_nothing_behind(folder, tmp_path):
    with Cluster(folder) as cluster:

        def submit(*words, command):
            log = ("--output", tmp_path / "%j.log")
            return cluster.run("sbatch", "--parsable", *log, *words, "--wrap", command).strip()

        trivial = submit("--job-name=trivial", command="echo $((6 * 7))")
        until(lambda: cluster.job(trivial)["state"] == "COMPLETED")
        assert (tmp_path / f"{trivial}.log").read_text() == "42\n"
        assert cluster.job(trivial)["name"] == "trivial"

        where = "srun sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'"
        both = submit("--nodes=2", "--gpus-per-node=2", command=where)
        until(lambda: cluster.job(both)["state"] == "COMPLETED")
        assert sorted((tmp_path / f"{both}.log").read_text().splitlines()) == [f"{node} 0,1" for node in NODES]

        first, second, third = (submit("--gpus=2", "--nodes=1", command="sleep 1000") for _ in range(3))
        until(lambda: [cluster.job(job)["state"] for job in (first, second)] == ["RUNNING"] * 2)
        assert {cluster.job(job)["node"] for job in (first, second)} == set(NODES)
        assert cluster.job(third)["state"] == "PENDING"
        assert "gres:gpu:2" in cluster.job(third)["tres"]
        cluster.run("scancel", first)
        until(lambda: cluster.job(third)["state"] == "RUNNING")
        assert len(living(cluster.configuration)) > 4
    assert living(cluster.configuration) == []
    assert not folder.exists()


def test_a_job_of_a_lost_node_runs_again_on_another(folder, tmp_path):
    with Cluster(folder) as cluster:
        job = cluster.run(
            "sbatch", "--parsable", "--requeue", "--output", tmp_path / "log", "--wrap", "sleep 1000"
        ).strip()  # fmt: skip
        until(lambda: cluster.job(job)["state"] == "RUNNING")
        lost = cluster.job(job)["node"]
        before = set(cluster.processes(SLURMD_NODENAME=lost))
        assert before
        ports = [int(port) for port in re.findall(r"Port=(\d+)", cluster.configuration.read_text())]
        cluster.lose(lost)  # until it is back, no connection may get its port: it could not listen
        assert len(ports) == 3 and max(ports) < int(EPHEMERAL.read_text().split()[0])
        assert not before & set(living(cluster.configuration))
        until(lambda: cluster.job(job)["restarts"] == "1" and cluster.job(job)["state"] == "RUNNING", 90)
        assert cluster.job(job)["node"] != lost
        reviving = threading.Thread(target=cluster.revive, args=[lost])  # as a test that disturbs a chain does
        reviving.start()
        reviving.join()
        until(lambda: cluster._idle(lost))
        time.sleep(1)
        assert cluster.daemons[lost].poll() is None  # the thread's end does not end the daemon

        cluster.run("scancel", job)
        cluster.settle()
        assert cluster._idle(*NODES)


def test_an_error_inside_takes_the_cluster_down(folder):
    with pytest.raises(KeyboardInterrupt), Cluster(folder) as cluster:
        raise KeyboardInterrupt
    assert living(cluster.configuration) == []
    assert not folder.exists()


ALONE = lambda pid, number: os.kill(pid, number)
TWICE = lambda pid, number: [os.killpg(pid, number), time.sleep(0.02), os.killpg(pid, number)]  # as `timeout` does


@pytest.mark.parametrize(
    ("send", "ending", "status"),
    [(os.killpg, signal.SIGINT, 130), (ALONE, signal.SIGTERM, 143), (TWICE, signal.SIGTERM, 143)],
)
def test_the_command_line_ends_its_cluster_when_it_is_ended(send, ending, status):
    program = [sys.executable, Path(__file__).parent / "cluster.py"]
    cluster = subprocess.Popen(
        [*program, "sh", "-c", "srun sleep 1000 & srun true && echo $SLURM_CONF && exec sleep 1000"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    configuration = Path(cluster.stdout.readline().strip())
    assert configuration.is_file()
    send(cluster.pid, ending)
    assert cluster.wait(30) == status
    assert living(configuration) == []
    assert not configuration.parent.parent.exists()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_tests_that_are_ended_early_leave_no_daemon(folder, ending):
    """As when a time limit ends pytest, whose fixture holds the cluster."""
    program = (
        "import sys, time; from cluster import Cluster; c = Cluster(sys.argv[1]).__enter__(); print('up', flush=1)\n"
    )
    program += "try: time.sleep(1000)\nfinally: c.__exit__()"
    holder = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True,
                              cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)  # fmt: skip
    assert holder.stdout.readline() == "up\n"
    assert len(living(folder / "slurm.conf")) >= len(NODES) + 2
    holder.send_signal(ending)
    assert holder.wait(30) != 0
    until(lambda: living(folder / "slurm.conf") == [])


def test_the_command_line_gives_the_status_of_its_command():
    program = [sys.executable, Path(__file__).parent / "cluster.py"]
    assert subprocess.run(program, capture_output=True, text=True).stderr.startswith("error: no command given")
    assert subprocess.run([*program, "sh", "-c", "exit 7"]).returncode == 7


def test_without_slurm_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("cluster._program", lambda name: None)
    with pytest.raises(UserError, match="apt-get install slurm-wlm munge"):
        Cluster(folder).__enter__()
    assert not folder.exists()


def test_a_cluster_that_does_not_come_up_shows_its_logs(folder, monkeypatch):
    monkeypatch.setattr("cluster.CONFIGURATION", "Nonsense=1\n")
    with pytest.raises(UserError, match=r"\(.* ended\)(.|\n)*log: .*Nonsense"):
        Cluster(folder).__enter__()
    assert not folder.exists()
    assert os.path.isdir(folder.parent)
