"""``edm.frechet_distance``: the distance of any two sets of features or statistics."""

import os
from typing import Any

import numpy as np
import torch

from edm.errors import UserError
from edm.metrics import frechet
from edm.metrics.frechet import FeatureStatistics, ReferenceStatistics, load_statistics

Side = Any  # features [N, F], (mu, sigma), statistics, or the path of an .npz


def frechet_distance(first: Side, second: Side, device: torch.device | str = "cpu") -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two Gaussians (Heusel et al. 2017), in float64; never negative.

    Each side is one of: features [N, F] of N ≥ 2 images (array or tensor; covariance with divisor N − 1), a pair (mu
    [F], sigma [F, F]), :class:`edm.metrics.frechet.FeatureStatistics`, or the path of an .npz with mu and sigma, such
    as ``edm fid-ref`` and the authors' fid-refs. device: where the matrix root is computed.
    It is FID only if both sides are in the features of Inception-v3 that FID uses.

    Raises UserError for anything else, and for sides of different numbers of features.
    """
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device {device!r} is unknown; choose cpu, cuda or cuda:0") from None
    return frechet.frechet_distance(*_moments(first, "first"), *_moments(second, "second"), device)


def _moments(side: Side, which: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(side, str | os.PathLike):
        side = load_statistics(side)
    if isinstance(side, ReferenceStatistics):
        return side.mu, side.sigma
    if isinstance(side, FeatureStatistics):
        return side.mean, side.covariance
    if isinstance(side, tuple | list) and len(side) == 2 and np.ndim(side[0]) == 1 and np.ndim(side[1]) == 2:
        return np.asarray(side[0]), np.asarray(side[1])
    if isinstance(side, np.ndarray | torch.Tensor) and side.ndim == 2:
        if isinstance(side, np.ndarray) and side.dtype.kind not in "fiu":
            raise UserError(f"{which} is an array of {side.dtype}; expected features, which are real numbers")
        if isinstance(side, torch.Tensor) and (side.is_complex() or side.dtype == torch.bool):
            raise UserError(f"{which} is a tensor of {side.dtype}; expected features, which are real numbers")
        statistics = FeatureStatistics()
        statistics.append(side)
        return statistics.mean, statistics.covariance
    shape = f" of shape {list(side.shape)}" if hasattr(side, "shape") else ""
    raise UserError(f"{which} is {type(side).__name__}{shape}; expected features [N, F], (mu, sigma), or an .npz file")
