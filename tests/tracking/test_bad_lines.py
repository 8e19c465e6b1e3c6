"""A line that no journal should hold is set aside and named; every other line arrives."""

import json
import os
import random
from pathlib import Path

import pytest

from edm.cli import main as edm
from edm.errors import UserError
from edm.tracking import Journal, read_journal

RUN = '{"event": "run", "key": "x", "time": 1700000000000'
BAD = [
    '{"event": "metrics", "key": "good", "step": 1, "values": {"fid": 1}, "time": Infinity}',
    '{"event": "metrics", "key": "good", "step": 1, "values": {"fid": 1}, "time": 1e400}',
    '{"event": "metrics", "key": "good", "step": 1, "values": {"fid": NaN}, "time": 1700000000000}',
    '{"event": "metrics", "key": "good", "step": 99999999999999999999, "values": {"fid": 1}, "time": 1700000000000}',
    '{"event": "metrics", "key": "good", "step": true, "values": {"fid": 1}, "time": 1700000000000}',
    '{"event": "metrics", "key": "good", "step": 1, "values": {"fid": [1]}, "time": 1700000000000}',
    '{"event": "metrics", "key": "good", "step": 1, "values": [1], "time": 1700000000000}',
    '{"event": "metrics", "key": "unknown", "step": 1, "values": {"fid": 1}, "time": 1700000000000}',
    '{"event": "tag", "key": "good", "name": null, "value": "v", "time": 1700000000000}',
    '{"event": "tag", "key": "good", "name": "n", "value": {"a": 1}, "time": 1700000000000}',
    '{"event": "finish", "key": "good", "status": "WELL", "time": 1700000000000}',
    '{"event": "finish", "key": "good", "status": ["FINISHED"], "time": 1700000000000}',
    '{"event": "artifact", "key": "good", "path": 3, "folder": "", "sha256": "0", "time": 1700000000000}',
    '{"event": ["run"], "key": "x", "time": 1700000000000}',
    '{"event": "walk", "key": "x", "time": 1700000000000}',
    f'{RUN}, "name": null}}',
    f'{RUN}, "experiment": ""}}',
    f'{RUN}, "experiment": 7}}',
    f'{RUN}, "name": "\\ud800"}}',
    f'{RUN}, "tags": {{"a": 1}}}}',
    f'{RUN}, "params": [1]}}',
    f'{RUN}, "params": {{"a": {"[" * 500}{"]" * 500}}}}}',
    f'{RUN}, "params": {{"a": {"[" * 100_000}{"]" * 100_000}}}}}',
    '{"event": "run", "key": ["x"], "time": 1700000000000}',
    '{"event": "run", "key": null, "time": 1700000000000}',
    '{"event": "run", "key": "x", "time": null}',
    '{"event": "run", "key": "x", "time": -1}',
    '{"event": "run", "key": "x", "ti',
    "[1, 2]",
    "\x00\x00\x00",
    '"text"',
]  # fmt: skip


def written(path, *between):
    """A journal of a run with lines of others in its middle."""
    with Journal(path).run("good", name="good", params={"lr": 1}) as run:
        run.metrics({"fid": 3.0}, step=10)
        with open(path, "ab") as file:
            file.writelines((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in between)
        run.metrics({"fid": 2.0}, step=20)
    return path


@pytest.mark.slow
def test_every_bad_line_is_named_and_the_rest_arrives(store, capsys):
    Path("runs").mkdir()
    written("runs/a.journal.jsonl", *BAD)
    assert edm(["track", "sync", "--uri", store.uri, "--output", "summary.json"]) == 0
    assert store.history("good", "fid") == [(10, 3.0), (20, 2.0)] and list(store.runs()) == ["good"]
    assert store.runs()["good"].info.status == "FINISHED"
    told = json.loads(Path("summary.json").read_text())
    places = [line.split(": ")[0] for line in told["set_aside"]]
    assert places == [f"runs/a.journal.jsonl:{number}" for number in range(3, 3 + len(BAD))]
    assert told["runs_pending"] == 0 and "reason" not in told
    error = capsys.readouterr().err
    assert "warning: runs/a.journal.jsonl:3: Infinity is no JSON number; this line was set aside" in error
    assert f"warning: {len(BAD) - 10} more lines of journals were set aside" in error and "Traceback" not in error


def mutated(line, draw):
    """A line with bytes changed, taken out or doubled, or with one of its values replaced."""
    if draw.random() < 0.5:
        event = json.loads(line)
        values = [None, True, [], {}, "", "\ud800", -1, 1e308, 10**30, "x" * 10_000, [[[[]]]], {"a": {"b": None}}]
        place = draw.choice([*event])
        inner = event[place] if isinstance(event[place], dict) and event[place] and draw.random() < 0.5 else event
        inner[draw.choice([*inner])] = draw.choice(values)
        return json.dumps(event).encode()
    text = bytearray(line)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text))
        text[start : start + draw.randint(0, 3)] = draw.choice([b"", draw.randbytes(2), b"}", b'"', text[start:][:9]])
    return bytes(text).replace(b"\n", b" ")


