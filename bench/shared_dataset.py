"""Memory and time of processes that read the same dataset at once, as the ranks of a training run do.

    python bench/shared_dataset.py [--images N] [--resolution R] [--processes N ...]

Writes an archive of made-up pictures, then starts processes that read it and every pixel: with the shared copy
(edm/data/maps.py), again when it exists, and each with a copy of its own, as before. Prints JSON: seconds until all
have read it, and their memory together: the sum of their proportional set sizes, in multiples of the images' bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

READER = """
import sys, time
import numpy as np
from edm.data import archive
begun = time.monotonic()
archive.SHARED = 0
found = archive.read_archive(sys.argv[1])
seconds = time.monotonic() - begun
total = sum(int(part.sum(dtype=int)) for part in np.array_split(found.images, 100))
print(seconds, total, flush=True)
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


def together(path: Path, processes: int, **environment: str) -> dict[str, float]:
    """Starts that many readers; their slowest, the time for all, and their memory while all hold the images."""
    begun = time.monotonic()
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         stderr=subprocess.DEVNULL, env={**os.environ, **environment})
        for _ in range(processes)
    ]  # fmt: skip
    found = [reader.stdout.readline().split() for reader in readers]
    whole = time.monotonic() - begun
    assert len({total for _, total in found}) == 1
    memory = 0
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
        memory += int(reader.stdout.readline()) * 1024
    for reader in readers:
        reader.communicate("\n")
    return {
        "read (s)": round(max(float(s) for s, _ in found), 2),
        "with every pixel (s)": round(whole, 2),
        "bytes": memory,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--resolution", type=int, default=64)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.zip"
        made_up(path, args.images, args.resolution)
        os.utime(path, (0, 0))
        size = args.images * 3 * args.resolution**2
        report = {
            "images": args.images,
            "bytes of their pixels": size,
            "cores": len(os.sched_getaffinity(0)),
            "runs": [],
        }
        for processes in args.processes:
            cache = Path(scratch) / f"cache-{processes}"
            kinds = {"shared, first": {"EDM_CACHE": str(cache)}, "shared, again": {"EDM_CACHE": str(cache)},
                     "own copies": {"EDM_CACHE_GB": "0"}}  # fmt: skip
            for kind, environment in kinds.items():
                run = together(path, processes, **environment)
                run["memory / pixels"] = round(run.pop("bytes") / size, 2)
                report["runs"].append({"processes": processes, "kind": kind, **run})
                print(json.dumps(report["runs"][-1]), file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
