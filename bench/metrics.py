"""Time to compute FID from images, and agreement with torch-fidelity's own command.

    python bench/metrics.py [--images N] [--device cuda] [--compile] [--batches N ...] [--rounds N]

FID of synthetic 32×32 images against a tenth as many reference images, in Inception-v3 with random weights:

torch-fidelity   its own command `fidelity --fid` on two existing folders of PNG files, with its default settings:
                 batches of 64 and worker processes for reading
edm              `extract` and `frechet_distance` on the same images in memory

Each runs in a fresh process by turns, timed in total and in parts: features, mean and covariance, distance. Then the
distance alone, between Gaussians of full rank: edm's, torch-fidelity's (eigenvalues of the product) and that of older
programs (scipy.linalg.sqrtm). --batches: also with these batch sizes. --compile: also with a compiled network.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, by_turns, in_process, report, summary

sys.path.insert(0, str(ROOT / "tests" / "metrics"))
from image_sets import smooth_images, untrained_inception

THEIRS, OURS = "torch-fidelity", "edm"
PARTS = ("features", "statistics", "distance")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="number of images to measure (default 500; on a GPU 50000)")
    parser.add_argument("--dimension", type=int, default=2048, help="dimension of the Gaussians (default 2048)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda or cuda:N (default cpu)")
    parser.add_argument("--batches", type=int, nargs="+", default=[], help="additional batch sizes to compare on a CPU")
    parser.add_argument("--compile", action="store_true", help="also with a compiled network")
    parser.add_argument("--output", help="JSON file (default bench/results/metrics.json)")
    parser.add_argument("--only", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        variant, folder = args.only
        if variant == THEIRS:
            found = torch_fidelity(Path(folder), args.device)
        else:
            found = edm(Path(folder), args.device, args.batches, args.compile)
        print(json.dumps(found))
        return 0
    args.images = args.images or (50_000 if args.device.startswith("cuda") else 500)
    with tempfile.TemporaryDirectory() as name:
        rows, differences = whole(Path(name), args)
    rows += alone(args)
    settings = {name: getattr(args, name) for name in ("images", "dimension", "rounds", "batches", "compile", "device")}
    report("metrics", "How long does FID take from images to the number, and is it the same? (seconds)", rows, settings,
           args.output, args.device, **differences)  # fmt: skip
    print(json.dumps(differences))
    return 0


# From images to the number --------------------------------------------------------------------------------------------


def whole(folder: Path, args: argparse.Namespace) -> tuple[list[dict], dict[str, float]]:
    """A row per variant, and the relative differences of edm's features and FID from torch-fidelity's."""
    make(folder, args.images, max(args.images // 10, 2))
    variants: dict[str, list[str]] = {THEIRS: [], OURS: []}
    variants |= {f"{OURS}, {size} at once": ["--batches", str(size)] for size in args.batches}
    variants |= {f"{OURS}, compiled": ["--compile"]} if args.compile else {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}

    def turn(name: str) -> None:
        only = ["--only", THEIRS if name == THEIRS else OURS, folder]
        found[name].append(in_process(__file__, "--device", args.device, *variants[name], *only))

    seconds = by_turns({name: lambda name=name: turn(name) for name in variants}, args.rounds)
    rows = [{"variant": name, **summary(seconds[name]),
             **{part: statistics.median(one[part] for one in found[name]) for part in PARTS},
             "images/s": round(1.1 * args.images / statistics.median(one["features"] for one in found[name]), 1),
             "result": found[name][0]["result"]} for name in variants]  # fmt: skip
    theirs, ours = (found[name][0]["result"] for name in (THEIRS, OURS))
    return rows, {"FID, relative difference": abs(ours - theirs) / theirs,
                  "features, largest relative difference": unlike(folder, args.device)}  # fmt: skip


def make(folder: Path, images: int, real: int) -> None:
    """Writes the two image sets as PNG files for torch-fidelity and as an array for edm, and the weights."""
    import numpy as np
    from PIL import Image

    untrained_inception(folder)
    for name, count, contrast in (("generated", images, 60), ("real", real, 30)):
        pixels = smooth_images(count, seed=count, contrast=contrast).numpy()
        (folder / name).mkdir()
        for i, one in enumerate(pixels):
            Image.fromarray(one.transpose(1, 2, 0)).save(folder / name / f"{i:06d}.png")
        np.save(folder / f"{name}.npy", pixels)


def torch_fidelity(folder: Path, device: str) -> dict[str, float]:
    """Runs torch-fidelity's command in this process and times its three steps."""
    import contextlib

    from torch_fidelity import fidelity, metric_fid

    found = dict.fromkeys(PARTS, 0.0)

    def watched(part: str, function: Callable) -> Callable:
        def run(*args, **settings):
            begun = time.perf_counter()
            result = function(*args, **settings)
            found[part] += time.perf_counter() - begun
            if part == "distance":
                found["result"] = result[metric_fid.KEY_METRIC_FID]
            return result

        return run

    for part, name in zip(PARTS, ("extract_featuresdict_from_input_id_cached", "fid_featuresdict_to_statistics",
                                  "fid_statistics_to_metric"), strict=True):  # fmt: skip
        setattr(metric_fid, name, watched(part, getattr(metric_fid, name)))
    where = ["--gpu", device.partition(":")[2] or "0"] if device.startswith("cuda") else ["--cpu"]
    sys.argv = ["fidelity", "--fid", "--input1", f"{folder}/generated", "--input2", f"{folder}/real", "--no-verbose",
                "--no-cache", "--feature-extractor-weights-path", f"{folder}/weights.pth", *where]  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):
        fidelity.main()
    return found


