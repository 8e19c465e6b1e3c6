"""Starting a command as one process or several, and what is asked of Slurm. Slurm itself: tests/slurm."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edm
from edm.cli import main
from edm.cluster import launch, slurm
from edm.commands import launching
from edm.errors import PREEMPTED


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """Stands in for Slurm's commands: each notes how it was called, prints what is given here, and ends."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()

    def command(name, answer="", status=0):
        script = tmp_path / "bin" / name
        script.write_text(f"#!/bin/sh\necho {name} $* >> {tmp_path}/calls\necho '{answer}'\nexit {status}\n")
        script.chmod(0o755)
        return lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []

    return command


@pytest.mark.parametrize(
    "text, seconds",
    [("59", 59), ("1:30", 90), ("2:00:05", 7205), ("1-00:00:00", 86400), ("UNLIMITED", math.inf), ("", math.inf),
     ("INVALID", math.inf), ("NOT_SET", math.inf)],
)  # fmt: skip
def test_a_time_of_slurm(text, seconds):
    assert slurm.parse_time(text) == seconds


def test_where_the_environment_does_not_tell_when_the_job_ends_slurm_is_asked(in_job, monkeypatch):
    calls = in_job("squeue", "1:40")
    assert slurm.time_left() == 100
    assert calls() == ["squeue --noheader --job 17 --format %L"]
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 500))
    assert 490 < slurm.time_left() <= 500 and len(calls()) == 1
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 10))
    assert slurm.time_left() == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 1000))
    assert slurm.time_left() == math.inf


def test_a_slurm_that_does_not_answer_sets_no_limit(in_job):
    in_job("squeue", "down", status=1)
    assert slurm.time_left() == math.inf


def test_a_slurm_that_does_not_answer_is_one_line(in_job, monkeypatch, tmp_path):
    calls = in_job("sbatch", "slurm 22.05")
    in_job("squeue")
    slurm.require_slurm()
    assert calls() == ["sbatch --version", "squeue --me --noheader"]
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho squeue: >&2\necho no route to controller >&2\nexit 1\n")
    with pytest.raises(edm.UserError, match=r"Slurm does not answer here \(no route to controller\); start"):
        slurm.require_slurm()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(edm.UserError, match=r"Slurm does not answer here \(.*No such file.*'sbatch'\)"):
        slurm.require_slurm()


def test_nodes_are_a_matter_of_slurm(in_job, monkeypatch, capsys):
    program, *options = slurm.on_each_node(["x"], nodes=2, gpus=4, threads=8)
    assert program == "srun" and {"--nodes=2", "--ntasks=2", "--gpus-per-node=4", "--kill-on-bad-exit=1"} < {*options}
    monkeypatch.delenv("SLURM_JOB_ID")
    assert main(["launch", "--processes", "2", "--nodes", "2", "--", "metrics", "x"]) == 1
    message = "error: 2 nodes need a job of Slurm; start this with `snakemake --profile slurm`\n"
    assert capsys.readouterr().err == message


