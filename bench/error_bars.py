"""Whether the error bars of Fréchet distances are honest, by simulation, and what they cost.

    python bench/error_bars.py coverage [--features F ...] [--ratios R ...] [--draws N] [--spectrum flat power]
                                        [--no-limit] [--kept FILE]
    python bench/error_bars.py cost [--features F] [--images N] [--rounds N]

coverage: draws the statistics of the 20 groups of images of a known Gaussian, whose distance to the reference is known
exactly, and measures each draw as an evaluation does. Columns:

true, mean    the distance of the two Gaussians, and the mean distance over the draws
corrected     mean of the bias-corrected f_J;  FD∞: its mean
covers        share of draws with the true distance within f_J ± 1.96 s;  plain: within f ± 1.96 s;  limit: FD∞ ± 1.96 s
same          share of draws with the mean distance of this number of images within f ± 1.96 s
s             root mean square of s, over the standard deviation of the distance to first order in 1/N (delta method)
bias          mean of f_J less the true distance, over that deviation; limit bias: that of FD∞. The part of the noise
              that is linear in mean and variances is subtracted, so that a few draws show a bias

Each draw is written to FILE (JSON lines) as it ends: the same command resumes, and more draws add to those that exist.
--no-limit leaves FD∞ out, which has 14 of the 35 distances.

cost: seconds of one distance by each way, of a complete error bar, and peak memory.
"""

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, report, summary

