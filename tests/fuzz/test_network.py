"""Downloads from a server that misbehaves end whole, or in one clear line."""

from door import run
from fuzz_network import generate


def test_downloads_from_a_server_that_misbehaves():
    tally = run(generate(150, seed=1))
    assert tally.clean, tally
    assert min(tally.accepted, tally.clear) > 30 and tally.peak < 200
