"""Plugins of tests: files in folders of their own, forgotten when a test ends."""

import textwrap

import pytest

from edm import registry


@pytest.fixture(autouse=True)
def forgotten():
    """What a test registers is not there for the next one."""
    yield
    for part in registry.plugins():
        del registry._parts[part.kind, part.name]
    registry._loaded.clear()
    registry._version += 1


@pytest.fixture
def plugin(tmp_path):
    """Writes a plugin file into a folder outside the package, and loads it unless told otherwise."""

    def write(text, name="plugin.py", load=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
        if load:
            registry.load([str(path)])
        return path

    return write
