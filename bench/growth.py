"""How do time and memory grow with the number of evaluations?

    python bench/growth.py [--evaluations 5000 20000 …] [--skip snakemake]

For each number, params.yaml of the demo with so many points, a job each, in fresh processes:

one job      what `edm launch` does before it starts the command: the step, its specification, the steps before it
edm check    reads and checks the whole file
edm plan     plans the experiment
snakemake    `snakemake -n`; "ours" is the share of its time in this project's code and what that calls, "Snakemake's"
             the rest, by samples of the stack every 10 ms of processor time
the node     the command that Snakemake's Slurm plugin submits for a trivial step (the digits' archive), without Slurm:
             two more Snakemakes, one inside the other, then `edm launch`, then the step; each without what it starts,
             the less of two

Time is processor time (user and system), so that other work on the machine counts less; memory is the peak of all
processes together, sampled. The exponent is that of time ~ evaluations^exponent, by least squares of the logarithms:
1 is linear.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from common import ROOT, environment, report

PER_MODEL = 1000  # points of a model's grid
STEPS = 25  # values of num_steps; the other parameter of the grid is S_churn
FIRST = "evaluate digits/vp-m0/many/num_steps=7,S_churn=0.03"
ONE_JOB = """
import sys
from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
try:
    chain = Chain(params.load("params.yaml", planned=True))
    job = chain.job(sys.argv[1])
except TypeError:  # of a version that builds every step
    chain = Chain(params.load("params.yaml"))
    job = chain.by_name[sys.argv[1]]
chain.specification(job)
"""


# Runs Snakemake's command line, and says in how many samples of its stack the innermost known frame was ours.
SHARES = """
import collections, json, signal, sys
root, out, words = sys.argv[1], sys.argv[2], sys.argv[3:]
seen = collections.Counter()
def look(_, frame):
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(root) and "/site-packages/" not in name:
            seen["ours"] += 1
            return
        if "/snakemake" in name:
            seen["theirs"] += 1
            return
        frame = frame.f_back
    seen["other"] += 1
signal.signal(signal.SIGPROF, look)
signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
from snakemake.cli import main
try:
    main(words)
finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    json.dump(seen, open(out, "w"))
"""
# What the plugin asks first, and the job that it then submits.
SBATCH = '#!/bin/sh\n[ "$1" = --version ] && echo "slurm 24.05.0" && exit\nfor word; do last=$word; done\n'
SBATCH += 'case $last in --wrap=*) last=${last#--wrap=};; esac\nprintf %s "$last" > submitted\nexit 1\n'
SRUN = '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n'
SNAKEMAKE = ("--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2")
TRIVIAL = "data/digits.zip"
ENVIRONMENT = environment()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [5000, 20000, 50000, 100000]
    parser.add_argument("--evaluations", type=int, nargs="+", default=default, help="numbers to measure")
    parser.add_argument("--skip", nargs="*", default=[], help="what not to measure, such as snakemake")
    parser.add_argument("--output", help="JSON file (default bench/results/growth.json)")
    args = parser.parse_args()
    measured: dict[str, dict[int, tuple[float, float]]] = {}
    for evaluations in args.evaluations:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, evaluations)
            for variant, found in costs(folder, args.skip):
                measured.setdefault(variant, {})[evaluations] = found
                print(f"{evaluations:,}: {variant}: {found[0]:.2f} s, {found[1]:.0f} MB", file=sys.stderr, flush=True)
    rows = []
    for variant, found in measured.items():
        cells = {f"{n:,}": f"{seconds:.2f} s, {memory:.0f} MB" for n, (seconds, memory) in found.items()}
        rows.append({"of": variant, **cells, "exponent": exponent({n: of[0] for n, of in found.items()})})
    report("growth", "How do time and memory grow with the evaluations?", rows, vars(args), args.output)
    return 0


def costs(folder: Path, skip: list[str]):
    """What each command costs in a folder: its name, processor seconds and peak megabytes."""
    commands = {
        "one job": ["-c", ONE_JOB, FIRST],
        "edm check": ["-m", "edm", "check"],
        "edm plan": ["-m", "edm", "plan", "digits"],
    }
    for name, words in commands.items():
        if name not in skip:
            yield name, cost(folder, sys.executable, *words)
    if "snakemake" not in skip:
        shares, words = folder / "shares.json", [*SNAKEMAKE, "--quiet", "all", "-n", "digits"]
        seconds, memory = cost(folder, sys.executable, "-c", SHARES, str(ROOT), str(shares), *words)
        seen = json.loads(shares.read_text())
        ours = seconds * seen.get("ours", 0) / sum(seen.values())
        yield "snakemake -n", (seconds, memory)
        yield "of it Snakemake's", (seconds - ours, memory)
        yield "of it ours", (ours, memory)
    if "node" not in skip:
        yield from of_a_node(folder)


def of_a_node(folder: Path):
    """The parts of a trivial job on a node."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel"):
        (folder / "bin" / name).write_text({"sbatch": SBATCH, "srun": SRUN}.get(name, "#!/bin/sh\n"))
        (folder / "bin" / name).chmod(0o755)
    searched = ENVIRONMENT | {"PATH": f"{folder / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}"}
    outer = [sys.executable, "-m", "snakemake", *SNAKEMAKE[:2], "--profile", str(ROOT / "slurm"), "--retries", "0",
             "--slurm-init-seconds-before-status-checks", "1", TRIVIAL]  # fmt: skip
    subprocess.run(outer, cwd=folder, env=searched, capture_output=True)
    inner = shlex.split((folder / "submitted").read_text())
    waits = inner.index("--wait-for-files")  # for a marker of the Snakemake that has ended
    inner[waits : next(n for n in range(waits + 1, len(inner)) if inner[n].startswith("--"))] = []
    edm = [sys.executable, "-m", "edm"]
    step = ["prepare", TRIVIAL, "--dataset", "digits"]
    launch = [*edm, "launch", "--step", "prepare digits", "--"]
    parts = {"whole": inner, "launched": [*launch, *step], "step": [*edm, *step],
             "nothing, launched": [*launch, "--version"], "nothing": [*edm, "--version"]}  # fmt: skip
    found = {name: min(cost(folder, *words, environment=searched) for _ in range(2)) for name, words in parts.items()}
    seconds = {name: of for name, (of, _) in found.items()}
    yield "the node, in all", found["whole"]
    yield "of it two Snakemakes", (seconds["whole"] - seconds["launched"], found["whole"][1])
    yield "of it edm launch", (seconds["nothing, launched"] - seconds["nothing"], found["nothing, launched"][1])
    yield "of it the step", found["step"]


