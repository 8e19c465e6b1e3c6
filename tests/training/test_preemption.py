"""A training that is stopped, killed or robbed of a file goes on to the same weights, log and snapshots."""

import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import forking
import pytest
import torch
from safetensors.torch import load_file

import edm
import edm.training.step
from edm.cluster import preemption, slurm
from edm.cluster.preemption import Notice, Pauses
from edm.cluster.processes import World
from edm.errors import PREEMPTED, Preempted
from edm.files.tensors import load_tensors, read_header, save_tensors
from edm.models import building, checkpoint
from edm.tracking import Journal, read_journal
from edm.training import loop as training
from edm.training import progress
from edm.training.log import TrainingLog
from edm.training.loop import train
from edm.training.state import STATE_FORMAT

ROOT = Path(__file__).parents[2]
REPEATABLE = ("images", "loss", "learning_rate", "nonfinite_gradients")  # of a row of the log: all but times


@pytest.fixture(autouse=True)
def few_rows():
    """A row of the log every third step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TICKS", 24)
        yield


@pytest.fixture
def short(tiny):
    """72 steps of 32 images, snapshots after a third and two thirds of them."""

    def make(**changes):
        fields = {"duration": 0.002304, "snapshot_every": 0.000768, "channel_mult": (1,), "attn_resolutions": ()}
        return tiny(**{**fields, "level_samples": 2, **changes})

    return make


def rows(folder):
    return [[json.loads(row)[key] for key in REPEATABLE] for row in (folder / "log.jsonl").open()]


def snapshots(folder):
    return {path.name: path.read_bytes() for path in folder.glob("snapshots/*")}


def assert_same(first, second):
    """Everything that two training runs leave, but for times."""
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for name in ("model.safetensors", "levels.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert snapshots(first) == snapshots(second)
    assert rows(first) == rows(second)


def assert_same_but_for(first, second, *names):
    for name in names:
        (first / name).unlink()
    assert_same(first, second)


def images_of(path):
    return read_header(path, STATE_FORMAT)["images"]


def states(folder):
    """The images of the states in a folder, by their slot."""
    return {path.name[6]: images_of(path) for path in sorted(folder.glob("state-?.safetensors"))}


def at(monkeypatch, images, action):
    """Calls ``action`` once, in the step that begins after ``images`` images."""
    rate, done = edm.training.step.learning_rate_at, []

    def look(config, now):
        if now == images and not done:
            done.append(now)
            action()
        return rate(config, now)

    monkeypatch.setattr(edm.training.step, "learning_rate_at", look)


class Killed(Exception):
    pass


def die():
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits):
    """Undisturbed training runs, each made once."""
    made = {}

    def make(config):
        if config not in made:
            made[config] = tmp_path_factory.mktemp("undisturbed") / "run"
            train(config, digits, made[config])
        return made[config]

    return make


# Stops


OTHERS = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS])
def test_a_signal_ends_the_run_after_its_step_and_it_continues_to_the_same(
    short, digits, tmp_path, monkeypatch, undisturbed, number
):
    """Asked in step 31, between two rows of the log: the state has what the row to come will sum up."""
    at(monkeypatch, 30 * 32, lambda: os.kill(os.getpid(), number))
    with Notice() as notice, pytest.raises(Preempted, match=f"{number.name}, after 992 images; the state is saved"):
        train(short(seed=5), digits, tmp_path / "run", notice=notice)
    assert states(tmp_path / "run") == {"0": 992}
    at(monkeypatch, 43 * 32, lambda: os.kill(os.getpid(), number))
    with Notice() as notice, pytest.raises(Preempted):
        train(short(seed=5), digits, tmp_path / "run", notice=notice)
    train(short(seed=5), digits, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed(short(seed=5)))


@pytest.mark.slow
def test_stops_at_many_steps_leave_no_trace(short, digits, tmp_path, monkeypatch, undisturbed):
    """Stopped after every seventh step; the sums between two rows go through ten states and stay equal to the bit."""
    monkeypatch.setattr(Pauses, "after_step", lambda self, cost: "stop" if next(self.countdown) == 0 else None)
    for _ in range(10):
        monkeypatch.setattr(Pauses, "countdown", iter(range(6, -1, -1)), raising=False)
        with pytest.raises(Preempted):
            train(short(), digits, tmp_path / "run")
    monkeypatch.undo()
    train(short(), digits, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed(short()))


def test_a_signal_before_the_first_step_ends_the_run_at_once(short, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training.levels, "error_per_level", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    with Notice() as notice, pytest.raises(Preempted, match=r"^SIGTERM; the same command continues$"):
        train(short(), digits, tmp_path / "run", notice=notice)
    assert not states(tmp_path / "run")


@pytest.mark.slow
def test_a_signal_in_the_last_step_leaves_the_state_of_all_images(short, digits, tmp_path, monkeypatch, undisturbed):
    at(monkeypatch, 71 * 32, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Notice() as notice, pytest.raises(Preempted, match="SIGTERM; everything is saved"):
        train(short(), digits, tmp_path / "run", notice=notice)
    assert states(tmp_path / "run") == {"0": 2304} and not (tmp_path / "run" / "model.safetensors").exists()
    train(short(), digits, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed(short()))


def test_a_signal_sent_twice_counts_once_but_ctrl_c_pressed_again_ends_at_once(monkeypatch):
    with Notice() as notice:
        notice.hold()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # as srun and torchrun pass them on
            os.kill(os.getpid(), number)
        assert notice.reason == "SIGTERM"
        monkeypatch.setattr(preemption, "INSISTING", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # one more, on the way out: the process ends as it was asked to


@pytest.mark.slow
def test_the_command_ends_with_its_own_status_and_its_run_goes_on(short, digits_archive, tmp_path, undisturbed):
    """SIGTERM as a scheduler sends it, to a process of `edm train`."""
    (tmp_path / "config.json").write_text(json.dumps(short(duration=0.2, snapshot_every=0.064).to_dict()))
    command = [sys.executable, "-m", "edm", "train", "--config", tmp_path / "config.json", "--data", digits_archive,
               "--out", tmp_path / "run", "--device", "cpu", "--threads", "1"]  # fmt: skip
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / "log.jsonl")
    asked = time.monotonic()
    begun.send_signal(signal.SIGTERM)
    _, errors = begun.communicate(timeout=60)
    assert (begun.returncode, PREEMPTED) == (75, 75)
    assert time.monotonic() - asked < 10
    assert re.search(r"^stopped: SIGTERM, after [\d,]+ images; the state is saved, the same command continues$", errors,
                     re.MULTILINE) and "Traceback" not in errors  # fmt: skip
    (record,) = read_journal(tmp_path / "run" / "journal.jsonl")
    assert (record.status, record.end) == ("RUNNING", None)


def wait_for(path, seconds=120):
    """Until a file has some lines."""
    end = time.monotonic() + seconds
    while not path.exists() or path.read_text().count("\n") < 2:
        assert time.monotonic() < end, f"{path} was never written"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_journal_of_a_stopped_run_has_every_row_once(short, digits, tmp_path, monkeypatch):
    config = short()
    for seed, moment in enumerate((20, 40, None)):
        run = Journal(tmp_path / "journal.jsonl").run("a", params={"lr": 1}, tags={"attempt": seed})
        if moment is not None:
            at(monkeypatch, moment * 32, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with Notice() as notice, pytest.raises(Preempted):
                train(config, digits, tmp_path / "run", run=run, notice=notice)
        else:
            train(config, digits, tmp_path / "run", run=run)
    text = (tmp_path / "journal.jsonl").read_text().splitlines()
    steps = [event["step"] for event in map(json.loads, text) if "loss" in event.get("values", {})]
    assert steps == [row[0] for row in rows(tmp_path / "run")] == list(range(96, 2305, 96))
    (record,) = read_journal(tmp_path / "journal.jsonl")
    assert record.status == "FINISHED" and list(record.artifacts) == ["levels.json"]


# Time limits


def test_the_margin_before_the_time_limit_follows_from_what_a_state_takes_to_save(monkeypatch):
    """The run stops while there are 5 s, two savings and one and a half steps left: not before, not later."""
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    for cost, step in ((0.1, 0.5), (30.0, 0.5), (0.1, 40.0)):
        pauses = Pauses(training.ALONE, Notice(600), every=math.inf)
        deadline = clock + 600
        while pauses.after_step(cost) is None:
            clock += step
        left = deadline - clock
        assert 5 + 2 * cost <= left + step / 2 and left <= 5 + 2 * cost + 1.5 * step, (cost, step, left)
        assert pauses.notice.reason == "the time limit is near"


@pytest.mark.slow
def test_a_run_stops_before_its_time_limit_and_continues(short, digits, tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(preemption, "EXIT", 0.0)
    stops = 0
    while True:
        begun = time.monotonic()
        try:
            train(short(), digits, tmp_path / "run", notice=Notice(0.5))
            break
        except Preempted as stop:
            stops += 1
            assert "the time limit is near, after" in str(stop)
            assert time.monotonic() - begun < 10
    assert stops > 1
    assert_same(tmp_path / "run", undisturbed(short()))


@pytest.mark.parametrize(
    "end, left",
    [("1000600", 600), ("999999", 0), ("999900", math.inf), ("", math.inf), ("soon", math.inf), (None, math.inf)],
)
def test_slurm_says_when_its_job_ends(monkeypatch, end, left):
    """Ends long past are those of another job whose environment was handed on."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if end is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    assert slurm.time_left() == left


