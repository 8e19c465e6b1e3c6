"""Hostile archives, folders and images end in one line, soon, in little memory, and leave nothing behind."""

import fuzz_archives
import pytest
from door import run


@pytest.mark.slow
def test_a_hundred_hostile_inputs_end_in_a_line():
    tally = run(fuzz_archives.generate(100, 7), canary=fuzz_archives.CANARY)
    assert tally.clean, tally
    assert tally.inputs == 100 and tally.clear > 50 and tally.peak < 1000
