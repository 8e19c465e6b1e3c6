"""How far a training run is, how long steps take, and the time left."""

import json
import os

import pytest

from edm.chain.progress import Pace, last_row, span, time_left

ROW = {"images": 5120, "loss": 0.21349, "images_per_second": 880.4}


def test_the_last_whole_row_of_a_log_counts(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(f"{json.dumps(ROW | {'images': 1})}\n{json.dumps(ROW)}\n" + '{"images": 6400, "lo')
    row = last_row(log)
    assert row.text(12800) == "40 %, 5,120 of 12,800 images, 880 images/s, loss 0.213"
    assert row.text(None) == "5,120 images, 880 images/s, loss 0.213"
    assert row.left(12800) == pytest.approx(7680 / 880.4) and row.written == log.stat().st_mtime


@pytest.mark.parametrize("text", [
    "", "\n", "[]", "{}", "null", '{"images": 1, "loss": NaN, "images_per_second": 1}', "[" * 3000,
    '{"images": 1, "loss": 1, "images_per_second": 0}', '{"images": [], "loss": 1, "images_per_second": 1}', "\0\xff",
])  # fmt: skip
def test_a_log_without_a_row_is_no_error(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    assert last_row(tmp_path / "log.jsonl") is None


def test_neither_a_missing_log_nor_a_pipe_makes_anyone_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert last_row(tmp_path / "pipe") is last_row(tmp_path / "none") is last_row(tmp_path) is None


def test_finished_steps_tell_how_long_others_will_take():
    pace = Pace()
    assert pace.estimate("train", 2.0) is None and pace.estimate("table", 0.0) == 5.0
    pace.learn("train", 2.0, 60.0)
    pace.learn("train", 1.0, 30.0)
    assert pace.estimate("train", 4.0) == 120.0
    assert pace.estimate("evaluate", 0.1) == 3.0  # as much work per hour of the plan as in training, until one is done
    pace.learn("evaluate", 0.1, 9.0)
    assert pace.estimate("evaluate", 0.2) == 18.0
    pace.learn("table", 0.0, 3.0)
    pace.learn("table", 0.0, 5.0)
    assert pace.estimate("table", 0.0) == pace.estimate("figure", 0.0) == 4.0
    assert pace.left("table", 0.0, 1.0) == 3.0 and pace.left("table", 0.0, 100.0) == 0.4


def test_the_time_left_is_that_of_the_longest_step_at_least():
    assert time_left([10, 20, 30], 2) == 30 and time_left([10, 20, 40, 50], 2) == 60
    assert time_left([10.0], 0.1) == 10 and time_left([], 1) is None and time_left([1.0, None], 1) is None


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"), (129000, "35 h 50 min"),
    (273600, "3 d 4 h"),
])  # fmt: skip
def test_durations_are_rounded_for_readers(seconds, text):
    assert span(seconds) == text
