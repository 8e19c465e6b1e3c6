"""MLflow's pages show what is asked first, at first sight, and leave alone what a person has set."""

import base64
import json
import re
import zlib

import pytest

from edm.tracking import Journal
from edm.tracking.transfer import SyncReport

SAMPLERS = [{"num_steps": steps, "S_churn": churn, "rho": 7.0} for steps in (18, 36) for churn in (0, 40)]


@pytest.fixture
def journals(store):
    for model, rate in (("vp-A", 1e-3), ("vp-F", 2e-3)):
        params = {"learning_rate": rate, "batch_size": 64}
        with Journal("train.jsonl").run(model, experiment="e", tags={"kind": "training"}, params=params) as run:
            run.metrics({"loss": 1.0}, step=64)
        for number, sampler in enumerate(SAMPLERS):
            key, params = f"{model}/{number}", {**sampler, "model": model, "grid": "g"}
            writer = Journal("evaluate.jsonl")
            with writer.run(key, experiment="e", tags={"kind": "evaluation"}, params=params, parent=model) as run:
                run.metrics({"FID": 2.0 + number, "nfe": 35}, step=64)
    return ["train.jsonl", "evaluate.jsonl"]


def tags_of(store):
    return store.client.get_experiment_by_name("e").tags


def view(tags, name):
    packed = tags[f"mlflow.sharedViewState.{name}"]
    assert packed.startswith("deflate;") and len(packed) < 5000
    return json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))


def test_points_come_best_first_and_are_drawn_over_nfe_and_churn(store, journals):
    store.sync(*journals)
    points = view(tags_of(store), "points")
    assert points["searchFilter"] == "tags.kind = 'evaluation'"
    assert (points["orderByKey"], points["orderByAsc"]) == ("metrics.`FID`", True)
    wanted = [
        "metrics.`FID`",
        "metrics.`nfe`",
        "params.`model`",
        "params.`grid`",
        "params.`num_steps`",
        "params.`S_churn`",
    ]
    assert points["selectedColumns"] == wanted  # rho never varies, so it has no column
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in points["compareRunCharts"] if "xaxis" in chart]
    assert axes == [("nfe", "FID"), ("S_churn", "FID")]
    found = store.client.search_runs(
        [store.client.get_experiment_by_name("e").experiment_id], points["searchFilter"], order_by=["metrics.`FID` ASC"]
    )
    assert [run.data.metrics["FID"] for run in found] == [2, 2, 3, 3, 4, 4, 5, 5]


def test_training_runs_are_drawn_with_their_losses(store, journals):
    store.sync(*journals)
    runs = view(tags_of(store), "training")
    assert runs["searchFilter"] == "tags.kind = 'training'"
    assert "params.`learning_rate`" in runs["selectedColumns"]
    assert "params.`batch_size`" not in runs["selectedColumns"]
    assert runs["compareRunCharts"][0]["selectedMetricKeys"] == ["loss"]


def test_the_note_leads_to_the_views_until_a_person_writes_another(store, journals):
    store.sync("train.jsonl")
    assert "points" not in tags_of(store)["mlflow.note.content"]
    store.sync(*journals)
    tags = tags_of(store)
    links = re.findall(r"\(#/experiments/(\d+)/runs\?\S*viewStateShareKey=(\w+)", tags["mlflow.note.content"])
    experiment = store.client.get_experiment_by_name("e").experiment_id
    assert links == [(experiment, name) for name in ("points", "points", "training", "training")]
    assert all(f"mlflow.sharedViewState.{name}" in tags for _, name in links)
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    mine = tags["mlflow.note.content"] + " Mind the seeds."
    store.client.set_experiment_tag(experiment, "mlflow.note.content", mine)
    assert store.sync(*journals) == SyncReport()
    assert tags_of(store)["mlflow.note.content"] == mine


def test_a_repeated_sync_sets_no_view_again(store, journals, monkeypatch):
    store.sync(*journals)
    monkeypatch.delattr("mlflow.MlflowClient.set_experiment_tag")
    assert store.sync(*journals) == SyncReport()
