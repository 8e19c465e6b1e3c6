"""One command on one process or on many, on this machine or on the nodes of a job of Slurm."""

import argparse
import os
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from edm.cluster import slurm
from edm.cluster.gpus import gpu_name, own
from edm.cluster.preemption import SIGNALS
from edm.commands.common import MADE_FROM, Commands, count, from_params, say
from edm.errors import PREEMPTED, UserError

if TYPE_CHECKING:
    from edm.chain.provenance import Started


def add(command: Commands) -> None:
    sub = command(
        "launch", launch, "start one of these commands, as several processes",
        "Start a command as several processes that share its work, on this machine or on the nodes of a job of Slurm. "
        "Signals reach all of them. A job that `snakemake --profile slurm` submitted goes back to the queue where the "
        "command stops because it was asked to (status 75), and continues later.",
    )  # fmt: skip
    processes = sub.add_mutually_exclusive_group()
    processes.add_argument("--processes", type=count, default=1, help="on all nodes together (default 1)")
    processes.add_argument(
        "--gpus", type=lambda text: 0 if text == "0" else count(text), metavar="N",
        help="instead: a process for each of so many GPUs that no other such command has; waits for them. 0: on CPUs",
    )  # fmt: skip
    sub.add_argument("--nodes", type=count, default=1, help="nodes of the job of Slurm (default 1)")
    sub.add_argument("--threads", type=count, default=1, help="CPUs on each node (default 1)")
    sub.add_argument(
        "--requeue", action="store_true",
        help="where the command stops because it was asked to, by other means than Ctrl-C, put the job of Slurm that "
        "this runs in back into the queue; only for a job that runs nothing else",
    )  # fmt: skip
    sub.add_argument("--step", help="the step of the chain that this is, such as 'train digits/vp-F'")
    sub.add_argument("--digest", help="of the specification that the step was planned with")
    sub.add_argument("--fetched", action="append", default=[], metavar="FILE", help="fetched since: not part of it")
    sub.add_argument("--params", default="params.yaml", help="params file (default params.yaml)")
    sub.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="such as: -- train --data …")

    sub = command(
        "adopt", adopt, "keep the files of steps although something about them has changed",
        "Take the files of stale steps, as far as they are there, for what would be made now: for whoever knows that a "
        "change makes no difference. What has no files is left as it is.",
    )  # fmt: skip
    sub.add_argument("targets", nargs="+", help="report, experiment, REPORT/TABLE, REPORT/FIGURE, or a file")
    from_params(sub)

    sub = command(
        "digests", digests, "write what the stages of dvc.yaml depend on",
        "Write steps/digests/STAGE/NAME.json: the digest of every step's specification. DVC runs a stage when its file "
        "changes.",
    )  # fmt: skip
    sub.add_argument("--datasets", nargs="*", default=[], metavar="NAME", help="datasets of the stage `data`")
    sub.add_argument("--experiments", nargs="*", default=[], metavar="NAME", help="experiments of all other stages")
    from_params(sub)


def launch(args: Namespace) -> int:
    """Returns the status of the command, having asked Slurm to continue it where it stopped on request.

    ``--requeue`` says that the job of Slurm is this command's own: the rules give it in the jobs that Snakemake
    submitted. In any other (an interactive one, the user's own script) more may run than this. Ctrl-C asks for an end.
    """
    command = [part for part in args.rest if part != "--"] if args.rest[:1] == ["--"] else args.rest
    if not command:
        raise UserError("launch: name the command to start, such as: edm launch --processes 2 -- train …")
    if args.gpus is not None:
        args.processes = max(args.gpus, 1)
    if args.processes % args.nodes:
        raise UserError(f"launch: {args.processes} processes cannot be shared evenly by {args.nodes} nodes")
    owned: AbstractContextManager[list[int]] = nullcontext([])
    if args.gpus is not None and args.nodes <= 1:
        owned = own(args.gpus)
    with owned as handles:
        step = _start(args)  # when it has what it needs
        threads = max(1, args.threads * args.nodes // args.processes)
        made_from = step.made_from if step else ""
        status, heard = _run(_command_line(command, args), threads, handles, made_from)
        if status == 0 and step is not None:
            step.finish(processes=args.processes, gpu=_gpu(step))
    if status == PREEMPTED and args.requeue and slurm.job() is not None and signal.SIGINT not in heard:
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

    return start(Chain(params.load(args.params)), args.step, args.digest or None, args.fetched)


def _gpu(step: "Started") -> str | None:
    """The kind of GPU that the step computed on, one per process; None for a CPU."""
    from edm.chain.rules import RULES

    merges = bool(step.job.parts)
    return gpu_name() if RULES[step.job.rule].computes and not merges else None


def adopt(args: Namespace) -> None:
    """Steps whose files are kept although something about them has changed."""
    from edm import params
    from edm.chain.jobs import Chain
    from edm.chain.provenance import adopt as adopt_steps

    chain = Chain(params.load(args.params, whole=True))
    jobs = adopt_steps(chain, [path for target in args.targets for path in chain.targets(target)])
    say("\n".join(f"adopted: {job.name}" for job in jobs) or "nothing to adopt: no step with files is stale")


def digests(args: Namespace) -> None:
    """The files that the stages of dvc.yaml depend on."""
    from edm import params
    from edm.chain.digests import not_watched, write_digests
    from edm.chain.jobs import Chain

    sources = write_digests(Chain(params.load(args.params, whole=True)), args.datasets, args.experiments)
    for path in not_watched(sources):
        say(f"warning: {path}: DVC misses changes of it; list it in dvc.yaml under `deps` of the stage `digests`")


def _command_line(command: list[str], args: Namespace) -> list[str]:
    edm, per_node = ["-m", "edm", *command], args.processes // args.nodes
    torchrun = [sys.executable, "-m", "edm.cluster.launch", f"--nproc-per-node={per_node}"]
    if args.nodes > 1:
        return slurm.on_each_node([*torchrun, "--slurm", *edm], args.nodes, per_node, args.threads)
    if args.processes > 1:
        return [*torchrun, "--standalone", *edm]
    return [sys.executable, *edm]


def _run(command: list[str], threads: int, handles: list[int], made_from: str) -> tuple[int, set[int]]:
    """The status of a command that gets every signal that this process gets, and those signals.

    The status is 128 + the signal that ended it, where one did.

    handles: open files that it is to keep open, should it outlive this process. made_from: of its step, or "".
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), MADE_FROM: made_from}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is someone to pass them on to
    hear_again = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    process, heard = subprocess.Popen(command, env=environment, preexec_fn=hear_again, pass_fds=handles), set()

    def hear(number: int, frame: object) -> None:
        heard.add(number)
        process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, hear)
    hear_again()
    status = process.wait()
    return status if status >= 0 else 128 - status, heard
