"""The journal of a job, an append-only JSONL file, and the runs that it describes.

Each line is one event: ``run`` (a run begins or resumes), ``metrics``, ``tag``, ``artifact`` or ``finish``, with the
key of its run and a time in milliseconds. The journal is the authoritative record; MLflow shows a copy.
"""

import hashlib
import io
import json
import math
import os
import posixpath
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

from edm.errors import UserError
from edm.files.hashes import canonical_json, sha256_file
from edm.files.reading import read_regular
from edm.files.refusals import shown
from edm.tracking.events import STATUSES, read_event

DEFAULT_EXPERIMENT = "edm"
_PENDING_LIMIT = 1 << 24  # bytes kept in memory while the file cannot be written
_LARGEST = 64 << 20  # bytes of a journal; the longest training run writes about 2 MB
_LONGEST_LINE = 1 << 20
_MOST_FAULTS = 10_000  # damaged lines


class Journal:
    """Writes one journal file. Its methods never raise: the first failure prints a warning on stderr.

    Each event is one line, passed to the operating system immediately. Lines that cannot be written (full disk) are
    kept in memory and written with a later event. Only one process at a time may write a journal.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: FileIO | None = None
        self._pending = bytearray()
        self._warned = False

    def run(
        self,
        key: str,
        *,
        name: str | None = None,
        experiment: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: str | None = None,
        made_from: str | None = None,
        began: float | None = None,
    ) -> "Run":
        """Begins the run ``key``, or resumes it if the journal already has it (a resumed job).

        key: unique in the project. name: by default the key. parent: the key of a run in any journal. params: nested
        ones are flattened (``a: {b: 1}`` is ``a.b``); their hash becomes the tag ``params_sha256``, which finds the
        runs of one configuration. made_from: identifies code and inputs. An argument of None keeps the earlier value.
        If params or made_from differ from the earlier ones, the run starts afresh and its earlier events are discarded.
        began: for work that is recorded once it is done, the time (s) of its start; the run then starts afresh, too.
        """
        with self._shielded():
            event: dict[str, Any] = {"event": "run", "key": key, "name": name, "experiment": experiment,
                                     "parent": parent, "made_from": made_from}  # fmt: skip
            event["began"] = None if began is None else int(began * 1000)
            event["params"] = None if params is None else dict(_flattened(params))
            event["tags"] = {str(tag): _text(value) for tag, value in (tags or {}).items()}
            if params is not None:
                event["tags"]["params_sha256"] = hashlib.sha256(canonical_json(event["params"]).encode()).hexdigest()
            self._append({field: value for field, value in event.items() if value is not None})
        return Run(self, key)

    def _append(self, event: dict) -> None:
        line = json.dumps(event | {"time": time.time_ns() // 1_000_000}, separators=(",", ":"), allow_nan=False)
        if len(self._pending) < _PENDING_LIMIT:
            self._pending += line.encode() + b"\n"
        if self._file is None:
            self._file = self._opened()
        while self._pending:
            del self._pending[: self._file.write(self._pending)]

    def _opened(self) -> FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        if file.tell():
            with open(self.path, "rb") as reader:
                reader.seek(-1, os.SEEK_END)
                if reader.read(1) != b"\n":  # a job was killed in mid-line; keep its torn line apart from the next
                    self._pending[:0] = b"\n"
        return file

    def _sync(self) -> None:
        """Forces the written events to disk and closes the file; the next event reopens it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    @contextmanager
    def _shielded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any exception: tracking never fails a job
            if not self._warned:
                self._warned = True
                print(f"warning: {self.path}: not all events are recorded ({error}); continuing", file=sys.stderr)


class Run:
    """One run in a journal. As a context manager it finishes the run, as FAILED or KILLED if the block raised."""

    def __init__(self, journal: Journal, key: str):
        self._journal = journal
        self.key = key
        self._finished = False

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Records metric values at ``step`` (images seen). A later value for the same metric and step replaces it."""
        with self._journal._shielded():
            numbers = {str(name): _plain(float(value)) for name, value in values.items()}
            self._journal._append({"event": "metrics", "key": self.key, "step": int(step), "values": numbers})

    def artifact(self, path: str | os.PathLike, folder: str = "") -> None:
        """Records the file ``path`` and its hash; MLflow shows it in ``folder``. It is not copied, so keep the file."""
        with self._journal._shielded():
            event = {"event": "artifact", "key": self.key, "path": os.path.relpath(path), "folder": folder}
            self._journal._append(event | {"sha256": sha256_file(path)})

    def tag(self, name: str, value: Any) -> None:
        """Sets a tag; a later value replaces it."""
        with self._journal._shielded():
            self._journal._append({"event": "tag", "key": self.key, "name": str(name), "value": _text(value)})

    def sync(self) -> None:
        """Forces all recorded events to disk, without finishing the run."""
        with self._journal._shielded():
            self._journal._sync()

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run with one of ``STATUSES`` and forces the journal to disk."""
        self._finished = True
        with self._journal._shielded():
            if status not in STATUSES:
                raise ValueError(f"run status {status!r} is none of {', '.join(STATUSES)}")
            self._journal._append({"event": "finish", "key": self.key, "status": status})
            self._journal._sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._finished:
            return
        if kind is None:
            self.finish()
        else:  # an interrupt or exit is not a failure of the run
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")


