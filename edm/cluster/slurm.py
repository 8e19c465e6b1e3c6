"""The job of Slurm that this process runs in: its time, its nodes, and starting it again. Needs no accounting."""

import math
import os
import re
import subprocess
import time

from edm.errors import UserError

PATIENCE = 30.0  # seconds that Slurm may take to answer
PORTS = range(20000, 60000)  # for the processes of a job to find each other


def job() -> str | None:
    """The number of the job; None outside of Slurm."""
    return os.environ.get("SLURM_JOB_ID") or None


def time_left() -> float:
    """Seconds until the job must end; infinite outside of Slurm, without a limit, or where Slurm does not answer."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")  # seconds since 1970; older versions of Slurm do not tell
    if end.isdecimal():
        left = int(end) - time.time()
        return left if left > 0 else math.inf  # a job that still runs is not over: another one left the variable
    number = job()
    if number is None:
        return math.inf
    try:
        return parse_time(_ask("squeue", "--noheader", "--job", number, "--format", "%L"))
    except (OSError, subprocess.SubprocessError):
        return math.inf


def parse_time(text: str) -> float:
    """Seconds in Slurm's ``[days-][[hours:]minutes:]seconds``; infinite for "UNLIMITED" and what else is no time."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if found is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def requeue() -> None:
    """Asks Slurm to run this very job again, as soon as there is room: whoever waits for the job goes on waiting.

    Slurm ends what is left of the job then. Raises UserError where it refuses.
    """
    try:
        _ask("scontrol", "requeue", job() or "")
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        raise UserError(f"job {job()}: Slurm does not run it again ({reason}); start the workflow again") from None


def on_each_node(command: list[str], nodes: int, gpus: int, threads: int) -> list[str]:
    """The command line that starts ``command`` once on each of the job's nodes and ends them all when one fails.

    gpus, threads: of each node.
    """
    if job() is None:
        raise UserError(f"{nodes} nodes need a job of Slurm; start this with `snakemake --profile slurm`")
    spread = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    share = [f"--gpus-per-node={gpus}", f"--cpus-per-task={threads}", "--cpu-bind=none"]
    return ["srun", *spread, *share, "--kill-on-bad-exit=1", "--label", *command]


def rendezvous() -> list[str]:
    """torchrun's options for this one of several nodes, which srun started.

    The first node waits for the others at the address that Slurm started them from, and a port that is the job's own.
    """
    environment = os.environ
    try:
        nodes, node = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_NODEID"])
        first, step = environment["SLURM_LAUNCH_NODE_IPADDR"], environment["SLURM_STEP_ID"]
        number = int(environment["SLURM_JOB_ID"])
    except (KeyError, ValueError) as error:
        raise UserError(f"not a step of Slurm ({error}); use `edm launch --nodes N`") from None
    port = PORTS[number * 7 % len(PORTS)]
    return [f"--nnodes={nodes}", f"--node-rank={node}", "--rdzv-backend=c10d", f"--rdzv-id={job()}.{step}",
            f"--rdzv-endpoint={first}:{port}", f"--rdzv-conf=is_host={int(node == 0)}"]  # fmt: skip


def _ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
