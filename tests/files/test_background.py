"""Files written beside the training: in order, one at a time, and no failure unheard."""

import threading
import time

import pytest

from edm.files.background import Background


def test_work_is_done_beside_the_caller_and_in_order():
    done, go = [], threading.Event()
    with Background() as background:
        background.do(lambda: (go.wait(10), done.append("first")))
        assert done == []  # the caller goes on
        threading.Timer(0.05, go.set).start()
        background.do(lambda: (time.sleep(0.05), done.append("second")))  # waits for the first
        assert done == ["first"]
        background.wait()
        assert done == ["first", "second"]


def test_leaving_waits_also_where_the_caller_failed():
    done = []
    with pytest.raises(KeyError), Background() as background:
        background.do(lambda: (time.sleep(0.1), done.append("written")))
        raise KeyError
    assert done == ["written"]


def test_what_failed_is_raised_once_where_it_is_waited_for():
    def fail():
        raise OSError("disk full")

    with Background() as background:
        background.do(fail)
        with pytest.raises(OSError, match="disk full"):
            background.do(lambda: None)
        background.wait()
