"""Hostile checkpoints, weights and statistics end in one line, soon, in little memory, and run nothing."""

import io
import pickle

import fuzz_checkpoints
import pytest
from door import run


@pytest.mark.slow
def test_a_hundred_hostile_files_run_nothing_and_end_in_a_line():
    tally = run(fuzz_checkpoints.generate(100, 7), canary=fuzz_checkpoints.CANARY)
    assert tally.clean, tally
    assert tally.inputs == 100 and tally.clear > 50 and tally.peak < 1000


def test_the_run_notices_a_reader_that_looks_up_a_name(monkeypatch):
    """As unpickling does. Nothing is unpickled for that."""

    def careless(path):
        pickle.Unpickler(io.BytesIO()).find_class("os", "getcwd")

    inputs = fuzz_checkpoints.generate(3, 1)
    monkeypatch.setattr(fuzz_checkpoints, "content", lambda draw: (b"", careless))
    tally = run(inputs, canary=fuzz_checkpoints.CANARY)
    assert tally.executions == 3 and not tally.clean