def edm(folder: Path, device: str, batches: list[int], compiled: bool) -> dict[str, float]:
    """The same with edm, whose processes keep the memory that they free."""
    import numpy as np
    import torch

    from edm.cluster.memory import keep_freed
    from edm.metrics import INCEPTION, extractors
    from edm.metrics.frechet import FeatureStatistics, frechet_distance

    keep_freed()
    if batches:
        extractors.CPU_BATCH = batches[0]
    if compiled:
        extractors.COMPILED_FROM = 0
    features = extractors.load_features(INCEPTION, folder / "weights.pth", device)
    begun = time.perf_counter()
    rows = {name: [features(part) for part in torch.from_numpy(np.load(folder / f"{name}.npy")).split(256)]
            for name in ("generated", "real")}  # fmt: skip
    _wait(device)
    seen = [time.perf_counter()]
    statistics = {name: FeatureStatistics() for name in rows}
    for name, parts in rows.items():
        for part in parts:
            statistics[name].append(part)
    moments = [moment for one in statistics.values() for moment in (one.mean, one.covariance)]
    seen.append(time.perf_counter())
    result = frechet_distance(*moments, device)
    seen.append(time.perf_counter())
    times = {part: after - before for part, before, after in zip(PARTS, [begun, *seen], seen, strict=False)}
    return times | {"result": result}


def unlike(folder: Path, device: str) -> float:
    """The largest difference to torch-fidelity's features of the same images, relative to the largest feature."""
    import numpy as np
    import torch
    from torch_fidelity.utils import create_feature_extractor

    from edm.metrics import INCEPTION
    from edm.metrics.extractors import load_features
    from edm.networks.precision import float32_as

    network = create_feature_extractor(INCEPTION, ["2048"], cuda=False, verbose=False,
                                       feature_extractor_weights_path=folder / "weights.pth").to(device)  # fmt: skip
    images = torch.from_numpy(np.load(folder / "real.npy")[:32])
    with torch.no_grad(), float32_as():
        (theirs,) = network(images.to(device))
    ours = load_features(INCEPTION, folder / "weights.pth", device)(images)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _wait(device: str) -> None:
    """Waits for the GPU to finish all queued work."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


# The distance alone ---------------------------------------------------------------------------------------------------


def alone(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The distance of two Gaussians of full rank, computed in three ways: seconds and result of each."""
    import numpy as np
    from scipy import linalg
    from torch_fidelity import metric_fid

    from edm.metrics.frechet import frechet_distance

    random = np.random.default_rng(0)
    covariances = [np.cov(random.standard_normal((2 * args.dimension, args.dimension)), rowvar=False) for _ in "12"]
    means = [random.standard_normal(args.dimension) for _ in "12"]
    found: dict[str, float] = {}

    def older() -> float:
        root = linalg.sqrtm(covariances[0] @ covariances[1]).real
        shift = means[0] - means[1]
        return float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root))

    def theirs() -> float:
        pairs = [{"mu": mean, "sigma": sigma} for mean, sigma in zip(means, covariances, strict=True)]
        return metric_fid.fid_statistics_to_metric(*pairs, verbose=False)[metric_fid.KEY_METRIC_FID]

    ways = {
        OURS: lambda: frechet_distance(means[0], covariances[0], means[1], covariances[1], args.device),
        THEIRS: theirs,
        "scipy.linalg.sqrtm": older,
    }
    seconds = by_turns({name: lambda name=name: found.update({name: ways[name]()}) for name in ways}, args.rounds)
    return [{"variant": f"distance alone, {args.dimension:,} dimensions: {name}", **summary(seconds[name]),
             "result": found[name]} for name in ways]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
