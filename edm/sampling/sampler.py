"""Algorithms 1, 2 and 3 of the paper as one sampler whose design choices are independent arguments."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from edm import registry
from edm.config import MULTISTEP, SHIPPED, SOLVERS, SamplerConfig
from edm.design.schedules import Scaling, scaling_of, schedule_of
from edm.design.timesteps import falling, noise_levels
from edm.errors import UserError
from edm.protocols import Schedule
from edm.sampling.multistep import stepper

Denoiser = Callable[..., Tensor]


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
        return falling(self.discretization(number, sigma_min, sigma_max), number, "discretization")

    def tell(self, i: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        if self.callback is not None:
            self.callback(i, sigma, x, denoised)


class Ode:
    """The probability-flow ODE of a sampler, as every solver gets it: a call gives D(x; σ) and counts the evaluation.

    schedule, scaling: of Eq. 4, for solvers that step in t. levels: the noise levels > 0, float64, before rounding to
    those that the denoiser supports; None for a solver with levels of its own.
    """

    def __init__(self, net: Denoiser, class_labels: Tensor | None, config: SamplerConfig, own: Own, levels: bool):
        self.net, self.class_labels, self.config, self.own = net, class_labels, config, own
        self.evaluations = 0
        self.levels: Tensor | None = None
        if levels:
            self._choose()

    def _choose(self) -> None:
        """Chooses schedule, scaling and noise levels."""
        config, own = self.config, self.own
        sigma_min, sigma_max = supported_range(self.net, config)
        self.schedule: Schedule = own.schedule or schedule_of(
            config.schedule, sigma_min, sigma_max, **settings_of(config, "schedule")
        )
        self.scaling: Scaling = own.scaling or scaling_of(config.scaling, **settings_of(config, "scaling"))
        number = config.num_steps + (config.final != "zero")
        if own.discretization is not None:
            self.levels = own.levels(number, sigma_min, sigma_max)
        elif config.sigmas is not None:
            self.levels = torch.tensor(config.sigmas, dtype=torch.float64)
        else:
            more = settings_of(config, "discretization")
            self.levels = noise_levels(config.discretization, number, sigma_min, sigma_max, config.rho, **more)

    def sigmas(self) -> list[float]:
        """The levels that the denoiser supports, with the final 0; empty for a solver with levels of its own."""
        if self.levels is None:
            return []
        found: list[float] = self.rounded(self.levels).tolist()
        return [*found, 0.0] if self.config.final == "zero" else found

    def rounded(self, sigma: Tensor) -> Tensor:
        """The nearest levels that the denoiser supports, float64 on the CPU."""
        return _on_cpu(rounding_of(self.net)(sigma))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; σ) of an unscaled x, in the type of x."""
        self.evaluations += 1
        level = x.new_full((), sigma)  # created on x's device: a copy from the host would wait for the GPU
        return self.net(x, level, self.class_labels).to(x.dtype)

    def slope(self, x: Tensor, t: Tensor, denoised: Tensor) -> Tensor:
        """dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D, with D = D(x/s; σ) (Eq. 4)."""
        sigma, sigma_dot = self.schedule.sigma(t), self.schedule.sigma_dot(t)
        s, s_dot = self.scaling(self.schedule, t)
        return float(sigma_dot / sigma + s_dot / s) * x - float(sigma_dot * s / sigma) * denoised


def settings_of(config: SamplerConfig, kind: str) -> dict[str, Any]:
    """The settings of a part of a plugin that the configuration names; none of our own parts has some."""
    return {} if registry.is_own(kind, getattr(config, kind)) else config.settings_of(kind)


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
    return run(net, latents, class_labels, config, noise or (lambda i, x: torch.randn_like(x)), own)[0]