def exponent(seconds: dict[int, float]) -> str:
    """Of seconds ~ evaluations^exponent, by least squares of the logarithms."""
    points = [(math.log(n), math.log(s)) for n, s in seconds.items() if s > 0]
    if len(points) < 2:
        return ""
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return f"{sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points):.2f}"


def write(folder: Path, evaluations: int) -> None:
    """params.yaml of the demo, with a thousand points for each of as many further models as it takes."""
    whole = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    digits = whole["experiments"]["digits"]
    models = [f"m{number}" for number in range(-(-evaluations // PER_MODEL))]
    digits["sampling"]["one_job_per"] = "point"
    digits["ladder"] |= {model: {} for model in models}
    churns = [0.01 * number for number in range(min(evaluations, PER_MODEL) // STEPS)]
    digits["grids"]["many"] = {"models": [f"vp-{model}" for model in models], "seeds": "first",
                               "num_steps": list(range(1, STEPS + 1)), "S_churn": churns}  # fmt: skip
    for model in models:  # otherwise no target needs the points
        digits["figures"][f"many-{model}"] = {"kind": "curve", "over": "nfe", "lines": {model: f"vp-{model}:many"}}
    datasets = {name: whole["datasets"][name] for name in {digits["dataset"], digits.get("test", digits["dataset"])}}
    kept = {"run": ["digits"], "datasets": datasets, "experiments": {"digits": digits}}
    (folder / "params.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")


def cost(folder: Path, *words: str, environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Processor seconds of a command with all that it started, and the most megabytes that they had together.

    A failure stops the benchmark.
    """
    environment = environment or ENVIRONMENT
    process = psutil.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    over, most = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.1):
            with suppress(psutil.Error):
                most.append(sum(one.memory_info().rss for one in (process, *process.children(recursive=True))))

    watching = threading.Thread(target=watch)
    watching.start()
    _, status, used = os.wait4(process.pid, 0)
    over.set()
    watching.join()
    if status:
        raise SystemExit(f"{' '.join(words[-4:])} failed in {folder}")
    return used.ru_utime + used.ru_stime, max(used.ru_maxrss * 1024, *most) / 1e6


if __name__ == "__main__":
    sys.exit(main())
