"""Reads and validates the events of a journal, whose lines may be damaged or written by another version."""

from collections.abc import Callable
from typing import Any

from edm.files.documents import parse

STATUSES = ("FINISHED", "FAILED", "KILLED")
_LATEST = 253_402_300_800_000  # ms; the year 10000
_DEEPEST = 20  # levels of lists and mappings in a value
_LARGEST_STEP = 1 << 62
_LONGEST_NAME = 500  # characters of a key or a name; MLflow shortens to half of it, or refuses
_MOST = 2000  # params, tags or metrics of one line


def read_event(line: bytes) -> dict[str, Any]:
    """The event of a line. Raises ValueError with a short reason for any other line."""
    event = parse(line)
    if not isinstance(event, dict):
        raise ValueError("not an event")
    kind = event.get("event")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ValueError("not an event that this version knows")
    for name, fits in {**_ALL, **fields}.items():
        optional = event["event"] == "run" and name not in _ALL
        if (name not in event and not optional) or (name in event and not fits(event[name])):
            raise ValueError(f"an event {event['event']!r} with a missing or wrong {name!r}")
    return event


def _text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _name(value: Any) -> bool:
    return _text(value) and bool(value.strip()) and len(value) <= _LONGEST_NAME


def _number(value: Any) -> bool:
    """Whether it is a number, or the text of a number that JSON cannot hold."""
    try:
        return not isinstance(value, bool) and isinstance(float(value), float)
    except (ValueError, TypeError, OverflowError):
        return False


def _time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LATEST


def _step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_STEP


def _mapping(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= _MOST
        and all(_name(key) and fits(entry) for key, entry in value.items())
    )


def _flat(value: Any, left: int = _DEEPEST) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_flat(entry, left - 1) for entry in inner)


_ALL: dict[str, Callable[[Any], bool]] = {"key": _name, "time": _time}
#: Fields of each kind of event besides ``_ALL``. They are optional for a run and required for the other kinds.
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "run": {
        "name": _name,
        "experiment": _name,
        "parent": _name,
        "params": _mapping(_flat),
        "tags": _mapping(_text),
        "made_from": _text,
        "began": _time,
    },
    "metrics": {"step": _step, "values": _mapping(_number)},
    "tag": {"name": _name, "value": _text},
    "artifact": {"path": _name, "folder": _text, "sha256": _name},
    "finish": {"status": STATUSES.__contains__},
}
