"""``edm watch``: what runs, what waits, and how long it will take."""

import sys
import time
from argparse import Namespace

from edm.commands.common import Commands, from_params, load_params, seconds


def add(command: Commands) -> None:
    sub = command(
        "watch", watch, "show running and waiting steps of an experiment",
        "Show the steps of an experiment that are not done: training runs with their progress, rate and loss, "
        "interrupted and failed steps, and the time left. Reads only sidecars, logs and journals, so it works on every "
        "machine that sees them, also while jobs wait in Slurm's queue. Ends when all steps are done, or with Ctrl-C.",
    )  # fmt: skip
    sub.add_argument(
        "experiment", nargs="?", help="experiment, report, REPORT/TABLE or file (default: `run` of params.yaml)"
    )
    sub.add_argument("--once", action="store_true", help="print the present state and stop")
    sub.add_argument("--every", type=seconds, default=5, metavar="S", help="seconds between two looks (default 5)")
    from_params(sub)


def watch(args: Namespace) -> int:
    from edm.chain.jobs import Chain
    from edm.chain.watching import as_text, look

    params = load_params(args, whole=True)
    names = [args.experiment] if args.experiment else params.run
    clear = "\x1b[H\x1b[J" if sys.stdout.isatty() and not args.once else ""
    try:
        while True:
            begun = time.monotonic()
            chain = Chain(params)  # anew: downloads may have arrived
            snapshot = look(chain, [path for name in names for path in chain.targets(name)])
            print(f"{clear}{as_text(', '.join(names), snapshot)}", flush=True)
            if args.once or not snapshot.sights:
                return 0
            time.sleep(max(args.every, 5 * (time.monotonic() - begun)))  # a large chain takes seconds to look at
    except KeyboardInterrupt:
        return 0
