"""One pass that updates an MLflow store from run records; ``edm.tracking.sync`` calls it under its lock."""

import hashlib
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm.errors import one_line
from edm.files.hashes import digest, sha256_file
from edm.files.refusals import printable, shown
from edm.tracking import entries, snapshots, views
from edm.tracking.environment import DESCRIPTION
from edm.tracking.journal import RunRecord

_ARTIFACTS_TAG = "edm.artifacts"  # digests of the files sent
_ARTIFACTS_KEPT = 380  # of 13 characters each in a tag of 5000; older ones are sent again on the next change
_LARGEST_ARTIFACT = 1 << 30  # bytes; artifacts are pictures, tables and curves
_SYNCED_TAG = "edm.synced"  # digest of the record, set once all of it has arrived
# Errors that concern one run only; the sync continues with the next run.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
_PARENT_RUN_TAG = "mlflow.parentRunId"


@dataclass
class SyncReport:
    """Counts of what a sync sent. A replaced run counts as created.

    runs: runs in the journals. runs_pending: those of them that did not arrive. artifacts_missing: files deleted or
    changed since they were recorded. set_aside: journal lines that could not be read, with file, line number and fault.
    pages: the address of each experiment's first page, below that of MLflow's server.
    """

    runs: int = field(default=0, compare=False)
    runs_pending: int = field(default=0, compare=False)
    runs_created: int = 0
    runs_updated: int = 0
    metrics_sent: int = 0
    artifacts_sent: int = 0
    artifacts_missing: int = 0
    set_aside: list[str] = field(default_factory=list, compare=False)
    pages: dict[str, str] = field(default_factory=dict, compare=False)


