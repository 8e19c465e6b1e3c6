"""The fork server: what it forks behaves as a new process does, and what it cannot fork starts as one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edm.cluster import forkserver
from edm.cluster.children import FORKED
from edm.cluster.forkserver import ADDRESS, THREADS, fork

PROBE = """
import json, os, signal, sys
import slow
umask = os.umask(0)
mask = [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
print(json.dumps(dict(argv=sys.argv[1:], name=__name__, folder=os.getcwd(), umask=umask, mask=mask, had=slow.NUMBER,
                      parent=os.getppid(), threads=os.environ["OMP_NUM_THREADS"], more=os.environ.get("MORE"))))
print("an error", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
SLEEPER = """
import os, signal, sys, time
if sys.argv[1:]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
print(os.getppid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server that has imported the module `slow`; returns the environment of what it forks."""
    (tmp_path / "slow.py").write_text("import os\nNUMBER = os.getpid()\n")
    os.utime(tmp_path / "slow.py", (1, 1))
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.setenv(ADDRESS, "")  # restored afterwards
    monkeypatch.setattr(forkserver, "_servers", [])
    forkserver.start(["slow"])
    yield {**os.environ, THREADS: "1"}
    (server,) = forkserver._servers
    server.stdin.close()
    assert server.wait(timeout=60) == 0
    assert not Path(os.environ[ADDRESS]).parent.exists()


def python(module, *arguments):
    return [sys.executable, "-m", module, *arguments]


def printed(capfd):
    """What the command that was forked last printed first."""
    for _ in range(200):
        if out := capfd.readouterr().out:
            return out
        time.sleep(0.1)


def test_a_forked_command_is_as_a_new_process(served, tmp_path, monkeypatch, capfd):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir("here")
    before = os.umask(0o027)
    try:
        statuses = [fork(python("probe", number, "two words"), {**served, "MORE": number}).wait() for number in "03"]
        capture = capfd.readouterr()
        new = subprocess.run(python("probe", "3", "two words"), env={**served, "MORE": "3"})
    finally:
        os.umask(before)
    assert statuses == [0, 3]
    forked, started = map(json.loads, (capture.out.splitlines()[1], capfd.readouterr().out))
    assert capture.err == "an error\n" * 2
    apart = {"had", "parent"}
    assert {key: forked[key] for key in {*forked} - apart} == {key: started[key] for key in {*started} - apart}
    assert forked["more"] == "3" and forked["folder"] == str(tmp_path / "here") and forked["umask"] == 0o027
    assert forked["had"] == forkserver._servers[0].pid and new.returncode == 3


def test_an_exception_is_told_and_a_status(served, tmp_path, capfd):
    (tmp_path / "broken.py").write_text("raise ValueError('not today')\n")
    assert fork(python("broken"), served).wait() == 1
    assert capfd.readouterr().err.endswith("ValueError: not today\n")


@pytest.mark.parametrize("arguments, status", [([], -signal.SIGTERM), (["75"], 75)])
def test_signals_reach_it(served, capfd, arguments, status):
    command = fork(python("sleeper", *arguments), served)
    printed(capfd)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == status
    command.send_signal(signal.SIGTERM)  # it has ended: nothing happens


def test_a_signal_of_the_terminal_ends_no_server(served, capfd):
    for number in forkserver.SIGNALS:
        forkserver._servers[0].send_signal(number)
    assert fork(python("probe", "0"), served).wait() == 0
    assert json.loads(capfd.readouterr().out)["mask"] == []


def test_what_it_cannot_fork_starts_as_a_new_process(served, tmp_path):
    command = python("probe", "0")
    assert fork(command, {**served, THREADS: "2"}) is None
    assert fork(["/usr/bin/other-python", *command[1:]], served) is None
    assert fork(["sh", "-c", "true"], served) is None
    assert fork(command, {key: value for key, value in served.items() if key != ADDRESS}) is None
    assert fork(command, {**served, ADDRESS: str(tmp_path / "no socket")}) is None


@pytest.mark.parametrize("change", [lambda file: file.write_text("NUMBER = 0\n"), Path.unlink, os.utime])
def test_it_forks_no_code_that_has_changed_on_disk(served, tmp_path, change, capfd):
    assert fork(python("probe", "0"), served).wait() == 0
    change(tmp_path / "slow.py")
    assert fork(python("probe", "0"), served) is None


def test_it_forks_no_other_copy_of_the_code(served, tmp_path, capfd):
    """The copy in the working directory comes first, then those of PYTHONPATH, as for a new process."""
    for folder in ("other", "third"):
        (tmp_path / folder / "edm").mkdir(parents=True)
        (tmp_path / folder / "edm" / "__init__.py").write_text("")
    command, own = python("edm", "--version"), served["PYTHONPATH"]
    assert fork(command, served, str(tmp_path)).wait(60) == 0
    assert fork(command, served, str(tmp_path / "other")) is None
    assert fork(python("json.tool", "--help"), served, str(tmp_path / "other")) is None  # it may import it
    elsewhere = {**served, "PYTHONPATH": f"{tmp_path / 'third'}{os.pathsep}{own}"}
    assert fork(command, elsewhere) is None
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "edm").symlink_to(Path(__file__).parents[2] / "edm")
    assert fork(command, elsewhere, str(tmp_path / "same")).wait(60) == 0


def test_streams_of_its_own_and_a_wait_that_ends(served, tmp_path):
    with open(os.devnull) as nothing, open(tmp_path / "out", "w+") as out:
        streams = (nothing.fileno(), out.fileno(), out.fileno())
        assert fork(python("probe", "3"), served, streams=streams).wait() == 3
        assert "an error\n" in (tmp_path / "out").read_text()
        command = fork(python("sleeper"), served, streams=streams)
        with pytest.raises(TimeoutError):
            command.wait(0.2)
        command.send_signal(signal.SIGKILL)


def test_a_process_inside_uses_the_server_of_the_one_around(served, monkeypatch):
    address = os.environ[ADDRESS]
    forkserver.start(["slow"])
    assert len(forkserver._servers) == 1 and os.environ[ADDRESS] == address


def test_a_command_whose_status_cannot_be_known_is_killed(served, capfd):
    command = fork(python("sleeper"), served)
    os.kill(int(printed(capfd)), signal.SIGKILL)  # its parent, which waits for it
    assert command.wait() == -signal.SIGKILL
    for _ in range(200):
        if not Path(f"/proc/{command.pid}").exists() or "Z" in Path(f"/proc/{command.pid}/stat").read_text().split():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it still runs")


def test_a_command_outlives_the_process_that_asked_for_it(served, tmp_path):
    """As a training run outlives a launcher that is killed."""
    code = "import os; from edm.cluster.forkserver import fork; fork(%r, dict(os.environ)); os.kill(os.getpid(), 9)"
    (tmp_path / "late.py").write_text("import time; time.sleep(1); open('done', 'w')\n")
    done = subprocess.run([sys.executable, "-c", code % python("late")], env=served)
    assert done.returncode == -signal.SIGKILL
    for _ in range(200):
        if (tmp_path / "done").exists():
            return
        time.sleep(0.1)
    pytest.fail("it did not go on")


def test_the_server_ends_with_the_process_that_started_it_even_by_sigkill(tmp_path):
    code = "import os; from edm.cluster import forkserver as f; f.start(['json']); print(os.environ[f.ADDRESS]);" \
           "print(f._servers[0].pid, flush=True); f.fork([f.sys.executable, '-m', 'json.tool', '--help'], " \
           "{**os.environ, f.THREADS: '1'}).wait(); os.kill(os.getpid(), 9)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    address, server, *_ = done.stdout.split()
    for _ in range(200):
        if not Path(address).parent.exists() and not Path(f"/proc/{server}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the server still runs")


@pytest.mark.parametrize("folder", ["x" * 120, "missing"])
def test_without_a_place_for_a_socket_there_is_no_server(tmp_path, monkeypatch, folder):
    (tmp_path / ("x" * 120)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    monkeypatch.setattr(forkserver, "_servers", [])
    monkeypatch.delenv(ADDRESS, raising=False)
    forkserver.start(["json"])
    assert forkserver._servers == [] and ADDRESS not in os.environ and not [*tmp_path.glob("*/*")]
    assert fork(python("json.tool"), {**os.environ, THREADS: "1"}) is None


def test_a_launch_ends_alike_forked_or_new(served):
    """Each once: a launch that was forked must not ask for its fork again."""
    launch = python("edm", "launch", "--gpus", "0", "--", "trayn")
    ended = [subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=60)
             for environment in (served, {**served, FORKED: ""}, {**served, ADDRESS: ""})]  # fmt: skip
    statuses, errors = {one.returncode for one in ended}, {one.stderr for one in ended}
    assert statuses == {2} and len(errors) == 1 and "'trayn' is unknown; did you mean 'train'?" in errors.pop()


@pytest.mark.slow
def test_a_launched_training_run_is_the_same_to_the_byte(tiny, digits_archive, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(tiny().to_dict()))
    monkeypatch.setenv(ADDRESS, "")
    for name in ("new", "forked"):
        if name == "forked":
            monkeypatch.setattr(forkserver, "_servers", [])
            forkserver.start(["edm.cli", "edm.training.loop"])
        command = python("edm", "launch", "--gpus", "0", "--", "train", "--config", tmp_path / "config.json", "--data",
                         digits_archive, "--out", tmp_path / name)  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    new, forked = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("new", "forked"))
    assert new == forked
    (tmp_path / "config.json").write_text(json.dumps(tiny(duration=1.0).to_dict()))
    stopped = subprocess.Popen([*command[:-1], tmp_path / "stopped"], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "stopped" / "log.jsonl").exists():
            break
        time.sleep(0.1)
    server = forkserver._servers[0].pid
    keepers = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    assert len(keepers) == 2, "of the launch and of its command"
    stopped.send_signal(signal.SIGTERM)  # to the process that asked for the launch
    assert stopped.wait(timeout=60) == 75 and "the same command continues" in stopped.stderr.read()
    forkserver._servers[0].stdin.close()
