"""Converts a run record to MLflow's entries: names, lengths and numbers that every backend accepts."""

import json
import math
import posixpath
import re
from typing import Any

from edm.tracking.environment import DESCRIPTION
from edm.tracking.journal import RunRecord

KEY_TAG = "edm.key"
NOTE_TAG = "mlflow.note.content"  # MLflow shows it as the description of a run or an experiment
SPELLING = (
    3  # raise it if a sync sends more, or `params` spells values differently: the next sync then looks at all runs
)
PARENT_KEY_TAG = "edm.parent"  # kept beside MLflow's own tag, to find the parent again when its run is replaced

_NAME_LENGTH, _PARAM_LENGTH, _TAG_LENGTH, _EXPERIMENT_LENGTH = 250, 6000, 5000, 500
_EXACT = 1 << 53  # a float below it holds a whole number exactly
_LARGEST = 1.7976931348623157e308  # SQL stores keep this in place of infinity


def experiment_name(record: RunRecord) -> str:
    """Name of the record's experiment."""
    return record.experiment[:_EXPERIMENT_LENGTH]


def run_name(record: RunRecord) -> str:
    """Name of the run as the run table shows it."""
    return record.name[:_NAME_LENGTH]


def params(record: RunRecord) -> dict[str, str]:
    """The parameters as text, each value in one spelling; long ones are truncated."""
    spelled = {_entry_name(name): _spelled(name, value) for name, value in record.params.items()}
    return {
        name: (value if isinstance(value, str) else json.dumps(value, sort_keys=True))[:_PARAM_LENGTH]
        for name, value in spelled.items()
    }


def tags(record: RunRecord) -> dict[str, str]:
    """The tags, with the keys of the run and of its parent; long ones are truncated."""
    entries = {_entry_name(name): value[:_TAG_LENGTH] for name, value in record.tags.items()}
    if description := record.tags.get(DESCRIPTION):
        entries[NOTE_TAG] = description[:_TAG_LENGTH]
    entries[KEY_TAG] = record.key
    if record.parent:
        entries[PARENT_KEY_TAG] = record.parent
    return entries


def points(record: RunRecord) -> dict[tuple[str, int], tuple[float, int]]:
    """The metrics: (name, step) -> (value, time), with the values that the store will return."""
    return {
        (_entry_name(name), step): (_stored(point.value), point.time)
        for name, series in record.metrics.items()
        for step, point in series.items()
    }


def same_value(one: float, other: float) -> bool:
    """Whether two metric values are equal; NaN equals NaN here."""
    return one == other or (math.isnan(one) and math.isnan(other))


def _spelled(name: str, value: Any) -> Any:
    """The value in the one spelling of all runs: 1 for 1.0, and "inf" for an ``S_max`` of None."""
    if isinstance(value, list):
        return [_spelled(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _spelled(key, item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return "inf" if value is None and name.rpartition(".")[2] == "S_max" else value


def _stored(value: float) -> float:
    return math.copysign(_LARGEST, value) if math.isinf(value) else value


def _entry_name(name: str) -> str:
    """The name of a metric, param or tag, with the characters that MLflow rejects replaced by underscores."""
    name = re.sub(r"[^/\w.\- :]", "_", name)[:_NAME_LENGTH]
    if name != posixpath.normpath(name) or name.startswith(("/", "..")) or name == ".":
        name = "_" + name.replace("/", "_")[: _NAME_LENGTH - 1]  # MLflow only takes names that are plain paths
    return name
