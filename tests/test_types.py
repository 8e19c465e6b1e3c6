"""Annotations of ``edm`` hold, strictly where pyproject.toml says so; and ruff finds nothing in any Python file."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("edm", "snakemake_logger_plugin_edm", "tests", "docs", "examples")


def said_by(*command):
    """What a command without findings would not say."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.slow
def test_annotations_hold(tmp_path):
    assert said_by("mypy", "--cache-dir", tmp_path, "edm", "snakemake_logger_plugin_edm") == ""


def test_ruff_finds_nothing():
    assert said_by("ruff", "check", "--no-cache", *CODE, "workflow", "bench") == ""


def test_files_are_formatted():
    assert said_by("ruff", "format", "--no-cache", "--check", *CODE) == ""
