"""Metrics of two sets of features by their nearest neighbours: what lies near what.

Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020), authenticity (Alaa et al.,
2022: AuthPct), memorisation (Carlini et al., 2023: the distance to the nearest training image, relative to the mean
distance of the 50 nearest). All are made from the same strips of distances (:mod:`edm.metrics.neighbours`).
Values in features of Inception-v3 are not comparable with published ones in features of VGG-16 or DINOv2.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from edm.metrics import METRICS, OF_NEIGHBOURS, WORST
from edm.metrics.neighbours import Balls, Looks, Nearest, Pair


def neighbour_metrics(
    features: Tensor, reference: Tensor, metrics: Collection[str], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Those of ``OF_NEIGHBOURS`` that are in ``metrics``, of features [N, F] against the reference's [M, F], float32.

    precision, recall, coverage: from 0 to 1. density: from 0, about 1 for equal distributions. authpct: percent.
    memorisation: percent, with "memorisation_of_reference", the same share of the reference images among themselves,
    "memorisation_lowest" and "pairs", the images with the lowest ratios and their nearest reference image:
    {image, training (places), distance, ratio}.
    Memory: a copy of both sets on ``device``, and some strips of distances.
    """
    asked = [name for name in OF_NEIGHBOURS if name in metrics]
    if not asked:
        return {}
    k = {name: int(METRICS[name].settings["k"]) for name in asked}
    centre = reference.mean(dim=0, dtype=torch.float64).float()
    ours, theirs = (one.to(device) - centre.to(device) for one in (features, reference))

    found: dict[str, Any] = {}
    near_theirs = Nearest(max([k[name] for name in asked if name != "recall"], default=0))
    if near_theirs.k:
        Pair(theirs).go(near_theirs)
    near_ours = Nearest(k.get("recall", 0))
    if near_ours.k:
        Pair(ours).go(near_ours)
    across = Nearest(max(k.get("authpct", 0), k.get("memorisation", 0)))
    balls = {name: Balls((near_ours if name == "recall" else near_theirs).squared[:, k[name] - 1], name == "recall")
             for name in asked if name not in ("authpct", "memorisation")}  # fmt: skip
    if "coverage" in balls and "density" in balls:  # of the same balls
        balls["coverage"] = balls["density"]
    looking: dict[Looks, None] = dict.fromkeys(balls.values())
    if across.k:
        looking[across] = None
    Pair(ours, theirs).go(*looking)

    for name in asked:
        if name == "precision":
            found[name] = (balls[name].counts > 0).double().mean().item()
        elif name == "density":
            found[name] = balls[name].counts.double().mean().item() / k[name]
        elif name in ("recall", "coverage"):
            found[name] = balls[name].reached.double().mean().item()
        elif name == "authpct":
            own = near_theirs.squared[across.places[:, 0], 0]
            found[name] = 100 * (across.squared[:, 0] > own).double().mean().item()
        else:
            found |= _memorisation(across, near_theirs, k[name])
    return found


def memorised_share(features: Tensor, reference: Tensor, device: torch.device | str = "cpu") -> float:
    """The percentage that ``memorisation`` counts, of images held out from training: what a model without copies shows.

    features [N, F] of these images, reference [M, F] of the training images: float32.
    """
    centre = reference.mean(dim=0, dtype=torch.float64).float()
    held_out, training = (one.to(device) - centre.to(device) for one in (features, reference))
    near = Nearest(int(METRICS["memorisation"].settings["k"]))
    Pair(held_out, training).go(near)
    return 100 * (_ratios(near.squared) < METRICS["memorisation"].settings["below"]).double().mean().item()


def _memorisation(across: Nearest, among: Nearest, k: int) -> dict[str, Any]:
    """across: the nearest reference images of each image. among: those of each reference image, without itself."""
    ratios, own = (_ratios(one.squared[:, :k]) for one in (across, among))
    below = METRICS["memorisation"].settings["below"]
    order = ratios.argsort(stable=True)[:WORST].tolist()
    pairs = [{"image": image, "training": int(across.places[image, 0]),
              "distance": across.squared[image, 0].sqrt().item(), "ratio": ratios[image].item()}
             for image in order]  # fmt: skip
    return {"memorisation": 100 * (ratios < below).double().mean().item(),
            "memorisation_of_reference": 100 * (own < below).double().mean().item(),
            "memorisation_lowest": ratios.min().item(), "pairs": pairs}  # fmt: skip


def _ratios(squared: Tensor) -> Tensor:
    """The least distance over the mean of all, [N]; 0 where it is 0."""
    distances = squared.sqrt()
    return distances[:, 0] / distances.mean(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
