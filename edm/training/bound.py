"""A bound on the likelihood of a model from its loss per noise level, without sampling. Does not import torch.

With the signal-to-noise ratio 1/σ², the variational bound of a diffusion model in continuous time (Kingma et al. 2021,
"Variational diffusion models", Eq. 11 and 15) is, per dimension and in bits, the sum of

diffusion        1/ln 2 ∫ e(σ)/σ² d ln σ, with e the mean squared error of a pixel
prior            KL(N(y, σ_max²) ‖ N(0, σ_max² + σ_d²))/ln 2
reconstruction   of the 256 values v of a pixel by p(v | z) ∝ exp(−(z − v)²/(2 σ_min²)), z = v + σ_min n

between the lowest and the highest measured level. It bounds −log₂ P of 8-bit images in the mean over those measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LN_2 = math.log(2)
APART = 1 / 127.5  # neighbouring values of a pixel, scaled to [−1, 1]
FURTHEST = 255  # values apart
DEVIATIONS, POINTS = 12.0, 4801  # of the quadrature over n


@dataclass(frozen=True)
class Bound:
    """Bits per dimension: the three terms and the standard error ``s`` of their sum; None if it is not known.

    s takes the errors at different levels as fully correlated, since they are of the same images: it is an upper bound.
    sigma_min, sigma_max: the levels that the terms join at.
    """

    diffusion: float
    prior: float
    reconstruction: float
    s: float | None
    sigma_min: float
    sigma_max: float

    @property
    def bits(self) -> float:
        """The bound: −log₂ P per dimension is at most this on average."""
        return self.diffusion + self.prior + self.reconstruction


def bound(levels: Mapping[str, Any], data_std: float = 0.5) -> Bound:
    """The bound of a model from its errors per noise level, those of "after" in levels.json.

    levels: {"sigma", "mean", "std"} of the squared error per pixel at rising levels, and "samples", the number of
    images. data_std: σ_d of the prior. Of one level the diffusion term is 0, and the bound that of its noise alone.
    """
    sigma, mean = (np.asarray(levels[name], dtype=np.float64) for name in ("sigma", "mean"))
    weights = _weights(np.log(sigma)) / (sigma**2 * LN_2)
    samples = levels.get("samples")
    s = float(weights @ np.asarray(levels["std"])) / math.sqrt(samples) if samples else None
    low, high = float(sigma[0]), float(sigma[-1])
    return Bound(float(weights @ mean), prior(high, data_std), reconstruction(low), s, low, high)


def density(levels: Mapping[str, Any]) -> dict[str, list[float]]:
    """{"sigma", "mean", "s"}: bits per dimension and e-fold of noise, e/(σ² ln 2), and the standard error of each."""
    sigma, mean, std = (np.asarray(levels[name], dtype=np.float64) for name in ("sigma", "mean", "std"))
    scale = 1 / (sigma**2 * LN_2)
    s = scale * std / math.sqrt(levels.get("samples") or math.inf)
    return {"sigma": sigma.tolist(), "mean": (scale * mean).tolist(), "s": s.tolist()}


def prior(sigma_max: float, data_std: float = 0.5, mean_square: float = 1.0) -> float:
    """KL(N(y, σ_max²) ‖ N(0, σ_max² + σ_d²)) in bits, for the mean of y² over pixels, which is at most 1."""
    noise, both = sigma_max**2, sigma_max**2 + data_std**2
    return 0.5 * (math.log(both / noise) + (noise + mean_square) / both - 1) / LN_2


def reconstruction(sigma_min: float) -> float:
    """−E log₂ p(v | v + σ_min n) in bits, of a value in the middle of the scale; at its ends it is less."""
    n = np.linspace(-DEVIATIONS, DEVIATIONS, POINTS)
    steps = np.arange(-FURTHEST, FURTHEST + 1) * (APART / sigma_min)
    exponents = -0.5 * steps**2 - steps * n[:, None]
    highest = exponents.max(axis=1)
    logarithms = highest + np.log(np.exp(exponents - highest[:, None]).sum(axis=1))
    shares = np.exp(-0.5 * n**2)
    return float(shares @ logarithms / shares.sum()) / LN_2


def _weights(at: np.ndarray) -> np.ndarray:
    """Of an integral over rising points: in every interval a cubic through the four nearest, or through all if fewer.

    The trapezoidal rule would err at the lowest level, where the curve has not fallen to 0.
    """
    weights, order = np.zeros(len(at)), min(4, len(at))
    for first, step in enumerate(np.diff(at)):
        start = min(max(first - 1, 0), len(at) - order)
        nodes = (at[start : start + order] - at[first]) / step
        powers = np.arange(order)
        weights[start : start + order] += step * np.linalg.solve(nodes[None] ** powers[:, None], 1 / (powers + 1))
    return weights
