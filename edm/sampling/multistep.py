"""Multistep solvers as independent choices: one formula that contains LMS, DEIS, iPNDM_v, DPM-Solver++ and UniPC.

With dx/dσ = (x − D)/σ, a step from σ_i to σ_{i+1} integrates a polynomial in a variable u(σ) through the last values:

* ``predicts`` "noise": x_{i+1} = x_i + Σ_j w_j ε_{i−j}, with ε = (x − D)/σ and w_j = ∫ σ′(u) ℓ_j(u) du;
* ``predicts`` "data": x_{i+1} = (σ_{i+1}/σ_i) x_i + σ_{i+1} Σ_j w_j D_{i−j}, with w_j = ∫ −σ′(u)/σ(u)² ℓ_j(u) du.

The integrals run over [u_i, u_{i+1}]; ℓ_j is the Lagrange basis on the nodes u_i, u_{i−1}, …. Since Σ_j ℓ_j = 1, both
are Euler's step plus a correction by differences of the values, Σ_{j≥1} w_j (v_{i−j} − v_i). The code takes that form,
so order 1 is Euler to the bit. With a corrector, once D is known at the predicted point, the step is taken again with
that node added. This needs no further evaluation, since the next step uses the same D. A step whose level churn has
raised begins without history, so within [S_min, S_max] churn makes the solver Euler's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm.config import SamplerConfig
from edm.design.schedules import VPSchedule

NODES = 24  # of the Gauss–Legendre rule: exact to rounding for orders up to 4


@dataclass(frozen=True)
class Variable:
    """The variable u in which a solver interpolates. All functions map float64 tensors, σ > 0."""

    of_sigma: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    sigma_dot: Callable[[Tensor], Tensor]  # dσ/du


def variable(over: str, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Variable:
    """u = σ, λ = −ln σ, σ^{1/ρ}, or the time of the VP schedule with σ(ε_s) = sigma_min and σ(1) = sigma_max."""
    if over == "sigma":
        return Variable(lambda sigma: sigma, lambda u: u, torch.ones_like)
    if over == "lambda":
        return Variable(lambda sigma: -sigma.log(), lambda u: (-u).exp(), lambda u: -(-u).exp())
    if over == "rho":
        return Variable(lambda sigma: sigma ** (1 / rho), lambda u: u**rho, lambda u: rho * u ** (rho - 1))
    schedule = VPSchedule.through(sigma_min, sigma_max)
    return Variable(schedule.inverse, schedule.sigma, schedule.sigma_dot)


@cache
def _quadrature() -> NDArray[np.float64]:
    """Nodes and weights of the Gauss–Legendre rule on [0, 1]: [2, NODES]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return np.stack(((nodes + 1) / 2, weights / 2))


def step_weights(u: Variable, predicts: str, nodes: Tensor, sigma: float, sigma_next: float) -> list[float]:
    """The factor of each node's value in a step from ``sigma`` to ``sigma_next`` > 0; for "data", σ_{i+1} w_j.

    nodes: distinct levels σ, float64 [k].
    """
    start, end = u.of_sigma(torch.tensor([sigma, sigma_next], dtype=torch.float64))
    fractions, weights = torch.from_numpy(_quadrature())
    points, at = start + (end - start) * fractions, u.of_sigma(nodes)
    kernel = u.sigma_dot(points) * (end - start)
    if predicts == "data":
        kernel = -kernel / u.sigma(points) ** 2 * sigma_next
    found = []
    for j in range(len(at)):
        others = torch.cat((at[:j], at[j + 1 :]))
        basis = ((points[:, None] - others) / (at[j] - others)).prod(1)
        found.append(float((weights * kernel * basis).sum()))
    return found


