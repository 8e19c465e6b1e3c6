"""Copies journals to an MLflow store. Only this module, ``transfer`` and ``snapshots`` import MLflow; no job runs them.

The journals are authoritative: ``sync`` refills a deleted store from them, and replaces runs in the store that
contradict them. ``sync`` owns all runs with a tag ``edm.key``: one deleted by hand reappears while its journal exists.
"""

import functools
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edm.errors import UserError, one_line, require
from edm.files.hashes import digest
from edm.files.lock import exclusive
from edm.tracking import DEFAULT_URI, entries
from edm.tracking.journal import RunRecord, read_journal
from edm.tracking.transfer import SyncReport, Transfer

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own defaults would retry a dead server for minutes and print a link per run. The user's settings win.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class Undelivered(UserError):
    """Some runs did not arrive; the journals keep them. ``report`` counts those that did."""

    def __init__(self, message: str, report: SyncReport):
        super().__init__(message)
        self.report = report


def sync(
    journal_paths: Iterable[str | os.PathLike],
    tracking_uri: str = DEFAULT_URI,
    lock_path: str | os.PathLike | None = None,
    limit: float = 600.0,
) -> SyncReport:
    """Updates the store at ``tracking_uri`` from the journals. Repeating it sends nothing.

    It finds runs by the tag ``edm.key`` and adds new entries. It deletes a run that contradicts its journal (MLflow
    keeps it in its trash) and sends it again, so that the store has one run per key: MLflow cannot change params or
    metric points once written, but a job may be rerun with other params, or resumed from an earlier step. If two
    journals hold one key, the one written last counts. Values too long for MLflow are truncated. Artifact paths are
    relative to the working directory. A child run is attached to its parent by the first sync that finds both.

    Only one sync runs at a time: a lock (by default beside the SQLite file) covers reading and sending. After ``limit``
    seconds, including the wait for the lock, it starts no further run; the next sync continues there.

    Raises Undelivered, a UserError, if runs did not arrive: the store is unreachable, rejects a run, or is too slow, or
    a journal cannot be read. All other runs have then arrived, if the store accepted any. Lines that cannot be read are
    skipped and listed in the report.
    """
    _settle_environment()
    deadline = time.monotonic() + limit
    database = _sqlite_path(tracking_uri)
    lock_path = lock_path or (f"{database}.lock" if database else f"mlruns/sync-{digest(tracking_uri)}.lock")
    journal_paths, report = list(journal_paths), SyncReport()
    try:
        require("mlflow")  # before the lock: importing MLflow takes seconds
    except UserError as error:
        raise _undelivered(tracking_uri, error, report, journal_paths) from None
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with exclusive(lock_path, deadline - time.monotonic()), _quiet():
            records, problems = _latest_records(journal_paths, report.set_aside)
            report.runs = report.runs_pending = len(records)
            if database:
                _check_database(database, deadline)
            artifact_root = database.absolute().parent / "artifacts" if database else None
            problems += Transfer(tracking_uri, artifact_root, records, report, deadline).run()
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, UserError) as error:
        raise _undelivered(tracking_uri, error, report, journal_paths) from error
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Undelivered(f"{problems[0]}{more}; everything else has arrived", report)
    return report


def run_id(tracking_uri: str, key: str) -> str | None:
    """The id of the run of a key; None if it has no run, or if the store is not an SQLite file that is free to read."""
    database = _sqlite_path(tracking_uri)
    if database is None or not database.exists():
        return None
    _settle_environment()
    try:
        _check_database(database, time.monotonic() + 1)
        with _quiet():
            client = _client(tracking_uri)
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            condition = f"tags.`{entries.KEY_TAG}` = '{key}'"
            found = client.search_runs(experiments, condition, max_results=1, order_by=["attributes.start_time DESC"])
    except Exception:  # the answer is optional
        return None
    return found[0].info.run_id if found else None


@functools.cache
def _client(tracking_uri: str) -> "MlflowClient":
    """A cached client: opening a store takes a second."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _settle_environment() -> None:
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})


def _latest_records(
    journal_paths: Iterable[str | os.PathLike], set_aside: list[str] | None = None
) -> tuple[list[RunRecord], list[str]]:
    """(one record per key, ordered by start, so parents before children; errors of unreadable journals).

    Appends an entry to ``set_aside`` for each line that cannot be read.
    """
    latest: dict[str, RunRecord] = {}
    problems = []
    for path in journal_paths:
        try:
            records = read_journal(path, set_aside)
        except UserError as error:
            problems.append(str(error))
            continue
        for record in records:
            if record.key not in latest or record.updated > latest[record.key].updated:
                latest[record.key] = record
    return sorted(latest.values(), key=lambda record: record.start), problems


def _sqlite_path(tracking_uri: str) -> Path | None:
    """The file that a SQLite URI names; None for other stores."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])


def _check_database(path: Path, deadline: float) -> None:
    """Waits until the file can be written. Raises sqlite3.Error if that fails or the file is not a database.

    MLflow always waits 20 seconds for another writer, and retries a file that is not a database for minutes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    patience = min(max(deadline - time.monotonic(), 0.1), 3600.0)
    with closing(sqlite3.connect(path, timeout=patience, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logs of MLflow and its libraries; exceptions still propagate."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "sqlalchemy", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _undelivered(tracking_uri: str, error: Exception, report: SyncReport, journal_paths: list) -> Undelivered:
    """The error for the user: one line without the login that a URI may hold; its report counts the pending runs."""
    if not report.runs:  # the failure came before the journals were read
        report.runs = report.runs_pending = len(_latest_records(journal_paths)[0])
    login = urlsplit(tracking_uri).netloc.rpartition("@")[0]
    cause: BaseException | None = error
    while cause is not None and (cause := cause.__cause__ or cause.__context__):
        if isinstance(cause, OSError | sqlite3.Error):
            error = cause  # MLflow wraps "connection refused" or "database is locked" in paragraphs
    reason = one_line(error)[:300]
    text = f"{tracking_uri}: the tracking store did not take the runs ({reason}); the journals keep everything: "
    text += "fix the store, then repeat `edm track sync`"
    return Undelivered(text.replace(f"{login}@", "") if login else text, report)
