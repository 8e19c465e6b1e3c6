"""Datasets and snapshots in MLflow: inputs by hash, external logged models, and the queries of docs/comparing.md."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from edm.tracking import Journal
from edm.tracking.sync import sync

ROOT = Path(__file__).parents[2]
DATA, OTHER = "d" * 64, "e" * 64


def train(path, experiment, model, data=DATA, **params):
    tags = {"kind": "training", "model": model, "dataset": "digits", "dataset_sha256": data, "commit": "c0ffee"}
    with Journal(path).run(f"{experiment}/{model}", name=model, experiment=experiment, params=params, tags=tags) as run:
        run.metrics({"loss": 0.5}, step=4000)


def choose(path, experiment, model, values):
    tags = {"kind": "choice", "model": model, "dataset": "digits", "dataset_sha256": DATA}
    with Journal(path).run(f"{experiment}/{model}/choice", experiment=experiment, tags=tags,
                           parent=f"{experiment}/{model}") as run:  # fmt: skip
        for images, value in values.items():
            run.metrics({"FID_of_5000": value}, step=images)


def evaluate(path, experiment, model, place, images, fid, nfe, checkpoint):
    tags = {"kind": "evaluation", "model": model, "dataset": "digits", "dataset_sha256": DATA,
            "checkpoint_sha256": checkpoint * 64, "commit": "c0ffee"}  # fmt: skip
    with Journal(path).run(f"{experiment}/{model}/{place}", experiment=experiment, parent=f"{experiment}/{model}",
                           tags=tags, params={"S_churn": 0, "solver": "heun"}) as run:  # fmt: skip
        run.metrics({"FID": fid, "nfe": nfe, "FID_s": 0.1}, step=images)


@pytest.fixture
def lab(tmp_path):
    """Two models of one experiment: two and one snapshots, evaluated at two points and one."""
    paths = [tmp_path / f"{name}.jsonl" for name in "abcdefg"]
    train(paths[0], "digits", "vp-A", dropout=0.1)
    train(paths[1], "digits", "vp-F", dropout=0.2)
    choose(paths[2], "digits", "vp-A", {1000: 9.0, 2000: 7.0})
    evaluate(paths[3], "digits", "vp-A", "ladder/18", 2000, 6.0, 35, "a")
    evaluate(paths[4], "digits", "vp-A", "ladder/40", 2000, 5.0, 79, "a")
    evaluate(paths[5], "digits", "vp-A", "ladder/9", 2000, 8.0, 17, "a")  # the last is not the lowest
    evaluate(paths[6], "digits", "vp-F", "ladder/18", 4000, 5.5, 35, "f")
    return paths


def models(store):
    found = store.client.search_logged_models([e.experiment_id for e in store.client.search_experiments()])
    return {model.tags["edm.model"]: model for model in found}


@pytest.mark.slow
def test_a_snapshot_is_an_external_model_with_its_lowest_distance_on_a_dataset(store, lab):
    store.sync(*lab)
    found = models(store)
    assert sorted(found) == ["digits/vp-A@1000", "digits/vp-A@2000", "digits/vp-F@4000"]
    best = found["digits/vp-A@2000"]
    metrics = {metric.key: (metric.value, metric.step, metric.dataset_name, metric.dataset_digest)
               for metric in best.metrics}  # fmt: skip
    assert metrics == {"snapshot_FID": (5.0, 2000, "digits", DATA[:32]),
                       "snapshot_FID_of_5000": (7.0, 2000, "digits", DATA[:32])}  # fmt: skip
    assert best.tags["mlflow.model.isExternal"] == "true" and best.tags["checkpoint_sha256"] == "a" * 64
    assert best.source_run_id == store.runs()["digits/vp-A"].info.run_id and best.params["dropout"] == "0.1"
    assert str(best.status).endswith("READY") and not store.client.list_logged_model_artifacts(best.model_id)


def test_a_dataset_is_an_input_once_by_its_hash(store, lab):
    store.sync(*lab)
    store.sync(*lab)
    for run in store.runs().values():
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("digits", DATA[:32]) and DATA in given.dataset.source


def test_a_second_sync_sends_nothing_and_a_lower_distance_replaces_the_first(store, lab, tmp_path):
    store.sync(*lab)
    again = store.sync(*lab)
    assert (again.runs_created, again.runs_updated, again.metrics_sent) == (0, 0, 0)
    before = {key: model.model_id for key, model in models(store).items()}
    evaluate(tmp_path / "h.jsonl", "digits", "vp-A", "ladder/256", 2000, 4.5, 511, "a")
    assert store.sync(*lab, tmp_path / "h.jsonl").metrics_sent == 4  # three of the run, one of the snapshot
    found = models(store)
    assert {key: model.model_id for key, model in found.items()} == before
    assert {m.key: m.value for m in found["digits/vp-A@2000"].metrics}["snapshot_FID"] == 4.5
    (tmp_path / "h.jsonl").unlink()
    store.sync(*lab)
    assert {m.key: m.value for m in models(store)["digits/vp-A@2000"].metrics}["snapshot_FID"] == 5.0


def test_a_training_that_is_replaced_takes_its_models_along(store, lab):
    store.sync(*lab)
    before = models(store)["digits/vp-A@2000"].source_run_id
    train(lab[0], "digits", "vp-A", dropout=0.3)
    store.sync(*lab)
    found = models(store)
    assert len(found) == 3 and found["digits/vp-A@2000"].source_run_id != before
    assert found["digits/vp-A@2000"].params["dropout"] == "0.3" and len(found["digits/vp-A@2000"].metrics) == 2


def queries():
    """The Python blocks of the section "Five questions to MLflow"."""
    text = (ROOT / "docs/comparing.md").read_text(encoding="utf-8").partition("## Five questions to MLflow")[2]
    return re.findall(r"```python\n(.*?)```", text.partition("\n## ")[0], re.S)


@pytest.mark.slow
def test_the_five_queries_of_the_docs_find_what_they_say_on_a_server(store, lab):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", "127.0.0.1", "--port",
         str(port), "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urlopen(f"{uri}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.5)
        assert sync(lab, uri).runs == 7  # through the server: inputs and models, too
        start, *blocks = queries()
        names, answers = {}, []
        # The blocks of docs/comparing.md, a file of this repository.
        exec(start.replace('"http://127.0.0.1:5000"', repr(uri)), names)
        for block in blocks:
            exec(block, names)
            answers.append(names["found"])
        best, *of_runs = answers
        lowest, cheap, of_data, of_weights = ([run.data.tags["edm.key"] for run in found] for found in of_runs)
        assert [model.tags["edm.model"] for model in best] == ["digits/vp-A@2000", "digits/vp-F@4000"]
        assert lowest == ["digits/vp-A/ladder/40"]
        assert cheap == ["digits/vp-F/ladder/18", "digits/vp-A/ladder/18", "digits/vp-A/ladder/9"]
        assert len(of_data) == 7 and of_weights == ["digits/vp-F/ladder/18"]
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
