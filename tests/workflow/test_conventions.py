"""Conventions of Snakemake workflows: the linter, the catalog's file, and use as a module of another workflow."""

from pathlib import Path

import forking
import miniature
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "workflow/profiles/default"
SECOND = """
module edm:
    snakefile:
        {snakefile!r}


use rule * from edm


rule summary:
    input:
        "data/digits.zip",
    output:
        "summary.txt",
    shell:
        "wc -c {{input}} > {{output}}"


onstart:
    edm.onstart()
"""


def snakemake(folder, *words):
    return forking.run(["snakemake", *words], folder, {"PYTHONPATH": str(ROOT)}, timeout=300)


@pytest.mark.slow
def test_the_linter_of_snakemake_has_nothing_to_say():
    done = snakemake(ROOT, "--lint", "--nolock")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Congratulations" in done.stderr + done.stdout


def test_the_file_of_the_workflow_catalog_has_what_the_catalog_reads():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert {"software-stack-deployment", "report"} <= usage.keys() and usage["report"] is True
    assert (ROOT / "config/README.md").exists() and (ROOT / "workflow/Snakefile").exists()
    assert "snakemake" in (ROOT / "README.md").read_text().lower()


@pytest.mark.slow
def test_another_repository_uses_the_workflow_as_a_module(tmp_path):
    """It has params.yaml, a Snakefile with a rule of its own, and no code of this project."""
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow/Snakefile").write_text(SECOND.format(snakefile=str(ROOT / "workflow/Snakefile")))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(miniature.smallest()))
    plain = ("--cores", "1", "--workflow-profile", str(PROFILE))
    planned = snakemake(tmp_path, "-n", *plain, "all")
    assert planned.returncode == 0, planned.stderr[-3000:]
    assert "8 steps would run" in planned.stderr + planned.stdout
    made = snakemake(tmp_path, *plain, "summary")
    assert made.returncode == 0, made.stderr[-3000:]
    assert (tmp_path / "summary.txt").read_text().endswith("data/digits.zip\n")
    assert (tmp_path / "steps/data/digits/prepare.json").exists()
    again = snakemake(tmp_path, "-n", *plain, "data/digits.zip")
    assert "Nothing to be done" in again.stderr + again.stdout
