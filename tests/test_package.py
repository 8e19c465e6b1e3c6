"""The wheel: what a user without a clone installs, and what it needs beside torch."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

from edm import params
from edm.errors import EXTRAS
from edm.models import building, checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
#: Import names of all that comes with an extra, or with what does.
EXTRA = ("snakemake", "mlflow", "dvc", "torch_fidelity", "torchvision", "sklearn", "scipy", "matplotlib", "pandas")
#: Python runs this at its start: an installation without the extras.
BARE = f"""
import sys
from importlib.machinery import ModuleSpec

class Refuse:  # torch asks where such packages lie, and only imports tell that they are not there
    def find_spec(name, path, target=None):
        return ModuleSpec(name, Refuse) if name.partition(".")[0] in {EXTRA} else None

    def create_module(spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)

    exec_module = None

sys.meta_path.insert(0, Refuse)
"""
SMALL = """
{"resolution": 8, "channels": 1, "classes": 10, "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
 "attn_resolutions": [], "batch_size": 16, "duration": 3.2e-5, "level_samples": 16}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as pip installs it from the wheel, and without the extras."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    for name in ("edm", "snakemake_logger_plugin_edm"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    (site / "sitecustomize.py").write_text(BARE)
    return site


@pytest.fixture
def run(installed, tmp_path, digits_archive):
    """Runs a program or a command of ``edm`` in a folder with nothing but params.yaml and an archive of digits."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(digits_archive, tmp_path / "data" / "digits.zip")
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def do(*command):
        program = [sys.executable, "-c", *command] if len(command) == 1 else [installed / "bin" / "edm", *command[1:]]
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return do


def test_the_commands_work_in_any_folder(run, tmp_path):
    (tmp_path / "small.json").write_text(SMALL)
    for command in (
        "edm check",
        "edm plan digits",
        "edm train --config small.json --data data/digits.zip --out runs/mine",
        "edm sample runs/mine/model.safetensors sheet.png --seeds 0-3 --steps 3",
    ):
        done = run(*command.split())
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_library_needs_torch_and_no_extra(run, tmp_path, installed):
    (example,) = re.findall(r"```python\n(import edm.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    config = params.load(ROOT / "params.yaml").experiment("digits").models["vp-F"]
    (tmp_path / "models" / "digits" / "vp-F").mkdir(parents=True)
    torch.manual_seed(0)
    model = building.build(config)
    checkpoint.save(tmp_path / "models" / "digits" / "vp-F" / "model.safetensors", model, config, {"images": 0})
    done = run(f"{example}\nimport sys\nprint(edm.__file__, tuple(images.shape), *sys.modules, sep='\\n')")
    assert done.returncode == 0, done.stderr
    where, shape, *modules = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed) and shape == "(16, 1, 8, 8)"
    assert not {name.partition(".")[0] for name in modules} & set(EXTRA)


@pytest.mark.parametrize("command, package", [
    ("edm prepare digits.zip --source digits", "sklearn"),
    ("edm fid-ref data/digits.zip digits.npz", "torch_fidelity"),
    ("edm figures digits figure13", "matplotlib"),
    ("edm track sync data", "mlflow"),
])  # fmt: skip
def test_a_command_that_needs_an_extra_names_it(run, tmp_path, command, package):
    (tmp_path / "data" / "journal.jsonl").touch()
    done = run(*command.split())
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{package} is not installed; run: pip install 'edm-pipeline[{EXTRAS[package]}]'" in done.stderr


def test_the_workflow_brings_every_extra_that_a_command_asks_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (own,) = (line for line in extras["workflow"] if line.startswith("edm-pipeline["))
    assert set(re.findall(r"\w+", own.partition("[")[2])) | {"workflow"} == set(EXTRAS.values())


def test_snakemake_finds_the_logger_plugin_in_the_wheel_and_in_a_clone(installed):
    """Snakemake looks for plugins in the folders of sys.path only: an editable install has to put the clone there."""
    assert (installed / "snakemake_logger_plugin_edm" / "__init__.py").exists()
    source, build = installed.parent / "source", "import setuptools.build_meta as b; print(b.build_editable('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(source / done.stdout.split()[-1]) as wheel:
        (paths,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".pth"))
    assert Path(paths.strip()).resolve() == source.resolve()
