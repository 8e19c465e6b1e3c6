"""Memory and time of processes that read the same dataset at once, as the ranks of a training run do.

    python bench/shared_dataset.py [--images N] [--resolution R] [--processes N ...] [--gloo] [--kinds first again]

Writes an archive of made-up pictures, then starts processes that read it and every pixel: "first" makes the shared copy
(edm/data/maps.py), "again" finds it, and "own" has a copy for each process, as before. With --gloo they are the ranks
of one run, as those of a training run on CPUs. Prints JSON: seconds until all have read it, processor seconds of all,
and their memory together: the sum of their proportional set sizes, in multiples of the images' bytes.

ImageNet-64's size, of which no machine can hold eight copies (35 GB of disk in --scratch, 20 GB of memory):

    python bench/shared_dataset.py --images 1281167 --gloo --kinds first again --scratch FOLDER
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

READER = """
import contextlib, os, sys, time
import numpy as np
from edm.data import archive
if sys.argv[2] == "gloo":
    from edm.cluster.processes import world
    ranks = contextlib.ExitStack()
    ranks.enter_context(world("cpu"))
begun = time.monotonic()
archive.SHARED = 0
found = archive.read_archive(sys.argv[1])
seconds = time.monotonic() - begun
total = sum(int(part.sum(dtype=int)) for part in np.array_split(found.images, 100))
spent = sum(os.times()[:4])  # with the workers that unpacked
print(seconds, total, spent, flush=True)
sys.stdin.readline()
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("Pss:")), flush=True)
sys.stdin.readline()
"""


def made_up(path: Path, images: int, resolution: int) -> None:
    from edm.data.archive import write_archive

    kinds = np.random.default_rng(0).integers(0, 256, (256, 3, resolution, resolution), dtype=np.uint8)

    def each():
        for number in range(images):
            image = kinds[number % 256].copy()
            image[0, 0, :4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
            yield image

    write_archive(path, each(), [number % 1000 for number in range(images)])


def together(path: Path, processes: int, gloo: bool, **environment: str) -> dict[str, float]:
    """Starts that many readers; their slowest, the time for all, and their memory while all hold the images."""
    begun = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_all = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    readers = []
    for rank in range(processes):
        own = {**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} if gloo else {}
        readers += [subprocess.Popen([sys.executable, "-c", READER, path, "gloo" if gloo else "alone"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                     stderr=subprocess.DEVNULL, env={**os.environ, **environment, **own})]  # fmt: skip
    found = [reader.stdout.readline().split() for reader in readers]
    whole = time.monotonic() - begun
    assert len({total for _, total, _ in found}) == 1
    memory = 0
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
        memory += int(reader.stdout.readline()) * 1024
    for reader in readers:
        reader.communicate("\n")
    return {
        "read (s)": round(max(float(s) for s, _, _ in found), 2),
        "with every pixel (s)": round(whole, 2),
        "processor (s)": round(sum(float(spent) for _, _, spent in found), 1),
        "bytes": memory,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--resolution", type=int, default=64)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    options.add_argument("--gloo", action="store_true", help="ranks of one run")
    options.add_argument("--kinds", nargs="+", choices=("first", "again", "own"), default=["first", "again", "own"])
    options.add_argument("--scratch", help="folder for the archive and the copies (default: that of temporary files)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        path = Path(scratch) / "images.zip"
        begun = time.monotonic(), time.process_time()
        made_up(path, args.images, args.resolution)
        os.utime(path, (0, 0))
        size = args.images * 3 * args.resolution**2
        report = {
            "images": args.images,
            "bytes of their pixels": size,
            "cores": len(os.sched_getaffinity(0)),
            "archive written (s, processor s)": [
                round(time.monotonic() - begun[0], 1),
                round(time.process_time() - begun[1], 1),
            ],
            "runs": [],
        }
        for processes in args.processes:
            cache = Path(scratch) / f"cache-{processes}"
            for kind in args.kinds:
                environment = {"EDM_CACHE_GB": "0"} if kind == "own" else {"EDM_CACHE": str(cache)}
                run = together(path, processes, args.gloo, **environment)
                run["memory / pixels"] = round(run.pop("bytes") / size, 2)
                report["runs"].append({"processes": processes, "kind": kind, **run})
                print(json.dumps(report["runs"][-1]), file=sys.stderr, flush=True)
            shutil.rmtree(cache, ignore_errors=True)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