class Transfer:
    """Sends records to a store. artifact_root: folder for files; None lets the store decide."""

    def __init__(
        self,
        tracking_uri: str,
        artifact_root: Path | None,
        records: list[RunRecord],
        report: SyncReport,
        deadline: float = math.inf,
    ):
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=tracking_uri)
        self.artifact_root = artifact_root
        self.records = records
        self.report = report
        self.deadline = deadline
        self.created: set[str] = set()
        self.updated: set[str] = set()

    def run(self) -> list[str]:
        """Sends everything new once. Returns one message per rejected run.

        Raises MlflowException or OSError if the store fails as a whole, and TimeoutError at the deadline.
        """
        try:
            return self._run()
        finally:
            self.report.runs_created = len(self.created)
            self.report.runs_updated = len(self.updated - self.created)

    def _run(self) -> list[str]:
        from mlflow.exceptions import MlflowException

        self.experiments = self._ensure_experiments()
        self.runs = self._find_runs()
        refused = []
        for record in self.records:
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"time is up, {self.report.runs_pending} of {self.report.runs} runs are pending")
            try:
                self._send(record)
            except MlflowException as error:
                if error.error_code not in _REFUSALS:
                    raise
                refused.append(f"{shown(record.key)}: MLflow refused this run ({printable(one_line(error)[:300])})")
            else:
                self.report.runs_pending -= 1
        self._attach_children()
        refused += self._send_snapshots()
        self._set_views()
        return refused

    def _ensure_experiments(self) -> dict[str, str]:
        """The id of each experiment in the store. Creates missing ones for the records, or restores deleted ones."""
        known = {experiment.name: experiment.experiment_id for experiment in _pages(self.client.search_experiments)}
        for name in dict.fromkeys(entries.experiment_name(record) for record in self.records):
            if name in known:
                continue
            if (deleted := self.client.get_experiment_by_name(name)) is not None:
                self.client.restore_experiment(deleted.experiment_id)
                known[name] = deleted.experiment_id
                continue
            location = None  # a server chooses its own
            if self.artifact_root:
                location = (self.artifact_root / re.sub(r"[^\w.-]+", "-", name)).as_uri()
            known[name] = self.client.create_experiment(name, artifact_location=location)
        return known

    def _find_runs(self) -> dict[str, Any]:
        """The run of each key in the store. Of several runs with one key (restored from the trash) keeps the last."""
        runs: dict[str, Any] = {}
        condition = f"tags.`{entries.KEY_TAG}` != ''"
        found = _pages(self.client.search_runs, experiment_ids=[*self.experiments.values()], filter_string=condition)
        for run in sorted(found, key=lambda run: run.info.start_time):
            key = run.data.tags[entries.KEY_TAG]
            if key in runs:
                self.client.delete_run(runs[key].info.run_id)
            runs[key] = run
        return runs

    def _send(self, record: RunRecord) -> None:
        """Sends the parts of one record that the store lacks."""
        run = self.runs.get(record.key)
        state = hashlib.sha256(repr((entries.SPELLING, record)).encode()).hexdigest()[:16]
        if run is not None and run.data.tags.get(_SYNCED_TAG) == state:
            return
        params, tags, points = entries.params(record), entries.tags(record), entries.points(record)
        if run is not None and _has_own_note(run):
            tags[entries.NOTE_TAG] = run.data.tags[entries.NOTE_TAG]
        stored = self._stored_points(run)
        if run is not None and self._contradicts(run, stored, record, params, points):
            self.client.delete_run(run.info.run_id)
            run, stored = None, {}
        if run is None:
            run = self._create(record)
        params = {name: value for name, value in params.items() if name not in run.data.params}
        tags = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        points = {place: point for place, point in points.items() if place not in stored}
        self._log(run, params, tags, points)
        self.report.metrics_sent += len(points)
        snapshots.send_dataset(self.client, run, record)
        complete = self._send_artifacts(run, record)
        if self._set_state(run, record) or params or tags or points:
            self.updated.add(record.key)
        if complete:
            self._log(run, tags={_SYNCED_TAG: state})

    def _stored_points(self, run: Any) -> dict[tuple[str, int], float]:
        """The metrics of a run in the store: (name, step) -> value."""
        if run is None:
            return {}
        names = [name for name in run.data.metrics if not name.startswith(snapshots.PREFIX)]
        histories = [self.client.get_metric_history(run.info.run_id, name) for name in names]
        return {(point.key, point.step): point.value for history in histories for point in history}

    def _contradicts(self, run: Any, stored: dict, record: RunRecord, params: dict, points: dict) -> bool:
        """Whether the stored run contradicts the journal in entries that MLflow cannot change."""
        return (
            run.info.start_time != record.start
            or run.info.experiment_id != self.experiments[entries.experiment_name(record)]
            or any(params.get(name) != value for name, value in run.data.params.items())
            or any(
                place not in points or not entries.same_value(points[place][0], value)
                for place, value in stored.items()
            )
        )

    def _create(self, record: RunRecord) -> Any:
        tags = {entries.KEY_TAG: record.key}
        if record.parent in self.runs:
            tags[_PARENT_RUN_TAG] = self.runs[record.parent].info.run_id
        experiment = self.experiments[entries.experiment_name(record)]
        run = self.client.create_run(experiment, record.start, tags, entries.run_name(record))
        self.runs[record.key] = run
        self.created.add(record.key)
        return run

    def _log(self, run: Any, params: dict | None = None, tags: dict | None = None, points: dict | None = None) -> None:
        """Sends entries of a run; the client splits them into the batches that MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run.info.run_id,
            [Metric(name, value, time, step) for (name, step), (value, time) in (points or {}).items()],
            [Param(name, value) for name, value in (params or {}).items()],
            [RunTag(name, value) for name, value in (tags or {}).items()],
            synchronous=True,  # regardless of the environment: the completeness tag must come last
        )
        run.data.tags.update(tags or {})

    def _send_artifacts(self, run: Any, record: RunRecord) -> bool:
        """Sends new or changed files. Returns False if a file is missing or has changed since it was recorded."""
        sent = run.data.tags.get(_ARTIFACTS_TAG, "").split()
        complete = True
        for artifact in record.artifacts.values():
            mark = digest([artifact.shown_as, artifact.sha256])
            if mark in sent:
                continue
            if not _unchanged(artifact.path, artifact.sha256):
                self.report.artifacts_missing += 1
                complete = False
                continue
            self.client.log_artifact(run.info.run_id, artifact.path, artifact.folder or None)
            sent.append(mark)
            self._log(run, tags={_ARTIFACTS_TAG: " ".join(sent[-_ARTIFACTS_KEPT:])})
            self.report.artifacts_sent += 1
            self.updated.add(record.key)
        return complete

    def _set_state(self, run: Any, record: RunRecord) -> bool:
        """Sets name, status and end time to those of the record. Returns True if that changed anything."""
        name, info = entries.run_name(record), run.info
        if renamed := info.run_name != name:
            self.client.update_run(info.run_id, name=name)
        if record.end is None and info.status != record.status:  # resumed after finishing
            self.client.update_run(info.run_id, status=record.status)
        elif record.end is not None and (info.status, info.end_time) != (record.status, record.end):
            self.client.set_terminated(info.run_id, record.status, record.end)
        else:
            return renamed
        return True

    def _attach_children(self) -> None:
        """Links child runs to their parents' current runs, including children whose journals are not in this sync."""
        for key, run in self.runs.items():
            parent = self.runs.get(run.data.tags.get(entries.PARENT_KEY_TAG))
            if parent is not None and run.data.tags.get(_PARENT_RUN_TAG) != parent.info.run_id:
                self._log(run, tags={_PARENT_RUN_TAG: parent.info.run_id})
                self.updated.add(key)

    def _send_snapshots(self) -> list[str]:
        """Sends what MLflow 3 shows as models; a store without logged models has the runs alone."""
        from mlflow.exceptions import MlflowException

        try:
            self.report.metrics_sent += snapshots.send_snapshots(self.client, self.records, self.experiments, self.runs)
        except MlflowException as error:
            if error.error_code not in (_REFUSALS | snapshots.UNSUPPORTED):
                raise
            if error.error_code in _REFUSALS:
                return [f"models: MLflow refused them ({printable(one_line(error)[:300])})"]
        return []

    def _set_views(self) -> None:
        """Sets the views of MLflow's pages for each experiment; keeps a note written by a user."""
        groups: dict[str, list[RunRecord]] = {}
        for record in self.records:
            groups.setdefault(entries.experiment_name(record), []).append(record)
        for name, records in groups.items():
            experiment = self.experiments[name]
            self.report.pages[name] = views.first_page(experiment, records)
            found = self.client.get_experiment(experiment).tags
            for tag, value in views.experiment_tags(experiment, records).items():
                if found.get(tag) != value and views.may_change(tag, found.get(tag)):
                    self.client.set_experiment_tag(experiment, tag, value)


def _has_own_note(run: Any) -> bool:
    """Whether a user wrote the run's note; it is kept, also if the run is replaced."""
    note = run.data.tags.get(entries.NOTE_TAG)
    return note is not None and note != run.data.tags.get(DESCRIPTION)


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    """All results of one of MLflow's paged searches."""
    page = search(**arguments, max_results=1000)
    yield from page
    while page.token:
        page = search(**arguments, max_results=1000, page_token=page.token)
        yield from page


def _unchanged(path: str, sha256: str) -> bool:
    """Whether a regular file has that hash. Others are not read: a pipe would never end, a large one not soon."""
    try:
        regular = os.path.isfile(path) and os.path.getsize(path) <= _LARGEST_ARTIFACT
        return regular and sha256_file(path) == sha256
    except OSError:
        return False
