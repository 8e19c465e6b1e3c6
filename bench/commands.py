"""Whole commands of others beside ours, by turns: what a user would run otherwise, from its start to its end.

    python bench/commands.py fid [--images N] [--rounds N]
    python bench/commands.py preparation --peer CHECKOUT [--images N] [--rounds N]

fid: images as a folder of PNG files, in Inception-v3 with random weights. torch-fidelity's command compares them with
another folder, pytorch-fid's (where it is installed) and `edm fid` with a file of statistics of that folder.
preparation: photographs in folders of classes to 64×64; CHECKOUT is of github.com/NVlabs/edm, whose dataset_tool.py
runs beside `edm prepare`. Prints the seconds by the clock and of the processors, and the results of each.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import by_turns, environment, in_process, report, summary
from preparation import unlike

RESOLUTION, REAL = 64, 20  # pixels; images behind the statistics
DISTANCE = re.compile(r"(?:Distance:|FID:|weights\)) +([\d.,]+)")  # as the three commands print it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--images", type=int, help="number of images (default 1000; preparation 6000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--peer", type=Path, help="a checkout of github.com/NVlabs/edm")
    parser.add_argument("--output", help="JSON file (default bench/results/commands-….json)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.images = args.images or {"fid": 1000, "preparation": 6000}[args.work]
    if args.work == "preparation" and not (args.peer and (args.peer / "dataset_tool.py").exists()):
        parser.error("preparation: name a checkout with dataset_tool.py: --peer CHECKOUT")
    if args.only:
        write_images(Path(args.only), args.images)
        return 0
    with tempfile.TemporaryDirectory() as name:
        commands, result = WORK[args.work](Path(name), args)
        rows = timed(commands, result, args.rounds)
    settings = {"images": args.images, "rounds": args.rounds}
    report(f"commands-{args.work}", "How long does a whole command take? (seconds)", rows, settings, args.output)
    return 0


def timed(commands: dict[str, list[str]], result: Callable[[str, str], dict], rounds: int) -> list[dict[str, Any]]:
    """A row per command; the last is ours. result: its columns, from a command's name and what it printed."""
    processors: dict[str, list[float]] = {name: [] for name in commands}
    found: dict[str, dict] = {}

    def turn(name: str) -> float:
        before, begun = sum(os.times()[2:4]), time.perf_counter()
        done = subprocess.run(commands[name], env=ENVIRONMENT, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        if done.returncode:
            raise SystemExit(f"{name} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
        processors[name].append(sum(os.times()[2:4]) - before)
        found[name] = result(name, done.stdout + done.stderr)
        return seconds

    seconds = by_turns({name: lambda name=name: turn(name) for name in commands}, rounds)
    *_, ours = commands
    ratio = lambda times, name: statistics.median(a / b for a, b in zip(times[name], times[ours], strict=True))
    return [{"variant": name, **summary(seconds[name]), "processor": statistics.median(processors[name]),
             "ours is so many times as fast": ratio(seconds, name), "by processor time": ratio(processors, name),
             **found[name]} for name in commands]  # fmt: skip


def fid(folder: Path, args: argparse.Namespace) -> tuple[dict[str, list[str]], Callable[[str, str], dict]]:
    in_process(__file__, "fid", "--images", str(args.images), "--only", str(folder))
    images, weights = str(folder / "generated"), str(folder / "weights.pth")
    # Where pytorch-fid's own download would be.
    hub = folder / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "pt_inception-2015-12-05-6726825d.pth").symlink_to(weights)
    ENVIRONMENT["TORCH_HOME"] = str(folder / "torch")
    commands = {
        "torch-fidelity": ["fidelity", "--fid", "--input1", images, "--input2", str(folder / "real"), "--cpu",
                           "--no-cache", "--no-verbose", "--feature-extractor-weights-path", weights],
        "pytorch-fid": [sys.executable, "-m", "pytorch_fid", images, str(folder / "real.npz"), "--device", "cpu"],
        "edm fid": ["edm", "fid", images, "--ref", str(folder / "real.npz"), "--weights", weights, "--device", "cpu"],
    }  # fmt: skip
    if found := find_spec("pytorch_fid"):
        ENVIRONMENT["PYTHONPATH"] += os.pathsep + str(Path(str(found.origin)).parents[1])
    else:
        del commands["pytorch-fid"]
    return commands, lambda _, printed: {"distance": float(DISTANCE.findall(printed)[-1].replace(",", ""))}


def write_images(folder: Path, images: int) -> None:
    """Pictures, weights, and the statistics of the real ones in the form of published files."""
    import numpy as np
    import torch
    from metrics import make

    from edm.metrics import INCEPTION
    from edm.metrics.extractors import load_features
    from edm.metrics.frechet import FeatureStatistics

    make(folder, images, REAL)
    moments = FeatureStatistics()
    features = load_features(INCEPTION, folder / "weights.pth", "cpu")
    moments.append(features(torch.from_numpy(np.load(folder / "real.npy"))))
    np.savez(folder / "real.npz", mu=moments.mean, sigma=moments.covariance)
    print("{}")


def preparation(folder: Path, args: argparse.Namespace) -> tuple[dict[str, list[str]], Callable[[str, str], dict]]:
    from edm.data.prepare.made_up import made_up

    photographs, archives = folder / "photographs", {name: folder / f"{name}.zip" for name in ("theirs", "ours")}
    made_up("folder", photographs, args.images, side=RESOLUTION, classes=10)
    theirs = [
        sys.executable,
        str(args.peer / "dataset_tool.py"),
        f"--source={photographs}",
        f"--dest={archives['theirs']}",
        f"--resolution={RESOLUTION}x{RESOLUTION}",
        "--transform=center-crop",
    ]
    ours = ["edm", "prepare", "--source", "folder", "--input", str(photographs), "--resolution", str(RESOLUTION),
            "--channels", "3", str(archives["ours"])]  # fmt: skip

    def result(name: str, printed: str) -> dict[str, Any]:
        archive = archives["ours" if name == "edm prepare" else "theirs"]
        size = archive.stat().st_size
        if name == "edm prepare":
            apart = unlike(*archives.values())
            archive.unlink()  # each round makes it anew
        else:
            apart = 0
        return {"archive (bytes)": size, "images unlike theirs": apart}

    return {"dataset_tool.py": theirs, "edm prepare": ours}, result


WORK = {"fid": fid, "preparation": preparation}
ENVIRONMENT = environment()

if __name__ == "__main__":
    sys.exit(main())