def test_a_jump_of_the_clock_does_not_move_the_time_limit(monkeypatch):
    notice = Notice(600)
    for now in (0.0, 2e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert not notice.near(590) and notice.reason is None
    assert notice.near(601)


# Several processes


def test_several_processes_ask_each_other_every_two_seconds_and_after_every_step_that_takes_longer(monkeypatch):
    """All decide the same, since all compute with the same sums; the time between two looks at most doubles."""
    clock, looks = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    class Trio(World):
        def total(self, *numbers):
            looks.append(step)
            return [3 * number for number in numbers]

    pauses = Pauses(Trio(rank=1, size=3), Notice(), every=math.inf)
    for step in range(1, 401):  # noqa: B007
        clock += 1 / 64
        assert pauses.after_step(1.0) is None
    assert looks == [1, 3, 7, 15, 31, 63, 127, 255, 383]
    looks.clear()
    for step in range(5):  # noqa: B007
        clock += 5
        pauses._interval = min(pauses._interval, 1)
        pauses.after_step(1.0)
    assert looks == [0, 1, 2, 3, 4]
    pauses.notice.reason = "SIGTERM"
    assert pauses.after_step(1.0) == "stop"


SCRIPT = """
import os, signal, sys, time
from edm.cluster import preemption
from edm.training import step
from edm.training import loop as training
from edm.errors import UserError
rate, preemption.LOOK, training.TICKS = step.learning_rate_at, 0.1, 24

def look(config, images):
    if images == {moment} and os.environ["RANK"] == "1":
        {first}
    if images == {moment} and os.environ["RANK"] == "0":
        {other}
    return rate(config, images)

step.learning_rate_at = look
from edm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def two(digits_archive, tmp_path):
    """Trains in two gloo processes; one of them does something of its own at some moment."""

    def start(config, out, first="pass", other="pass", launcher="edm.cluster.launch", moment=640):
        script, file = tmp_path / "script.py", tmp_path / "config.json"
        script.write_text(SCRIPT.format(first=first, other=other, moment=moment))
        file.write_text(json.dumps(config.to_dict()))
        command = ["python", "-m", launcher, "--standalone", "--nproc-per-node=2", script, "train", "--config", file,
                   "--data", digits_archive, "--out", out, "--device", "cpu", "--threads", "1"]  # fmt: skip
        return forking.run(command, tmp_path, timeout=120)

    return start


@pytest.mark.slow
def test_one_process_that_is_asked_stops_all_after_the_same_step(short, two, tmp_path):
    """And a signal that only the launcher got reaches all. What follows is the run of two processes, to the bit."""
    config = short(duration=0.0064)
    done = two(config, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    for who, moment in (("getpid()", 640), ("getppid()", 3200)):
        done = two(config, tmp_path / "run", first=f"os.kill(os.{who}, signal.SIGUSR1)", moment=moment)
        assert done.returncode == PREEMPTED, done.stderr
        assert len(re.findall(r"^stopped: .*, after [\d,]+ images; the state is saved", done.stderr, re.MULTILINE)) == 1
        assert "Traceback" not in done.stderr
        assert moment < max(states(tmp_path / "run").values()) < 6400
        (record,) = read_journal(tmp_path / "run" / "journal.jsonl")
        assert record.status == "RUNNING"
    assert two(config, tmp_path / "run").returncode == 0
    for folder in ("whole", "run"):
        (tmp_path / folder / "journal.jsonl").unlink()
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "launcher, other",
    [("torch.distributed.run", "pass"), ("edm.cluster.launch", "pass"), ("edm.cluster.launch", "time.sleep(600)")],
)
@pytest.mark.slow
def test_a_process_that_fails_ends_all_within_seconds_and_its_error_comes_first(short, two, tmp_path, launcher, other):
    """Also where the other waits for it without end, as on a GPU, and hears of SIGTERM only when the wait is over."""
    first = f"open({str(tmp_path / 'failed')!r}, 'w').close(); raise UserError('this one had enough')"
    done = two(short(), tmp_path / "run", first, other, launcher)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 15
    assert done.returncode == 1
    said = re.search(r"^(error: |Traceback|process \d|.*(FAILED|Connection|failed)).*", done.stderr, re.MULTILINE)
    assert said and said[0] == "error: this one had enough", done.stderr
    assert "Connection closed" not in "".join(re.findall("Root Cause.*", done.stderr, re.DOTALL))
    assert re.search(r"Root Cause.*UserError: this one had enough", done.stderr, re.DOTALL)
    if other == "pass":
        (record,) = read_journal(tmp_path / "run" / "journal.jsonl")
        assert record.status == "FAILED"


# Files


def interrupted(config, digits, folder, monkeypatch, *moments):
    """A training that saved a state at each of some images and was killed in the step after the last of them."""
    monkeypatch.setattr(Pauses, "after_step", lambda self, cost: "save" if training_images[-1] in moments else None)
    decay, training_images = edm.training.step.ema_decay_at, []

    def look(config, images):
        training_images.append(images + config.batch_size)
        if images == moments[-1]:
            raise Killed
        return decay(config, images)

    monkeypatch.setattr(edm.training.step, "ema_decay_at", look)
    with pytest.raises(Killed):
        train(config, digits, folder)
    monkeypatch.undo()


def flip(path, place):
    """One bit of a file's byte, the other way round."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def flip_in_tensors(path):
    flip(path, -1000)


def flip_in_images(path):
    """The header says more images than the state has seen: 1,280 → 5,280 or so."""
    content = path.read_bytes()
    flip(path, content.index(b'images\\": ') + len(b'images\\": '))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def zero_the_end(path):
    """As a file system leaves it that lost power: the right length, no content."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def empty(path):
    path.write_bytes(b"")


def drop_a_field(path):
    tensors, header = load_tensors(path, STATE_FORMAT)
    save_tensors(path, tensors, {name: value for name, value in header.items() if name != "before"})


DAMAGES = [flip_in_tensors, flip_in_images, cut, zero_the_end, empty, drop_a_field]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow
def test_a_damaged_newest_state_gives_way_to_the_one_before(
    short, digits, tmp_path, monkeypatch, capsys, undisturbed, damage
):
    run = tmp_path / "run"
    interrupted(short(), digits, run, monkeypatch, 320, 640, 1280)
    assert states(run) == {"0": 1280, "1": 640}
    damage(run / "state-0.safetensors")
    if damage is not flip_in_tensors:  # the rest is the same for all
        monkeypatch.setattr(edm.training.step, "ema_decay_at", lambda *args: die())
        with pytest.raises(Killed):
            train(short(), digits, run)
    else:
        train(short(), digits, run)
        assert_same_but_for(run, undisturbed(short()), "other-state-0.safetensors")
    errors = capsys.readouterr().err
    assert re.fullmatch(
        r"\S+state-0.safetensors is (not a complete training state|damaged \(its checksum differs\)): moved to "
        r"other-state-0.safetensors; continuing from 640 images\n",
        errors,
    )


def test_a_state_whose_header_claims_too_much_is_not_taken_for_the_newest(short, digits, tmp_path, monkeypatch, capsys):
    interrupted(short(), digits, tmp_path, monkeypatch, 320, 352, 640)
    flip_in_images(tmp_path / "state-1.safetensors")
    assert states(tmp_path) == {"0": 640, "1": 752}
    monkeypatch.setattr(edm.training.step, "ema_decay_at", lambda *args: die())
    with pytest.raises(Killed):
        train(short(), digits, tmp_path)
    assert "state-1.safetensors is damaged (its checksum differs)" in capsys.readouterr().err
    assert states(tmp_path) == {"0": 640}


@pytest.mark.slow
def test_two_damaged_states_are_named_and_the_run_starts_from_the_beginning(
    short, digits, tmp_path, monkeypatch, capsys, undisturbed
):
    run = tmp_path / "run"
    interrupted(short(), digits, run, monkeypatch, 320, 640)
    flip_in_tensors(run / "state-0.safetensors")
    cut(run / "state-1.safetensors")
    train(short(), digits, run)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and errors.endswith("; starting from the beginning\n")
    assert "state-0.safetensors is damaged" in errors and "state-1.safetensors is not a complete" in errors
    assert_same_but_for(run, undisturbed(short()), "other-state-0.safetensors", "other-state-1.safetensors")


@pytest.mark.slow
def test_every_bit_of_a_state_counts(short, digits, tmp_path, monkeypatch, capsys):
    """One flipped bit anywhere, in the length, the header, the padding or a tensor: the other state is used."""
    interrupted(short(), digits, tmp_path / "whole", monkeypatch, 320, 640)
    newest = tmp_path / "whole" / "state-1.safetensors"
    (length,) = struct.unpack("<Q", newest.read_bytes()[:8])
    size = newest.stat().st_size
    generator = torch.Generator().manual_seed(0)
    places = [*range(8), *torch.randint(8, 8 + length, (40,), generator=generator).tolist(),
              *torch.randint(8 + length, size, (20,), generator=generator).tolist(), size - 1]  # fmt: skip
    net = building.build(short())
    for place in places:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        flip(tmp_path / "run" / "state-1.safetensors", place)
        optimizer = torch.optim.Adam(net.parameters())
        state = training.TrainingState(tmp_path / "run", short(), digits, net, net, optimizer, training.ALONE, None)
        assert state.restore() == 320, place


@pytest.mark.slow
def test_a_clock_that_jumps_backwards_does_not_confuse_which_state_is_newer(
    short, digits, tmp_path, monkeypatch, undisturbed
):
    run = tmp_path / "run"
    interrupted(short(), digits, run, monkeypatch, 320, 640, 1280)
    os.utime(run / "state-0.safetensors", (0, 0))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    seen = []
    monkeypatch.setattr(progress, "tqdm", lambda initial, **rest: seen.append(initial) or tqdm(initial=initial, **rest))
    from tqdm import tqdm

    train(short(), digits, run)
    assert seen == [1280]
    assert_same(run, undisturbed(short()))


@pytest.mark.slow
def test_a_full_disk_costs_a_state_but_not_the_training(short, digits, tmp_path, monkeypatch, capsys, undisturbed):
    """Half of a state fits; the older one stays and is continued from."""
    run, write, written = tmp_path / "run", save_tensors, []

    def full(path, tensors, header):
        if "state-" in Path(path).name:
            written.append(header["images"])
            if header["images"] == 640:
                with edm.files.writing.atomic_write(path) as temporary:
                    temporary.write_bytes(b"half of it")
                    raise OSError(28, "No space left on device")
        write(path, tensors, header)

    with monkeypatch.context() as patch:
        patch.setattr(edm.training.state, "save_tensors", full)
        interrupted(short(), digits, run, patch, 320, 640, 1280)
    assert re.fullmatch(
        r"warning: \S+state-1.safetensors: cannot be written \(No space left on device\); nothing was changed; "
        r"the state of 320 images is kept, continuing\n",
        capsys.readouterr().err,
    )
    assert written == [320, 640, 1280] and states(run) == {"0": 320, "1": 1280}
    (run / "state-1.safetensors").unlink()
    train(short(), digits, run)
    assert_same(run, undisturbed(short()))


def test_rows_that_a_full_disk_refused_are_written_when_it_can(tmp_path, capsys):
    log = TrainingLog(tmp_path / "log.jsonl", 0, active=True)
    log.write({"images": 1})
    shutil.move(tmp_path / "log.jsonl", tmp_path / "kept")
    (tmp_path / "log.jsonl").mkdir()  # nothing can be written there
    log.write({"images": 2})
    log.sync()
    log.write({"images": 3})
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "log.jsonl").rmdir()
    (tmp_path / "kept").replace(tmp_path / "log.jsonl")
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"ima')  # what did fit
    log.sync()
    assert (tmp_path / "log.jsonl").read_text() == '{"images": 1}\n{"images": 2}\n{"images": 3}\n'


@pytest.mark.slow
def test_what_a_killed_writer_left_is_cleared_away(short, digits, tmp_path, monkeypatch, undisturbed):
    run = tmp_path / "run"
    interrupted(short(), digits, run, monkeypatch, 800)
    for torn in (".state-1.abcd1234", ".model.abcd1234", "snapshots/.000000000768.abcd_234"):
        (run / f"{torn}.safetensors").write_bytes(b"half of it")
    (run / ".tmpabCD12").write_bytes(b"half of it, by the library itself")
    train(short(), digits, run)
    assert_same(run, undisturbed(short()))


@pytest.mark.slow
def test_a_snapshot_that_is_there_is_not_written_again(short, digits, tmp_path, monkeypatch):
    interrupted(short(), digits, tmp_path, monkeypatch, 640, 1600)
    (tmp_path / "state-1.safetensors").unlink()
    path = tmp_path / "snapshots" / "000000000768.safetensors"
    before = path.stat()
    train(short(), digits, tmp_path, about={"commit": "another"})
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.slow
def test_a_kill_between_a_snapshot_and_the_state_of_its_step_costs_no_snapshot(short, digits, tmp_path, monkeypatch):
    """The state comes last in a step: no state claims a step whose snapshot is missing."""
    order = []
    save, write = checkpoint.save, training.TrainingState._write
    monkeypatch.setattr(checkpoint, "save", lambda path, *rest: (order.append(Path(path).name), save(path, *rest)))
    monkeypatch.setattr(training.TrainingState, "_write", lambda *args: (order.append(args[2]["images"]), write(*args)))
    train(short(duration=0.001024), digits, tmp_path, state_every=0)
    assert order.index("000000000768.safetensors") + 1 == order.index(768)


@pytest.mark.slow
def test_a_run_can_go_on_with_another_number_of_processes(short, digits, tmp_path, monkeypatch):
    """The sums of the log are kept by process; another number of them shares out their total."""
    interrupted(short(), digits, tmp_path, monkeypatch, 320)
    path = tmp_path / "state-0.safetensors"
    tensors = load_file(path)
    assert tensors["sums"].shape == (1, 4) and tensors["sums"][0, 1] == 32
    net, sums = building.build(short()), []
    for rank in range(2):

        class Pair(World):
            def total(self, *numbers):
                return [0.0]  # slot 0, as the first one says

        optimizer = torch.optim.Adam(net.parameters())
        state = training.TrainingState(tmp_path, short(), digits, net, net, optimizer, Pair(rank, 2), None)
        assert state.restore() == 320
        sums.append(state.sums)
    assert torch.equal(sums[0] + sums[1], tensors["sums"].sum(0))


@pytest.mark.slow
def test_eight_kills_at_random_moments_change_nothing():
    """As `python bench/kill_training.py` does a hundred times."""
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "kill_training.py", "--kills", "8", "--steps", "60", "--state-every", "0.1"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 8 and report["identical to the undisturbed training"]
