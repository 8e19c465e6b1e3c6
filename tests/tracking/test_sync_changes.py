"""Jobs that resume, are rerun or change: MLflow shows what their journals say now, in one run per key."""

import json
from pathlib import Path
from urllib.request import url2pathname

import pytest

from edm.tracking import Journal
from edm.tracking.transfer import SyncReport


def test_a_resumed_job_continues_its_run(store):
    with Journal("a.jsonl").run("a", params={"lr": 1}) as run:
        run.metrics({"loss": 3}, step=1)
    store.sync("a.jsonl")
    before = store.runs()["a"]
    resumed = Journal("a.jsonl").run("a", name="renamed", params={"lr": 1}, tags={"host": "two"})
    resumed.metrics({"loss": 2}, step=2)
    assert store.sync("a.jsonl") == SyncReport(runs_updated=1, metrics_sent=1)
    going_on = store.runs()["a"]
    assert (going_on.info.run_id, going_on.info.status) == (before.info.run_id, "RUNNING")
    assert (going_on.info.run_name, going_on.data.tags["host"]) == ("renamed", "two")
    resumed.finish("FAILED")
    assert store.sync("a.jsonl") == SyncReport(runs_updated=1)
    after = store.runs()["a"]
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FAILED")
    assert after.info.end_time > before.info.end_time
    assert store.history("a", "loss") == [(1, 3), (2, 2)]


@pytest.mark.parametrize("synced_between", [False, True])
def test_of_two_values_for_a_step_the_last_wins(store, synced_between):
    run = Journal("a.jsonl").run("a")
    for step in (10, 20, 30):
        run.metrics({"loss": 100 + step, "same": 5}, step=step)
    if synced_between:
        store.sync("a.jsonl")
    resumed = Journal("a.jsonl").run("a")
    for step in (20, 30):
        resumed.metrics({"loss": step, "same": 5}, step=step)
    store.sync("a.jsonl")
    assert store.history("a", "loss") == [(10, 110), (20, 20), (30, 30)]
    assert store.history("a", "same") == [(10, 5), (20, 5), (30, 5)]
    assert store.runs()["a"].data.metrics["loss"] == 30


@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        ({"time": 2}, {}),
        ({"params": {"lr": 2}}, {}),
        ({"params": {}}, {}),
        ({"experiment": "y"}, {}),
        ({}, {"values": {"loss": 2}}),
        ({}, {"values": {"other": 1}}),
        ({}, {"step": 8}),
    ],
    ids=repr,
)
@pytest.mark.first(3)
def test_a_run_that_contradicts_its_rewritten_journal_is_replaced(store, begin, rest):
    """As when a rule deletes its outputs, the journal among them, and runs again."""

    def write(begin, rest):
        first = {"event": "run", "key": "a", "time": 1, "params": {"lr": 1}, "experiment": "x", "tags": {}} | begin
        second = {"event": "metrics", "key": "a", "time": 3, "step": 7, "values": {"loss": 1}} | rest
        Path("a.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
        return first, second

    write({}, {})
    store.sync("a.jsonl")
    first, second = write(begin, rest)
    assert store.sync("a.jsonl") == SyncReport(runs_created=1, metrics_sent=1)
    run = store.runs()["a"]
    assert run.info.start_time == first["time"]
    assert run.data.params == {name: str(value) for name, value in first["params"].items()}
    assert store.client.get_experiment(run.info.experiment_id).name == first["experiment"]
    assert run.data.metrics == second["values"]
    assert store.history("a", *second["values"]) == [(second["step"], *second["values"].values())]


def test_changed_params_supersede_the_run_and_children_follow(store):
    with Journal("t.jsonl").run("t", params={"lr": 1, "gone": 0}) as run:
        run.metrics({"loss": 1}, step=10)
    with Journal("e.jsonl").run("e", parent="t"):
        pass
    store.sync("t.jsonl", "e.jsonl")
    old = store.runs()["t"].info.run_id
    with Journal("t.jsonl").run("t", params={"lr": 2}) as run:
        run.metrics({"loss": 9}, step=5)
    assert store.sync("t.jsonl") == SyncReport(runs_created=1, runs_updated=1, metrics_sent=1)
    new = store.runs()["t"]
    assert new.data.params == {"lr": "2"}
    assert store.history("t", "loss") == [(5, 9)]
    assert store.runs()["e"].data.tags["mlflow.parentRunId"] == new.info.run_id != old
    assert store.client.get_run(old).info.lifecycle_stage == "deleted"


def test_artifacts_are_sent_again_only_when_they_changed(store, tmp_path):
    figure = tmp_path / "figure.svg"
    figure.write_text("one")
    run = Journal("a.jsonl").run("a")
    run.artifact("figure.svg")
    assert store.sync("a.jsonl").artifacts_sent == 1
    run.metrics({"loss": 1}, step=1)
    run.artifact("figure.svg")
    assert store.sync("a.jsonl") == SyncReport(runs_updated=1, metrics_sent=1)
    figure.write_text("two")
    run.metrics({"loss": 1}, step=2)
    assert store.sync("a.jsonl").artifacts_sent == 0  # not what the run recorded, and the recorded one is there
    run.artifact("figure.svg")
    figure.write_text("three")
    assert store.sync("a.jsonl") == SyncReport(artifacts_missing=1)
    figure.write_text("two")
    assert store.sync("a.jsonl") == SyncReport(runs_updated=1, artifacts_sent=1)
    shown = store.runs()["a"].info.artifact_uri.removeprefix("file://")
    assert Path(url2pathname(shown), "figure.svg").read_text() == "two"


def test_of_two_journals_with_one_key_the_one_written_last_counts(store):
    with Journal("old.jsonl").run("a") as run:
        run.metrics({"loss": 1}, step=1)
    text = Path("old.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    events[1]["values"]["loss"] = 5
    lines = [json.dumps(event | {"time": event["time"] + 1000}) + "\n" for event in events]
    Path("new.jsonl").write_text("".join(lines))
    store.sync("new.jsonl", "old.jsonl")
    assert store.history("a", "loss") == [(1, 5)]