@dataclass
class Multistep:
    """The general solver. ``step`` is called once per level, with D at the predicted point."""

    u: Variable
    predicts: str
    order: int
    corrector: bool
    _values: list[tuple[float, Tensor]] = field(default_factory=list)  # (σ, ε or D), newest first
    before: Tensor | None = None  # x at the last level, from which its step was taken; None: not to be corrected
    _level: float = math.nan  # where that step ended

    def step(self, x: Tensor, sigma: float, sigma_next: float, denoised: Tensor) -> Tensor:
        """x at ``sigma_next`` from x [B, C, H, W] and D(x; σ) at ``sigma``. The step to 0 is Euler's."""
        if sigma != self._level or sigma == sigma_next:  # after churn the values are of another trajectory: begin anew
            self._values, self.before = [], None
        self._level = sigma_next
        value = denoised if self.predicts == "data" else _slope(x, sigma, denoised)
        if self.corrector and self.before is not None:
            last = self._values[0][0]
            x = self._taken(self.before, last, sigma, [self._values[0], (sigma, value), *self._values[1 : self.order]])
        self._values = [(sigma, value), *self._values[: self.order - 1]]
        self.before = x
        return self._taken(x, sigma, sigma_next, self._values)

    def _taken(self, x: Tensor, sigma: float, sigma_next: float, values: list[tuple[float, Tensor]]) -> Tensor:
        """The step from ``sigma``, the level of the first of ``values``."""
        (_, first), *others = values
        slope = _slope(x, sigma, first) if self.predicts == "data" else first
        x = x + (sigma_next - sigma) * slope
        if sigma_next == 0 or not others:
            return x
        nodes = torch.tensor([level for level, _ in values], dtype=torch.float64)
        weights = step_weights(self.u, self.predicts, nodes, sigma, sigma_next)
        for weight, (_, value) in zip(weights[1:], others, strict=True):
            x = x + weight * (value - first)
        return x


def _slope(x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
    """dx/dσ = (x − D)/σ, rounded as Euler's step of Algorithm 1 rounds it."""
    return (1 / sigma) * x - (1 / sigma) * denoised


@dataclass
class IPNDM:
    """iPNDM as published (Zhang and Chen 2022): the weights of equal steps, on any steps. Its order is then 2."""

    order: int = 4
    _slopes: list[Tensor] = field(default_factory=list)
    WEIGHTS: ClassVar = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

    def step(self, x: Tensor, sigma: float, sigma_next: float, denoised: Tensor) -> Tensor:
        """As :meth:`Multistep.step`."""
        self._slopes = [_slope(x, sigma, denoised), *self._slopes[: self.order - 1]]
        if sigma_next == 0:
            return x + (sigma_next - sigma) * self._slopes[0]
        weights = self.WEIGHTS[len(self._slopes) - 1]
        total = sum(weight * slope for weight, slope in zip(weights, self._slopes, strict=True))
        return x + (sigma_next - sigma) * total


@dataclass
class DPMSolverPP:
    """DPM-Solver++(2M) and (3M) as published (Lu et al. 2022). (3M) is of order 2: its expansion asks for −2 φ₃ D2.

    The member of :class:`Multistep` with data, λ and order 3 is of order 3.
    """

    order: int  # 2 or 3
    _values: list[tuple[float, Tensor]] = field(default_factory=list)  # (λ, D), newest first

    def step(self, x: Tensor, sigma: float, sigma_next: float, denoised: Tensor) -> Tensor:
        """As :meth:`Multistep.step`."""
        self._values = [(-math.log(sigma), denoised), *self._values[: self.order - 1]]
        if sigma_next == 0:
            return denoised
        h, (_, first) = -math.log(sigma_next) - self._values[0][0], self._values[0]
        decay = -math.expm1(-h)  # 1 − σ_{i+1}/σ_i
        x = (sigma_next / sigma) * x + decay * first
        if h == 0 or len(self._values) == 1:
            return x
        # r_k: lengths of the earlier steps in units of this one; d_k: slopes of D over them
        pairs = list(zip(self._values, self._values[1:], strict=False))
        r = [(new - old) / h for (new, _), (old, _) in pairs]
        d = [(new - old) / ratio for ((_, new), (_, old)), ratio in zip(pairs, r, strict=True)]
        if len(d) == 1:
            return x + decay / 2 * d[0]
        phi_2 = 1 - decay / h
        curvature = (d[0] - d[1]) / (r[0] + r[1])
        return x + phi_2 * (d[0] + r[0] * curvature) - (phi_2 / h - 0.5) * curvature


Stepper = Multistep | IPNDM | DPMSolverPP


def stepper(config: SamplerConfig, sigma_min: float, sigma_max: float) -> Stepper:
    """A new solver of the multistep family, without history. sigma_min, sigma_max: the first and last level > 0."""
    if config.solver == "ipndm":
        return IPNDM(config.order or 4)
    if config.solver in ("dpmpp-2m", "dpmpp-3m-shipped"):
        return DPMSolverPP(2 if config.solver == "dpmpp-2m" else 3)
    u = variable(config.over or "lambda", sigma_min, sigma_max, config.rho)
    return Multistep(u, config.predicts or "data", config.order or 3, bool(config.corrector))
