"""Starts a command on many processes, as torchrun does, and ends with the status that they end with.

    python -m edm.launch --nproc-per-node 4 -m edm train …

Options are torchrun's. By itself torchrun makes every failure a 1, stops that are to be continued (75) among them,
and dies of SIGUSR1 without telling its processes.
"""

import sys

from edm.errors import PREEMPTED

SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"  # passed on; what does not end within 30 s of one is killed


def main(arguments: list[str]) -> int:
    """Runs the processes. Returns 0, the status of the first that failed (128 + its signal), or 75 where asked to stop.

    What failed first is named on stderr.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(["--signals-to-handle", SIGNALS, *arguments]))  # the caller's own come later and win
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
