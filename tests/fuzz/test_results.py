"""Damaged results, sidecars, caches and other files that come back are refused in one line, or ignored."""

import door
import fuzz_results
import pytest


@pytest.mark.slow
def test_damaged_files_that_come_back_get_one_line_each():
    tally = door.run(fuzz_results.inputs(80, seed=1))
    assert tally.clean and tally.clear > 25 and tally.peak < 1000, tally
