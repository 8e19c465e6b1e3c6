"""The Slurm job of this process: time left, nodes, requeueing. Does not need Slurm's accounting."""

import math
import os
import re
import subprocess
import time

from edm.errors import UserError, one_line

PATIENCE = 30.0  # seconds that Slurm may take to answer
OVERDUE = 60.0  # seconds past its limit in which a job is being ended
PORTS = range(20000, 32768)  # for the processes of a job to find each other; Linux gives connections those above


def job() -> str | None:
    """The job number; None outside Slurm."""
    return os.environ.get("SLURM_JOB_ID") or None


def require_slurm() -> None:
    """Raises UserError unless Slurm's commands are on this machine and its controller answers."""
    try:
        _ask("sbatch", "--version")
        _ask("squeue", "--me", "--noheader")
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"Slurm does not answer here ({_reason(error)}); start Snakemake on a machine that submits jobs, such as "
            "the login node, or without --profile slurm"
        ) from None


def time_left() -> float:
    """Seconds until the job's time limit, 0 past it; infinite outside Slurm, without a limit, or without an answer."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")  # seconds since 1970; older versions of Slurm do not set it
    if end.isdecimal():
        left = int(end) - time.time()
        return max(left, 0.0) if left > -OVERDUE else math.inf  # a time further in the past comes from another job
    number = job()
    if number is None:
        return math.inf
    try:
        answer = _ask("squeue", "--noheader", "--job", number, "--format", "%L")
        return 0.0 if answer.strip() == "INVALID" else parse_time(answer)  # so squeue prints a negative time
    except (OSError, subprocess.SubprocessError):
        return math.inf


def parse_time(text: str) -> float:
    """Seconds in Slurm's ``[days-][[hours:]minutes:]seconds``; infinite for "UNLIMITED" and any other text."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if found is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def requeue() -> None:
    """Asks Slurm to requeue this job; programs that wait for the job keep waiting.

    Slurm then ends the job's remaining processes. Raises UserError if Slurm refuses.
    """
    try:
        _ask("scontrol", "requeue", job() or "")
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"job {job()}: Slurm did not requeue it ({_reason(error)}); start the workflow again") from None


def on_each_node(command: list[str], nodes: int, gpus: int, threads: int) -> list[str]:
    """The srun command line that runs ``command`` once on each of the job's nodes and ends all when one fails.

    gpus, threads: per node.
    """
    if job() is None:
        raise UserError(f"{nodes} nodes need a job of Slurm; start this with `snakemake --profile slurm`")
    spread = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    share = [f"--gpus-per-node={gpus}", f"--cpus-per-task={threads}", "--cpu-bind=none"]
    return ["srun", *spread, *share, "--kill-on-bad-exit=1", "--label", *command]


def rendezvous() -> list[str]:
    """torchrun's rendezvous options for this node of a Slurm step.

    The first node listens at the address from which Slurm launched the step, on a port derived from the job number.
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


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Why a command of Slurm failed: the last line that it printed, if it printed one."""
    printed = (getattr(error, "stderr", None) or "").strip().splitlines()
    return one_line(printed[-1] if printed else error)
