"""levels.json and log.jsonl: what was damaged is named or left out, and the rest is kept."""

import json

import pytest

from edm.errors import UserError
from edm.training.curves import read_curves, write_curves
from edm.training.log import TrainingLog

LEVELS = {"sigma": [0.1, 1.0], "mean": [0.5, 0.2], "std": [0.1, 0.1], "samples": 2}


def test_curves_come_back_as_they_were_written(tmp_path):
    write_curves(tmp_path / "levels.json", LEVELS, LEVELS, {"images": [100], "loss": [0.5]})
    assert read_curves(tmp_path / "levels.json")["before"] == LEVELS


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"sigma": [0.1, -1.0]}, "after.sigma.2 is -1.0; expected a number from 1e-09"),
        ({"mean": "low"}, "after.mean is 'low'; expected a list"),
        ({"mean": [0.5]}, r"after has \[1, 2\] points; expected one number of them"),
        ({"sigma": [], "mean": [], "std": []}, r"after has \[0\] points"),
    ],
)
def test_damaged_curves_are_named(tmp_path, after, told):
    write_curves(tmp_path / "levels.json", LEVELS, LEVELS | after, {"images": [], "loss": []})
    with pytest.raises(UserError, match=rf"levels\.json: {told}.*delete it and run snakemake again"):
        read_curves(tmp_path / "levels.json")


def test_damaged_rows_of_the_log_are_left_out_of_a_resumed_run_and_of_the_curve(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [{"images": 100, "loss": 0.5}, {"images": "200", "loss": 1}, [3], {"images": 300, "loss": "low"},
            {"images": 900, "loss": 0.1}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"images": NaN}\n{"im')
    log = TrainingLog(path, 400, True)
    log.write({"images": 500, "loss": 0.4})
    assert log.curve("loss") == {"images": [100, 500], "loss": [0.5, 0.4]}
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == [100, 300, 500]