@torch.no_grad()
def run(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    config: SamplerConfig,
    noise: Callable[[int, Tensor], Tensor],
    own: Own | None = None,
) -> tuple[Tensor, Tensor]:
    """Images float64 [B, C, H, W] from the solver that the configuration names, and the NFE of each, int64 [B]."""
    solver = registry.find("solver", config.solver)
    ode = Ode(net, class_labels, config, own or Own(), solver.facts["levels"])
    if solver.own:
        found = solver(ode, latents, ode.sigmas(), noise)
    else:
        draws = lambda i, x: noise(i, x).to(x)
        found = solver(ode, latents.to(torch.float64), ode.sigmas(), draws, **config.settings_of("solver"))
        if not isinstance(found, Tensor) or found.shape != latents.shape:
            told = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"{solver.where}: returned {told}; expected images {list(latents.shape)}")
        found = found.to(torch.float64)
    if isinstance(found, tuple):
        return found
    nfe = ode.evaluations if config.own_nfe is None else config.own_nfe
    return found, torch.full((len(found),), nfe)


def algorithms(ode: Ode, latents: Tensor, sigmas: list[float], noise: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Euler's method, the second-order family and the multistep family, with churn: Algorithms 1, 2 and 3."""
    config, schedule, scaling = ode.config, ode.schedule, ode.scaling
    to_zero = config.final == "zero"
    levels = torch.tensor(sigmas[:-1] if to_zero else sigmas, dtype=torch.float64)
    t_steps = schedule.inverse(levels)
    assert ode.levels is not None
    multistep = None
    if config.solver not in SOLVERS:
        multistep = stepper(config, float(ode.levels[-1]), float(ode.levels[0]))
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
            t = schedule.inverse(ode.rounded(torch.tensor(sigma * (1 + gamma), dtype=torch.float64)))
            sigma_hat, s_hat = sigma_and_s(t)
            added = math.sqrt(max(sigma_hat**2 - sigma**2, 0.0)) * config.S_noise
            x = (s_hat / s) * x + (s_hat * added) * noise(i, x).to(x)
        if multistep is not None:
            (sigma, s), (sigma_next, s_next) = sigma_and_s(t), sigma_and_s(t_next)
            x = x / s  # these solvers are exact in s(t)
            denoised = ode(x, sigma)
            ode.own.tell(i, sigma, x, denoised)
            x = s_next * multistep.step(x, sigma, sigma_next, denoised)
            continue
        h = float(t_next - t)
        sigma, s = sigma_and_s(t)
        denoised = ode(x / s, sigma)
        ode.own.tell(i, sigma, x / s, denoised)
        d = ode.slope(x, t, denoised)
        t_prime = t + config.alpha * h
        # The step to σ = 0 is Euler for every α, and so is a trial step that would overshoot below 0.
        if config.solver == "euler" or (to_zero and i == config.num_steps - 1) or t_prime <= 0:
            x = x + h * d
            continue
        trial, (sigma, s) = x + config.alpha * h * d, sigma_and_s(t_prime)
        d_prime = ode.slope(trial, t_prime, ode(trial / s, sigma))
        x = x + h * ((1 - 0.5 / config.alpha) * d + (0.5 / config.alpha) * d_prime)
    return x if to_zero else x / sigma_and_s(t_steps[-1])[1]  # s(t) = 1 at σ = 0


for _name in (*SOLVERS, MULTISTEP, *SHIPPED):
    registry.register("solver", _name)(algorithms)


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
    low, high = registry.find("discretization", config.discretization).facts["sigma_range"]
    low = config.sigma_min if config.sigma_min is not None else low
    high = config.sigma_max if config.sigma_max is not None else high
    low, high = max(low, getattr(net, "sigma_min", 0.0)), min(high, getattr(net, "sigma_max", math.inf))
    if low > high:
        raise UserError(f"no noise level is left: sigma_min {low:g} > sigma_max {high:g} after clamping to the model")
    return low, high


def _on_cpu(levels: Tensor) -> Tensor:
    """Moves levels to the host: step arithmetic is done there in float64 and never waits for a device."""
    return levels.detach().to("cpu", torch.float64)