@pytest.mark.slow
def test_five_hundred_mutated_lines_stop_nothing(store, capsys):
    draw = random.Random(0)
    Path("runs").mkdir()
    with Journal("lines").run("mine", name="n", experiment="e", params={"a": [1, {"b": 2}]}, tags={"t": 1}) as run:
        run.metrics({"fid": 1.5}, step=3)
        run.tag("host", "h")
        Path("made.txt").write_text("made")
        run.artifact("made.txt", "folder")
    lines = Path("lines").read_bytes().splitlines()
    written("runs/a.journal.jsonl", lines[0], *(mutated(draw.choice(lines), draw) for _ in range(500)))
    assert edm(["track", "sync", "--uri", store.uri, "--output", "summary.json", "--or-later"]) == 0
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert store.history("good", "fid") == [(10, 3.0), (20, 2.0)]
    told = json.loads(Path("summary.json").read_text())
    assert len(told["set_aside"]) > 100 and told["runs_created"] == len(store.runs())
    assert told["runs_pending"] == told["runs"] - len(store.runs())


@pytest.mark.parametrize("made", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.slow
def test_what_is_no_regular_file_is_never_read(store, made):
    """As an artifact it counts as missing, as a journal it is named; all else arrives."""
    Path("picture.png").write_bytes(b"picture")
    with Journal("a").run("a") as run:
        run.artifact("picture.png")
        run.metrics({"fid": 1}, step=1)
    os.remove("picture.png")
    made("picture.png")
    report = store.sync("a")
    assert (report.artifacts_missing, store.history("a", "fid")) == (1, [(1, 1.0)])
    made("b")
    with pytest.raises(UserError, match=r"b: is a (pipe|folder|device); expected a journal"):
        read_journal("b")


def test_lines_journals_and_names_beyond_any_lab_are_set_aside(tmp_path):
    path, aside = tmp_path / "a", []
    long = json.dumps({"event": "tag", "key": "good", "name": "n", "value": "x" * 2_000_000, "time": 1})
    key = json.dumps({"event": "tag", "key": "k" * 400, "name": "n", "value": "v", "time": 1})
    named = json.dumps({"event": "tag", "key": "good", "name": "n" * 501, "value": "v", "time": 1})
    many = f'{RUN}, "params": {json.dumps({f"p{i}": 1 for i in range(2001)})}}}'
    (record,) = read_journal(written(path, long, key, named, many), aside)
    assert record.metrics["fid"].keys() == {10, 20} and "n" not in record.tags
    faults = [line.split(": ", 1)[1] for line in aside]
    assert faults == ["longer than any line of a journal", f"run '{'k' * 79}…' has not begun before this line",
                      "an event 'tag' with a missing or wrong 'name'",
                      "an event 'run' with a missing or wrong 'params'"]  # fmt: skip
    written(path, *["x"] * 10_001)
    with pytest.raises(UserError, match=r"a: has over 10,000 damaged lines; move it away"):
        read_journal(path)
    os.truncate(path, 65 << 20)
    with pytest.raises(UserError, match=r"a: has more than 67,108,864 bytes; expected a journal"):
        read_journal(path)


@pytest.mark.slow
def test_an_artifact_too_large_for_a_picture_counts_as_missing(store):
    Path("picture.png").write_bytes(b"")
    with Journal("a").run("a") as run:
        run.artifact("picture.png")
    os.truncate("picture.png", (1 << 30) + 1)
    assert store.sync("a").artifacts_missing == 1
