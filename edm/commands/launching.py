"""Start a command as one or several processes, on this machine or on the nodes of a Slurm job."""

import argparse
import os
import signal
import sys
import tempfile
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from edm.cluster import children, slurm
from edm.cluster.preemption import KEPT
from edm.commands import FILES
from edm.commands.common import MADE_FROM, Commands, count, counted, from_params, load_params, say
from edm.errors import PREEMPTED, UserError

if TYPE_CHECKING:
    from edm.chain.provenance import Started

#: Seconds before a time limit in which a request to stop comes from that limit: the rules ask Slurm for 120, Slurm may
#: be a minute early, and processes take some time to stop.
NEAR = 300.0
#: What the steps of a workflow import and takes long, for the server that forks them.
IMPORTED = (*(f"edm.commands.{file}" for file in FILES), "edm.chain.provenance", "edm.training.loop",
            "edm.evaluation.jobs", "edm.report.panels", "scipy.linalg", "jsonschema")  # fmt: skip


def add(command: Commands) -> None:
    sub = command(
        "launch", launch, "start one of these commands, as several processes",
        "Start a command as several processes that share its work, on this machine or on the nodes of a Slurm job. All "
        "processes get the signals. If the command stops on request (status 75), a job that `snakemake --profile "
        "slurm` submitted goes back to the queue and resumes later.",
    )  # fmt: skip
    processes = sub.add_mutually_exclusive_group()
    processes.add_argument("--processes", type=count, default=1, help="total on all nodes (default 1)")
    processes.add_argument(
        "--gpus", type=lambda text: 0 if text == "0" else count(text), metavar="N",
        help="instead: reserve this many free GPUs, one process each; wait until they are free. 0: CPUs",
    )  # fmt: skip
    sub.add_argument("--nodes", type=count, default=1, help="nodes of the Slurm job (default 1)")
    sub.add_argument("--threads", type=count, default=1, help="CPUs on each node (default 1)")
    sub.add_argument(
        "--requeue", action="store_true",
        help="if the command stops on request, other than by Ctrl-C, requeue its Slurm job; only for a job that runs "
        "nothing else",
    )  # fmt: skip
    sub.add_argument("--step", help="step of the chain that the command performs, such as 'train digits/vp-F'")
    sub.add_argument("--digest", help="digest of the step's planned specification")
    sub.add_argument("--fetched", action="append", default=[], metavar="FILE", help="file downloaded since the plan")
    sub.add_argument("--params", default="params.yaml", help="params file (default params.yaml)")
    sub.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="such as: -- train --data …")

    sub = command(
        "adopt", adopt, "mark the files of stale steps as up to date",
        "Mark existing files as up to date although their settings or code changed. Use it only after a change that "
        "does not affect the results. Steps without files stay as they are.",
    )  # fmt: skip
    sub.add_argument("targets", nargs="+", help="report, experiment, REPORT/TABLE, REPORT/FIGURE, or a file")
    from_params(sub)

    sub = command(
        "clean", clean, "list, or remove, what steps left that params.yaml no longer names",
        "List the files of removed configurations, experiments and grids: those that a step made, as its record in "
        "steps/ says, and that no step of params.yaml makes any more. Files that were changed since stay.",
    )  # fmt: skip
    sub.add_argument("--remove", action="store_true", help="remove them; without it, nothing is removed")
    from_params(sub)

    sub = command(
        "digests", digests, "write the digest files that the stages of dvc.yaml depend on",
        "Write steps/digests/STAGE/NAME.json: the digest of every step's specification. DVC runs a stage when its file "
        "changes.",
    )  # fmt: skip
    sub.add_argument("--datasets", nargs="*", default=[], metavar="NAME", help="datasets of the stage `data`")
    sub.add_argument("--experiments", nargs="*", default=[], metavar="NAME", help="experiments of all other stages")
    from_params(sub)