def test_the_nodes_of_a_step_meet_at_its_first(in_job, monkeypatch):
    with pytest.raises(edm.UserError, match="not a step of Slurm"):
        slurm.rendezvous()
    step = {"NUM_NODES": "2", "ID": "0"}
    for name, value in {**{f"STEP_{k}": v for k, v in step.items()}, "LAUNCH_NODE_IPADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = []
    for node in ("0", "1"):
        monkeypatch.setenv("SLURM_NODEID", node)
        found.append(dict(option.removeprefix("--").split("=", 1) for option in slurm.rendezvous()))
    assert [options["rdzv-conf"] for options in found] == ["is_host=1", "is_host=0"]
    assert found[0]["rdzv-endpoint"] == found[1]["rdzv-endpoint"]
    host, _, port = found[0]["rdzv-endpoint"].partition(":")
    assert host == "10.0.0.1" and int(port) in slurm.PORTS
    assert max(slurm.PORTS) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


@pytest.mark.parametrize(
    "arguments, message",
    [(["--processes", "3", "--nodes", "2", "--", "train"], "3 processes cannot be shared evenly by 2 nodes"),
     ([], "name the command to start")],
)  # fmt: skip
def test_mistakes_in_what_is_launched(arguments, message, capsys):
    assert main(["launch", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_command_that_was_killed_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr(launching, "_command_line", lambda *_: ["sh", "-c", "kill -9 $$"])
    assert main(["launch", "--", "train"]) == 128 + signal.SIGKILL
    reason = "by hand, or by the system because the memory ended"
    told = f"train: ended by SIGKILL ({reason}); nothing is half-written, start it again\n"
    assert capfd.readouterr().err == told


def test_the_status_of_a_launched_command_is_its_own(capfd):
    assert subprocess.run([sys.executable, "-m", "edm", "launch", "--", "metrics", "nothing"]).returncode == 1
    assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_reaches_what_was_launched_and_its_job_is_queued_again(
    tiny, digits_archive, tmp_path, in_job, processes
):
    calls = in_job("scontrol")
    in_job("squeue", "UNLIMITED")
    (tmp_path / "config.json").write_text(json.dumps(tiny(duration=10.0).to_dict()))
    process = subprocess.Popen(
        [sys.executable, "-m", "edm", "launch", "--requeue", "--processes", str(processes), "--", "train",
         "--device", "cpu", "--config", tmp_path / "config.json", "--data", digits_archive, "--out", tmp_path / "run",
         "--state-every", "0.5"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    state = tmp_path / "run" / "state-0.safetensors"
    for _ in range(600):
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    _, error = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, error
    assert error.count("the state is saved, the same command continues") == 1
    assert [call for call in calls() if call.startswith("scontrol")] == ["scontrol requeue 17"]
    assert error.endswith("job 17 goes back to Slurm's queue and resumes later\n")


STOPPING = """
import signal, sys
from edm.cli import main
from edm.commands import launching
child = (
    "import os, signal, sys; [signal.signal(n, lambda *_: sys.exit(75)) for n in (2, 10, 15)];"
    "from edm.cluster.preemption import note_kept; os.environ.get('KEEPS') and note_kept();"
    "print(1, flush=True); signal.pause()"
)
launching._command_line = lambda *_: [sys.executable, "-c", child]
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "options, number, requeued",
    [(["--requeue"], signal.SIGTERM, True), (["--requeue"], signal.SIGINT, False), ([], signal.SIGTERM, False),
     ([], signal.SIGINT, False)],
)  # fmt: skip
def test_only_a_job_of_the_workflows_own_is_queued_again_and_never_for_ctrl_c(in_job, options, number, requeued):
    """The command ends with 75, as one that saved its state. The job is 17, of an interactive session for example."""
    calls = in_job("scontrol")
    process = subprocess.Popen([sys.executable, "-c", STOPPING, "launch", *options, "--", "train"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "1\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, error
    assert calls() == (["scontrol requeue 17"] if requeued else [])
    assert ("goes back to Slurm's queue" in error) == requeued


@pytest.mark.parametrize("left, keeps, requeued", [
    ("2:00", "", False), ("2:00", "1", True), ("INVALID", "", False), ("1-00:00:00", "", True), ("UNLIMITED", "", True),
])  # fmt: skip
@pytest.mark.first(2)
def test_what_finished_nothing_before_its_time_limit_is_not_repeated(in_job, monkeypatch, left, keeps, requeued):
    calls = in_job("scontrol")
    in_job("squeue", left)
    monkeypatch.setenv("KEEPS", keeps)
    process = subprocess.Popen([sys.executable, "-c", STOPPING, "launch", "--requeue", "--", "evaluate"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, error
    assert [call for call in calls() if call.startswith("scontrol")] == ["scontrol requeue 17"] * requeued
    assert ("state a longer runtime in slurm/config.yaml" in error) != requeued


@pytest.mark.parametrize(("exitcode", "raised", "status"), [
    (1, True, 1), (75, False, 75), (-15, False, 143), (-6, False, 134), (-15, True, 1), (-6, True, 1),
])  # fmt: skip
def test_a_process_that_is_ended_while_it_leaves_failed_by_its_error(tmp_path, exitcode, raised, status):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "error.json"
    if raised:
        told = {"message": "UserError: this one had enough", "extraInfo": {"timestamp": "1"}}
        file.write_text(json.dumps({"message": told}))
    assert launch.status_of(ProcessFailure(1, 1234, exitcode, str(file))) == status
