"""Starts a command in several processes with torchrun, and returns their exit status.

    python -m edm.cluster.launch --nproc-per-node 4 -m edm train …

Options are torchrun's; ``--slurm`` adds the rendezvous options for the nodes of a Slurm step. torchrun alone turns
every failure into exit status 1, including preemption (75), and SIGUSR1 kills it before it can stop its processes.
"""

import sys
from typing import TYPE_CHECKING

from edm.cluster import slurm
from edm.errors import PREEMPTED, UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"  # passed on; processes still running after 30 s are killed


def main(arguments: list[str]) -> int:
    """Runs the processes. Returns 0, the status of the first failure (128 + its signal), or 75 if asked to stop.

    Prints the first failure on stderr.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        nodes = slurm.rendezvous() if "--slurm" in arguments else []
        own = [argument for argument in arguments if argument != "--slurm"]
        run.run(run.parse_args(["--signals-to-handle", SIGNALS, *nodes, *own]))  # the caller's come last and win
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SignalException:
        return PREEMPTED
    except ChildFailedError as error:
        status = status_of(error.get_first_failure()[1])
        if status != PREEMPTED:
            print(error, file=sys.stderr)
        return status
    return 0


def status_of(failure: "ProcessFailure") -> int:
    """The exit status that stands for a failed process: its own, 128 + its signal, or 1 after an exception.

    A process that raised an exception may still be ended by a signal while it leaves: slowly, or because a connection
    to another process broke.
    """
    if failure.exitcode > 0:
        return failure.exitcode
    raised = isinstance(failure.error_file_data["message"], dict)  # as torchrun records an exception
    return 1 if raised else 128 - failure.exitcode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
