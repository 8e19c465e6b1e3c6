"""An interrupted job of several parts resumes with the next part."""

import pytest

from edm.cluster.processes import World
from edm.evaluation.finished import Finished


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
