"""How long does the workflow take before the first job starts, and when all results are up to date?

    python bench/workflow.py [--evaluations N] [--report NAME] [--chain TARGET] [--rounds N]

5,000 jobs   `snakemake -n` with 5,000 evaluation jobs of one model: time to the job counts, and to the end
paper        `snakemake -n paper` and `edm plan paper` with the shipped params.yaml
no-op        `snakemake` on a completed tiny workflow: "Nothing to be done"

Each runs in a fresh process and folder, by turns. Targets: job counts within 15 s, a no-op within 5 s. The tests
define the tiny workflow; --chain data-digits completes only its dataset, which suffices to try this benchmark.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, by_turns, environment, report, summary

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "workflow"))
from test_small_chain import write_params  # of the tiny workflow

from edm.errors import UserError

STEPS = 100  # values of num_steps in the large grid; its other parameter is S_churn
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]
DAG, WHOLE, REPORT, PLAN, NOTHING = (
    "snakemake -n, {jobs:,} jobs: job counts", "snakemake -n, {jobs:,} jobs: all lines", "snakemake -n {report}",
    "edm plan {report}", "snakemake, nothing to be done",
)  # fmt: skip
TARGETS = {DAG: 15.0, NOTHING: 5.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=5000, help="jobs of the large grid (default 5000)")
    parser.add_argument("--report", default="paper", help="report of the shipped params.yaml (default paper)")
    parser.add_argument("--chain", default="tiny", help="target of the tiny workflow to run first (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--output", help="JSON file (default bench/results/workflow.json)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name), args)


def compare(folder: Path, args: argparse.Namespace) -> int:
    large, shipped, finished = (folder / name for name in ("large", "shipped", "finished"))
    for path in (large, shipped, finished):
        path.mkdir()
    write_params(large, lambda tiny: many(tiny, args.evaluations))
    shutil.copy(ROOT / "params.yaml", shipped)
    write_params(finished)
    run(finished, *SNAKEMAKE, args.chain)
    counts: list[tuple[int, float]] = []  # jobs of the large grid, and seconds until Snakemake printed the counts

    def dag() -> None:
        counts.append(job_counts(large, *SNAKEMAKE, "-n"))

    def nothing() -> None:
        if "Nothing to be done" not in run(finished, *SNAKEMAKE, args.chain):
            raise UserError("the finished chain has something to do")

    seconds = by_turns({
        WHOLE: dag, REPORT: lambda: run(shipped, *SNAKEMAKE, "-n", args.report) and None,
        PLAN: lambda: run(shipped, "edm", "plan", args.report) and None, NOTHING: nothing,
    }, args.rounds)  # fmt: skip
    seconds = {DAG: [until for _, until in counts], **seconds}
    rows = [{"variant": name.format(jobs=counts[0][0], report=args.report), **summary(of),
             "target": TARGETS.get(name, "")} for name, of in seconds.items()]  # fmt: skip
    settings = {"evaluations": args.evaluations, "report": args.report, "chain": args.chain, "rounds": args.rounds}
    report("workflow", "How long before the first job starts, and where there is nothing to do? (seconds)", rows,
           settings, args.output)  # fmt: skip
    missed = [row["variant"] for row, name in zip(rows, seconds, strict=True)
              if name in TARGETS and statistics.median(seconds[name]) > TARGETS[name]]  # fmt: skip
    print(f"missed: {', '.join(missed)}" if missed else "all targets are met")
    return 0


def many(tiny: dict, evaluations: int) -> None:
    """Gives one model of the tiny experiment that many evaluations, each a job."""
    tiny["sampling"]["one_job_per"] = "point"
    steps = min(STEPS, evaluations)
    churns = [0.01 * i for i in range(-(-evaluations // steps))]
    tiny["grids"]["steps"] = {"models": ["vp-A"], "num_steps": list(range(1, steps + 1)), "S_churn": churns}


def run(folder: Path, *words: str) -> str:
    """Runs a command and returns its stdout and stderr. Raises UserError if it fails."""
    done = subprocess.run(words, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def job_counts(folder: Path, *words: str) -> tuple[int, float]:
    """Completes a dry run. Returns its number of jobs, and the seconds until it printed the first count."""
    start, jobs, until = time.perf_counter(), 0, 0.0
    with subprocess.Popen(words, cwd=folder, env=environment() | {"PYTHONUNBUFFERED": "1"}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("total ") and not until:
                jobs, until = int(line.split()[1]), time.perf_counter() - start
    if process.returncode or not until:
        raise UserError(f"{' '.join(words)} ended with status {process.returncode} in {folder}")
    return jobs, until


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
