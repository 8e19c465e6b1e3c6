"""Converts a run record to MLflow's entries: names, lengths and numbers that every backend accepts."""

import json
import math
import posixpath
import re

from edm.tracking.journal import RunRecord

KEY_TAG = "edm.key"
PARENT_KEY_TAG = "edm.parent"  # kept beside MLflow's own tag, to find the parent again when its run is replaced

_NAME_LENGTH, _PARAM_LENGTH, _TAG_LENGTH, _EXPERIMENT_LENGTH = 250, 6000, 5000, 500
_LARGEST = 1.7976931348623157e308  # SQL stores keep this in place of infinity


def experiment_name(record: RunRecord) -> str:
    """Name of the record's experiment."""
    return record.experiment[:_EXPERIMENT_LENGTH]


def run_name(record: RunRecord) -> str:
    """Name of the run as the run table shows it."""
    return record.name[:_NAME_LENGTH]


def params(record: RunRecord) -> dict[str, str]:
    """The parameters as text; long ones are truncated."""
    return {
        _entry_name(name): (value if isinstance(value, str) else json.dumps(value, sort_keys=True))[:_PARAM_LENGTH]
        for name, value in record.params.items()
    }


def tags(record: RunRecord) -> dict[str, str]:
    """The tags, with the keys of the run and of its parent; long ones are truncated."""
    entries = {_entry_name(name): value[:_TAG_LENGTH] for name, value in record.tags.items()}
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


def _stored(value: float) -> float:
    return math.copysign(_LARGEST, value) if math.isinf(value) else value


def _entry_name(name: str) -> str:
    """The name of a metric, param or tag, with the characters that MLflow rejects replaced by underscores."""
    name = re.sub(r"[^/\w.\- :]", "_", name)[:_NAME_LENGTH]
    if name != posixpath.normpath(name) or name.startswith(("/", "..")) or name == ".":
        name = "_" + name.replace("/", "_")[: _NAME_LENGTH - 1]  # MLflow only takes names that are plain paths
    return name
