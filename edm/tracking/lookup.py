"""Finds runs in an MLflow store without MLflow, which takes seconds to import."""

import sqlite3
from contextlib import closing
from pathlib import Path

from edm.tracking.entries import KEY_TAG

_NEWEST = """SELECT runs.run_uuid FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid
             WHERE tags.key = ? AND tags.value = ? AND runs.lifecycle_stage = 'active'
             ORDER BY runs.start_time DESC LIMIT 1"""


def run_id(tracking_uri: str, key: str) -> str | None:
    """The id of the run of a key; None where there is none, or the store is no SQLite file that can be read at once."""
    scheme, _, path = tracking_uri.partition(":///")
    if scheme != "sqlite":
        return None
    try:
        address = f"{Path(path.partition('?')[0]).resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=1.0)) as connection:
            found = connection.execute(_NEWEST, (KEY_TAG, key)).fetchone()
    except (sqlite3.Error, OSError):
        return None
    return found[0] if found else None
