"""Copies journals to an MLflow store. Only here is MLflow imported, and no job runs it.

The journals are the record: a store that was deleted is filled again from them, and what contradicts them in a store
gives way. So runs with a tag ``edm.key`` belong to ``sync``: one deleted by hand comes back while its journal is there.
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

from edm.errors import UserError, require
from edm.files.lock import exclusive
from edm.files.writing import digest
from edm.tracking import DEFAULT_URI, entries
from edm.tracking.journal import RunRecord, read_journal
from edm.tracking.transfer import SyncReport, Transfer

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own defaults would retry a dead server for minutes and print a link per run. What the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class Undelivered(UserError):
    """Some runs did not arrive; the journals keep them. ``report`` tells what did."""

    def __init__(self, message: str, report: SyncReport):
        super().__init__(message)
        self.report = report


def sync(
    journal_paths: Iterable[str | os.PathLike],
    tracking_uri: str = DEFAULT_URI,
    lock_path: str | os.PathLike | None = None,
    limit: float = 600.0,
) -> SyncReport:
    """Brings the store at ``tracking_uri`` to what the journals say. Repeating it sends nothing.

    Runs are found by the tag ``edm.key``, and what is new is added. A run that contradicts its journal is deleted
    (MLflow keeps it in its trash) and sent afresh, so that there is one run per key: MLflow changes neither params
    nor metric points once written, but a job may be rerun with other params, or resumed from an earlier step. Where
    two journals hold one key, the one written last counts. Values too long for MLflow are cut. Artifacts are looked
    up from the working directory. A child whose parent is not there yet is attached by the sync that finds it.

    One sync works at a time: a lock (by default beside the SQLite file) covers reading and sending. After ``limit``
    seconds, of waiting for the lock or for the store, no further run is begun; the next sync goes on there.

    Raises Undelivered, a UserError, where runs did not arrive: the store cannot be reached, refuses a run, or is too
    slow, or a journal cannot be read. All other runs have arrived then, if the store took any. Single lines that cannot
    be read are set aside: the report names them, and everything else arrives.
    """
    _settle_environment()
    deadline = time.monotonic() + limit
    database = _sqlite_path(tracking_uri)
    lock_path = lock_path or (f"{database}.lock" if database else f"mlruns/sync-{digest(tracking_uri)}.lock")
    journal_paths, report = list(journal_paths), SyncReport()
    try:
        require("mlflow")  # before the lock: its seconds pass while others work
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
    """The id of the run of a key; None where there is none, or the store is no SQLite file that can be read at once."""
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
    except Exception:  # an answer that is nice to have
        return None
    return found[0].info.run_id if found else None


@functools.cache
def _client(tracking_uri: str) -> "MlflowClient":
    """A client that is asked several things: opening a store takes a second."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _settle_environment() -> None:
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})


def _latest_records(
    journal_paths: Iterable[str | os.PathLike], set_aside: list[str] | None = None
) -> tuple[list[RunRecord], list[str]]:
    """One record per key, in the order of their beginnings: parents before children; and the unreadable journals.

    ``set_aside`` gets an entry for each line that could not be read.
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
    """Waits until the file can be written. Raises sqlite3.Error where it cannot, or is no database.

    MLflow would wait for a writer 20 seconds, whatever it is told, and try a file that is no database for minutes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    patience = min(max(deadline - time.monotonic(), 0.1), 3600.0)
    with closing(sqlite3.connect(path, timeout=patience, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hushes what MLflow and its libraries log; their errors are raised all the same."""
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
    """One line for the user, without the login that a URI may hold, and how many runs are to come."""
    if not report.runs:  # it failed before they were read
        report.runs = report.runs_pending = len(_latest_records(journal_paths)[0])
    login = urlsplit(tracking_uri).netloc.rpartition("@")[0]
    cause: BaseException | None = error
    while cause is not None and (cause := cause.__cause__ or cause.__context__):
        if isinstance(cause, OSError | sqlite3.Error):
            error = cause  # MLflow wraps "connection refused" or "database is locked" in paragraphs
    reason = " ".join(str(error).split())[:300]
    text = f"{tracking_uri}: the tracking store did not take the runs ({reason}); the journals keep everything: "
    text += "mend the store, then repeat `edm track sync`"
    return Undelivered(text.replace(f"{login}@", "") if login else text, report)
