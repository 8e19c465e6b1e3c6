"""Damaged tracking journals: lines, names, numbers, sizes, kinds of files, and the artifacts that they name.

Each input is a journal of three runs, of which lines are damaged or foreign. What reads journals is called with it:
the state of a run in a table, the merged records, MLflow's entries and views, and for every 20th input a whole
``sync`` to an SQLite store.
"""

import functools
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import door
import mutations

from edm.errors import UserError
from edm.report.results import Results
from edm.tracking import Journal, RunRecord, entries, read_journal, sync, views
from edm.tracking.transfer import _unchanged

PATH, STORE = Path("runs/tiny/a.journal.jsonl"), Path("mlflow.db")
NAMES = [
    "x" * 400, "x" * 5000, "a/b/../c", "/abs", "..", ".", "a:b", "ä\u0301", "a\tb", "=1+1", "<b>", "a" * 249 + "/b",
    " ", "edm.key", "mlflow.parentRunId", "mlflow.runName", "edm.synced", "edm.artifacts", "%s", "'; DROP TABLE runs",
]  # fmt: skip
VALUES: list[Any] = [
    *NAMES, "x" * 900_000, "nan", "-inf", "1e999", "1_0", "9" * 4000, 1e308, 5e-324, -0.0, 2**62, 0, -1,
]  # fmt: skip


def written(folder: Path) -> bytes:
    """A journal of three runs, in the working directory ``folder``, and its artifacts."""
    os.chdir(folder)
    Path("picture.png").write_bytes(b"a picture")
    journal = Journal(PATH)
    for name in ("one", "two", "three"):
        about = {"params": {"num_steps": 4, "nested": {"a": [1, {"b": None}]}}, "tags": {"kind": "evaluation"}}
        with journal.run(name, name=name, experiment="tiny", parent="one", made_from="d", **about) as run:
            run.metrics({"FID": 2.5, "nfe": 7}, step=100)
            run.tag("host", "a node")
            run.artifact("picture.png", "samples")
    return PATH.read_bytes()


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The journal with lines damaged, given other names or values, repeated, moved, or very long or many."""
    kind = draw.random()
    if kind < 0.35:
        return mutations.lines(content, draw)
    if kind < 0.45:
        return mutations.bytes_of(content, draw)
    lines = content.splitlines()
    if kind < 0.5:
        draw.shuffle(lines)
    elif kind < 0.55:
        lines.insert(
            1, draw.choice((b"x" * (70 << 20), b'{"a": ' * 100_000, b"\n".join([b"x"] * 30_000), b"\0" * 10**6))
        )
    elif kind < 0.6:
        event = json.loads(draw.choice(lines))
        event[draw.choice(("params", "tags", "values"))] = {
            f"n{i}": "1" for i in range(draw.choice((300, 3000, 30_000)))
        }
        lines.append(json.dumps(event).encode())
    else:
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(lines))
            lines[place] = _renamed(lines[place], draw)
    return b"\n".join(lines) + b"\n" * draw.choice((0, 1))


def _renamed(line: bytes, draw: random.Random) -> bytes:
    """An event with a hostile name or value, of the type that its place has or of another."""
    event = json.loads(line)
    place = draw.choice(list(event))
    inner = event[place] if isinstance(event[place], dict) and draw.random() < 0.8 else event
    name = draw.choice(list(inner))
    if inner is not event and draw.random() < 0.5:
        inner[draw.choice(NAMES)] = inner.pop(name)
    else:
        inner[name] = draw.choice(VALUES)
    return json.dumps(event).encode()


def _read(whole: bool) -> None:
    """Calls what reads the journal; ``whole``: also a sync to a store."""
    try:
        records = read_journal(PATH, aside := [])
    except UserError as error:
        if whole:
            _sync()
        raise error
    Results(Path("results"))._state("tiny/a.journal.jsonl")
    views.experiment_tags("1", records)
    for record in records:
        _look(record)
    if whole:
        _sync()
    if aside:
        assert all(len(line) < 300 and line.isprintable() for line in aside), aside
        raise UserError(aside[0])


def _look(record: RunRecord) -> None:
    assert len(entries.run_name(record)) <= 250
    for name in (*entries.params(record), *entries.tags(record), *(name for name, _ in entries.points(record))):
        assert 0 < len(name) <= 250, name
    assert all(isinstance(value, float) for value, _ in entries.points(record).values())
    for artifact in record.artifacts.values():
        _unchanged(artifact.path, artifact.sha256)


def _sync() -> None:
    shutil.copy("empty.db", STORE)
    try:
        sync.sync([PATH], f"sqlite:///{STORE}", limit=15)
    except sync.Undelivered as error:
        assert len(str(error)) < 1000, error


def inputs(count: int, seed: int) -> door.Inputs:
    folder, before = tempfile.TemporaryDirectory(), Path.cwd()
    content = written(Path(folder.name))
    sync.sync([], "sqlite:///empty.db")
    _read(whole=True)  # the memory for imports is not that of an input

    def each() -> door.Inputs:
        for number in range(seed, seed + count):
            draw = random.Random(number)
            there: bytes | Callable[[Path], object] = damaged(content, draw)
            artifact: bytes | Callable[[Path], object] = b"a picture"
            if draw.random() < 0.05:
                there = draw.choice(mutations.KINDS)
            elif draw.random() < 0.1:
                artifact = draw.choice(mutations.KINDS)
            mutations.put(PATH, there)
            mutations.put(Path("picture.png"), artifact)
            yield f"seed {number}", functools.partial(_read, number % 20 == 0)
        os.chdir(before)
        folder.cleanup()

    return each()


if __name__ == "__main__":
    sys.exit(door.command(inputs, __doc__))
