"""Damaged journals: every bad line is set aside in one line, and no journal takes a sync with it."""

import door
import fuzz_journals
import pytest


@pytest.mark.slow
def test_damaged_journals_stop_nothing():
    tally = door.run(fuzz_journals.inputs(100, seed=1))
    assert tally.clean and tally.clear > 50 and tally.peak < 1000, tally
