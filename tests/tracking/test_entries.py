"""What a run's entries say in MLflow: one spelling per value, a description, the time of the work."""

import time

import pytest

from edm.cli import main
from edm.tracking import Journal, description, entries, environment
from edm.tracking.transfer import SyncReport

FIRST = {
    "num_steps": 18,
    "S_churn": 0,
    "learning_rate": 1e-3,
    "S_max": None,
    "over": {"S_max": [None, 5]},
    "flip": True,
}
SECOND = {"num_steps": 18.0, "S_churn": 0.0, "learning_rate": 0.001, "S_max": float("inf"),
          "over": {"S_max": [float("inf"), 5.0]}, "flip": True}  # fmt: skip
SPELLED = {"num_steps": "18", "S_churn": "0", "learning_rate": "0.001", "S_max": "inf", "over.S_max": '["inf", 5]',
           "flip": "true"}  # fmt: skip


@pytest.mark.slow
def test_equal_settings_are_spelled_alike(store):
    for key, params in (("first", FIRST), ("second", SECOND)):
        Journal(f"{key}.jsonl").run(key, params=params).finish()
    store.sync("first.jsonl", "second.jsonl")
    assert {key: run.data.params for key, run in store.runs().items()} == {"first": SPELLED, "second": SPELLED}


def test_runs_of_an_older_spelling_are_replaced_once(store, monkeypatch):
    with Journal("a.jsonl").run("a", params={"S_churn": 0.0}) as run:
        run.metrics({"loss": 1}, step=1)
    with monkeypatch.context() as older:
        older.setattr(entries, "SPELLING", 1)
        older.setattr(entries, "_spelled", lambda name, value: value)
        store.sync("a.jsonl")
    assert store.runs()["a"].data.params == {"S_churn": "0.0"}
    assert store.sync("a.jsonl") == SyncReport(runs_created=1, metrics_sent=1)
    assert store.runs()["a"].data.params == {"S_churn": "0"}  # the only run of its key
    assert store.sync("a.jsonl") == SyncReport()


def test_a_run_is_described_with_the_commands_that_repeat_it(store, monkeypatch):
    monkeypatch.setattr(environment, "_git_tags", lambda: {"commit": "c" * 40, "dirty": "true"})
    Journal("a.jsonl").run("a", tags=description("Table 2.", "snakemake --force t.md")).finish()
    store.sync("a.jsonl")
    commands = f"`git checkout {'c' * 40}`, then `snakemake --force t.md` (the code had uncommitted changes)"
    assert store.runs()["a"].data.tags["mlflow.note.content"] == f"Table 2. To repeat it: {commands}."


@pytest.mark.parametrize("replaced", [False, True])
def test_a_note_that_a_user_wrote_on_a_run_is_kept(store, replaced):
    Journal("a.jsonl").run("a", params={"x": 1}, tags=description("One.")).finish()
    store.sync("a.jsonl")
    note = lambda: store.runs()["a"].data.tags["mlflow.note.content"]
    Journal("a.jsonl").run("a", params={"x": 1}, tags=description("Two.")).finish()
    store.sync("a.jsonl")
    assert note() == "Two."
    store.client.set_tag(store.runs()["a"].info.run_id, "mlflow.note.content", "Mind the seeds.")
    Journal("a.jsonl").run("a", params={"x": 2 if replaced else 1}, tags=description("Three.")).finish()
    store.sync("a.jsonl")
    Journal("a.jsonl").run("a", params={"x": 2 if replaced else 1}, tags=description("Four.")).finish()
    store.sync("a.jsonl")
    assert note() == "Mind the seeds."


def test_a_run_recorded_afterwards_has_the_time_of_its_work_also_when_it_is_done_again(store):
    for seconds in (90, 30):
        began = time.time() - seconds
        Journal("a.jsonl").run("a", began=began).finish()
        store.sync("a.jsonl")
        info = store.runs()["a"].info
        assert info.start_time == int(began * 1000)
        assert seconds * 1000 <= info.end_time - info.start_time < (seconds + 20) * 1000


def test_a_sync_prints_the_link_to_the_evaluations(store, capsys):
    for key, kind in (("a", "training"), ("b", "evaluation")):
        Journal(f"runs/{kind}.journal.jsonl").run(key, experiment=f"e {kind}", tags={"kind": kind}).finish()
    assert main(["track", "sync", "--uri", store.uri, "--server", "http://127.0.0.1:5000/"]) == 0
    page = "http://127.0.0.1:5000/#/experiments/{}/runs?workflowType=machine_learning&viewStateShareKey={}&compareRunsMode=TABLE"
    ids = {experiment.name: experiment.experiment_id for experiment in store.client.search_experiments()}
    views = (("e evaluation", "points"), ("e training", "training"))
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"{name}: {page.format(ids[name], view)}" for name, view in views
    ]
