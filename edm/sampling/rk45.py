"""RK45, the black-box baseline of Table 3: an adaptive Runge–Kutta solver in place of the paper's time steps.

The pair of orders 5 and 4 of Dormand and Prince (1980), with error control and first step as in Hairer, Nørsett and
Wanner, "Solving Ordinary Differential Equations I", Section II.4. It integrates over σ itself, as a black-box solver
would; the step sizes must adapt to a σ that spans four decades.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edm.config import SamplerConfig
from edm.errors import UserError
from edm.sampling.sampler import Denoiser, networks_at, rounding_of, supported_range
from edm.sampling.steps import slope

# Coefficients of Dormand and Prince (Hairer et al., Table II.5.2). Stage i is taken at σ + c_i h, x + h Σ_j a_ij k_j.
# The last row of a is the solution of order 5, so that the last stage is the first of the next step.
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # b − b̂: order 5 minus order 4

_STAGES = len(_A)  # network evaluations of a step, accepted or not
_ORDER = 5  # the error estimate is O(h^5)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0  # fac, facmin and facmax of Hairer et al., Eq. II.4.13
_LEAST_STEP = 10 * torch.finfo(torch.float64).eps  # relative to σ: below this, the σ + c_i h are not distinct

DEFAULT_MAX_EVALUATIONS = 20_000


_Flow = Callable[[Tensor, Tensor], Tensor]  # dx/dσ at x [B, C, H, W], one σ per image


@dataclass(frozen=True)
class _Tolerance:
    """Error tolerances of a step; :meth:`norm` gives the error of each image in units of them."""

    rtol: float
    atol: float

    def norm(self, error: Tensor, *points: Tensor) -> Tensor:
        """√(mean_i (error_i/sc_i)²) with sc_i = atol + rtol·max |x_i| over ``points`` (Eq. II.4.10, 11), [B]."""
        largest = torch.stack([x.abs() for x in points]).amax(dim=0)
        scaled = error / (self.atol + self.rtol * largest)
        return scaled.flatten(1).square().mean(dim=1).sqrt()


@torch.inference_mode()
def rk45(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    rtol: float,
    atol: float,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    max_evaluations: int = DEFAULT_MAX_EVALUATIONS,
) -> tuple[Tensor, Tensor]:
    """Solves the probability-flow ODE from σ_max to σ_min adaptively, then takes one Euler step to σ = 0, where x is D.

    net: denoiser D(x, σ, class_labels) for x of shape [B, C, H, W] and one σ per image, [B]; its attributes
        ``sigma_min``, ``sigma_max`` and ``round_sigma(σ)`` bound and round the two ends; stages are not rounded.
    latents: standard-normal draws, [B, C, H, W]; scaled here to σ_max.
    rtol, atol: error tolerance of each step, relative to the pixel and absolute; atol > 0, rtol ≥ 0.
    sigma_min, sigma_max: 0.002 and 80 by default; clamped to the model's range.
    max_evaluations: maximum network evaluations of one image.

    Every image has its own step size and its own accepted and rejected steps, so its result does not depend on its
    batch beyond rounding. The network always gets the whole batch: finished images stay in it unchanged.

    Returns (images, nfe): float64 [B, C, H, W], about [−1, 1], and int64 [B], the evaluations that each image needed:
    2 for the first step size, 6 per step, accepted or not; the Euler step reuses the last stage.
    Raises UserError for bad arguments, non-finite network outputs, a vanishing step, or too many evaluations.
    """
    if not (math.isfinite(atol) and atol > 0 and math.isfinite(rtol) and rtol >= 0):
        raise UserError(f"rk45: rtol is {rtol:g} and atol is {atol:g}; give finite numbers, rtol >= 0 and atol > 0")
    tolerance = _Tolerance(rtol, atol)
    evaluated = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)  # also of finished images

    def flow(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal evaluated
        evaluated = evaluated + networks_at(net, sigma)
        return slope(net, x, sigma, class_labels)

    tolerances = f"rtol {rtol:g} and atol {atol:g}"
    high, low = _ends(net, sigma_min, sigma_max)

    x = latents.to(torch.float64) * high
    sigma = torch.full((len(x),), high, dtype=torch.float64, device=x.device)
    d = flow(x, sigma)
    active = sigma > low
    _require_finite(d, sigma > 0, sigma)
    if high > low:
        h = _first_step(flow, tolerance, x, sigma, d, high - low)
    nfe = evaluated
    after_rejection = torch.zeros_like(active)
    while bool(active.any()):
        too_many = f"not done after {max_evaluations} network evaluations; raise max_evaluations, or {tolerances}"
        _require(nfe + _STAGES <= max_evaluations, active, sigma, too_many)
        _require(h >= _LEAST_STEP * sigma, active, sigma, f"no step is small enough for {tolerances}; raise them")
        sigma_next = torch.where(active, (sigma - h).clamp(min=low), sigma)
        before = evaluated
        x_next, d_next, error = _step(flow, x, sigma, d, sigma_next)
        nfe = nfe + (evaluated - before) * active
        _require_finite(d_next + error, active, sigma)

        ratio = tolerance.norm(error, x, x_next)
        accepted = active & (ratio <= 1)
        # Eq. II.4.13: h ← h·min(facmax, max(facmin, fac·ratio^{−1/5})), with facmax = 1 after a rejected step.
        factor = (_SAFETY * ratio ** (-1 / _ORDER)).clamp(_SHRINK, _GROW)
        factor = torch.where(after_rejection | ~accepted, factor.clamp(max=1.0), factor)
        h = (sigma - sigma_next) * factor
        after_rejection = active & ~accepted
        sigma = torch.where(accepted, sigma_next, sigma)
        x, d = (torch.where(_per_image(accepted), new, old) for new, old in ((x_next, x), (d_next, d)))
        active = sigma > low
    return x - _per_image(sigma) * d, nfe


def _ends(net: Denoiser, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """(σ_max, σ_min), clamped and rounded to what the model supports."""
    low, high = supported_range(net, SamplerConfig(sigma_min=sigma_min, sigma_max=sigma_max))
    levels = torch.tensor([high, low], dtype=torch.float64)
    high, low = rounding_of(net)(levels).tolist()
    return high, low


def _step(flow: _Flow, x: Tensor, sigma: Tensor, d: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of every image: (x of order 5 at ``sigma_next``, its derivative, the difference to order 4)."""
    h, stages = sigma_next - sigma, [d]
    for c, row in zip(_C, _A, strict=True):
        at = sigma + c * h if c < 1 else sigma_next  # not past the end by rounding
        point = x + _per_image(h) * _combine(row, stages)
        stages.append(flow(point, at))
    return point, stages[-1], _per_image(h) * _combine(_E, stages)