from edm.metrics.error_bars import SIZES, Distance, Groups
from edm.metrics.frechet import FeatureStatistics, ReferenceStatistics, frechet_distance
from edm.metrics.jackknife import GROUPS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "cost"))
    parser.add_argument("--features", type=int, nargs="+", default=[32])
    parser.add_argument("--ratios", type=float, nargs="+", default=[2, 5, 10, 30], help="images per feature")
    parser.add_argument("--spectrum", nargs="+", default=["flat", "power"], help="variances: equal, or 1/i")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--kept", type=Path, default=RESULTS / "error-bars-draws.jsonl", metavar="FILE",
                        help="the draws of `coverage` (default bench/results/error-bars-draws.jsonl)")  # fmt: skip
    parser.add_argument("--no-limit", action="store_true", help="no FD∞ in `coverage`")
    parser.add_argument("--images", type=int, default=50_000, help="images of `cost` (default 50000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="JSON file (default bench/results/error-bars-….json)")
    args = parser.parse_args()
    if args.what == "coverage":
        rows = [coverage(features, round(ratio * features), args.draws, spectrum, args.kept, not args.no_limit)
                for features in args.features for spectrum in args.spectrum for ratio in args.ratios]  # fmt: skip
        question = "Does the interval of a distance cover the true one?"
    else:
        rows, question = cost(args.features[0], args.images, args.rounds), "What does an error bar cost? (seconds)"
    settings = {name: getattr(args, name) for name in ("features", "ratios", "spectrum", "draws", "images", "rounds")}
    report(f"error-bars-{args.what}", question, rows, settings, args.output)
    return 0


class Diagonal(Distance):
    """Distances to a reference with a diagonal covariance: faster, and equal. Of fewer images than ``fewest``: NaN."""

    def of(self, statistics: FeatureStatistics) -> float:
        if statistics.count < self.fewest:
            return math.nan
        mean, covariance = statistics.moments(self.device)
        deviations = self._factor
        overlap = torch.linalg.eigvalsh(deviations[:, None] * covariance * deviations).clamp(min=0).sqrt().sum()
        shift = mean - self._mu
        return float(shift @ shift + covariance.trace() + self._trace - 2 * overlap)

    def __init__(self, mu: torch.Tensor, variances: torch.Tensor, fewest: int = 0) -> None:
        self.fewest = fewest
        self.device = torch.device("cpu")
        self._mu, self._trace, self._factor = mu, float(variances.sum()), variances.sqrt()


def populations(features: int, spectrum: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Variances of the reference, whose mean is 0; mean and variances of the images. About 1 % of the trace apart."""
    index = torch.arange(1, features + 1, dtype=torch.float64)
    reference = torch.ones_like(index) if spectrum == "flat" else 1 / index
    return reference, 0.05 * reference.sqrt() * torch.sin(index), reference * (1 + 0.2 * torch.cos(index))


def drawn(images: int, mean: torch.Tensor, variances: torch.Tensor, seed: int) -> Groups:
    """The groups of ``images`` samples of N(mean, diag(variances)), drawn by their means and scatters, not one by one.

    Bartlett's decomposition: the scatter of n samples is T Tᵀ, T lower triangular with n − 1 columns at most, normal
    numbers below its diagonal and the square root of a chi-squared number of n − i degrees of freedom in row i.
    """
    random = np.random.default_rng(seed)
    deviations, features = variances.sqrt().numpy(), len(mean)
    upper = torch.triu_indices(features, features)
    state = {"groups": torch.tensor([images, 0])}
    for group in range(GROUPS):
        count = images * (group + 1) // GROUPS - images * group // GROUPS
        columns = np.arange(min(features, count - 1))
        factor = np.tril(random.standard_normal((features, len(columns))), -1)
        factor[columns, columns] = np.sqrt(random.chisquare(count - 1 - columns))
        factor *= deviations[:, None]
        centre = mean.numpy() + deviations * random.standard_normal(features) / math.sqrt(count)
        state |= {f"{group}/count": torch.tensor(count), f"{group}/mean": torch.from_numpy(centre),
                  f"{group}/scatter": torch.from_numpy(factor @ factor.T)[*upper]}  # fmt: skip
    groups = Groups()
    groups.restore(state)
    return groups


def coverage(features: int, images: int, draws: int, spectrum: str, kept: Path, lines: bool) -> dict[str, Any]:
    """One row: ``draws`` evaluations of ``images`` images each; takes those that are kept, and adds the others."""
    reference, mean, variances = populations(features, spectrum)
    true = float(mean @ mean + (reference.sqrt() - variances.sqrt()).square().sum())
    distance = Diagonal(torch.zeros_like(mean), reference, 0 if lines else images * (GROUPS - 1) // GROUPS - 1)
    slopes = 1 - (reference / variances).sqrt()  # of the distance, by each variance
    deviation = float((4 * mean.square() @ variances + 2 * (slopes * variances).square().sum()) / images) ** 0.5
    name = f"{features} {spectrum} {images}" + " without FD∞" * (not lines)
    known = map(json.loads, kept.read_text().splitlines() if kept.exists() else ())
    found = {line["draw"]: line["found"] for line in known if line["name"] == name}
    kept.parent.mkdir(parents=True, exist_ok=True)
    for draw in range(draws):
        if draw in found:
            continue
        groups = drawn(images, mean, variances, draw)
        bar = groups.measured(distance)
        seen_mean, seen = groups.whole().moments("cpu")
        linear = float(2 * mean @ (seen_mean - mean) + slopes @ (seen.diag() - variances))
        found[draw] = [bar["prefixes"][-1][1], bar["corrected"], bar["s"], bar["limit"], linear]
        with kept.open("a") as file:
            file.write(json.dumps({"name": name, "draw": draw, "found": found[draw]}) + "\n")
        print(f"{name}: {len(found)} of {draws} draws", file=sys.stderr, flush=True)
    f, f_j, s, limit, linear = np.array([found[draw] for draw in range(draws)]).T
    inside = lambda centre, value: float(np.mean(np.abs(centre - value) <= 1.96 * s))
    row = {"features": features, "spectrum": spectrum, "images": images, "draws": draws, "true": true,
           "mean": float(f.mean()), "corrected": float(f_j.mean()), "FD∞": float(limit.mean()),
           "covers": inside(f_j, true), "plain": inside(f, true), "limit": inside(limit, true),
           "same": inside(f, f.mean()), "s": float(math.sqrt((s**2).mean())) / deviation,
           "bias": float((f_j - linear).mean() - true) / deviation,
           "limit bias": float((limit - linear).mean() - true) / deviation}  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def cost(features: int, images: int, rounds: int) -> list[dict[str, Any]]:
    """A row per way: one distance, an error bar, the statistics with and without groups."""
    random = np.random.default_rng(0)
    mixing = np.linalg.qr(random.standard_normal((features, features)))[0]
    sigma = (mixing / np.arange(1, features + 1)) @ mixing.T
    reference = ReferenceStatistics("", np.zeros(features), (sigma + sigma.T) / 2)
    batches = [torch.from_numpy(random.standard_normal((250, features))) for _ in range(8)]
    plain, grouped = Groups(), Groups(images)
    rows = []

    def timed(name: str, run: Any, times: int = rounds) -> Any:
        seconds = []
        for _ in range(times):
            begun = time.perf_counter()
            result = run()
            seconds.append(time.perf_counter() - begun)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"variant": name, **summary(seconds), "peak memory (MiB)": round(peak)})
        print(json.dumps(rows[-1]), flush=True)
        return result

    def fill(groups: Groups) -> None:
        while groups.count < images:
            groups.append(batches[groups.count // 250 % len(batches)][: images - groups.count])

    timed(f"statistics of {images:,} images, one group", lambda: fill(plain), 1)
    timed("one distance, singular values", lambda: frechet_distance(
        plain.whole().mean, plain.whole().covariance, reference.mu, reference.sigma))  # fmt: skip
    timed(f"statistics of {images:,} images, 20 groups", lambda: fill(grouped), 1)
    distance = timed("factor of the reference", lambda: Distance(reference))
    timed("one distance, eigenvalues", lambda: distance.of(plain.whole()))
    timed(f"an error bar: {SIZES} + 20 distances", lambda: grouped.bar(reference), 1)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
