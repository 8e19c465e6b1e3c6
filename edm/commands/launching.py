"""One command on one process or on many, on this machine or on the nodes of a job of Slurm."""

import os
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from typing import TYPE_CHECKING

from edm.cluster import slurm
from edm.cluster.gpus import gpu_name, own
from edm.cluster.preemption import SIGNALS
from edm.commands.common import say
from edm.errors import PREEMPTED, UserError

if TYPE_CHECKING:
    from edm.chain.provenance import Started


def launch(args: Namespace) -> int:
    """Returns the status of the command, having asked Slurm to continue it where it stopped on request."""
    command = [part for part in args.rest if part != "--"] if args.rest[:1] == ["--"] else args.rest
    if not command:
        raise UserError("launch: name the command to start, such as: edm launch --processes 2 -- train …")
    if args.gpus is not None:
        args.processes = max(args.gpus, 1)
    if args.processes % args.nodes:
        raise UserError(f"launch: {args.processes} processes cannot be shared evenly by {args.nodes} nodes")
    with nullcontext([]) if args.gpus is None or args.nodes > 1 else own(args.gpus) as handles:
        step = _start(args)  # when it has what it needs
        status = _run(_command_line(command, args), max(1, args.threads * args.nodes // args.processes), handles)
        if status == 0 and step is not None:
            step.finish(processes=args.processes, gpu=_gpu(step))
    if status == PREEMPTED and slurm.job() is not None:
        slurm.requeue()
        say(f"job {slurm.job()} goes back to Slurm's queue, to be continued")
    return status


def _start(args: Namespace) -> "Started | None":
    """The step that the command is; params.yaml may be edited while it runs."""
    if args.step is None:
        return None
    from edm import params
    from edm.chain.jobs import Chain
    from edm.chain.provenance import start

    return start(Chain(params.load(args.params)), args.step, args.digest or None)


def _gpu(step: "Started") -> str | None:
    """The kind of GPU that the step computed on, one per process; None for a CPU."""
    from edm.chain.jobs import COMPUTING

    merges = bool(step.job.parts)
    return gpu_name() if step.job.rule in COMPUTING and not merges else None


def adopt(args: Namespace) -> None:
    """Steps whose files are kept although something about them has changed."""
    from edm import params
    from edm.chain.jobs import Chain
    from edm.chain.provenance import adopt as adopt_steps

    chain = Chain(params.load(args.params, whole=True))
    jobs = adopt_steps(chain, [path for target in args.targets for path in chain.targets(target)])
    say("\n".join(f"adopted: {job.name}" for job in jobs) or "nothing to adopt: no step with files is stale")


def _command_line(command: list[str], args: Namespace) -> list[str]:
    edm, per_node = ["-m", "edm", *command], args.processes // args.nodes
    torchrun = [sys.executable, "-m", "edm.cluster.launch", f"--nproc-per-node={per_node}"]
    if args.nodes > 1:
        return slurm.on_each_node([*torchrun, "--slurm", *edm], args.nodes, per_node, args.threads)
    if args.processes > 1:
        return [*torchrun, "--standalone", *edm]
    return [sys.executable, *edm]


def _run(command: list[str], threads: int, handles: list[int]) -> int:
    """The status of a command that gets every signal that this process gets; 128 + the signal that ended it.

    handles: open files that it is to keep open, should it outlive this process.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is someone to pass them on to
    hear_again = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    process = subprocess.Popen(command, env=environment, preexec_fn=hear_again, pass_fds=handles)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: process.send_signal(number))
    hear_again()
    status = process.wait()
    return status if status >= 0 else 128 - status
