"""The journal keeps what a job said, whatever happens to the job or the disk, and costs the job nothing."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edm.errors import UserError
from edm.tracking import Journal, read_journal


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)


def only_record(path):
    (record,) = read_journal(path)
    return record


def test_recording_imports_no_heavy_library(tmp_path):
    code = """if True:
        import sys
        from edm.tracking import Journal, environment_tags
        with Journal(sys.argv[1]).run("a", tags=environment_tags()) as run:
            run.metrics({"loss": 1}, step=1)
        print(sorted({"mlflow", "torch", "numpy", "sqlalchemy", "yaml"} & set(sys.modules)))
        """
    done = run_python(code, str(tmp_path / "a.jsonl"))
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert only_record(tmp_path / "a.jsonl").status == "FINISHED"


def test_a_journal_holds_several_runs_with_all_they_said(tmp_path):
    path = tmp_path / "deep" / "folder" / "evaluate.jsonl"
    figure = tmp_path / "grid.png"
    figure.write_bytes(b"picture")
    writer = Journal(path)
    params = {"sampler": {"steps": 18, "S_max": math.inf}, "seeds": [0, 1], "path": Path("x"), "ema": None}
    with writer.run("eval/18", name="18 steps", experiment="table2", params=params, tags={"n": 1}, parent="t") as run:
        run.metrics({"fid": 1.97, "nan": math.nan}, step=5)
        run.artifact(figure, folder="grids")
        run.tag("n", 2)
    with writer.run("eval/36") as run:
        run.metrics({"fid": 1.9}, step=5)
    first, second = read_journal(path)
    assert (first.key, first.name, first.experiment, first.parent) == ("eval/18", "18 steps", "table2", "t")
    assert first.params == {
        "sampler.steps": 18,
        "sampler.S_max": "inf",
        "seeds": [0, 1],
        "path": "x",
        "ema": None,
    }
    assert first.tags == {"n": "2", "params_sha256": first.tags["params_sha256"]}
    assert first.metrics["fid"][5].value == 1.97
    assert math.isnan(first.metrics["nan"][5].value)
    assert first.artifacts["grids/grid.png"].path == os.path.relpath(figure)
    assert first.start <= first.metrics["fid"][5].time <= first.end
    assert (second.key, second.name, second.metrics["fid"][5].value) == ("eval/36", "eval/36", 1.9)


def test_every_line_is_strict_json(tmp_path):
    with Journal(tmp_path / "a").run("a", params={"x": math.nan, "y": [math.inf]}) as run:
        run.metrics({"up": math.inf, "down": -math.inf, "nan": math.nan}, step=1)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    events = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "a").read_text().splitlines()]
    assert events[1]["values"] == {"up": "inf", "down": "-inf", "nan": "nan"}
    assert only_record(tmp_path / "a").metrics["down"][1].value == -math.inf


def test_a_torn_last_line_hides_nothing_before_or_after_it(tmp_path):
    path = tmp_path / "a"
    run = Journal(path).run("a", params={"lr": 1})
    for step in range(3):
        run.metrics({"loss": step}, step=step)
    whole = path.read_bytes()
    last_line = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last_line, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert list(only_record(path).metrics["loss"]) == [0, 1]
        with Journal(path).run("a", tags={"host": "two"}) as resumed:
            resumed.metrics({"loss": 9}, step=9)
        assert only_record(path).tags["host"] == "two"
        assert list(only_record(path).metrics["loss"]) == [0, 1, 9]
        assert only_record(path).status == "FINISHED"


def test_what_a_killed_job_said_is_there(tmp_path):
    code = """if True:
        import os, signal, sys
        from edm.tracking import Journal
        run = Journal(sys.argv[1]).run("a")
        for step in range(100):
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    assert run_python(code, str(tmp_path / "a")).returncode == -signal.SIGKILL
    record = only_record(tmp_path / "a")
    assert len(record.metrics["loss"]) == 100
    assert (record.status, record.end) == ("RUNNING", None)


