"""A short run of the fuzz command of params files."""

import fuzz_params
import pytest
from door import run


@pytest.mark.slow
def test_mutated_params_files_are_accepted_or_refused_in_a_line():
    tally = run(fuzz_params.inputs(50, seed=7))
    assert tally.clean and tally.peak < 500, str(tally)
    assert tally.accepted > 5 and tally.clear > 20, str(tally)


def test_the_unchanged_file_is_planned(tmp_path, monkeypatch):
    """Else all inputs would be refused for the same reason."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(fuzz_params.SMALL)
    fuzz_params.plan_all("params.yaml")
