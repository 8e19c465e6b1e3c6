"""docs/rules.md: its three pieces, added to a copy of the project, make a rule that plans, runs and stays fresh."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edm import params
from edm.models import building, checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, digits_archive):
    for name in ("edm", "snakemake_logger_plugin_edm", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    page = (ROOT / "docs" / "rules.md").read_text()
    pieces = dict(re.findall(r"```(entry|snakemake|command)\n(.*?)```", page, flags=re.DOTALL))
    with open(tmp_path / "edm" / "chain" / "rules.py", "a") as file:
        file.write(f"\n\n{pieces['entry']}")
    (tmp_path / "workflow" / "rules" / "size.smk").write_text(pieces["snakemake"])
    (tmp_path / "edm" / "commands" / "size.py").write_text(pieces["command"])
    commands = tmp_path / "edm" / "commands" / "__init__.py"
    commands.write_text(commands.read_text().replace('FILES = ("data", ', 'FILES = ("data", "size", ', 1))
    return tmp_path


def run(project, *command):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *command]
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_added_rule_plans_runs_and_is_fresh_afterwards(project, digits_archive):
    config = params.load(ROOT / "params.yaml").experiment("digits").models["vp-A"]
    target = "results/digits/sizes/vp-A.json"
    assert re.search(r"size +1 ", run(project, "edm", "plan", target))
    for path in ("data", "models/digits/vp-A"):
        (project / path).mkdir(parents=True)
    shutil.copy(digits_archive, project / "data" / "digits.zip")
    denoiser = building.build(config)
    checkpoint.save(project / "models/digits/vp-A/model.safetensors", denoiser, config, {"images": 0})
    (project / "models/digits/vp-A/levels.json").write_text("{}")
    run(project, "edm", "adopt", "models/digits/vp-A/model.safetensors")
    assert "[1/1] " in run(project, "snakemake", "--cores", "1", target)
    count = sum(parameter.numel() for parameter in denoiser.network.parameters())
    assert json.loads((project / target).read_text()) == {"parameters": count}
    assert "Nothing to be done" in run(project, "snakemake", "--cores", "1", target)
