"""Worker processes that are forked from this one, and end with it."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


def cores() -> int:
    """Number of cores that this process may use; on a cluster, those of its allocation."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def forked(workers: int) -> Iterator[ProcessPoolExecutor]:
    """That many processes, started immediately: they inherit no file opened later. Killing this process ends them."""
    # Fork where that is safe: a spawned process imports the caller's script, which may lack a main guard.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        # Block Ctrl-C until all are forked: a process that does not ignore it yet would print a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            processes.submit(int).result()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield processes
    finally:
        processes.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Initialises a worker: it ignores Ctrl-C, which the parent handles, and exits with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
