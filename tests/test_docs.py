"""Every command in README.md and docs/ is run: as it stands, as a dry run, or by the test that is named here."""

import os
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import forking
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import edm
from edm import params
from edm.models import building, checkpoint

ROOT = Path(__file__).parent.parent
ROOT_PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
PAGES = {path.stem: path for path in (*ROOT_PAGES, *sorted((ROOT / "docs").glob("*.md")))}
#: What takes hours, a cluster, or the published file in place of our small one, is run with this added.
ADDED = {
    r"snakemake( digits-(full|metrics|solvers)| paper| results/.*| --profile slurm (cluster|paper))?": "-n",
    r"edm train .*--out .*": "--dry-run",
    r"edm import .*_diffusion.pt .*": "--resolution 16 --channels-per-head 32",
    r"edm sample .* --seeds 0-49999 .*": "--seeds 0-3",
    r"edm likelihood .*": "--images 2 --steps 2",
}
#: What is run by other tests, or by hand: the file that does, and words in it.
ELSEWHERE = {
    r"make (demo|install)": ("Makefile", "snakemake digits"),
    r"make (ci|test(-all)?)": ("Makefile", "test-all: test test-slow"),
    r"\.ci/run": ("tests/test_makefile.py", '"bash", ".ci/run"'),
    r"make ui": ("Makefile", "mlflow server"),
    r"(ruff|python -m mypy) .*": ("tests/test_types.py", "mypy"),
    r"curl -LO https://nvlabs-fi-cdn.nvidia.com/edm/.*": (
        "edm/params/catalogue.py",
        "https://nvlabs-fi-cdn.nvidia.com/edm/",
    ),
    r"edm fid .* --ref cifar10-32x32.npz": ("tests/metrics/test_reference_statistics.py", "cifar10-32x32.npz"),
    r"source .venv/bin/activate": ("Makefile", "-m venv"),
    r"\$EDITOR slurm/config.yaml": ("tests/slurm/test_chain_on_slurm.py", "config.yaml"),
    r"cat results/cluster/tables/cluster.md": ("tests/slurm/test_chain_on_slurm.py", "results/cluster/tables/cluster"),
    r"git (clone .*|add .*|commit)|cd edm": ("tests/workflow/test_provenance_chain.py", '"clone"'),
    r"edm bench paper": ("tests/chain/test_throughput.py", "measure(config"),
    r"python bench/.*": ("tests/test_bench.py", "bench"),
    r"bench/gpu.sh.*": ("tests/test_bench.py", '"gpu.sh"'),
    r"edm crate .*": ("tests/report/test_lineage.py", 'main(["crate"'),
    r"edm trace .*": ("tests/workflow/test_small_chain.py", "trace"),
    r"edm average .*": ("tests/training/test_averaging.py", '"average"'),
    r"edm advise .* --levels .*": ("tests/analysis/test_advice.py", '"--levels"'),
    r"edm compare .*": ("tests/report/test_uncertainty.py", 'main(["compare"'),
    r"snakemake --report .*": ("tests/workflow/test_small_chain.py", "--report"),
    r"dvc remote add .*": ("tests/workflow/test_provenance_chain.py", '"dvc", "remote", "add"'),
    r"dvc repro": ("tests/workflow/test_provenance_chain.py", '"dvc", "repro"'),
    r"dvc push": ("tests/workflow/test_provenance_chain.py", '"dvc", "push"'),
    r"dvc pull": ("tests/workflow/test_provenance_chain.py", '"dvc", "pull"'),
    r"dvc metrics show": ("tests/workflow/test_provenance_chain.py", '"dvc", "metrics", "show"'),
    r"dvc add .*": ("tests/workflow/test_provenance_chain.py", '"dvc", "add"'),
    r"dvc exp run -S experiments.digits.ladder.B.learning_rate=4.0e-3": (
        "tests/workflow/test_provenance_chain.py",
        '"experiments.digits.ladder.B.learning_rate=4.0e-3"',
    ),
    r"dvc exp show --only-changed": ("tests/workflow/test_provenance_chain.py", '"--only-changed"'),
}


