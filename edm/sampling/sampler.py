"""Algorithms 1, 2 and 3 of the paper as one sampler whose design choices are independent arguments."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from edm.config import SOLVERS, SamplerConfig
from edm.design.schedules import SCALINGS, SCHEDULES, Scaling, Schedule
from edm.design.timesteps import DEFAULT_RANGE, noise_levels
from edm.errors import UserError, one_line
from edm.sampling.multistep import stepper

Denoiser = Callable[..., Tensor]


@dataclass(frozen=True)
class _Flow:
    """The probability-flow ODE of Eq. 4 for one schedule, scaling and denoiser."""

    denoiser: Denoiser
    class_labels: Tensor | None
    schedule: Schedule
    scaling: Scaling

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; σ) of an unscaled x."""
        level = x.new_full((), sigma)  # created on x's device: a copy from the host would wait for the GPU
        return self.denoiser(x, level, self.class_labels).to(x.dtype)

    def slope(self, x: Tensor, t: Tensor, denoised: Tensor) -> Tensor:
        """dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D, with D = D(x/s; σ)."""
        sigma, sigma_dot = self.schedule.sigma(t), self.schedule.sigma_dot(t)
        s, s_dot = self.scaling(self.schedule, t)
        return float(sigma_dot / sigma + s_dot / s) * x - float(sigma_dot * s / sigma) * denoised


@dataclass(frozen=True)
class Own:
    """Choices of a caller that no name stands for; None for those that the configuration names.

    schedule: σ(t), σ̇(t) and σ⁻¹(σ). scaling: ``scaling(schedule, t)`` gives s(t) and ṡ(t). discretization:
    ``discretization(n, sigma_min, sigma_max)`` gives n falling noise levels. callback: see :func:`edm.sample`.
    """

    schedule: Schedule | None = None
    scaling: Scaling | None = None
    discretization: Callable[[int, float, float], Tensor | Sequence[float]] | None = None
    callback: Callable[[int, float, Tensor, Tensor], object] | None = None

    def levels(self, number: int, sigma_min: float, sigma_max: float) -> Tensor:
        """The noise levels of ``discretization``, float64 [number]. Raises UserError if they cannot be levels."""
        assert self.discretization is not None
        found = self.discretization(number, sigma_min, sigma_max)
        try:
            levels = torch.as_tensor(found, dtype=torch.float64, device="cpu").detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"discretization: gave no noise levels ({one_line(error)})") from None
        fits = levels.shape == (number,) and bool(levels.isfinite().all()) and bool((levels > 0).all())
        if not fits or not bool((levels.diff() < 0).all()):
            raise UserError(
                f"discretization: gave {levels.tolist() if levels.numel() < 9 else list(levels.shape)}; expected "
                f"{number} falling noise levels above 0"
            )
        return levels

    def tell(self, i: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        if self.callback is not None:
            self.callback(i, sigma, x, denoised)


@torch.no_grad()
def solve(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    config: SamplerConfig,
    noise: Callable[[int, Tensor], Tensor] | None = None,
    own: Own | None = None,
) -> Tensor:
    """:func:`edm.sample` with the settings as one object; ``own`` replaces choices that have no name."""
    own, round_sigma = own or Own(), rounding_of(net)
    noise = noise or (lambda i, x: torch.randn_like(x))
    sigma_min, sigma_max = supported_range(net, config)
    schedule = own.schedule or SCHEDULES[config.schedule](sigma_min, sigma_max)
    scaling = own.scaling or SCALINGS[config.scaling]
    flow = _Flow(net, class_labels, schedule, scaling)

    to_zero = config.final == "zero"
    number = config.num_steps + (not to_zero)
    if own.discretization is not None:
        levels = own.levels(number, sigma_min, sigma_max)
    elif config.sigmas is not None:
        levels = torch.tensor(config.sigmas, dtype=torch.float64)
    else:
        levels = noise_levels(config.discretization, number, sigma_min, sigma_max, config.rho)
    t_steps = schedule.inverse(_on_cpu(round_sigma(levels)))
    multistep = None if config.solver in SOLVERS else stepper(config, float(levels[-1]), float(levels[0]))
    if to_zero:
        t_steps = torch.cat([t_steps, torch.zeros(1, dtype=torch.float64)])

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
        if multistep is not None:
            (sigma, s), (sigma_next, s_next) = sigma_and_s(t), sigma_and_s(t_next)
            x = x / s  # these solvers are exact in s(t)
            denoised = flow.denoised(x, sigma)
            own.tell(i, sigma, x, denoised)
            x = s_next * multistep.step(x, sigma, sigma_next, denoised)
            continue
        h = float(t_next - t)
        sigma, s = sigma_and_s(t)
        denoised = flow.denoised(x / s, sigma)
        own.tell(i, sigma, x / s, denoised)
        d = flow.slope(x, t, denoised)
        t_prime = t + config.alpha * h
        # The step to σ = 0 is Euler for every α, and so is a trial step that would overshoot below 0.
        if config.solver == "euler" or (to_zero and i == config.num_steps - 1) or t_prime <= 0:
            x = x + h * d
            continue
        trial, (sigma, s) = x + config.alpha * h * d, sigma_and_s(t_prime)
        d_prime = flow.slope(trial, t_prime, flow.denoised(trial / s, sigma))
        x = x + h * ((1 - 0.5 / config.alpha) * d + (0.5 / config.alpha) * d_prime)
    return x if to_zero else x / sigma_and_s(t_steps[-1])[1]  # s(t) = 1 at σ = 0


def rounding_of(net: Denoiser) -> Callable[[Tensor], Tensor]:
    """``net.round_sigma``, or what leaves levels as they are."""
    found: Callable[[Tensor], Tensor] = getattr(net, "round_sigma", _as_it_is)
    return found


def networks_at(net: Denoiser, sigma: Tensor) -> Tensor:
    """The networks that one evaluation at ``sigma`` takes, int64 shaped as it: 2 where ``net`` is guided, else 1."""
    inside = getattr(net, "inside", None)
    ones = torch.ones_like(sigma, dtype=torch.int64)
    return ones if inside is None else ones + inside(sigma)


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
