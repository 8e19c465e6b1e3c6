"""Time and memory of the metrics of nearest neighbours, from features to numbers.

    python bench/neighbours.py [--images N] [--reference N] [--dimension F] [--device cuda] [--rounds N] [--whole]
                               [--variants NAME ...]

Synthetic features: N Gaussian vectors on a subspace of 64 dimensions with noise, and as many of the reference.

torch-fidelity    precision and recall, row by row (its option save_cpu_ram), as edm measured them before
edm, the same     precision and recall, in strips
edm, all          precision, recall, density, coverage, AuthPct and memorisation from the same strips

Each runs in a fresh process by turns; peak memory is that of the process, with both sets of features (8 N F bytes).
--whole: also estimates 50,000 × 50,000: time grows with the square of N, so a smaller run is scaled, and marked so.
`--images 50000 --variants "edm, all"` measures it. Each variant prints its numbers as it ends.
"""

import argparse
import json
import resource
import sys
import time
from typing import Any

from common import by_turns, in_process, report, summary

VARIANTS = {"torch-fidelity": (), "edm, the same": ("precision", "recall"),
            "edm, all": ("precision", "recall", "density", "coverage", "authpct", "memorisation")}  # fmt: skip
FULL = 50_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="number of images (default 10000)")
    parser.add_argument("--reference", type=int, help="number of reference images (default: as many)")
    parser.add_argument("--dimension", type=int, default=2048, help="number of features (default 2048)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda or cuda:N (default cpu)")
    parser.add_argument("--whole", action="store_true", help="also estimate 50,000 x 50,000 from this run")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="by default all")
    parser.add_argument("--output", help="JSON file (default bench/results/neighbours.json)")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.reference = args.reference or args.images
    if args.only:
        print(json.dumps(one(args)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    words = [f"--{name}={getattr(args, name)}" for name in ("images", "reference", "dimension", "device")]

    def run(name: str) -> None:
        found[name] = in_process(__file__, *words, "--only", name)
        print(json.dumps({"variant": name, **found[name]}), file=sys.stderr, flush=True)

    by_turns({name: lambda name=name: run(name) for name in args.variants}, args.rounds)
    rows = []
    for name, result in found.items():
        seconds = result.pop("seconds")
        row = {"variant": name, **summary([seconds]), "peak memory (MiB)": result.pop("peak")}
        if args.whole:
            row["50,000 x 50,000 (s), scaled"] = round(seconds * FULL**2 / (args.images * args.reference))
        rows.append(row | {key: value for key, value in result.items() if key in VARIANTS["edm, the same"]})
    settings = {name: getattr(args, name) for name in ("images", "reference", "dimension", "rounds", "device")}
    report("neighbours", "How long do metrics of nearest neighbours take, and in how much memory?", rows, settings,
           args.output, args.device, results=found)  # fmt: skip
    return 0


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory (MiB) of one variant, and its results."""
    import torch

    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(64, args.dimension, generator=generator)
    ours, theirs = (torch.randn(count, 64, generator=generator) @ basis
                    + 0.3 * torch.randn(count, args.dimension, generator=generator)
                    for count in (args.images, args.reference))  # fmt: skip
    start = time.perf_counter()
    if VARIANTS[args.only]:
        from edm.metrics.sets import neighbour_metrics

        found = neighbour_metrics(ours, theirs, VARIANTS[args.only], args.device)
        found.pop("pairs", None)
    else:
        from torch_fidelity.metric_prc import prc_features_to_metric

        found = prc_features_to_metric(ours.to(args.device), theirs.to(args.device), prc_neighborhood=3,
                                       prc_batch_size=10_000, save_cpu_ram=True, verbose=False)  # fmt: skip
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if args.device.startswith("cuda"):
        found["peak of the GPU (MiB)"] = torch.cuda.max_memory_allocated(args.device) >> 20
    return {"seconds": seconds, "peak": peak, **found}


if __name__ == "__main__":
    sys.exit(main())
