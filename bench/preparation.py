"""Time and memory to prepare a dataset.

    python bench/preparation.py [--images N] [--side PIXELS] [--resolution PIXELS] [--rounds N]

Creates synthetic photographs in the layout of ImageNet (JPEG files of many sizes, some of them grey, in a folder per
class), and prepares them by turns with `edm.data.prepare` in one process and in one per core, and with a plain loop:
open, crop the centre, resize, save as PNG into a zip. Each runs in a fresh process; seconds exclude imports.
Prints images per second, peak memory, and whether all pixels equal those of the loop.
"""

import argparse
import io
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from common import by_turns, in_process, report, summary

CLASSES = 10
LOOP = "plain loop"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="number of photographs (default 4000)")
    parser.add_argument("--side", type=int, default=96, help="minimum side of a photograph in pixels (default 96)")
    parser.add_argument("--resolution", type=int, default=64, help="resolution of the dataset (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--output", help="JSON file (default bench/results/preparation.json)")
    parser.add_argument("--only", nargs=3, metavar=("WORKERS", "FOLDER", "ARCHIVE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        workers, folder, archive = args.only
        print(json.dumps(prepared(int(workers), Path(folder), Path(archive), args.images, args.resolution)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name), args)


def compare(folder: Path, args: argparse.Namespace) -> int:
    in_process("-c", f"import sys; from edm.data.prepare.made_up import made_up; sys.stdout = sys.stderr; "
                     f"made = made_up('imagenet', sys.argv[1], {args.images}, side={args.side}, classes={CLASSES}); "
                     "import json; print(json.dumps(made), file=sys.__stdout__)", folder / "photographs")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    workers = {LOOP: 0, "edm, 1 process": 1, f"edm, {max(cores, 2)} processes": max(cores, 2)}
    archives = {name: folder / f"{number}.zip" for name, number in workers.items()}
    found: dict[str, list[dict]] = {name: [] for name in workers}

    def turn(name: str) -> float:
        archives[name].unlink(missing_ok=True)
        sizes = ["--images", str(args.images), "--resolution", str(args.resolution)]
        only = ["--only", str(workers[name]), folder / "photographs", archives[name]]
        found[name].append(in_process(__file__, *sizes, *only))
        return found[name][-1]["seconds"]

    seconds = by_turns({name: lambda name=name: turn(name) for name in workers}, args.rounds)
    rows = []
    for name in workers:
        rows.append({
            "variant": name,
            "images/s": args.images / statistics.median(seconds[name]),
            **summary(seconds[name]),
            "peak memory (MiB)": max(one["memory"] for one in found[name]),
            "of the largest worker": max(one["worker"] for one in found[name]),
            "archive (MB)": archives[name].stat().st_size / 1e6,
            "images unlike the loop's": unlike(archives[name], archives[LOOP]),
        })  # fmt: skip
    settings = {name: getattr(args, name) for name in ("images", "side", "resolution", "rounds")} | {"classes": CLASSES}
    report("preparation", "How long does the preparation of a dataset take, and how much memory? (seconds)",
           rows, settings, args.output)  # fmt: skip
    return 1 if any(row["images unlike the loop's"] for row in rows) else 0


def prepared(workers: int, folder: Path, archive: Path, images: int, resolution: int) -> dict[str, float]:
    """Prepares the photographs in this process and returns time and memory. 0 workers: the plain loop."""
    if workers:
        from edm.data.prepare import prepare

        stated = {"images": images, "classes": min(CLASSES, images), "resolution": resolution, "channels": 3}
        run = lambda: prepare("imagenet", archive, folder, **stated, workers=workers)
    else:
        from PIL import Image  # noqa: F401 (excludes imports from the time)

        run = lambda: plain_loop(folder, archive, resolution)
    begun = time.perf_counter()
    run()
    seconds = time.perf_counter() - begun
    own, worker = (resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "memory": own, "worker": worker}


def plain_loop(folder: Path, archive: Path, resolution: int) -> None:
    from PIL import Image

    with zipfile.ZipFile(archive, "w") as file:
        for i, path in enumerate(sorted(folder.rglob("*.JPEG"))):
            image = Image.open(path).convert("RGB")
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            file.writestr(f"{i:08d}.png", buffer.getvalue())


def unlike(first: Path, second: Path) -> int:
    """Number of images, compared in order, that differ in any pixel or exist in only one of two archives."""
    from PIL import Image

    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        names = [sorted(name for name in archive.namelist() if name.endswith(".png")) for archive in (one, other)]
        pixels = lambda archive, name: Image.open(io.BytesIO(archive.read(name))).convert("RGB").tobytes()
        different = sum(pixels(one, a) != pixels(other, b) for a, b in zip(*names, strict=False))
    return different + abs(len(names[0]) - len(names[1]))


if __name__ == "__main__":
    sys.exit(main())
