"""The probability-flow ODE upwards: the likelihood of an image, and its latent (Song et al. 2021, Appendix D.2).

Along dx/dσ = (x − D)/σ, d ln p/dσ = −(d − tr ∂D/∂x)/σ for images of d dimensions. So the logarithm of the density at
σ_min is that of the normal distribution at σ_max, at the point where the image arrives, plus ∫ (d − tr ∂D/∂x)/σ dσ.
Of a Gaussian of deviation σ_d, D_G = x σ_d²/(σ² + σ_d²), both are known. The steps integrate what differs from it:
with y = x/√(σ² + σ_d²), dy/dσ = (D_G − D)/(σ √(σ² + σ_d²)), and the trace of ∂(D_G − D)/∂x in place of d − tr ∂D/∂x.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, overload

import torch
from torch import Tensor

from edm.config import SOLVERS, SamplerConfig
from edm.design import draws
from edm.design.timesteps import noise_levels
from edm.errors import UserError
from edm.models.denoiser import require_images
from edm.sampling.sampler import Denoiser, rounding_of, supported_range

EXACT, HUTCHINSON = "exact", "hutchinson"
TRACES = (HUTCHINSON, EXACT)
LN_2 = math.log(2)
OF_PIXELS = math.log2(127.5)  # bits per dimension: a pixel of 8 bits is as wide as 1/127.5 in images of [−1, 1]

#: The derivative of a point by σ, and the rates of what is summed, [k, B], at the point and σ.
_Look = Callable[[Tensor, float], tuple[Tensor, Tensor]]


@overload
def log_likelihood(
    net: Denoiser, images: Tensor, class_labels: Tensor | None = None, *, num_steps: int = 100, solver: str = "heun",
    sigma_min: float | None = None, sigma_max: float | None = None, trace: str = HUTCHINSON, probes: int = 1,
    seeds: Tensor | None = None, data_std: float = 0.5, spread: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def log_likelihood(
    net: Denoiser, images: Tensor, class_labels: Tensor | None = None, *, num_steps: int = 100, solver: str = "heun",
    sigma_min: float | None = None, sigma_max: float | None = None, trace: str = HUTCHINSON, probes: int = 1,
    seeds: Tensor | None = None, data_std: float = 0.5, spread: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def log_likelihood(
    net: Denoiser,
    images: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 100,
    solver: str = "heun",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    trace: str = HUTCHINSON,
    probes: int = 1,
    seeds: Tensor | None = None,
    data_std: float = 0.5,
    spread: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """ln p(x; σ_min) of images under the probability-flow ODE of a denoiser, in nats per image.

    net: as in :func:`edm.sample`; it must allow gradients with respect to x. images: float [B, C, H, W], about [−1, 1];
        of 8-bit images, dequantised ones. class_labels: indices [B] or one-hot rows; the density is that of the class.
    num_steps, solver: N steps of "heun" (order 2; 2N evaluations) or "euler" between the levels of Eq. 5, ρ = 7, from
        sigma_min (0.002) up to sigma_max (80), clamped to the range of ``net``.
    trace: of ∂D/∂x: "exact", one backward pass per dimension and evaluation, or "hutchinson": vᵀ ∂D/∂x v, unbiased,
        the mean over ``probes`` vectors v of ±1, one backward pass each. An image has the same vectors at every step.
    seeds: of the images' vectors, int64 [B], by default 0, 1, …; the result depends on the image and its seed alone.
    data_std: σ_d; the density at σ_max is N(0, σ_max² + σ_d²).
    spread: also returns the standard error of the mean over the probes, float64 [B]: NaN of one, 0 of the exact trace.

    Returns float64 [B]. −ln p/(d ln 2) are bits per dimension of the density; :func:`bits_per_dimension` gives those of
    8-bit pixels. Raises UserError for settings out of range and for images, labels or seeds of another type or shape.
    """
    levels = _levels_upwards(net, num_steps, solver, sigma_min, sigma_max)
    _require_images(net, images)
    if trace not in TRACES:
        raise UserError(f"trace is {trace!r}; choose from {', '.join(TRACES)}")
    if type(probes) is not int or probes < 1:
        raise UserError(f"probes is {probes!r}; expected a whole number of at least 1")
    if not (math.isfinite(data_std) and data_std >= 0):
        raise UserError(f"data_std is {data_std!r}; expected the standard deviation of the data, at least 0")
    vectors = None
    if trace == HUTCHINSON:
        vectors = draws.probes(_seeds(seeds, images), probes, tuple(images.shape[1:]))
    dimensions = images[0].numel()

    def look(y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        scale = math.hypot(sigma, data_std)
        denoised, traces = _denoised_and_traces(net, scale * y, sigma, class_labels, vectors)
        share = (data_std / scale) ** 2
        return (share * scale * y - denoised) / (sigma * scale), (share * dimensions - traces) / sigma

    below = math.hypot(levels[0], data_std)
    y, gained = _climb(look, images.detach().to(torch.float64) / below, levels, solver)
    # The normal density at σ_max; the known part of the integral makes its normaliser that of σ_min.
    found = gained - 0.5 * y.flatten(1).square().sum(dim=1) - dimensions * math.log(math.sqrt(2 * math.pi) * below)
    if not spread:
        return found.mean(dim=0)
    return found.mean(dim=0), torch.zeros_like(found[0]) if trace == EXACT else _error_of_mean(found)


def bits_per_dimension(nats: Tensor, dimensions: int) -> Tensor:
    """−log₂ P of 8-bit images per dimension, from ln p of dequantised ones: −nats/(d ln 2) + log₂ 127.5.

    An upper bound on average, as for every density of dequantised images (Theis et al. 2016).
    """
    return -nats / (dimensions * LN_2) + OF_PIXELS


def dequantised(images: Tensor, seeds: Tensor) -> Tensor:
    """(v + u)/127.5 − 1 with u uniform in [0, 1) from the images' own seeds: float64, from uint8 [B, C, H, W].

    It lies in [−1, 1.0079]: by half a pixel higher on average than the images that networks are trained on.
    """
    noise = draws.uniform(seeds, 0, images[0].numel(), draws.DEQUANTISE).reshape(images.shape)
    return (images.to(torch.float64) + noise.to(images.device)) / 127.5 - 1


def invert(
    net: Denoiser,
    images: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    solver: str = "heun",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """The latents from which the deterministic sampler draws these images: the ODE from sigma_min up to sigma_max.

    Arguments as in :func:`log_likelihood`; NFE 2N for "heun", N for "euler". Returns float64 [B, C, H, W], standard
    normal for images of the model. ``edm.sample(net, latents, …, final="sigma_min")`` with the same settings gives the
    images back, up to an error that falls as 1/N² ("heun") or 1/N ("euler").
    Raises UserError as :func:`log_likelihood`.
    """
    levels = _levels_upwards(net, num_steps, solver, sigma_min, sigma_max)
    _require_images(net, images)

    def look(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return (x - _denoised(net, x, sigma, class_labels)) / sigma, x.new_zeros(())

    with torch.no_grad():
        x, _ = _climb(look, images.to(torch.float64), levels, solver)
    return x / levels[-1]


def interpolate(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Latents on the great circle from ``first`` to ``second``: (sin((1 − w)θ) a + sin(wθ) b)/sin θ (Shoemake 1985).

    first, second: float [B, C, H, W], θ the angle between two images as vectors. weights: [W], 0 for the first and 1
    for the second. Returns float64 [B, W, C, H, W]: standard-normal latents stay at their usual distance from 0, which
    straight lines leave. Latents of one direction, or of opposite ones, are joined by straight lines.
    Raises UserError for tensors of other or different shapes.
    """
    require_images("first", first)
    require_images("second", second)
    weights = torch.as_tensor(weights, dtype=torch.float64, device=first.device)
    if first.shape != second.shape or weights.ndim != 1:
        shapes = f"{list(first.shape)}, {list(second.shape)} and {list(weights.shape)}"
        raise UserError(f"first, second and weights are of shape {shapes}; expected [B, C, H, W] twice and [W]")
    a, b = (one.to(torch.float64).flatten(1)[:, None] for one in (first, second))
    lengths = (a.norm(dim=2) * b.norm(dim=2)).clamp(min=torch.finfo(torch.float64).tiny)
    angle = ((a * b).sum(dim=2) / lengths).clamp(-1, 1).acos()
    straight = angle.sin() < 1e-7
    theta = torch.where(straight, 1.0, angle)
    share_a = torch.where(straight, 1 - weights, ((1 - weights) * theta).sin() / theta.sin())
    share_b = torch.where(straight, weights, (weights * theta).sin() / theta.sin())
    points = share_a[..., None] * a + share_b[..., None] * b
    return points.reshape(len(first), len(weights), *first.shape[1:])


