"""Algorithms 1, 2 and 3 of the paper as one sampler whose design choices are independent arguments."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from edm.config import SOLVERS, SamplerConfig
from edm.design.schedules import SCALINGS, SCHEDULES, Scaling, Schedule
from edm.design.timesteps import DEFAULT_RANGE, noise_levels
from edm.errors import UserError
from edm.models.denoiser import require_images

Denoiser = Callable[..., Tensor]


@dataclass(frozen=True)
class _Flow:
    """The probability-flow ODE of Eq. 4 for one schedule, scaling and denoiser."""

    denoiser: Denoiser
    class_labels: Tensor | None
    schedule: Schedule
    scaling: Scaling

    def derivative(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ)."""
        sigma, sigma_dot = self.schedule.sigma(t), self.schedule.sigma_dot(t)
        s, s_dot = self.scaling(self.schedule, t)
        level = x.new_full((), float(sigma))  # created on x's device: a copy from the host would wait for the GPU
        denoised = self.denoiser(x / float(s), level, self.class_labels).to(x.dtype)
        return float(sigma_dot / sigma + s_dot / s) * x - float(sigma_dot * s / sigma) * denoised


def sample(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    alpha: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    noise: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Draws images by solving the probability-flow ODE of ``net``, with churn if S_churn > 0 (Algorithms 1, 2 and 3).

    net: denoiser D(x, σ, class_labels) for x of shape [B, C, H, W] and a scalar σ; its attributes ``sigma_min``,
        ``sigma_max`` (the supported range) and ``round_sigma(σ)`` (the nearest supported level) are used if present.
    latents: standard-normal draws, [B, C, H, W]; scaled here to the first noise level.
    class_labels: passed on to ``net``.
    noise: ``noise(i, x)`` gives the standard-normal draw of step i, shaped as x; used if S_churn > 0.
        By default the draws come from torch's global generator.
    The other arguments are the fields of :class:`SamplerConfig`, with its defaults.

    Returns float64 images [B, C, H, W], about [−1, 1]. Raises UserError, a ValueError, for settings that are out of
    range or inconsistent, and for latents of another type or shape.
    """
    config = SamplerConfig(
        num_steps, solver, discretization, schedule, scaling, alpha, sigma_min, sigma_max, rho,
        S_churn, S_min, S_max, S_noise,
    )  # fmt: skip
    if config.solver not in SOLVERS:
        raise UserError(f"solver {config.solver!r} has its own function; edm.sample takes {' or '.join(SOLVERS)}")
    require_images("latents", latents)
    return solve(net, latents, class_labels, config, noise)


@torch.no_grad()
def solve(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    config: SamplerConfig,
    noise: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """:func:`sample` with the settings as one object."""
    round_sigma = rounding_of(net)
    noise = noise or (lambda i, x: torch.randn_like(x))
    sigma_min, sigma_max = supported_range(net, config)
    schedule = SCHEDULES[config.schedule](sigma_min, sigma_max)
    scaling = SCALINGS[config.scaling]
    flow = _Flow(net, class_labels, schedule, scaling)

    levels = noise_levels(config.discretization, config.num_steps, sigma_min, sigma_max, config.rho)
    t_steps = torch.cat([schedule.inverse(_on_cpu(round_sigma(levels))), torch.zeros(1, dtype=torch.float64)])

    def sigma_and_s(t: Tensor) -> tuple[float, float]:
        return float(schedule.sigma(t)), float(scaling(schedule, t)[0])

    most = math.inf if config.S_max is None else config.S_max
    sigma_0, s_0 = sigma_and_s(t_steps[0])
    x = latents.to(torch.float64) * (sigma_0 * s_0)
    for i, (t, t_next) in enumerate(pairwise(t_steps)):
        sigma, s = sigma_and_s(t)
        gamma = min(config.S_churn / config.num_steps, math.sqrt(2) - 1)
        if gamma > 0 and config.S_min <= sigma <= most:
            # Algorithm 2, lines 4 to 6: raise the noise level from σ to σ̂ by fresh noise.
            t = schedule.inverse(_on_cpu(round_sigma(torch.tensor(sigma * (1 + gamma), dtype=torch.float64))))
            sigma_hat, s_hat = sigma_and_s(t)
            added = math.sqrt(max(sigma_hat**2 - sigma**2, 0.0)) * config.S_noise
            x = (s_hat / s) * x + (s_hat * added) * noise(i, x).to(x)
        h = float(t_next - t)
        d = flow.derivative(x, t)
        t_prime = t + config.alpha * h
        # The step to σ = 0 is Euler for every α, and so is a trial step that would overshoot below 0.
        if config.solver == "euler" or i == config.num_steps - 1 or t_prime <= 0:
            x = x + h * d
            continue
        d_prime = flow.derivative(x + config.alpha * h * d, t_prime)
        x = x + h * ((1 - 0.5 / config.alpha) * d + (0.5 / config.alpha) * d_prime)
    return x


def rounding_of(net: Denoiser) -> Callable[[Tensor], Tensor]:
    """``net.round_sigma``, or what leaves levels as they are."""
    found: Callable[[Tensor], Tensor] = getattr(net, "round_sigma", _as_it_is)
    return found


def _as_it_is(sigma: Tensor) -> Tensor:
    return sigma


def supported_range(net: Denoiser, config: SamplerConfig) -> tuple[float, float]:
    """(σ_min, σ_max) of the sampler: as configured or the discretisation's default, clamped to the range of ``net``."""
    low, high = DEFAULT_RANGE[config.discretization]
    low = config.sigma_min if config.sigma_min is not None else low
    high = config.sigma_max if config.sigma_max is not None else high
    low, high = max(low, getattr(net, "sigma_min", 0.0)), min(high, getattr(net, "sigma_max", math.inf))
    if low > high:
        raise UserError(f"no noise level is left: sigma_min {low:g} > sigma_max {high:g} after clamping to the model")
    return low, high


def _on_cpu(levels: Tensor) -> Tensor:
    """Moves levels to the host: step arithmetic is done there in float64 and never waits for a device."""
    return levels.detach().to("cpu", torch.float64)
