"""Tests that kill -9 costs a training run only the work since its last saved state.

    python bench/kill_training.py [--kills N] [--state-every S] [--steps N] [--seed N]

Trains a small network on handwritten digits (CPU, one thread) once without interruption, then repeatedly with kill -9
at random moments and a restart after each, until N kills are done and the last training run is complete. Its output
must equal that of the uninterrupted run: bit-identical weights and snapshots, and each row of the log and of the
journal exactly once. Prints statistics as JSON; exits with status 1 if anything differs.

Forks each process from one that has already loaded torch, so that the kills hit the training, not the imports.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads must not fork

import torch
import torch._dynamo  # imported by training, like the loop below; loaded once before forking

from edm.cli import main as edm
from edm.data.prepare import prepare
from edm.errors import UserError
from edm.files.tensors import read_header
from edm.tracking import read_journal
from edm.training import loop as training  # noqa: F401
from edm.training.state import STATE_FORMAT

CONFIG = {
    "resolution": 8, "channels": 1, "classes": 10, "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
    "attn_resolutions": [], "dropout": 0.1, "batch_size": 32, "lr_rampup": 0.001, "learning_rate": 2e-3,
    "ema_halflife": 1e-3, "augment": 0.12, "level_samples": 16,
}  # fmt: skip
REPEATABLE = ("images", "loss", "learning_rate", "nonfinite_gradients")  # columns of the log, except times


class Trainings:
    """Training runs of one configuration in one folder, each in its own process."""

    def __init__(self, folder: Path, steps: int, state_every: float):
        self.folder, self.data, self.config = folder, folder / "digits.zip", folder / "config.json"
        prepare("digits", self.data)
        images = steps * CONFIG["batch_size"]
        config = {**CONFIG, "duration": images / 1e6, "snapshot_every": images / 4e6}
        self.config.write_text(json.dumps(config))
        self.arguments = ["--state-every", str(state_every), "--device", "cpu", "--threads", "1"]

    def run(self, name: str, kill_after: float | None = None) -> bool:
        """Starts or resumes the training run ``name``; returns whether it completed before it was killed."""
        process = os.fork()
        if process == 0:
            self._become(name)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(process, signal.SIGKILL)  # the PID of an ended process stays reserved until waitpid
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise SystemExit(f"the training ended with status {os.WEXITSTATUS(status)}; see {self.folder / name}.log")
        return os.WIFEXITED(status)

    def _become(self, name: str) -> None:
        """Runs the training in this forked process, then exits."""
        status = 1
        try:
            with open(self.folder / f"{name}.log", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            files = ["--config", str(self.config), "--data", str(self.data), "--out", str(self.folder / name)]
            status = edm(["train", *files, *self.arguments])
        finally:
            os._exit(status)  # skips the parent's cleanup

    def reached(self, name: str) -> tuple[int, int]:
        """Images trained according to the log, and according to the newest state."""
        log = self.folder / name / "log.jsonl"
        rows = list(_rows(log)) if log.exists() else []
        states = [0]
        for path in (self.folder / name).glob("state-?.safetensors"):
            states.append(read_header(path, STATE_FORMAT)["images"])
        return max([row["images"] for row in rows], default=0), max(states)

    def torn(self, name: str) -> bool:
        """Whether the kill hit the last process while it wrote a state."""
        return any((self.folder / name).glob(".state-?.*"))

    def left(self, name: str) -> dict[str, object]:
        """The output of a completed training run, without times."""
        out = self.folder / name
        files = sorted(path for path in out.rglob("*") if path.is_file())
        left: dict[str, object] = {"files": [str(path.relative_to(out)) for path in files]}
        left |= {str(p.relative_to(out)): p.read_bytes() for p in files if p.suffix == ".safetensors"}
        left["levels"] = (out / "levels.json").read_text()
        left["log"] = [[row[key] for key in REPEATABLE] for row in _rows(out / "log.jsonl")]
        (run,) = read_journal(out / "journal.jsonl")
        left["journal"] = [run.status, run.params, {key: sorted(run.metrics[key]) for key in run.metrics}]
        left["journal losses"] = {step: point.value for step, point in run.metrics["loss"].items()}
        return left


def _rows(path: Path) -> Iterator[dict]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # incomplete last line, left by a kill


def kill(trainings: Trainings, kills: int, longest: float, moments: random.Random) -> dict:
    """Kills ``kills`` times, each at most ``longest`` seconds after a start, then lets the last training run finish.

    Returns the images lost per kill, the kills during a write, the completed training runs, and their differences from
    the run named "undisturbed".
    """
    expected = trainings.left("undisturbed")
    lost, torn, differing, finished = [], 0, [], 0
    while True:
        name = f"killed-{finished}"
        killing = len(lost) < kills
        if trainings.run(name, moments.uniform(0, longest) if killing else None):
            left = trainings.left(name)
            odd = sorted(set(left["files"]) ^ set(expected["files"]))
            differing += [f"{name}: {key}{odd if key == 'files' else ''}" for key in expected
                          if left.get(key) != expected[key]]  # fmt: skip
            finished += 1
            if not killing:
                return {"lost": lost, "torn": torn, "finished": finished, "differing": differing}
        else:
            reached, kept = trainings.reached(name)
            lost.append(max(reached - kept, 0))
            torn += trainings.torn(name)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--state-every", type=float, default=0.2, help="seconds between states (default 0.2)")
    options.add_argument("--steps", type=int, default=200, help="steps per training run (default 200)")
    options.add_argument("--seed", type=int, default=0, help="random seed of the kill times")
    args = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(Path(folder), args.steps, args.state_every)
        begun = time.monotonic()
        trainings.run("undisturbed")
        whole = time.monotonic() - begun
        seconds = list(_rows(Path(folder) / "undisturbed" / "log.jsonl"))[-1]["seconds"]
        done = kill(trainings, args.kills, whole / 2, random.Random(args.seed))
    rate = args.steps * CONFIG["batch_size"] / seconds
    print(json.dumps({
        "kills": args.kills,
        "of these while a state was written": done["torn"],
        "trainings finished": done["finished"],
        "undisturbed training (s)": round(whole, 2),
        "of these in its steps (s)": round(seconds, 2),
        "seconds between states": args.state_every,
        "work lost per kill (s)": _figures([images / rate for images in done["lost"]], 3),
        "work lost per kill (images)": _figures(done["lost"], 0),
        "identical to the undisturbed training": not done["differing"],
        "differing": done["differing"],
    }, indent=1))  # fmt: skip
    return 1 if done["differing"] else 0


def _figures(values: list[float], digits: int) -> dict[str, float]:
    summary = {"mean": statistics.mean(values), "median": statistics.median(values), "largest": max(values)}
    return {name: round(value, digits) for name, value in summary.items()}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