def _climb(look: _Look, x: Tensor, levels: list[float], solver: str) -> tuple[Tensor, Tensor]:
    """x at the last of rising levels, and the integrals of the rates, [k, B]."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for sigma, above in pairwise(levels):
        step = above - sigma
        slope, rates = look(x, sigma)
        trial, reached = x + step * slope, total + step * rates
        if solver == "heun":
            second, later = look(trial, above)
            trial, reached = x + step / 2 * (slope + second), total + step / 2 * (rates + later)
        x, total = trial, reached
    return x, total


def _denoised_and_traces(
    net: Denoiser, x: Tensor, sigma: float, class_labels: Tensor | None, vectors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D and tr ∂D/∂x, [k, B]: an estimate for each of the vectors [k, B, C, H, W], or the exact one."""
    point = x.detach().requires_grad_()
    with torch.enable_grad():
        denoised = _denoised(net, point, sigma, class_labels)
        if not denoised.requires_grad:
            raise UserError("net: its result has no gradient with respect to x, which the trace needs")
        traces = _traces(denoised, point, vectors)
    return denoised.detach(), traces


def _traces(denoised: Tensor, point: Tensor, vectors: Tensor | None) -> Tensor:
    """tr ∂D/∂x of every image, float64 [1, B], or vᵀ ∂D/∂x v for every vector, [k, B]."""
    if vectors is not None:
        products = []
        for number, vector in enumerate(vectors, 1):
            (back,) = torch.autograd.grad(denoised, point, vector, retain_graph=number < len(vectors))
            products.append((back.double() * vector).flatten(1).sum(dim=1))
        return torch.stack(products)
    flat = denoised.flatten(1)
    trace = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    for place in range(flat.shape[1]):
        (back,) = torch.autograd.grad(flat[:, place].sum(), point, retain_graph=place + 1 < flat.shape[1])
        trace += back.flatten(1)[:, place].double()
    return trace[None]


