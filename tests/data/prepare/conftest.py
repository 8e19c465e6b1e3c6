"""A small made-up dataset, and what every refusal must be."""

import time
import tracemalloc

import pytest
from made_up import picture

import edm
from edm.data.prepare import prepare

MEMORY = 100 << 20  # that a refusal may cost at most


@pytest.fixture
def classes():
    """Files of two classes, six images of 16×16."""
    return {f"{name}/{i}.png": picture(10 * k + i) for k, name in enumerate(("cat", "dog")) for i in range(3)}


@pytest.fixture
def refused(tmp_path):
    """Asserts that a source is refused in one line that says so, with nothing left behind."""

    def check(message, source, path, **options):
        out = tmp_path / "refused"
        with pytest.raises(edm.UserError, match=message) as caught:
            prepare(source, out / "o.zip", path, **options)
        text = str(caught.value)
        assert "\n" not in text and len(text) < 400, text
        assert not out.exists() or list(out.iterdir()) == []
        return text

    return check


@pytest.fixture
def cheap():
    """Asserts that a refusal costs little time, and little memory as Python and numpy count it."""
    tracemalloc.start()
    start = time.monotonic()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY, f"{peak >> 20} MiB"
    assert time.monotonic() - start < 10
