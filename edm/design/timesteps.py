"""Discretisations: the noise levels σ_0 > σ_1 > … > σ_{N−1} at which an ODE is solved (row "Time steps" of Table 1)."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from edm import registry
from edm.design.schedules import VP_EPSILON_S, VPSchedule
from edm.errors import UserError, one_line

IDDPM_STEPS = 1000  # M
IDDPM_C1, IDDPM_C2 = 0.001, 0.008

#: Default [σ_min, σ_max] (Table 1)
DEFAULT_RANGE = {
    "vp": (VPSchedule().sigma_at(VP_EPSILON_S), VPSchedule().sigma_at(1.0)),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
    "edm": (0.002, 80.0),
    "lambda": (0.002, 80.0),
    "vp-sqrt": (0.002, 80.0),
}


def iddpm_levels(steps: int = IDDPM_STEPS, c1: float = IDDPM_C1, c2: float = IDDPM_C2) -> Tensor:
    """The noise levels u_0 > u_1 > … > u_M = 0 of iDDPM (Table 1), float64 of shape [M + 1]."""
    return torch.tensor(_iddpm_levels(steps, c1, c2), dtype=torch.float64)


@lru_cache(maxsize=4)
def _iddpm_levels(steps: int, c1: float, c2: float) -> tuple[float, ...]:
    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / (steps * (c2 + 1))) ** 2

    u = [0.0]
    for j in range(steps, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), c1) - 1))
    return tuple(u[::-1])


def linear_levels(steps: int, beta_first: float, beta_last: float) -> Tensor:
    """The noise levels of steps whose β rises linearly (Ho et al. 2020), in the form of :func:`iddpm_levels`."""
    alpha_bar = (1 - torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)).cumprod(0)
    return torch.cat((((1 - alpha_bar) / alpha_bar).sqrt().flip(0), torch.zeros(1, dtype=torch.float64)))


def _fractions(num_steps: int) -> Tensor:
    """i / (N − 1) for i < N; a single step starts at σ_max."""
    return torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)


def vp_levels(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform steps in the time of the VP schedule that runs from σ_max at t = 1 to σ_min at t = ε_s."""
    return VPSchedule.through(sigma_min, sigma_max).sigma(1 + _fractions(num_steps) * (VP_EPSILON_S - 1))


def vp_sqrt_levels(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform steps in √t, t the time of the same schedule: the "quadratic" steps of Zhang and Chen 2022 (DEIS)."""
    root = 1 + _fractions(num_steps) * (math.sqrt(VP_EPSILON_S) - 1)
    return VPSchedule.through(sigma_min, sigma_max).sigma(root**2)


def lambda_levels(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform steps in λ = −ln σ (Lu et al. 2022): the geometric sequence of :func:`ve_levels`."""
    return ve_levels(num_steps, sigma_min, sigma_max)


def ve_levels(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """A geometric sequence: t_i = σ_max² (σ_min²/σ_max²)^{i/(N−1)} with σ = √t."""
    return sigma_max * (sigma_min / sigma_max) ** _fractions(num_steps)


def iddpm_steps(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """N of the n levels u_j inside [σ_min, σ_max], number round((n − 1)/(N − 1) · i)."""
    u = iddpm_levels()
    u = u[(u >= sigma_min) & (u <= sigma_max)]
    if len(u) == 0:
        raise UserError(f"discretization iddpm: no noise level u_j lies in [{sigma_min:g}, {sigma_max:g}]")
    return u[((len(u) - 1) * _fractions(num_steps)).round().long()]


def edm_levels(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7) -> Tensor:
    """Eq. 5: (σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels: Tensor = (high + _fractions(num_steps) * (low - high)) ** rho
    return levels


def noise_levels(
    discretization: str, num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7, **settings: Any
) -> Tensor:
    """σ_{i<N} of one discretisation, by its name, float64 of shape [num_steps], without the final 0.

    Raises UserError for an unknown discretisation, for fewer than one step, and for a plugin's levels that do not fall
    or are not above 0. ``rho`` affects only "edm", and plugins that take it. settings: of a plugin.
    """
    if num_steps < 1:
        raise UserError(f"num_steps is {num_steps}; a sampler needs at least 1 step")
    part = registry.find("discretization", discretization)
    if part.own:
        own = {"rho": rho} if discretization == "edm" else {}
        levels: Tensor = part(num_steps, sigma_min, sigma_max, **own)
        return levels
    shared = {"rho": rho} if "rho" in part.shared else {}
    return falling(part(num_steps, sigma_min, sigma_max, **shared, **settings), num_steps, part.where)


def falling(found: Any, number: int, where: str) -> Tensor:
    """Noise levels as float64 [number]. Raises UserError, beginning with ``where``, if they cannot be levels."""
    try:
        levels = torch.as_tensor(found, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: gave no noise levels ({one_line(error)})") from None
    fits = levels.shape == (number,) and bool(levels.isfinite().all()) and bool((levels > 0).all())
    if not fits or not bool((levels.diff() < 0).all()):
        raise UserError(
            f"{where}: gave {levels.tolist() if levels.numel() < 9 else list(levels.shape)}; expected "
            f"{number} falling noise levels above 0"
        )
    return levels


for _name, _levels in (
    ("vp", vp_levels),
    ("ve", ve_levels),
    ("iddpm", iddpm_steps),
    ("edm", edm_levels),
    ("lambda", lambda_levels),
    ("vp-sqrt", vp_sqrt_levels),
):
    registry.register("discretization", _name, sigma_range=DEFAULT_RANGE[_name])(_levels)
