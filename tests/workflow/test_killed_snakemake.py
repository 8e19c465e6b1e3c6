"""Bad days of Snakemake itself: it is killed, or the cluster that it should use is not there."""

import os
import signal
from pathlib import Path

import pytest
from pretended import KILLING, ROOT, edit, planned, run, snakemake

pytestmark = pytest.mark.slow


def test_after_snakemake_was_killed_one_option_and_the_same_command_finish_the_chain(folder, monkeypatch):
    table = "results/tiny/tables/table2.md"
    edit(lambda raw: raw["experiments"]["tiny"]["tables"]["table2"].update(title="Another"))
    with monkeypatch.context() as patch:
        patch.setenv(KILLING, "table tiny/table2")
        assert snakemake(folder, table).returncode == -signal.SIGKILL
    assert Path(table).exists()  # it has no sidecar, so nothing takes it for whole
    locked = snakemake(folder, table)
    assert locked.returncode and "can be removed with the --unlock argument" in locked.stdout + locked.stderr
    assert snakemake(folder, "--unlock").returncode == 0
    assert run(folder, table) == ["table tiny/table2"] and planned(table) == []


def test_a_missing_slurm_is_one_line_at_once_and_nothing_is_submitted(folder, monkeypatch):
    bin = folder / "slurm"
    bin.mkdir()
    for name in ("sbatch", "squeue", "sacct"):
        (bin / name).write_text(f"#!/bin/sh\necho {name} $* >> {folder}/asked\necho no controller >&2\nexit 1\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin), prepend=os.pathsep)
    edit(lambda raw: raw["experiments"]["tiny"]["grids"]["ladder"].update(num_steps=4))
    stale = planned()
    done = snakemake(folder, "--profile", ROOT / "slurm", "--workflow-profile", ROOT / "workflow/profiles/default")
    printed = done.stdout + done.stderr
    assert done.returncode == 1 and printed.count("Slurm does not answer here (no controller); start Snakemake on") == 1
    assert "Error in rule" not in printed and (folder / "asked").read_text() == "sbatch --version\n"
    assert planned() == stale and not list(Path(".snakemake/locks").glob("*"))
