"""Datasets and snapshots of models in an MLflow store: inputs of runs, and external logged models, without weights.

Part of a sync, after the runs have arrived; like ``transfer``, it imports MLflow and no job runs it.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edm.tracking import entries
from edm.tracking.journal import RunRecord

MODEL_TAG = "edm.model"  # of a logged model: the key of its training run, "@", the images seen
#: Metrics of snapshots begin with it; the training run holds them beside those of its journal.
PREFIX = "snapshot_"
_DISTANCE = re.compile(r"(FID|FD)(_of_\d+)?$")
_DIGEST = 32  # characters of a hash that MLflow has room for
# What a store answers that has no logged models or no inputs: MLflow before 3, or another server.
UNSUPPORTED = {"ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NOT_IMPLEMENTED"}


@dataclass
class Snapshot:
    """A model after so many images, with its distances: of evaluations the lowest, of a choice by number of images."""

    training: str
    experiment: str
    model: str
    images: int
    distances: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    dataset: tuple[str, str] | None = None

    @property
    def key(self) -> str:
        return f"{self.training}@{self.images}"

    @property
    def name(self) -> str:
        """The name of its logged model, in which MLflow allows neither slashes nor colons."""
        return re.sub(r"[/:.%\"']", "-", f"{self.model}-at-{self.images}")[:250]


def snapshots(records: Iterable[RunRecord]) -> list[Snapshot]:
    """The snapshots that evaluations and choices in some journals have measured."""
    found: dict[tuple[str, int], Snapshot] = {}
    for record in records:
        kind = record.tags.get("kind")
        if kind not in ("evaluation", "choice") or record.parent is None:
            continue
        for name, series in record.metrics.items():
            if not _DISTANCE.match(name) or (kind == "choice") != ("_of_" in name):
                continue
            for images, point in series.items():
                start = Snapshot(record.parent, record.experiment, record.tags.get("model", "model"), images)
                one = found.setdefault((record.parent, images), start)
                one.distances[name] = min(point.value, one.distances.get(name, point.value))
                one.dataset = one.dataset or dataset_of(record)
                one.runs.append(record.key)
                if kind == "evaluation":  # that of a choice is another snapshot's
                    hashes = {tag: record.tags.get(tag) for tag in ("checkpoint_sha256", "dataset_sha256")}
                    one.hashes |= {tag: value for tag, value in hashes.items() if value}
    return list(found.values())


def dataset_of(record: RunRecord) -> tuple[str, str] | None:
    """Name and digest (the start of the SHA-256) of the dataset that a run used; None if its journal has none."""
    sha256 = record.tags.get("dataset_sha256")
    return (record.tags.get("dataset", "dataset"), sha256[:_DIGEST]) if sha256 else None


def send_dataset(client: Any, run: Any, record: RunRecord) -> bool:
    """Names the dataset of a record as an input of its run in the store. Returns whether that was new."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = dataset_of(record)
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    if dataset is None or dataset in [(given.dataset.name, given.dataset.digest) for given in inputs]:
        return False
    source = json.dumps({"sha256": record.tags["dataset_sha256"], "path": f"data/{dataset[0]}.zip"})
    context = InputTag("mlflow.data.context", record.tags.get("kind", "training"))
    client.log_inputs(run.info.run_id, [DatasetInput(Dataset(*dataset, "edm", source), [context])])
    return True


def send_snapshots(client: Any, records: list[RunRecord], experiments: dict[str, str], runs: dict[str, Any]) -> int:
    """Creates the external logged model of each snapshot and logs its new distances. Returns how many it logged.

    experiments: name → id. runs: key → run in the store. The distances are metrics of the training run, or of the first
    run that measured a model without one, with the logged model and the dataset.
    """
    from mlflow.entities import Metric

    wanted = [one for one in snapshots(records) if any(key in runs for key in (one.training, *one.runs))]
    if not wanted:
        return 0
    present = {model.tags.get(MODEL_TAG): model for model in _models(client, [*experiments.values()])}
    training_runs, logged = {record.key: record for record in records}, 0
    for one in wanted:
        run = next(runs[key] for key in (one.training, *one.runs) if key in runs)
        model = present.get(one.key)
        if model is not None and model.source_run_id != run.info.run_id:  # the run was replaced
            client.delete_logged_model(model.model_id)
            model = None
        if model is None:
            model = _create(client, one, run, training_runs.get(one.training))
        elif changed := {tag: value for tag, value in one.hashes.items() if model.tags.get(tag) != value}:
            client.set_logged_model_tags(model.model_id, changed)
        known = {metric.key: metric for metric in model.metrics or ()}
        name, digest = one.dataset or (None, None)
        now = int(time.time() * 1000)
        new = []
        for key, value in one.distances.items():
            last = known.get(f"{PREFIX}{key}")
            if last is None or not entries.same_value(last.value, value):  # MLflow shows the latest
                when = now if last is None else max(now, last.timestamp + 1)
                of = (one.images, model.model_id, name, digest, run.info.run_id)
                new.append(Metric(f"{PREFIX}{key}", value, when, *of))
        if new:
            client.log_batch(run.info.run_id, metrics=new, synchronous=True)
        logged += len(new)
    return logged


def _create(client: Any, one: Snapshot, run: Any, training: RunRecord | None) -> Any:
    tags = {MODEL_TAG: one.key, "mlflow.model.isExternal": "true", "model": one.model, "images": str(one.images)}
    params = entries.params(training) if training is not None else {}
    made = client.create_logged_model(
        run.info.experiment_id, one.name, source_run_id=run.info.run_id, tags=tags | one.hashes, params=params,
        model_type="EDM",
    )  # fmt: skip
    return client.finalize_logged_model(made.model_id, "READY")


def _models(client: Any, experiments: list[str]) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_logged_models(experiments, max_results=100, page_token=token)
        yield from page
        if not (token := page.token):
            return
