"""What every refusal of a foreign file must be."""

import time
import tracemalloc

import pytest
from small_files import EXECUTED

import edm
from edm import foreign

MEMORY = 200 << 20  # bytes, as Python counts, of the dearest refusal


@pytest.fixture
def refused(tmp_path):
    """Asserts that a file is refused in one line that says so, and gives the line."""

    def check(message, path, **asked):
        with pytest.raises(edm.UserError, match=message) as caught:
            foreign.read(path, **asked)
        text = str(caught.value)
        assert text.startswith(f"{path}: ") and len(text) < 600, text
        assert text.isprintable(), text
        return text

    return check


@pytest.fixture
def nothing_happens(tmp_path, monkeypatch):
    """Runs a test in its own folder, and asserts that nothing was made there, run, or taken from the machine."""
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    begun = time.process_time()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not (tmp_path / "executed").exists() and not EXECUTED
    assert peak < MEMORY, f"{peak >> 20} MiB"
    assert time.process_time() - begun < 20
