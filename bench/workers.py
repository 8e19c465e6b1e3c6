"""Variants in processes of their own, which take their turns: each has its own memory, and its own way with it."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Worker:
    """This benchmark again, for one variant (``--only NAME``). ``first``: seconds of what it does before its turns.

    copies: so many at once, all of the same, with a thread each; 0 for one of as many threads as torch takes.
    """

    def __init__(self, name: str, copies: int = 0):
        own = [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:], "--only", name]
        environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # what compiles, compiles here
        if copies:
            environment["OMP_NUM_THREADS"] = "1"
        self._processes = [
            subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(copies or 1)
        ]
        self.name, self.first = name, max(self._answers())

    def __call__(self, *what: Any) -> float:
        """Its turn: the seconds until all copies had done it."""
        for process in self._processes:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        return max(self._answers())

    def end(self) -> int:
        """Ends the processes; the MiB that each had at most, summed."""
        for process in self._processes:
            process.stdin.close()
        peak = int(sum(self._answers()))
        for process in self._processes:
            process.wait()
        return peak

    def _answers(self) -> list[float]:
        return [self._answer(process) for process in self._processes]

    def _answer(self, process: subprocess.Popen) -> float:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"variant {self.name} ended with status {process.wait()}")
        return float(line)


def serve(first: float, turn: Callable[..., float], device) -> int:
    """The other side: takes its turns until there are no more.

    The variants may not fit on a GPU together. So each leaves it to the others between its turns, and begins a turn
    with one that does not count, in which it takes its memory again.
    """
    import torch

    shared = device.type == "cuda"
    answer = first
    while True:
        if shared:
            torch.cuda.empty_cache()
        print(answer, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        what = json.loads(line)
        if shared:
            turn(*what)
        answer = turn(*what)
    print(_peak(device), flush=True)
    return 0


def _peak(device) -> int:
    """MiB that this process held at most: of the GPU, else of memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
