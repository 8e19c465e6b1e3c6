"""Compares the loss curves of the optimised and a straightforward implementation of training.

    python bench/loss_curves.py [--data data/digits.zip] [--mimg 0.1] [--compiled] [--device cuda]

Trains configuration F of ``digits`` (or another) with edm's training step and with bench/reference.py, two seeds each.
The difference between two seeds of one variant is the noise; differences between variants are relative to it. Plots
bench/results/loss-NAME.png.
"""

import statistics
import sys
import time
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

from common import RESULTS, ROOT, arguments, report


def main() -> int:
    parser = arguments(__doc__, "digits", "digits")
    parser.add_argument("--data", default=str(ROOT / "data" / "digits.zip"), help="its dataset archive")
    parser.add_argument("--mimg", type=float, default=0.1, help="millions of images (default 0.1)")
    parser.add_argument("--precision", default="fp32", help="precision of the fast variant (default fp32)")
    parser.add_argument("--picture", help="PNG file (default bench/results/loss-NAME.png)")
    args = parser.parse_args()

    from reference import Training, place_of

    from edm import params
    from edm.data.archive import read_archive
    from edm.models.compilation import options
    from edm.training.step import TrainingStep

    place, dataset = place_of(args.device), read_archive(args.data)
    config = params.load(ROOT / "params.yaml").experiment(args.experiment).models[args.model]
    steps = max(1, round(args.mimg * 1e6 / config.batch_size))
    compiled = options("yes" if args.compiled else "no", config.network(), 0, place.device)

    curves, seconds = {}, {}
    for seed, variant in product((0, 1), ("reference", "fast")):
        start = time.perf_counter()
        if variant == "reference":
            step = Training(replace(config, seed=seed), dataset, place.device)
        else:
            step = TrainingStep(replace(config, seed=seed, precision=args.precision), dataset, place, compiled)
        curves[variant, seed] = losses(step, config, steps, place.device)
        seconds[variant, seed] = time.perf_counter() - start
    draw(curves, Path(args.picture or RESULTS / f"loss-{args.name}.png"))
    noise = statistics.mean(apart(curves[v, 0], curves[v, 1]) for v in ("reference", "fast"))
    rows = [{"pair": f"{a[0]} {a[1]}, {b[0]} {b[1]}", "apart": apart(curves[a], curves[b]),
             "of the noise": apart(curves[a], curves[b]) / noise} for a, b in combinations(curves, 2)]  # fmt: skip
    settings = {"experiment": args.experiment, "model": args.model, "images": steps * config.batch_size,
                "precision": args.precision, "compiled": args.compiled,
                "last fifth": {f"{v} {s}": statistics.mean(c[-len(c) // 5 :]) for (v, s), c in curves.items()},
                "seconds": {f"{v} {s}": round(t, 1) for (v, s), t in seconds.items()}}  # fmt: skip
    question = "Loss curves: mean difference of two runs, smoothed; the noise is that between two seeds of one variant"
    report(f"loss-{args.name}", question, rows, settings, args.output, str(place.device),
           losses={f"{v} {s}": c for (v, s), c in curves.items()})  # fmt: skip
    return 0


def losses(step, config, steps: int, device) -> list[float]:
    """The loss per pixel and image, averaged over each fiftieth of the training run."""
    import torch

    sums, points, every = torch.zeros(4, dtype=torch.float64, device=device), [], max(1, steps // 50)
    for number in range(steps):
        step(number * config.batch_size, sums)
        if (number + 1) % every == 0:
            total, images = sums[:2].tolist()
            points.append(total / images / (config.channels * config.resolution**2))
            sums.zero_()
    return points


def apart(a: list[float], b: list[float]) -> float:
    """The mean relative difference of two curves."""
    return statistics.mean(abs(x - y) / (x + y) * 2 for x, y in zip(a, b, strict=True))


def draw(curves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for (variant, seed), losses in curves.items():
        colour = "tab:blue" if variant == "fast" else "tab:orange"
        style = "-" if seed == 0 else "--"
        axes.plot([i / len(losses) for i in range(1, len(losses) + 1)], losses, style, color=colour,
                  label=f"{variant}, seed {seed}")  # fmt: skip
    axes.set(
        xlabel="part of the training",
        ylabel="loss per pixel",
        yscale="log",
        title="Loss of the fast and of the straightforward training",
    )
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
