"""Jobs on one machine share its GPUs: each has its own. There is none here: the driver is stood in for."""

import os
import signal
import subprocess
import sys
import types

import pytest

import edm
from edm.cli import main
from edm.commands import launching
from edm.gpus import VISIBLE, on_this_machine, own

DRIVER = """
def nvmlInit(): pass
def nvmlDeviceGetCount(): return {count}
def nvmlDeviceGetHandleByIndex(number): return range({count})[number]
def nvmlDeviceGetUUID(handle): return f"GPU-{{handle}}"
def nvmlDeviceGetName(handle): return f"name of {{handle}}"
nvmlDeviceGetHandleByUUID = str
"""
JOB = """
import sys, time
from edm.gpus import own, VISIBLE
import os
with own(int(sys.argv[1])):
    begin = time.monotonic()
    print("began", flush=True)
    time.sleep(float(sys.argv[2]))
    print(os.environ[VISIBLE], begin, time.monotonic())
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of some GPUs, for this process and those that it starts: returns how to start one that takes GPUs."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    }

    def with_gpus(count):
        (tmp_path / "pynvml.py").write_text(DRIVER.format(count=count))
        driver = types.ModuleType("pynvml")
        exec(DRIVER.format(count=count), driver.__dict__)
        monkeypatch.setitem(sys.modules, "pynvml", driver)

        def job(gpus, seconds):
            command = [sys.executable, "-c", JOB, str(gpus), str(seconds)]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        return job

    return with_gpus


def seen(job):
    """The GPUs that a job had, from when, and until when."""
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    names, begin, end = out.splitlines()[1].split()
    return names.split(","), float(begin), float(end)


def test_no_two_jobs_have_one_gpu_at_a_time_and_none_lies_idle(machine):
    job = machine(3)
    found = [seen(one) for one in [job(gpus, 0.4) for gpus in (1, 2, 1, 3, 1, 2)]]
    assert sorted(len(names) for names, _, _ in found) == [1, 1, 1, 2, 2, 3]
    assert {name for names, _, _ in found for name in names} == {"GPU-0", "GPU-1", "GPU-2"}
    for i, (names, begin, end) in enumerate(found):
        for others, other_begin, other_end in found[:i]:
            assert not {*names} & {*others} or end <= other_begin or other_end <= begin
    overlapping = [a for i, a in enumerate(found) for b in found[:i] if a[1] < b[2] and b[1] < a[2]]
    assert overlapping  # they do not simply take turns


def test_a_job_that_is_killed_gives_its_gpus_back(machine):
    job = machine(2)
    first = job(2, 60)
    assert first.stdout.readline() == "began\n"
    second = job(1, 0)
    assert second.stderr.readline() == "waiting for 1 more GPUs, which other jobs have\n"
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    assert seen(second)[0] == ["GPU-0"]
    first.communicate()


def test_more_than_there_are_are_refused(machine):
    machine(2)
    with pytest.raises(edm.UserError, match="3 GPUs are asked for, and there are 2; lower"), own(3):
        raise AssertionError("there are not so many")


def test_none_hides_those_that_there_are_and_all_is_as_before_in_the_end(machine, monkeypatch):
    machine(2)
    with own(0):
        assert os.environ[VISIBLE] == ""
    assert VISIBLE not in os.environ
    monkeypatch.setenv(VISIBLE, "1")
    with pytest.raises(KeyError), own(1):
        assert os.environ[VISIBLE] == "GPU-1"
        raise KeyError
    assert os.environ[VISIBLE] == "1"


def test_a_machine_without_gpus_is_left_alone(monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with own(8):
        assert VISIBLE not in os.environ


def test_in_a_job_of_slurm_its_own_gpus_are_shared(machine, monkeypatch):
    """`snakemake` within an allocation; their numbers mean nothing in other jobs."""
    machine(8)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert on_this_machine() == []
    monkeypatch.setenv(VISIBLE, "0,1")
    with own(1):
        assert os.environ[VISIBLE] == "0"
        monkeypatch.setenv(VISIBLE, "0,1")
        with own(1):
            assert os.environ[VISIBLE] == "1"
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        monkeypatch.setenv(VISIBLE, "0,1")
        with own(2):
            assert os.environ[VISIBLE] == "0,1"


@pytest.mark.parametrize("asked, visible", [([], None), (["--gpus", "0"], ""), (["--gpus", "2"], "GPU-0,GPU-1")])
def test_a_command_is_started_on_gpus_of_its_own(asked, visible, machine, monkeypatch):
    machine(4)
    heard = []
    monkeypatch.setattr(launching, "_run", lambda command, threads: heard.append(os.environ.get(VISIBLE)) or 0)
    assert main(["launch", *asked, "--", "check"]) == 0
    assert heard == [visible]