def blocks(page):
    """(language, text) of the fenced blocks of a page, in order."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(text):
    """The commands of a block: one per line, and where several are joined each of them."""
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&")
        words.whitespace_split, words.commenters, part = True, "#", []
        for word in [*words, "&&"]:
            if word != "&&":
                part.append(word)
            elif part:
                yield " ".join(word if word in (">", "|") else shlex.quote(word).replace("'$EDITOR'", "$EDITOR")
                               for word in part)  # fmt: skip
                part = []


def merged(base, change):
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits_archive):
    """What the pages take for granted: the archive of digits, a model of the demo, pictures, a published file."""
    folder = tmp_path_factory.mktemp("made")
    config = params.load(ROOT / "params.yaml").experiment("digits").models["vp-F"]
    torch.manual_seed(0)
    for path in ("models/digits/vp-F", "runs/mine"):
        (folder / path).mkdir(parents=True)
        checkpoint.save(folder / path / "model.safetensors", building.build(config), config, {"images": 0})
    (folder / "data").mkdir()
    (folder / "data" / "digits.zip").write_bytes(digits_archive.read_bytes())
    for kind in ("rose", "tulip"):
        (folder / "data" / "raw" / "flowers" / kind).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "raw" / "flowers" / kind / f"{number}.jpg")
    for size in (64, 256):
        published = folder / f"{size}x{size}_diffusion.pt"
        published.write_bytes((ROOT / "tests/fixtures/checkpoints/adm.pt").read_bytes())
    published = ROOT / "tests/fixtures/checkpoints/nvlabs-edm.pkl"
    (folder / "edm-cifar10-32x32-cond-vp.pkl").write_bytes(published.read_bytes())
    return folder


@pytest.fixture
def project(tmp_path, made):
    subprocess.run(["cp", "-r", f"{made}/.", tmp_path], check=True)
    for name in ("edm", "examples", "workflow", "slurm", "tests", "params.yaml"):
        os.symlink(ROOT / name, tmp_path / name)
    return tmp_path


_planned: set[tuple[str, str]] = set()  # commands that have run, with their params.yaml


def run(command, folder):
    for pattern, (file, words) in ELSEWHERE.items():
        if re.fullmatch(pattern, command):
            assert words in (ROOT / file).read_text(), f"{command} is no longer run by {file}"
            return
    for pattern, option in ADDED.items():
        if re.fullmatch(pattern, command):
            command = f"{command} {option}"
    state = (command, (folder / "params.yaml").read_text())
    if " -n" in command and state in _planned:  # on another page
        return
    words = [command] if set(command) & set("$|&;<>*?~`(") else shlex.split(command)
    words = words if words[0] in ("edm", "snakemake", "python") else ["bash", "-c", command]
    done = forking.run(words, folder, {"PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    _planned.add(state)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.slow
def test_every_command_of_a_page_works(page, project):
    for language, text in blocks(PAGES[page]):
        if language == "yaml":
            stated = yaml.safe_load((project / "params.yaml").read_text())
            (project / "params.yaml").unlink()
            (project / "params.yaml").write_text(yaml.safe_dump(merged(stated, yaml.safe_load(text)), sort_keys=False))
        # diffusers is an extra: tests/foreign; questions to MLflow: tests/tracking/test_snapshots.py
        elif language == "python" and "unet" not in text and "client" not in text:
            (project / "page.py").write_text(text)
            run("python -m page", project)
        elif language == "sh":
            for command in commands(text):
                run(command, project)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_page_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)", PAGES[page].read_text()):
        assert target.startswith("http") or (PAGES[page].parent / target).exists(), target


def test_the_index_and_the_menu_of_the_site_name_every_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {"bench/RESULTS.md"}
    index = re.findall(r"\]\((?:\.\./)?([^)]+\.md)\)", (ROOT / "docs" / "index.md").read_text())
    start, *sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    menu = [page for section in sections for pages in section.values() for page in pages]
    assert {start, *menu} == pages
    assert {start, *index} == pages


def test_the_page_of_the_library_has_every_public_name_with_an_example():
    shown = [part.split("```python") for part in (ROOT / "docs" / "api.md").read_text().split("\n::: ")[1:]]
    for (about, example), name in zip(shown, edm.__all__, strict=True):
        module, _, found = about.split()[0].rpartition(".")
        assert getattr(import_module(module), found) is getattr(edm, name)
        assert f"heading: edm.{name}\n" in about
        assert f"edm.{name}" in example