def _combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """Σ_j w_j k_j."""
    products = (weight * stage for weight, stage in zip(weights, stages, strict=True) if weight)
    return sum(products, start=stages[0].new_zeros(()))


def _first_step(flow: _Flow, tolerance: _Tolerance, x: Tensor, sigma: Tensor, d: Tensor, longest: float) -> Tensor:
    """The first step size |h| of every image [B] (Hairer et al., Section II.4, "Starting Step Size"); 1 evaluation."""
    d0, d1 = tolerance.norm(x, x), tolerance.norm(d, x)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=longest)
    d_euler = flow(x - _per_image(h0) * d, sigma - h0)
    _require_finite(d_euler, sigma > 0, sigma)
    d2 = tolerance.norm(d_euler - d, x) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (1e-3 * h0).clamp(min=1e-6), (0.01 / largest) ** (1 / _ORDER))
    return torch.minimum(100 * h0, h1).clamp(max=longest)


def _per_image(values: Tensor) -> Tensor:
    """[B] → [B, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


def _require(holds: Tensor, active: Tensor, sigma: Tensor, otherwise: str) -> None:
    """Raises UserError for the first active image [B] for which ``holds`` [B] is false."""
    fails = active & ~holds
    if bool(fails.any()):
        image = int(fails.nonzero()[0, 0])
        raise UserError(f"rk45: image {image} of the batch, at sigma {float(sigma[image]):.4g}: {otherwise}")


def _require_finite(values: Tensor, active: Tensor, sigma: Tensor) -> None:
    finite = values.isfinite().flatten(1).all(dim=1)
    _require(finite, active, sigma, "the network gave non-finite values; check the model and its precision")