def launch(args: Namespace) -> int:
    """Runs the command and returns its status. If it stops on request, asks Slurm to requeue the job.

    Not if a time limit came before the command had finished any part: the next attempt would end in the same way.

    ``--requeue`` states that the Slurm job runs nothing else: the rules pass it only in the jobs that Snakemake
    submitted. An interactive job or the user's script may run other commands, too. Ctrl-C does not requeue.
    """
    from edm.cluster.gpus import own

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
        step, plugins = _start(args)  # only now that it has its resources
        threads = max(1, args.threads * args.nodes // args.processes)
        made_from = step.made_from if step else ""
        loading = [word for plugin in plugins for word in ("--plugins", plugin)]
        status, heard, kept = _run(_command_line([*loading, *command], args), threads, handles, made_from)
        if status == 0 and step is not None:
            step.finish(processes=args.processes, gpu=_gpu(step))
    if status - 128 in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS):
        name = signal.Signals(status - 128).name
        reason = "by hand, or by the system because the memory ended" if status - 128 == signal.SIGKILL else "a crash"
        say(f"{command[0]}: ended by {name} ({reason}); nothing is half-written, start it again")
    if status == PREEMPTED and args.requeue and slurm.job() is not None and signal.SIGINT not in heard:
        if not kept and slurm.time_left() < NEAR:
            say(f"{command[0]}: the time limit came before any part was finished, so job {slurm.job()} would repeat "
                "this attempt and does not go back to the queue; state a longer runtime in slurm/config.yaml, or give "
                "a job less work (one_job_per, shards in params.yaml)")  # fmt: skip
            return status
        slurm.requeue()
        say(f"job {slurm.job()} goes back to Slurm's queue and resumes later")
    return status


def _start(args: Namespace) -> "tuple[Started | None, list[str]]":
    """The step that the command performs, and the plugins that every process of it loads.

    Read before it runs, since the user may edit params.yaml during the run.
    """
    if args.step is None:
        return None, args.plugins
    from edm.chain.jobs import Chain
    from edm.chain.provenance import start

    params = load_params(args, planned=True)
    plugins = list(dict.fromkeys([*args.plugins, *params.plugin_paths]))
    return start(Chain(params), args.step, args.digest or None, args.fetched), plugins


def _gpu(step: "Started") -> str | None:
    """The type of GPU of the step, one per process; None for a CPU."""
    from edm.chain.rules import RULES
    from edm.cluster.gpus import gpu_name

    merges = bool(step.job.parts)
    return gpu_name() if RULES[step.job.rule].computes and not merges else None


def adopt(args: Namespace) -> None:
    """Marks the files of stale steps as up to date."""
    from edm.chain.jobs import Chain
    from edm.chain.provenance import adopt as adopt_steps

    chain = Chain(load_params(args, whole=True))
    jobs = adopt_steps(chain, [path for target in args.targets for path in chain.targets(target)])
    say("\n".join(f"adopted: {job.name}" for job in jobs) or "nothing to adopt: no step with files is stale")


def clean(args: Namespace) -> None:
    """Lists what steps left that params.yaml no longer names; with ``--remove``, removes it."""
    from edm.chain.jobs import Chain
    from edm.chain.leftovers import leftovers, require_idle

    if args.remove:
        require_idle()
    total, kept = 0, 0
    for left in leftovers(Chain(load_params(args, whole=True))):
        size = left.size
        total, kept = total + size, kept + len(left.changed)
        print(f"{left.name}: {counted(len(left.files), 'file')}, {size:,} bytes")
        for path in left.changed:
            print(f"  kept: {path} was changed after the step made it")
        if args.remove:
            left.remove()
    if args.remove:
        say(f"removed {total:,} bytes")
    else:
        say(f"{total:,} bytes; nothing was removed: `edm clean --remove` removes them" if total or kept else
            "nothing to remove: params.yaml names every step that left files")  # fmt: skip


def digests(args: Namespace) -> None:
    """Writes the digest files that the stages of dvc.yaml depend on."""
    from edm.chain.digests import not_watched, write_digests
    from edm.chain.jobs import Chain

    sources = write_digests(Chain(load_params(args, whole=True)), args.datasets, args.experiments)
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


def _run(command: list[str], threads: int, handles: list[int], made_from: str) -> tuple[int, set[int], bool]:
    """Runs a command and forwards every signal to it. Returns its status, those signals, whether it kept finished work.

    The status is 128 + the signal that ended the command, if one did.

    handles: open files that the command keeps open if it outlives this process. made_from: of its step, or "".
    """
    with tempfile.NamedTemporaryFile(prefix="edm-kept-") as told:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), MADE_FROM: made_from, KEPT: told.name}
        status, heard = children.run(command, environment, handles)
        return status, heard, os.path.getsize(told.name) > 0
