"""Processes that were told of others, which never come: an error or a line, and an end when one is asked for."""

import os
import signal
import subprocess
import sys
import time

import pytest

import edm
from edm.cluster import processes

ADVICE = "start several processes with `edm launch --gpus N -- COMMAND`, or unset WORLD_SIZE for one"
WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}


@pytest.fixture
def told(monkeypatch):
    """Sets the variables of torchrun, and no others of them."""

    def tell(**variables):
        for name in (*WHOLE, "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


def join():
    with processes.world("cpu") as place:
        return place


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"WORLD_SIZE": "8"}, "WORLD_SIZE is 8, but RANK, MASTER_ADDR, MASTER_PORT not set"),
     ({**WHOLE, "RANK": ""}, "WORLD_SIZE is 2, but RANK not set"),
     ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number from 1"),
     ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a whole number from 1"),
     ({**WHOLE, "RANK": "-1"}, "RANK is '-1'; expected a whole number from 0"),
     ({**WHOLE, "RANK": "2"}, "RANK is 2 and WORLD_SIZE 2; ranks are counted from 0"),
     ({**WHOLE, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'; expected a whole number from 0"),
     ({**WHOLE, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000; a port is between 1 and 65535")],
)  # fmt: skip
def test_variables_that_make_no_sense_are_refused_in_one_line(told, variables, message):
    told(**variables)
    with pytest.raises(edm.UserError) as refused:
        join()
    assert str(refused.value) == f"{message}; {ADVICE}"


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_one_process_stands_alone(told, variables):
    told(**variables)
    assert (join().rank, join().size) == (0, 1)


@pytest.mark.slow
def test_waiting_for_others_is_said_and_has_an_end(told, monkeypatch, capsys):
    monkeypatch.setattr(processes, "JOINING", 2.0)
    monkeypatch.setattr(processes, "QUIET", 0.5)
    told(**WHOLE)
    with pytest.raises(edm.UserError, match=r"^the 2 processes did not meet at 127.0.0.1:29517 \(.*\); start several"):
        join()
    assert "waiting for all of 2 processes at 127.0.0.1:29517 (WORLD_SIZE is set)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_ends_the_waiting(number):
    """In a process of its own, as a user's: with torch's call in the main thread, it would hear nothing."""
    code = ("import sys; from edm.cluster import processes; from edm.commands.common import processes as joined;"
            " processes.QUIET = 0.2\n"
            "with joined('cpu'): pass")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **WHOLE, "MASTER_PORT": "29518"},
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    while "waiting for all of 2 processes" not in process.stderr.readline():
        assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(number)
    assert process.wait(60) == edm.errors.PREEMPTED
    assert time.monotonic() - asked < 20
