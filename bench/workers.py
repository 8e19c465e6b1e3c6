"""Variants in processes of their own, which take their turns: each has its own memory, and its own way with it."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Worker:
    """This benchmark again, for one variant (``--only NAME``). ``first``: seconds of what it does before its turns."""

    def __init__(self, name: str):
        own = [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:], "--only", name]
        self._process = subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name, self.first = name, self._answer()

    def __call__(self, *what: Any) -> float:
        """Its turn: the seconds that it took."""
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Ends the process; the MiB that it had at most."""
        self._process.stdin.close()
        peak = int(self._answer())
        self._process.wait()
        return peak

    def _answer(self) -> float:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"variant {self.name} ended with status {self._process.wait()}")
        return float(line)


def serve(first: float, turn: Callable[..., float], device) -> int:
    """The other side: takes its turns until there are no more."""
    print(first, flush=True)
    for line in sys.stdin:
        print(turn(*json.loads(line)), flush=True)
    print(_peak(device), flush=True)
    return 0


def _peak(device) -> int:
    """MiB that this process held at most: of the GPU, else of memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
