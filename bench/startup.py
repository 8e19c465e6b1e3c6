"""How long does a person wait before anything happens?

    python bench/startup.py [--rounds N]

Runs `edm --help`, `edm check`, `import edm`, `import torch`, and `edm sample` of a tiny checkpoint up to the first call
of its network: each in a fresh process, by turns. Time starts with the process. Then a whole step of a workflow, `edm
launch -- sample …`, as a new process and forked by the server of a local workflow (edm/cluster/forkserver.py). Targets:
help within 0.3 s, and the first call at most 2 s later than the end of `import torch` alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, by_turns, environment, in_process, report, summary

from edm.cluster import forkserver
from edm.commands.launching import IMPORTED

HELP, SAMPLE, TORCH = "edm --help", "edm sample, first call", "import torch"
BEYOND = "of it beyond torch"
TARGETS = {HELP: 0.3, BEYOND: 2.0}

CHECKPOINT = """
import json, sys
from edm.models import building
from edm.models import checkpoint
from edm.config import TrainingConfig
config = TrainingConfig(resolution=8, channels=1, classes=10, model_channels=8, channel_mult=(1,), num_blocks=1,
                        attn_resolutions=())
checkpoint.save(sys.argv[1], building.build(config), config, {"images": 0, "dataset_sha256": "0" * 64})
print(json.dumps({}))
"""
IMPORT_TORCH = "import os, time, torch; print(time.time(), flush=True); os._exit(0)"
# Imports the denoiser's module slightly before the command does, which needs it anyway.
FIRST_CALL = """
import os, sys, time
from edm.cli import main
from edm.models.denoiser import Denoiser
def called(*_args, **_settings):
    print(time.time(), flush=True)
    os._exit(0)
Denoiser.forward = called
main(["sample", sys.argv[1], sys.argv[2], "--seeds", "0-3", "--device", "cpu"])
sys.exit("the network was not called")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--output", help="JSON file (default bench/results/startup.json)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder) / "model.safetensors", Path(folder) / "images.safetensors"
        in_process("-c", CHECKPOINT, model)
        python = [sys.executable, "-c"]
        step = ["edm", "launch", "--gpus", "0", "--", "sample", model, images, "--seeds", "0-3", "--device", "cpu"]
        forkserver.start(IMPORTED)
        served = {forkserver.ADDRESS: os.environ.pop(forkserver.ADDRESS)}
        run(*step, **served)  # waits for the server's imports
        seconds = by_turns({
            "python alone": lambda: run(*python, "pass"),
            "import edm": lambda: run(*python, "import edm"),
            HELP: lambda: run("edm", "--help"),
            "edm check": lambda: run("edm", "check"),
            TORCH: lambda: until_it_prints(*python, IMPORT_TORCH),
            "a step, new": lambda: run(*step),
            "a step, forked": lambda: run(*step, **served),
            SAMPLE: lambda: until_it_prints(*python, FIRST_CALL, model, images),
        }, args.rounds)  # fmt: skip
    seconds[BEYOND] = [one - other for one, other in zip(seconds[SAMPLE], seconds[TORCH], strict=True)]
    rows = [{"variant": name, **summary(of), "target": TARGETS.get(name, "")} for name, of in seconds.items()]
    report("startup", "How long does a person wait before anything happens? (seconds, fresh processes)", rows,
           {"rounds": args.rounds, "targets": TARGETS}, args.output)  # fmt: skip
    missed = [name for name, target in TARGETS.items() if statistics.median(seconds[name]) > target]
    print(f"missed: {', '.join(missed)}" if missed else "all targets are met")
    return 0


def run(*words: str | Path, **more: str) -> None:
    """Runs a command to its end and discards its output. A failure stops the benchmark: its time would be invalid."""
    subprocess.run(words, cwd=ROOT, env={**environment(), **more}, stdout=subprocess.DEVNULL, check=True)


def until_it_prints(*words: str | Path) -> float:
    """Seconds from the start of a command to the time that it prints; excludes its exit, which is slow with torch."""
    start = time.time()
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[-1]} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1]) - start


if __name__ == "__main__":
    sys.exit(main())
