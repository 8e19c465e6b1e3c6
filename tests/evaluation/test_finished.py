"""An interrupted job of several parts resumes with the next part."""

import json

import pytest

from edm.cluster.processes import World
from edm.evaluation.finished import Finished
from edm.evaluation.records import MEASURED


def job(path, of, parts, fail_at=None):
    """A job that computes its parts in turn; returns their results and the parts that it computed."""
    finished, worked = Finished(path, of, World()), []

    def work(part):
        if part == fail_at:
            raise SystemExit(75)
        worked.append(part)
        return {"distance": 1 / (1 + part), "nfe": part}

    return [finished.take(f"part {part}", lambda part=part: work(part)) for part in parts], worked, finished


def test_what_is_done_is_not_done_again_and_has_the_same_numbers(tmp_path):
    path = tmp_path / "finished.json"
    with pytest.raises(SystemExit):
        job(path, {"seeds": 5}, range(4), fail_at=2)
    results, worked, finished = job(path, {"seeds": 5}, range(4))
    assert worked == [2, 3]
    assert results == job(tmp_path / "other.json", {"seeds": 5}, range(4))[0]
    finished.remove()
    assert not path.exists()


@pytest.mark.parametrize("content", [None, "", "[]", '{"of": 1}'])
def test_what_was_done_of_something_else_does_not_count(tmp_path, content):
    path = tmp_path / "finished.json"
    with pytest.raises(SystemExit):
        job(path, {"seeds": 5}, range(4), fail_at=3)
    if content is not None:
        path.write_text(content)
    assert job(path, {"seeds": 6 if content is None else 5}, range(4))[1] == [0, 1, 2, 3]


@pytest.mark.parametrize("value", ["2.5", -1, None, [2.5], 1e300])
def test_a_damaged_result_is_measured_again_and_named(tmp_path, capsys, value):
    path, work = tmp_path / "finished.json", lambda: {"images": 20, "nfe": 5, "distance": 3.5}
    Finished(path, 1, World(), each=MEASURED).take("one", work)
    found = json.loads(path.read_text())
    found["results"]["one"]["distance"] = value
    path.write_text(json.dumps(found))
    assert Finished(path, 1, World(), each=MEASURED).take("one", work)["distance"] == 3.5
    assert "finished.json: results.one.distance is" in capsys.readouterr().err
