"""What sbatch is asked for. A program of this name records it; tests/slurm runs jobs on a real Slurm."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from test_small_chain import ROOT, snakemake, write_params

RECORDER = '#!/bin/sh\n[ "$1" = --version ] && echo "slurm 24.05.0" && exit\necho "$@" >> "{path}"\nexit {status}\n'
MODEL = "models/tiny/vp-A/model.safetensors"


@pytest.fixture
def asked(tmp_path):
    """The words that a call of snakemake gives to sbatch for one training run."""
    write_params(tmp_path)
    assert snakemake(tmp_path, "data/digits.zip").returncode == 0
    (tmp_path / "slurm").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sinfo", "scancel"):
        (tmp_path / "bin" / name).write_text(
            RECORDER.format(path=tmp_path / f"{name}.txt", status=int(name == "sbatch"))
        )
        (tmp_path / "bin" / name).chmod(0o755)
    profile = (ROOT / "slurm" / "config.yaml").read_text()

    def words(*options, **changes):
        text = profile
        for before, after in changes.values():
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "slurm" / "config.yaml").write_text(text)
        path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = snakemake(tmp_path, "--profile", tmp_path / "slurm", "--retries", "0", MODEL, *options, PATH=path)
        assert done.returncode
        (line,) = (tmp_path / "sbatch.txt").read_text().splitlines()
        return shlex.split(line)

    return words


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"extra": ('sbatch: ""', 'sbatch: "--reservation=paper --mail-type=FAIL"'),
                                          "rule": ("train: {", "train: {qos: long, constraint: fast, ")}])  # fmt: skip
def test_options_of_the_site_are_added_to_ours(asked, changes):
    words = asked(**changes)
    assert "--signal=TERM@120" in words
    theirs = {"--reservation=paper", "--mail-type=FAIL", "--qos=long"}
    assert theirs & set(words) == (theirs if changes else set())
    assert ("fast" in words) == bool(changes)  # --constraint fast, or -C fast
