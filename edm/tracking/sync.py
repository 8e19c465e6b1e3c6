"""Copies journals to an MLflow store. Only here is MLflow imported, and no job runs it.

The journals are the record: a store that was deleted is filled again from them, and what contradicts them in a store
gives way. So runs with a tag ``edm.key`` belong to ``sync``: one deleted by hand comes back while its journal is there.
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from edm.errors import UserError
from edm.files import digest
from edm.tracking import DEFAULT_URI
from edm.tracking.journal import RunRecord, read_journal
from edm.tracking.transfer import SyncReport, Transfer

# MLflow's own defaults would retry a dead server for minutes and print a link per run. What the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def sync(
    journal_paths: Iterable[str | os.PathLike],
    tracking_uri: str = DEFAULT_URI,
    lock_path: str | os.PathLike | None = None,
) -> SyncReport:
    """Brings the store at ``tracking_uri`` to what the journals say. Repeating it sends nothing.

    Runs are found by the tag ``edm.key``, and what is new is added. A run that contradicts its journal is deleted
    (MLflow keeps it in its trash) and sent afresh, so that there is one run per key: MLflow changes neither params
    nor metric points once written, but a job may be rerun with other params, or resumed from an earlier step. Where
    two journals hold one key, the one written last counts. Values too long for MLflow are cut. Artifacts are looked
    up from the working directory. A child whose parent is not there yet is attached by the sync that finds it.

    One sync works at a time: an exclusive ``flock`` (by default beside the SQLite file) covers reading and sending.
    On NFS such locks need not hold between hosts, so sync from one host only.

    Raises UserError where a journal or the store cannot be reached.
    """
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    from mlflow.exceptions import MlflowException  # before the lock: the seconds that it takes pass while others work
    from sqlalchemy.exc import SQLAlchemyError

    database = _sqlite_path(tracking_uri)
    lock_path = lock_path or (f"{database}.lock" if database else f"mlruns/sync-{digest(tracking_uri)}.lock")
    try:
        with _locked(Path(lock_path)), _quiet():
            if database:
                _check_database(database)
            artifact_root = database.absolute().parent / "artifacts" if database else None
            return Transfer(tracking_uri, artifact_root, _latest_records(journal_paths)).run()
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise UserError(_failure(tracking_uri, error)) from error


def _latest_records(journal_paths: Iterable[str | os.PathLike]) -> list[RunRecord]:
    """One record per key, in the order of their beginnings: parents before children."""
    latest: dict[str, RunRecord] = {}
    for path in journal_paths:
        for record in read_journal(path):
            if record.key not in latest or record.updated > latest[record.key].updated:
                latest[record.key] = record
    return sorted(latest.values(), key=lambda record: record.start)


def _sqlite_path(tracking_uri: str) -> Path | None:
    """The file that a SQLite URI names; None for other stores."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])


def _check_database(path: Path) -> None:
    """Raises sqlite3.Error at once for a file that is no database; MLflow would try it again and again for minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("PRAGMA schema_version")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file exclusively; the system releases it where the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _failure(tracking_uri: str, error: Exception) -> str:
    """One line for the user, without the login that a URI may hold."""
    login = urlsplit(tracking_uri).netloc.rpartition("@")[0]
    cause: BaseException | None = error
    while cause := cause.__cause__ or cause.__context__:
        if isinstance(cause, OSError | sqlite3.Error):
            error = cause  # MLflow wraps "connection refused" or "database is locked" in paragraphs
    reason = " ".join(str(error).split())[:300]
    text = f"{tracking_uri}: the tracking store did not take the runs ({reason}); the journals keep everything: "
    text += "mend the store, then repeat `edm track sync`"
    return text.replace(f"{login}@", "") if login else text
