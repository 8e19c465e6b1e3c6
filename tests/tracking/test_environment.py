"""What the tags and system metrics of a run say of its machine, its job and its code."""

import hashlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from edm.files import hashes
from edm.tracking import SystemMetrics, environment, environment_tags, system

CONTAINERS = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "EDM_IMAGE")


@pytest.fixture
def git(tmp_path):
    def run(*arguments):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    return run


@pytest.fixture
def tags(tmp_path, monkeypatch):
    """The tags as a new process would have them, of code in a folder of its own and outside of any job."""

    def forget():
        environment._git_tags.cache_clear()
        environment._dvc_tags.cache_clear()

    def read():
        forget()
        return environment_tags()

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "code.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "DVC_EXP_NAME", *CONTAINERS):
        monkeypatch.delenv(name, raising=False)
    yield read
    forget()


@pytest.mark.parametrize("variable", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"])
def test_the_image_around_a_step_is_named_by_its_content_and_hashed_once(tmp_path, monkeypatch, tags, variable):
    monkeypatch.chdir(tmp_path)
    assert "image" not in tags()
    image = tmp_path / "edm.sif"
    image.write_bytes(b"one")
    os.utime(image, (0, 0))
    monkeypatch.setenv(variable, str(image))
    monkeypatch.setattr("edm.files.hashes.SETTLED", -1)  # it was written just now
    read = []
    of = hashes.sha256_file
    monkeypatch.setattr(hashes, "sha256_file", lambda path: read.append(path) or of(path))
    assert [tags()["image"] for _ in range(3)] == [f"edm.sif sha256:{hashlib.sha256(b'one').hexdigest()}"] * 3
    assert read == [str(image)]
    image.write_bytes(b"another")
    assert tags()["image"] == f"edm.sif sha256:{hashlib.sha256(b'another').hexdigest()}"
    image.unlink()
    assert tags()["image"] == "edm.sif not visible inside"


def test_the_image_of_another_kind_of_container_is_the_one_that_it_was_built_with(monkeypatch, tags):
    monkeypatch.setenv("EDM_IMAGE", "")  # built without the argument
    assert "image" not in tags()
    monkeypatch.setenv("EDM_IMAGE", "edm:1")
    assert tags()["image"] == "edm:1"


def test_environment_tags_tell_commit_changes_and_slurm_job(tmp_path, monkeypatch, git, tags):
    (tmp_path / "code.py").write_text("1")
    assert not {"commit", "dirty", "slurm_job"} & set(tags())
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-qm", "m")
    git("tag", "-am", "m", "v1-rc")
    assert (tags()["commit"], tags()["dirty"]) == (git("rev-parse", "HEAD"), "false")
    (tmp_path / "code.py").write_text("2")
    assert (tags()["commit"], tags()["dirty"]) == (git("rev-parse", "HEAD"), "true")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert tags()["slurm_job"] == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert (tags()["slurm_job"], tags()["slurm_restarts"]) == ("10_3", "2")


def test_a_tree_inside_another_repository_does_not_claim_its_commit(tmp_path, git, tags):
    """As a downloaded tree has none of its own."""
    (tmp_path / "thesis.tex").write_text("1")
    (tmp_path / "code.py").write_text("1")
    git("init", "-q")
    git("add", "thesis.tex")
    git("commit", "-qm", "m")
    assert not {"commit", "dirty"} & set(tags())
    git("add", "code.py")
    git("commit", "-qm", "m")
    assert tags()["commit"] == git("rev-parse", "HEAD")


def test_the_dvc_revision_is_the_commit_of_its_files(tmp_path, monkeypatch, git, tags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("1")
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-qm", "no DVC here")
    assert "dvc_revision" not in tags()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    assert "dvc_revision" not in tags()
    git("add", ".")
    git("commit", "-qm", "DVC")
    revision = git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("2")
    git("commit", "-qam", "code only")
    assert tags()["dvc_revision"] == revision
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    monkeypatch.setenv("DVC_EXP_NAME", "wide-net")
    assert (tags()["dvc_revision"], tags()["dvc_experiment"]) == (f"{revision}-dirty", "wide-net")


def test_tags_name_the_gpu_of_a_job_that_has_loaded_torch(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "H100")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert environment_tags()["gpu"] == "H100"
    monkeypatch.delitem(sys.modules, "torch")
    assert "gpu" not in environment_tags()


def test_system_metrics_tell_what_the_process_uses():
    system = SystemMetrics()
    ballast, end = bytearray(os.urandom(1 << 20) * 200), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    found = system.read()
    assert found["system/process_cpu_percentage"] > 20
    assert 0 < found["system/cpu_utilization_percentage"] <= 100
    assert len(ballast) / 1e6 < found["system/process_memory_megabytes"] < found["system/system_memory_usage_megabytes"]
    assert 0 < found["system/system_memory_usage_percentage"] < 100
    assert not any(name.startswith("system/gpu") for name in found)


def test_system_metrics_of_a_gpu_and_of_one_that_tells_little(monkeypatch):
    def absent(device):
        raise ModuleNotFoundError("pynvml")

    cuda = SimpleNamespace(
        is_initialized=lambda: True, current_device=lambda: 1, mem_get_info=lambda d: (60e9, 80e9),
        memory_reserved=lambda d: 5e9, utilization=lambda d: 97, power_draw=lambda d: 650_000,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = SystemMetrics().read()
    assert {name.removeprefix("system/gpu_1_"): value for name, value in found.items() if "gpu" in name} == {
        "memory_usage_megabytes": 20000, "memory_usage_percentage": 25, "process_memory_megabytes": 5000,
        "utilization_percentage": 97, "power_usage_watts": 650,
    }  # fmt: skip
    cuda.utilization = absent
    found = SystemMetrics().read()
    assert "system/gpu_1_memory_usage_megabytes" in found and "system/gpu_1_utilization_percentage" not in found
    cuda.is_initialized = absent
    assert not any("gpu" in name for name in SystemMetrics().read())


def test_system_metrics_stay_silent_where_the_machine_does(monkeypatch):
    monkeypatch.setattr(system.Path, "read_text", lambda path: "")
    monkeypatch.setattr(system, "_machine_times", lambda: (0, 0))
    assert set(SystemMetrics().read()) == {"system/process_cpu_percentage"}


def test_two_readings_in_one_tick_name_the_same_metrics():
    """Else rows of one training would differ in what they hold, by chance."""
    system = SystemMetrics()
    assert len({frozenset(system.read()) for _ in range(50)}) == 1
