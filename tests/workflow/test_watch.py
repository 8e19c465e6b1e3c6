"""`edm watch`: what runs, stopped and waits, by files alone."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from pretended import edit, pretend

from edm.cli import main
from edm.tracking import Journal

TRAINING = Path("runs/tiny/vp-B")
STARTED = "2026-01-01T00:00:00+00:00 n1 job 17: started\n"
STOPPED = "2026-01-01T00:05:00+00:00 n1 job 17: stopped: SIGTERM, after 300 images; the state is saved\n"


@pytest.fixture
def watched(folder, capsys):
    """What `edm watch --once` prints, line by line; steps that pretend take no time."""
    for path in Path("steps").rglob("*.json"):
        path.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 0.0', path.read_text()))

    def look(*words):
        assert main(["watch", "--once", *words]) == 0
        return capsys.readouterr().out.splitlines()

    return look


@pytest.fixture
def changed(watched):
    """The same, after a change of one model."""
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=1.0e-3))
    return watched


def begin_training(attempts=STARTED, **row):
    TRAINING.mkdir(parents=True, exist_ok=True)
    (TRAINING / "attempts.log").write_text(attempts)
    (TRAINING / "log.jsonl").write_text(json.dumps({"images": 300, "loss": 0.25, "images_per_second": 2} | row))


def test_a_chain_that_waits_names_its_steps(changed):
    assert changed() == [
        "tiny: 17 of 28 steps done, 11 waiting",
        "waiting      1 train, 1 choose, 2 shard, 1 evaluate, 1 table, 1 sample, 1 figure, 1 metrics, 1 about, 1 track",
    ]
    assert changed("tiny/table3") == ["tiny/table3: 9 of 9 steps done"]


def test_a_running_training_shows_its_rate_its_loss_and_the_time_left(changed):
    begin_training()
    head, running, waiting = changed("tiny")
    assert re.fullmatch(r"tiny: 17 of 28 steps done, 1 running, 10 waiting; about \d+ min left", head)
    told = "25 %, 300 of 1,200 images, 2 images/s, loss 0.25, about 8 min left, last sign"
    assert running.startswith(f"running      train tiny/vp-B: {told} ") and waiting.startswith("waiting      1 choose")


def test_a_stopped_a_silent_and_a_failed_training_are_told_apart(changed):
    begin_training(STARTED + STOPPED)
    told = "25 %, 300 of 1,200 images, 2 images/s, loss 0.25"
    stopped = "stopped: SIGTERM, after 300 images; the state is saved"
    assert changed()[1].startswith(f"interrupted  train tiny/vp-B: {told}; {stopped}, last sign ")
    begin_training(STARTED + STOPPED.replace("stopped: SIGTERM", "UserError: the loss became nan"))
    assert changed()[1].startswith(f"failed       train tiny/vp-B: {told}; UserError: the loss became nan")
    begin_training()
    os.utime("steps/train/tiny/train/vp-B.json", (0, 0))
    for path in TRAINING.iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    assert changed()[1] == f"interrupted  train tiny/vp-B: {told}, last sign 2 h 0 min ago"


def test_an_old_attempt_at_a_finished_step_is_no_sign(changed):
    begin_training()
    for path in TRAINING.iterdir():
        os.utime(path, (1, 1))
    assert changed()[0] == "tiny: 17 of 28 steps done, 11 waiting"


def test_an_evaluation_is_read_from_its_journal_and_its_log(folder, watched):
    edit(lambda raw: raw["experiments"]["tiny"]["grids"]["steps"].update(num_steps=[4, 6]))
    parts = Path("runs/tiny/vp-A/distances/steps.shards")
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "1-of-2.log").write_text("")
    (parts / "2-of-2.log").write_text("error: no space left\n")
    lines = watched()
    assert lines[0] == "tiny: 21 of 28 steps done, 1 running, 1 failed, 5 waiting"
    assert lines[1].startswith("running      shard tiny/vp-A/steps/1-of-2: last sign ")
    assert lines[2].startswith("failed       shard tiny/vp-A/steps/2-of-2: error: no space left, last sign ")
    for path in parts.iterdir():
        path.unlink()
    for part in ("1-of-2", "2-of-2"):
        pretend(folder, f"shard tiny/vp-A/steps/{part}")
    run = Journal("runs/tiny/vp-A/distances/steps.journal.jsonl").run("tiny/vp-A/steps/num_steps=6")
    run.finish("KILLED")
    assert watched()[1].startswith("interrupted  evaluate tiny/vp-A/steps: 1 setting begun, last sign ")


def test_watch_ends_by_itself_when_all_is_done(folder, capsys):
    assert main(["watch"]) == 0
    assert capsys.readouterr().out == "tiny: 28 of 28 steps done\n"
    assert main(["watch", "tinny"]) == 1
    assert "tinny: no job makes it; did you mean 'tiny'?" in capsys.readouterr().err
