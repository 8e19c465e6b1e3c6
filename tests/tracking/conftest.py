"""A SQLite store for each test."""

import os
import shutil
from pathlib import Path

import pytest

from edm.tracking.sync import sync
from edm.tracking.transfer import SyncReport

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # also where a test imports MLflow before ``sync``


class Store:
    """A SQLite store of its own folder, with a look inside."""

    def __init__(self, database: Path):
        self.database = database
        self.uri = f"sqlite:///{database}"

    def sync(self, *journals) -> SyncReport:
        return sync(journals, self.uri)

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def runs(self) -> dict:
        """Active runs by key; fails where a key has two."""
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        runs = self.client.search_runs(ids, max_results=1000)
        by_key = {run.data.tags["edm.key"]: run for run in runs}
        assert len(by_key) == len(runs)
        return by_key

    def history(self, key: str, metric: str) -> list:
        """(step, value) of all points."""
        points = self.client.get_metric_history(self.runs()[key].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with a schema; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    assert sync([], f"sqlite:///{path}") == SyncReport()
    return path


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a folder" / "ml runs"
    folder.mkdir(parents=True)
    return Store(Path(shutil.copy(empty_database, folder)))


@pytest.fixture
def open_store():
    """Opens the store of any database file."""
    return Store
