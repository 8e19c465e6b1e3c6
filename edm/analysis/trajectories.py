"""ODE trajectories in one dimension where the data are two Dirac peaks at −1 and +1 (Figure 3).

In one dimension trajectories cannot cross, so each keeps its quantile of p(x; σ) = ½ N(−1, σ²) + ½ N(1, σ²). This gives
x(σ) exactly, without an ODE solver, as a root of the distribution function. The three panels of the figure show the
same trajectories as x(t) = s(t) x(σ(t)) vs. t, with σ(t) and s(t) of each design of Table 1.
"""

import torch
from torch import Tensor

from edm.design.schedules import LinearSchedule, Scaling, VESchedule, VPSchedule, no_scaling, vp_scaling
from edm.errors import UserError
from edm.protocols import Schedule

#: σ(t) and s(t) of the panels (rows "Schedule" and "Scaling" of Table 1).
PARAMETRISATIONS: dict[str, tuple[Schedule, Scaling]] = {
    "VP": (VPSchedule(), vp_scaling),
    "VE": (VESchedule(), no_scaling),
    "EDM": (LinearSchedule(), no_scaling),
}
SIGMA_WIDE, SIGMA_NEAR = 25.0, 1.0  # noise levels at the right edge of the panels and of their insets
_HALVINGS = 64  # bisection from a bracket of width at most 2 down to float64's resolution


def two_peaks(x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
    """The ideal denoiser D(x; σ) = tanh(x/σ²), for x of any shape and σ > 0 that broadcasts against it."""
    return torch.tanh(x / torch.as_tensor(sigma, dtype=x.dtype, device=x.device) ** 2)


def even_quantiles(count: int = 48) -> Tensor:
    """Standard-normal quantiles, float64 [count], of trajectories that carry equal probability."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def positions(z: Tensor, sigma: Tensor) -> Tensor:
    """x(σ), float64 [n, T], of the trajectories that approach σ·z as σ grows.

    z: [n], standard-normal quantiles that identify the trajectories; sigma: [T], any σ ≥ 0. At σ = 0, x is ±1.
    """
    z, sigma = z.to(torch.float64)[:, None], sigma.to(torch.float64)[None].clamp(min=1e-15)
    above = _upper_tail(z.abs())  # solves only x ≥ 0 (symmetry), where upper tails keep precision
    low, high = (sigma * z.abs() - 1).clamp(min=0), sigma * z.abs() + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        right = (_upper_tail((middle - 1) / sigma) + _upper_tail((middle + 1) / sigma)) / 2 > above
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return z.sign() * (low + high) / 2


def trajectories(z: Tensor, sigma_max: float = SIGMA_WIDE, points: int = 400) -> dict[str, dict[str, Tensor]]:
    """For each parametrisation (VP, VE, EDM): t [T], σ(t) [T] and x(t) [n, T], float64, from t = 0 to σ(t) = sigma_max.

    z: [n], as in :func:`positions`; points: T, denser towards t = 0 where VE curves. Raises UserError for σ_max ≤ 0.
    """
    if sigma_max <= 0 or points < 2:
        raise UserError(f"trajectories up to sigma {sigma_max:g} at {points} points: expected sigma > 0, 2 points")
    panels = {}
    for name, (schedule, scaling) in PARAMETRISATIONS.items():
        last = schedule.inverse(torch.tensor(sigma_max, dtype=torch.float64))
        t = last * torch.linspace(0, 1, points, dtype=torch.float64) ** 2
        sigma = schedule.sigma(t)
        s, _ = scaling(schedule, t)
        panels[name] = {"t": t, "sigma": sigma, "x": s * positions(z, sigma)}
    return panels


def _upper_tail(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x / 2**0.5)
