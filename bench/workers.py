"""Runs each variant in its own process by turns, so that memory and its settings are separate."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Worker:
    """Runs this benchmark in a subprocess for one variant (``--only NAME``). first: seconds of its preparation.

    copies: number of identical single-threaded processes; 0 for one process with torch's default threads.
    """

    def __init__(self, name: str, copies: int = 0):
        own = [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:], "--only", name]
        environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # forces compilation
        if copies:
            environment["OMP_NUM_THREADS"] = "1"
        self._processes = [
            subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(copies or 1)
        ]
        self.name, self.first = name, max(self._answers())

    def __call__(self, *what: Any) -> float:
        """Runs one turn; returns the seconds until all copies have finished."""
        for process in self._processes:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        return max(self._answers())

    def end(self) -> int:
        """Ends the processes; returns the sum of their peak memory in MiB."""
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
    """The subprocess: runs turns until the parent closes the pipe.

    The variants may not fit on a GPU together. Each therefore frees its GPU memory between turns, and begins a turn
    with an untimed run that allocates the memory again.
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
    """Peak memory of this process in MiB: GPU memory if it uses a GPU, else main memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