class Point(NamedTuple):
    """A metric's value at a step, and the time of writing (ms)."""

    value: float
    time: int


class Artifact(NamedTuple):
    """A file of a run: path from the working directory, folder to show it in, hash when recorded."""

    path: str
    folder: str
    sha256: str

    @property
    def shown_as(self) -> str:
        """Path of the file among the run's artifacts."""
        return posixpath.join(self.folder, os.path.basename(self.path))


@dataclass
class RunRecord:
    """A run according to its journal: all events merged, later ones take precedence. Times in milliseconds."""

    key: str
    start: int
    updated: int
    name: str
    experiment: str = DEFAULT_EXPERIMENT
    parent: str | None = None
    made_from: str | None = None
    status: str = "RUNNING"
    end: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[int, Point]] = field(default_factory=dict)  # name -> step -> point
    artifacts: dict[str, Artifact] = field(default_factory=dict)  # by the path that MLflow shows


def read_journal(path: str | os.PathLike, set_aside: list[str] | None = None) -> list[RunRecord]:
    """The runs in a journal, in the order of their beginnings.

    Skips damaged and unknown lines, and appends an entry to ``set_aside`` for each: file, line number, fault.
    Raises UserError if the file cannot be read, is too large, or has more damaged lines than any journal.
    """
    content = read_regular(path, _LARGEST, "a journal")
    records: dict[str, RunRecord] = {}
    faults: list[str] = []
    for number, line in enumerate(io.BytesIO(content), 1):
        if line in (b"\n", b"\r\n"):
            continue
        try:
            if len(line) > _LONGEST_LINE:
                raise ValueError("longer than any line of a journal")
            _apply(read_event(line), records)
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
        if len(faults) > _MOST_FAULTS:
            raise UserError(f"{path}: has over {_MOST_FAULTS:,} damaged lines; move it away")
    if set_aside is not None:
        set_aside += faults
    return list(records.values())


def _apply(event: dict, records: dict[str, RunRecord]) -> None:
    """Merges one event into the records. Raises ValueError, changing nothing, if its run has not begun."""
    key, now = event["key"], int(event["time"])
    if event["event"] == "run":
        start = int(event.get("began", now))
        record = records.setdefault(key, RunRecord(key=key, start=start, updated=now, name=key))
        if "began" in event or (record.params and any(event.get(name, getattr(record, name)) != getattr(record, name)
                                                      for name in ("params", "made_from"))):  # fmt: skip
            kept: dict[str, Any] = {"name": record.name, "experiment": record.experiment, "parent": record.parent}
            record = records[key] = RunRecord(key=key, start=start, updated=now, **kept)
        for name in ("name", "experiment", "parent", "params", "made_from"):
            if name in event:
                setattr(record, name, event[name])
        record.tags.update(event.get("tags", {}))
        record.status, record.end = "RUNNING", None
    elif key not in records:
        raise ValueError(f"run '{shown(key)}' has not begun before this line")
    else:
        record = records[key]
        match event["event"]:
            case "metrics":
                for name, value in event["values"].items():
                    record.metrics.setdefault(name, {})[event["step"]] = Point(float(value), now)
            case "tag":
                record.tags[event["name"]] = event["value"]
            case "artifact":
                artifact = Artifact(event["path"], event["folder"], event["sha256"])
                record.artifacts[artifact.shown_as] = artifact
            case "finish":
                record.status, record.end = event["status"], now
    record.updated = now


def _flattened(values: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> Any:
    """The value in a form for JSON: non-finite numbers and unknown types become strings."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else str(float(value))
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return str(value)


def _text(value: Any) -> str:
    """A tag's value: strings unchanged, everything else as JSON."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)
