"""A driver of GPUs that are not there, and a job that takes some of them.

    python made_up_gpus.py HOW_MANY FOLDER GPUS SECONDS

says "began" when it has its GPUs, and in the end which, from when and until when.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from edm.cluster import gpus


def driver(count):
    """In place of pynvml."""
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda number: range(count)[number],
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetName=lambda handle: "all of a kind",
        nvmlDeviceGetHandleByUUID=str,
    )


if __name__ == "__main__":
    sys.modules["pynvml"], gpus.FOLDER = driver(int(sys.argv[1])), Path(sys.argv[2])
    with gpus.own(int(sys.argv[3])):
        begin = time.monotonic()
        print("began", flush=True)
        time.sleep(float(sys.argv[4]))
        print(os.environ[gpus.VISIBLE], begin, time.monotonic())
