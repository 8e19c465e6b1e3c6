"""Starts a command on many processes, as torchrun does, and ends with the status that they end with.

    python -m edm.cluster.launch --nproc-per-node 4 -m edm train …

Options are torchrun's; ``--slurm`` stands for those by which the nodes of a step of Slurm find each other. By itself
torchrun makes every failure a 1, stops that are to be continued (75) among them, and dies of SIGUSR1 without telling
its processes.
"""

import sys

from edm.cluster import slurm
from edm.errors import PREEMPTED, UserError

SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"  # passed on; what does not end within 30 s of one is killed


def main(arguments: list[str]) -> int:
    """Runs the processes. Returns 0, the status of the first that failed (128 + its signal), or 75 where asked to stop.

    What failed first is named on stderr.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        nodes = slurm.rendezvous() if "--slurm" in arguments else []
        own = [argument for argument in arguments if argument != "--slurm"]
        run.run(run.parse_args(["--signals-to-handle", SIGNALS, *nodes, *own]))  # the caller's own come later and win
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SignalException:
        return PREEMPTED
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status != PREEMPTED:
            print(error, file=sys.stderr)
        return status if status > 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
