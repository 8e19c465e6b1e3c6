"""Jobs on one machine share its GPUs: each has its own. There is none here: the driver is stood in for."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import made_up_gpus
import pytest
from made_up_gpus import driver

import edm
from edm.cli import main
from edm.cluster import children
from edm.cluster.gpus import VISIBLE, gpu_name, on_this_machine, own
from edm.commands import launching


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of some GPUs, for this process and those that it starts: returns how to start one that takes GPUs."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("edm.cluster.gpus.FOLDER", tmp_path / "locks")

    def with_gpus(count):
        monkeypatch.setitem(sys.modules, "pynvml", driver(count))

        def job(gpus, seconds, **more):
            command = [
                sys.executable,
                made_up_gpus.__file__,
                str(count),
                str(tmp_path / "locks"),
                str(gpus),
                str(seconds),
            ]
            return subprocess.Popen(command, env={**os.environ, **more}, stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)  # fmt: skip

        return job

    return with_gpus


def seen(job):
    """The GPUs that a job had, from when, and until when."""
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    names, begin, end = out.splitlines()[1].split()
    return names.split(","), float(begin), float(end)


@pytest.mark.slow
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
    assert second.stderr.readline() == "waiting for 1 GPU: other jobs use or await them\n"
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    assert seen(second)[0] == ["GPU-0"]
    first.communicate()


def test_more_than_there_are_are_refused(machine):
    machine(2)
    with pytest.raises(edm.UserError, match="3 GPUs are needed, but only 2 are available; lower"), own(3):
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
    monkeypatch.setattr(launching, "_run", lambda *_: heard.append(os.environ.get(VISIBLE)) or (0, set(), False))
    assert main(["launch", *asked, "--", "check"]) == 0
    assert heard == [visible]


def test_what_outlives_its_launcher_keeps_its_gpus(machine, monkeypatch):
    """As where the launcher alone is killed: what it started goes on computing."""
    job, real = machine(1), subprocess.Popen
    left = []

    def and_another(command, pass_fds, **options):
        left.append(real(["sleep", "60"], pass_fds=pass_fds))
        return real(command, **options)

    monkeypatch.setattr(children.subprocess, "Popen", and_another)
    assert main(["launch", "--gpus", "1", "--", "--help"]) == 0
    monkeypatch.undo()
    blocked = job(1, 0)
    assert blocked.stderr.readline().startswith("waiting for 1 GPU")
    left[0].kill()
    left[0].wait()
    assert seen(blocked)[0] == ["GPU-0"]


def test_jobs_of_other_gpus_do_not_wait_for_each_other(machine):
    job = machine(2)
    first = job(1, 60, CUDA_VISIBLE_DEVICES="0")
    assert first.stdout.readline() == "began\n"
    behind = job(1, 0, CUDA_VISIBLE_DEVICES="0")
    assert behind.stderr.readline().startswith("waiting")
    assert seen(job(1, 0, CUDA_VISIBLE_DEVICES="1"))[0] == ["GPU-1"]
    assert first.poll() is None and behind.poll() is None
    first.kill()
    first.communicate()
    assert seen(behind)[0] == ["GPU-0"]


@pytest.mark.parametrize(
    "visible, found",
    [("1,0", ["GPU-1", "GPU-0"]), ("0,0", ["GPU-0"]), ("0,-1,1", ["GPU-0"]), ("", []), ("GPU-1", ["GPU-1"]),
     ("GPU-", ["GPU-"]), ("MIG-1", ["MIG-1"])],
)  # fmt: skip
def test_visible_devices_mean_what_they_mean_to_cuda(visible, found, machine, monkeypatch):
    machine(2)
    monkeypatch.setenv(VISIBLE, visible)
    assert on_this_machine() == found


def test_the_beginning_of_a_uuid_stands_for_it(machine, monkeypatch):
    machine(12)
    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetUUID", lambda handle: f"GPU-{handle:04x}-and-more")
    monkeypatch.setenv(VISIBLE, "GPU-000b,GPU-0001-and-more,GPU-000")
    assert on_this_machine() == ["GPU-000b-and-more", "GPU-0001-and-more", "GPU-000"]


def test_numbers_of_unlike_gpus_are_left_to_cuda(machine, monkeypatch):
    """Which counts the fastest first; the driver does not."""
    machine(2)
    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetName", lambda handle: f"kind {handle}")
    monkeypatch.setenv(VISIBLE, "1")
    assert on_this_machine() == ["1"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert on_this_machine() == ["GPU-1"]


@pytest.mark.parametrize("kind", ["link", "file", "open to all"])
def test_nothing_is_written_where_another_user_could_have_prepared_it(kind, machine, tmp_path):
    machine(1)
    locks = tmp_path / "locks"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        locks.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        locks.write_text("kept")
    else:
        locks.mkdir()
        locks.chmod(0o777)
    with pytest.raises(edm.UserError, match="locks: "), own(1):
        raise AssertionError("it was taken for ours")
    assert locks.read_text() == "kept" if kind == "file" else not list(locks.iterdir())


@pytest.mark.parametrize(
    "asked, processes", [(["--gpus", "4"], 4), (["--gpus", "0"], 1), (["--processes", "3"], 3), ([], 1)]
)
def test_a_process_per_gpu(asked, processes, monkeypatch):
    """However many: Snakemake lowers what a job asks for to what --resources allows."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    heard = []
    monkeypatch.setattr(launching, "_run", lambda command, *_: heard.append(command) or (0, set(), False))
    assert main(["launch", *asked, "--", "check"]) == 0
    assert ([f"--nproc-per-node={processes}"] if processes > 1 else []) == [
        word for word in heard[0] if word.startswith("--nproc")
    ]


def test_processes_are_counted_once(capsys):
    with pytest.raises(SystemExit):
        main(["launch", "--processes", "8", "--gpus", "4", "--", "check"])
    assert "--gpus: not allowed with argument --processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "visible, name", [(None, "A100"), ("1,0", "T4"), ("GPU-c0ffee", "T4"), ("", None), ("-1", None), ("7", None)]
)
def test_of_several_gpus_the_driver_names_the_one_that_the_job_sees(monkeypatch, visible, name):
    gpus = {0: "A100", 1: "T4", "GPU-c0ffee": "T4"}
    named = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=gpus.__getitem__,
                            nvmlDeviceGetHandleByUUID=gpus.__getitem__, nvmlDeviceGetName=str)  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", named)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.9.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_name() == name
