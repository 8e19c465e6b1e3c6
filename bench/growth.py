"""How do time and memory grow with the number of evaluations?

    python bench/growth.py [--evaluations 5000 20000 …] [--skip snakemake]

For each number, params.yaml of the demo with so many points, a job each, in fresh processes:

edm check    reads and checks the whole file
edm plan     plans the experiment
snakemake    `snakemake -n`: of it, the part without our rules is Snakemake's own
one job      what `edm launch` does before it starts the command: the step, its specification, the steps before it

Time is processor time (user and system), so that other work on the machine counts less; memory is the peak.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5000, 20000, 50000], help="numbers to measure")
    parser.add_argument("--skip", nargs="*", default=[], help="what not to measure, such as snakemake")
    parser.add_argument("--output", help="JSON file (default bench/results/growth.json)")
    args = parser.parse_args()
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]
    commands = {
        "one job": [sys.executable, "-c", ONE_JOB, FIRST],
        "edm check": [sys.executable, "-m", "edm", "check"],
        "edm plan": [sys.executable, "-m", "edm", "plan", "digits"],
        "snakemake": [*snakemake, "--quiet", "all", "-n", "digits"],
    }
    rows = []
    for evaluations in args.evaluations:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), evaluations)
            for name, words in commands.items():
                if name not in args.skip:
                    seconds, memory = cost(folder, words)
                    rows.append({"variant": f"{name}, {evaluations:,}", "seconds": seconds, "MB": memory})
                    print(rows[-1], flush=True)
    report("growth", "How do time and memory grow with the evaluations?", rows, vars(args), args.output)
    return 0


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
    datasets = {name: whole["datasets"][name] for name in {digits["dataset"], digits.get("test", digits["dataset"])}}
    kept = {"run": ["digits"], "datasets": datasets, "experiments": {"digits": digits}}
    (folder / "params.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")


def cost(folder: str, words: list[str]) -> tuple[float, float]:
    """Processor seconds and peak megabytes of a command. A failure stops the benchmark."""
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words[-4:])} failed in {folder}")
    return round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    sys.exit(main())