def _error_of_mean(found: Tensor) -> Tensor:
    """The standard error of the mean over the first dimension; NaN of a single value."""
    count = len(found)
    if count == 1:
        return torch.full_like(found[0], math.nan)
    return found.std(dim=0) / math.sqrt(count)


def _denoised(net: Denoiser, x: Tensor, sigma: float, class_labels: Tensor | None) -> Tensor:
    return net(x, x.new_full((), sigma), class_labels).to(torch.float64)


def _levels_upwards(
    net: Denoiser, num_steps: int, solver: str, sigma_min: float | None, sigma_max: float | None
) -> list[float]:
    """N + 1 rising noise levels, or fewer if the model rounds some to the same one."""
    if solver not in SOLVERS:
        raise UserError(f"solver is {solver!r}; upwards there are {' and '.join(SOLVERS)}")
    config = SamplerConfig(
        num_steps=num_steps, solver=solver, sigma_min=sigma_min, sigma_max=sigma_max, final="sigma_min"
    )
    low, high = supported_range(net, config)
    levels = noise_levels(config.discretization, num_steps + 1, low, high, config.rho)
    return sorted(set(rounding_of(net)(levels).detach().to("cpu", torch.float64).tolist()))


def _require_images(net: Denoiser, images: Tensor) -> None:
    require_images("images", images)
    device = getattr(net, "device", images.device)
    if images.device != device:
        raise UserError(f"images are on {images.device}, the model on {device}; move one: images.to(net.device)")
    if not bool(images.isfinite().all()):
        raise UserError("images: not all finite")


def _seeds(seeds: Tensor | None, images: Tensor) -> Tensor:
    if seeds is None:
        return torch.arange(len(images), device=images.device)
    seeds = torch.as_tensor(seeds)
    if seeds.shape != (len(images),) or seeds.is_floating_point() or seeds.is_complex():
        raise UserError(f"seeds are {seeds.dtype} {list(seeds.shape)}; expected a whole number for each image")
    return seeds.to(images.device)
