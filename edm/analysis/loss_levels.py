"""The loss per noise level as a model's own training weights it, and the noise levels that it sees (Figure 5a)."""

import math
from collections.abc import Mapping, Sequence

import torch

from edm.design.losses import Loss

POINTS = 801  # of a density: at 5 decades, 160 a decade


def weighted(curve: Mapping[str, Sequence[float]], loss: Loss) -> dict[str, list[float]]:
    """{"sigma", "mean", "std"} of λ(σ) (D(y + n; σ) − y)² from the same of the unweighted error per pixel.

    λ(σ) is that of ``loss``, a row of Table 1.
    """
    weight = loss.weight(torch.tensor(curve["sigma"], dtype=torch.float64))
    scaled = {key: (weight * torch.tensor(curve[key], dtype=torch.float64)).tolist() for key in ("mean", "std")}
    return {"sigma": list(curve["sigma"]), **scaled}


def density(loss: Loss, low: float, high: float) -> dict[str, list[float]]:
    """{"sigma", "density"}: the density of ln σ in training at levels from ``low`` to ``high``, even in ln σ."""
    sigma = torch.linspace(math.log(low), math.log(high), POINTS, dtype=torch.float64).exp()
    return {"sigma": sigma.tolist(), "density": loss.density(sigma).tolist()}
