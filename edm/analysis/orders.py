"""Orders and errors of solvers on data for which denoiser and flow are known: a mixture of two Gaussians (Table S2).

In one dimension trajectories cannot cross, so each keeps its quantile of p(x; σ). The exact solution of the ODE is
therefore a root of the distribution function, and the error of a solver is measured without any network. A solver gets
exact values at the levels before its first step, so the lower order of its start does not count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from edm.config import MEMBERS, SOLVERS, SamplerConfig
from edm.errors import UserError
from edm.sampling.multistep import Multistep, stepper, variable
from edm.sampling.sampler import solve

MEANS, DEVIATIONS, WEIGHTS = (-0.6, 0.5), (0.15, 0.25), (0.4, 0.6)  # of the mixture
Z = (-1.3, -0.4, 0.1, 0.25, 0.3, 0.35, 0.8, 1.7)  # the trajectories: x = σ z at the first level
SIGMA_FIRST, SIGMA_LAST = 5.0, 0.2
STEPS = (64, 128, 256, 512)
HISTORY = 4  # levels before the first one with exact values, at least the highest order
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # through which the VP schedule of "vp-time" runs
#: Solvers by name, and the settings with which their authors publish them, beside the name.
NAMED: dict[str, dict[str, str]] = {
    **{name: {} for name in ("euler", "heun", *MEMBERS, "ipndm")},
    **{name: {"discretization": "lambda"} for name in ("dpmpp-2m", "dpmpp-3m-shipped")},
}
#: The variable in which the steps of a discretisation are equal, and a power of it.
SPACING = {"edm": ("rho", 1.0), "lambda": ("lambda", 1.0), "ve": ("lambda", 1.0), "vp": ("vp-time", 1.0),
           "vp-sqrt": ("vp-time", 0.5)}  # fmt: skip
_HALVINGS = 80  # bisection from the widest bracket down to float64's resolution


class Mixture:
    """A mixture of Gaussians in one dimension, for elements of any shape: D(x; σ), the exact flow, and a count.

    D = Σ_k w_k (μ_k σ² + x c_k²)/(c_k² + σ²), w the posterior weights of the components. calls: evaluations so far.
    """

    def __init__(self, means: Sequence[float] = MEANS, deviations: Sequence[float] = DEVIATIONS,
                 weights: Sequence[float] = WEIGHTS) -> None:  # fmt: skip
        self.means, self.deviations, self.weights = (
            torch.tensor(values, dtype=torch.float64) for values in (means, deviations, weights)
        )
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """D(x; σ), float64 shaped as x; sigma: one level, or one per row of x."""
        self.calls += 1
        noise = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, *[1] * x.ndim) ** 2
        x = x.to(torch.float64)[..., None]
        variance = self.deviations**2 + noise
        shares = (self.weights.log() - variance.log() / 2 - (x - self.means) ** 2 / variance / 2).softmax(-1)
        return (shares * (self.means * noise + x * self.deviations**2) / variance).sum(-1)

    def flow(self, x: Tensor, sigma: float, levels: Tensor) -> Tensor:
        """x(σ) at ``levels`` [T], float64 [T, n], of the trajectories that pass through x [n] at ``sigma``."""
        spread = (self.deviations**2 + levels[:, None, None].to(torch.float64) ** 2).sqrt()  # [T, 1, K]
        at = (self.deviations**2 + sigma**2).sqrt()
        wanted = self._below(x, at)
        reach = 10 * spread.amax(-1) + self.means.abs().max()
        low, high = (-reach).expand(-1, len(x)), reach.expand(-1, len(x))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self._below(middle, spread) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def _below(self, x: Tensor, spread: Tensor) -> Tensor:
        """The distribution function of p(x; σ)."""
        return (self.weights * torch.special.ndtr((x[..., None] - self.means) / spread)).sum(-1)


@dataclass(frozen=True)
class Order:
    """A solver's claimed and measured order, its largest error by number of steps, and the evaluations of the last."""

    claimed: int
    measured: float
    errors: dict[int, float]
    nfe: int

    @property
    def error(self) -> float:
        """With the most steps."""
        return self.errors[max(self.errors)]


def measure_order(config: SamplerConfig, steps: Sequence[int] = STEPS) -> Order:
    """The order of a solver on steps of its own discretisation from σ = 5 to 0.2, between the two largest numbers.

    The error is the largest over 8 trajectories. Raises UserError for a solver that has no order, for levels that no
    formula gives, and for fewer than two numbers of steps.

    >>> measure_order(SamplerConfig.from_dict({"solver": "dpmpp-3m"})).claimed
    3
    """
    counts, claimed = sorted(set(steps)), config.claimed_order
    if claimed is None:
        what = "with churn" if config.S_churn > 0 else config.solver
        raise UserError(f"solver {what} has no order to measure; choose one of euler, heun and the multistep solvers")
    if len(counts) < 2:
        raise UserError(f"steps are {', '.join(map(str, steps))}; an order needs two numbers of steps")
    found = [_error(replace(config, num_steps=count), count) for count in counts]
    errors = {count: error for count, (error, _) in zip(counts, found, strict=True)}
    low, high = counts[-2:]
    ratio = errors[low] / errors[high] if errors[high] else math.nan
    return Order(claimed, math.log(ratio) / math.log(high / low) if ratio > 0 else math.nan, errors, found[-1][1])


def levels(config: SamplerConfig, steps: int, before: int = 0) -> Tensor:
    """``steps`` + 1 levels from σ = 5 to 0.2 in equal steps of a discretisation, after ``before`` more, float64."""
    if config.discretization not in SPACING or config.sigmas is not None:
        what = "sigmas" if config.sigmas is not None else f"discretization {config.discretization}"
        raise UserError(f"{what}: has no equal steps; an order needs one of {', '.join(SPACING)}")
    over, power = SPACING[config.discretization]
    u = variable(over, SIGMA_MIN, SIGMA_MAX, config.rho)
    first, last = u.of_sigma(torch.tensor([SIGMA_FIRST, SIGMA_LAST], dtype=torch.float64)) ** power
    at = first + torch.arange(-before, steps + 1, dtype=torch.float64) / steps * (last - first)
    return u.sigma(at ** (1 / power))


def _error(config: SamplerConfig, steps: int) -> tuple[float, int]:
    """The largest error at σ = 0.2, and the evaluations of the denoiser from σ = 5 on."""
    net, z = Mixture(), torch.tensor(Z, dtype=torch.float64)
    if config.solver in SOLVERS:
        sigma = levels(config, steps)
        listed = SamplerConfig(solver=config.solver, alpha=config.alpha, schedule=config.schedule, final="sigma_min",
                               scaling=config.scaling, sigmas=tuple(sigma.tolist()))  # fmt: skip
        exact = net.flow(SIGMA_FIRST * z, SIGMA_FIRST, sigma)
        x = solve(net, z, None, listed)
    else:
        sigma, solver = levels(config, steps, HISTORY), stepper(config, SIGMA_MIN, SIGMA_MAX)
        exact = net.flow(SIGMA_FIRST * z, SIGMA_FIRST, sigma)
        x = exact[0]
        for i, (now, after) in enumerate(pairwise(sigma.tolist())):
            if i <= HISTORY:
                x, net.calls = exact[i], 0
                if isinstance(solver, Multistep):
                    solver.before = None  # exact: the corrector has nothing to correct
            x = solver.step(x, now, after, net(x, now))
    return float((x - exact[-1]).abs().max()), net.calls