def test_a_resumed_job_continues_its_run_and_its_last_values_count(tmp_path):
    path = tmp_path / "a"
    with Journal(path).run("a", name="n", experiment="e", params={"lr": 1}, parent="p", tags={"host": "one"}) as run:
        for step in (0, 10, 20):
            run.metrics({"loss": 100 + step}, step=step)
    finished = only_record(path)
    resumed = Journal(path).run("a", params={"lr": 1}, tags={"host": "two"})
    resumed.metrics({"loss": 7}, step=20)
    record = only_record(path)
    assert {step: point.value for step, point in record.metrics["loss"].items()} == {0: 100, 10: 110, 20: 7}
    assert (record.start, record.name, record.experiment, record.parent) == (finished.start, "n", "e", "p")
    assert (finished.status, record.status, record.end) == ("FINISHED", "RUNNING", None)
    assert record.tags["host"] == "two"


def test_equal_params_have_one_hash_however_they_were_written(tmp_path):
    writer = Journal(tmp_path / "a")
    for key, params in {
        "a": {"lr": 0.1, "net": {"depth": 2, "width": 3}},
        "b": {"net": {"width": 3, "depth": 2}, "lr": 0.1},
        "c": {"lr": 0.1, "net": {"depth": 2, "width": 4}},
    }.items():
        writer.run(key, params=params)
    writer.run("d")
    a, b, c, d = (record.tags.get("params_sha256") for record in read_journal(tmp_path / "a"))
    assert len(a) == 64 and a == b != c and d is None


def test_other_params_begin_the_run_afresh(tmp_path):
    path = tmp_path / "a"
    with Journal(path).run("a", name="n", params={"lr": 1}, parent="p") as run:
        run.metrics({"loss": 1, "old": 1}, step=10)
    Journal(path).run("a", params={"lr": 2}).metrics({"loss": 2}, step=5)
    record = only_record(path)
    assert record.params == {"lr": 2}
    assert {name: list(series) for name, series in record.metrics.items()} == {"loss": [5]}
    assert (record.name, record.parent, record.status) == ("n", "p", "RUNNING")


def test_another_code_begins_the_run_afresh_and_the_same_continues_it(tmp_path):
    """Else what a rerun has not reached yet would be shown with what the old code measured."""
    for made_from, value, steps in (("old", 1.0, [1, 2]), ("old", 2.0, [2, 3]), ("new", 3.0, [1])):
        run = Journal(tmp_path / "j").run("a", params={"lr": 1}, made_from=made_from)
        for step in steps:
            run.metrics({"loss": value}, step)
        if made_from == "old" and value == 2.0:
            assert {s: p.value for s, p in only_record(tmp_path / "j").metrics["loss"].items()} == {1: 1, 2: 2, 3: 2}
    record = only_record(tmp_path / "j")
    assert {s: p.value for s, p in record.metrics["loss"].items()} == {1: 3.0} and record.params == {"lr": 1}


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_exception_ends_the_run_and_passes_on(tmp_path, error, status):
    with pytest.raises(error), Journal(tmp_path / "a").run("a"):
        raise error
    assert only_record(tmp_path / "a").status == status


def test_a_status_that_the_job_gave_stays(tmp_path):
    with Journal(tmp_path / "a").run("a") as run:
        run.finish("KILLED")
    assert only_record(tmp_path / "a").status == "KILLED"


def test_an_unwritable_journal_warns_once_and_loses_nothing_that_can_be_written_later(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.write_text("a file where the folder should be")
    run = Journal(folder / "a").run("a", params={"lr": 1})
    for step in range(5):
        run.metrics({"loss": step}, step=step)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {folder / 'a'}: ")
    assert warning.count("\n") == 1
    folder.unlink()
    run.finish()
    record = only_record(folder / "a")
    assert (record.status, record.params, len(record.metrics["loss"])) == ("FINISHED", {"lr": 1}, 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_never_stops_the_job(capsys):
    with Journal("/dev/full").run("a") as run:
        run.metrics({"loss": 1}, step=1)
    assert capsys.readouterr().err.count("warning: ") == 1


def test_wrong_values_and_missing_files_never_stop_the_job(tmp_path, capsys):
    with Journal(tmp_path / "a").run("a") as run:
        run.metrics({"loss": "much"}, step=1)
        run.artifact(tmp_path / "missing.png")
        run.metrics({"loss": 2}, step=2)
    assert list(only_record(tmp_path / "a").metrics["loss"]) == [2]
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_missing_journal_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file; expected a journal"):
        read_journal(tmp_path / "none.jsonl")
