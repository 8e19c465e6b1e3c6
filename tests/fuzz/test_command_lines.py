"""A hundred command lines with wrong values: each is accepted or ends in one clear line, soon and in bounded memory."""

import door
import pytest
from fuzz_cli import generate


@pytest.mark.slow
def test_command_lines(tmp_path):
    tally = door.run(generate(100, 17, tmp_path))
    assert tally.clean, tally
    assert tally.clear > 50 and tally.accepted > 10 and tally.peak < 1024, tally
