"""The small chain of pretended.py, finished: made once per file of tests, copied for each test."""

import shutil

import pytest
from pretended import make


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return make(tmp_path_factory.mktemp("origin") / "chain")


@pytest.fixture
def folder(origin, tmp_path, monkeypatch):
    """The finished chain, copied, in any order of times."""
    shutil.copytree(origin, tmp_path / "chain")
    monkeypatch.chdir(tmp_path / "chain")
    return tmp_path / "chain"
