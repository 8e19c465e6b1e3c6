"""Advice for a dataset: σ_data, the range of noise levels, and the training distribution of ln σ.

It follows from two curves of the mean squared error per pixel at noise level σ. e₀ is that of the best linear denoiser,
in closed form from the variances v_k of the data along its principal axes: e₀(σ) = mean_k σ² v_k/(σ² + v_k). e₁ is that
of the ideal denoiser of a subset of the images (Appendix B.3) or, after a first training run, that of its network.
(e₀ − e₁)/σ² is twice the information, per pixel and e-fold of σ, that a network can win over linear prediction.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm.data.archive import count_images, images_in_chunks, some_images
from edm.data.pixels import to_float
from edm.design import draws
from edm.errors import UserError
from edm.training.curves import read_curves

LARGEST_COVARIANCE = 4096  # numbers of an image up to which the whole covariance is computed: 134 MB
IN_MEMORY = 1 << 22  # numbers of the images of a chunk, and of the subset of the ideal denoiser: 34 MB in float64
SUBSET = 2000  # images of the ideal denoiser, if so many fit
LEVELS = 64  # noise levels of the curves
ROUNDING = 1 / (3 * 255**2)  # variance of the rounding to 8 bits, steps of 2/255: (2/255)²/12
VARIES = 0.01  # a denoiser's output with less than this part of the data's variance counts as constant
WON = 1e-3  # the part of linear prediction's information that must be won for a distribution of ln σ
WHOLE, FREQUENCIES = "covariance", "frequencies"


@dataclass(frozen=True)
class Spectrum:
    """The second moments of a dataset in [−1, 1].

    variances: v_k around the mean image, float64 [C·H·W]; mean: of all pixels; deviation: root mean square of the
    pixels around it; images: their number; kind: ``WHOLE`` or ``FREQUENCIES``, see :func:`spectrum`.
    """

    variances: Tensor
    mean: float
    deviation: float
    images: int
    kind: str


@dataclass(frozen=True)
class Advice:
    """What :func:`advise` finds.

    P_mean, P_std: of ln σ, None if e₁ wins nothing over e₀. P_mean_new, P_std_new: the same for ``e1_new``.
    curves: "sigma", "e0", "e1" and, without a network, "e1_new": the error of the ideal denoiser of the other images of
    the subset. subset: its number of images, 0 if e₁ is a network's. The other fields are those of :class:`Spectrum`.
    """

    sigma_data: float
    sigma_min: float
    sigma_max: float
    P_mean: float | None
    P_std: float | None
    P_mean_new: float | None
    P_std_new: float | None
    mean: float
    images: int
    subset: int
    spectrum: str
    curves: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def advise(data: str | Path, levels: str | Path | None = None) -> Advice:
    """Derives settings for a dataset archive, which it reads in chunks: about 0.6 GB of memory for images of any size.

    levels: levels.json of a training run on the same data; its error after training replaces e₁.

    ``edm.analysis.advice.advise("data/digits.zip").sigma_data``

    Raises UserError for a file that is no archive, for fewer than two different images, and for damaged levels.
    """
    images, first = count_images(data), some_images(data, [0])
    numbers = max(math.prod(first.shape[1:]), 1)
    chunks = (_floats(chunk) for chunk in images_in_chunks(data, max(1, IN_MEMORY // numbers)))
    found = spectrum(chunks, WHOLE if numbers <= min(LARGEST_COVARIANCE, images / 2) else FREQUENCIES)
    if found.images < 2 or not bool((found.variances > 0).any()):
        raise UserError(f"{data}: has no two different images; advice needs some")
    if levels is not None:
        curve = read_curves(levels)["after"]
        return advice_of(found, network=(curve["sigma"], curve["mean"]))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    rows = order[: max(2, min(SUBSET, IN_MEMORY // numbers))].tolist()
    return advice_of(found, _floats(some_images(data, rows)))


def advice_of(
    found: Spectrum, subset: Tensor | None = None, network: tuple[list[float], list[float]] | None = None
) -> Advice:
    """:func:`advise` from a spectrum, and either images [n, C, H, W] or the levels and errors of a network."""
    variances = found.variances
    low = _crossing(lambda sigma: float(linear_error(variances, sigma)) / ROUNDING - 1)
    high = _crossing(lambda sigma: 1 - float((variances**2 / (variances + sigma**2)).sum() / variances.sum()) / VARIES)
    # Data finer than 8 bits, or with so little variance that the ends meet, still get a range.
    low = min(low, high / 10)
    ends = (low, high) if network is None else (max(low, network[0][0]), min(high, network[0][-1]))
    if ends[0] >= ends[1]:
        raise UserError(f"levels: none from {low:.3g} to {high:.3g}, where this dataset's lie; of which data are they?")
    sigma = torch.linspace(math.log(ends[0]), math.log(ends[1]), LEVELS, dtype=torch.float64).exp()
    curves = {"sigma": sigma, "e0": linear_error(variances, sigma)}
    if network is not None:
        levels, errors = (torch.tensor(values, dtype=torch.float64) for values in network)
        # Their ratio is smoother than either, and exactly 1 where nothing is won.
        curves["e1"] = curves["e0"] * _interpolated(levels, errors / linear_error(variances, levels), sigma)
    elif subset is not None:
        curves["e1"], curves["e1_new"] = ideal_errors(subset, sigma)
    won = [moments(sigma, curves["e0"], curves[name]) if name in curves else None for name in ("e1", "e1_new")]
    (mean, deviation), (mean_new, deviation_new) = (one or (None, None) for one in won)
    return Advice(
        found.deviation, low, high, mean, deviation, mean_new, deviation_new, found.mean, found.images,
        0 if subset is None else len(subset), found.kind, {name: curve.tolist() for name, curve in curves.items()},
    )  # fmt: skip


def spectrum(chunks: Iterable[Tensor], kind: str = WHOLE) -> Spectrum:
    """Mean and variances of images, float64 [m, C, H, W] with any m, in one pass.

    kind: ``WHOLE`` takes the eigenvalues of the covariance of all C·H·W numbers. ``FREQUENCIES`` takes those of the
    C x C covariance of the channels at each frequency of the discrete cosine transform, as if frequencies were
    uncorrelated: e₀ is then that of the best denoiser that treats each frequency alone, an upper bound.
    """
    pivot, count, first = torch.empty(0), 0, torch.empty(0)
    second, pixels, squares = torch.empty(0), 0.0, 0.0
    for chunk in chunks:
        pixels, squares = pixels + float(chunk.sum()), squares + float((chunk**2).sum())
        values = chunk.flatten(1) if kind == WHOLE else _cosines(chunk)
        if count == 0:  # moments around a point near the mean lose no digits
            pivot = values.mean(0)
            first = torch.zeros_like(pivot)
            width = values.shape[1]
            second = values.new_zeros((width, width) if kind == WHOLE else (width, width, *values.shape[2:]))
        values, count = values - pivot, count + len(values)
        first += values.sum(0)
        second += values.T @ values if kind == WHOLE else torch.einsum("nc...,nd...->cd...", values, values)
    mean, numbers = first / count, count * math.prod(first.shape)
    if kind == WHOLE:
        variances = torch.linalg.eigvalsh(second / count - torch.outer(mean, mean))
    else:
        matrices = second / count - mean[:, None] * mean[None]
        variances = torch.linalg.eigvalsh(matrices.flatten(2).movedim(2, 0)).flatten()
    deviation = math.sqrt(max(squares / numbers - (pixels / numbers) ** 2, 0.0))
    smallest = 1e-12 * float(variances.max())  # rounding
    return Spectrum(variances.where(variances > smallest, 0), pixels / numbers, deviation, count, kind)


def linear_error(variances: Tensor, sigma: Tensor | float) -> Tensor:
    """e₀(σ) = mean_k σ² v_k/(σ² + v_k), the error per pixel of the best linear denoiser, shaped as ``sigma``."""
    square = torch.as_tensor(sigma, dtype=torch.float64)[..., None] ** 2
    return (square * variances / (square + variances)).mean(-1)


def ideal_errors(images: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Errors per pixel, float64 [L], at levels ``sigma`` [L] of the ideal denoiser of images [n, C, H, W].

    The first is on these images: it recognises each of them, so no denoiser of the true distribution has a smaller
    error. The second is on images that it does not have, the image itself left out of the sum: an upper bound of the
    smallest error possible. Image i has one draw per level, from seed i.
    """
    flat, seeds = images.to(torch.float64).flatten(1), torch.arange(len(images))
    norms, errors = (flat**2).sum(1), torch.zeros(2, len(sigma), dtype=torch.float64)
    rows = max(1, IN_MEMORY // len(flat))
    for index, level in enumerate(sigma.tolist()):
        for start in range(0, len(flat), rows):
            own = flat[start : start + rows]
            noise = draws.normal(seeds[start : start + rows], index, images.shape[1:], draws.EVALUATION).flatten(1)
            exponents = ((own + level * noise) @ flat.T - norms / 2) / level**2
            for kind in range(2):
                errors[kind, index] += ((exponents.softmax(1) @ flat - own) ** 2).sum()
                exponents[torch.arange(len(own)), torch.arange(start, start + len(own))] = -math.inf
    memorised, new = errors / flat.numel()
    return memorised, new


def moments(sigma: Tensor, e0: Tensor, e1: Tensor) -> tuple[float, float] | None:
    """Mean and deviation of ln σ under the density ∝ max(e₀ − e₁, 0)/σ², at levels that are even in ln σ.

    None if it is below ``WON`` of e₀/σ², or at one level only.
    """
    place, ends = sigma.log(), torch.ones_like(sigma)
    ends[[0, -1]] = 0.5  # the trapezoidal rule
    won = ends * (e0 - e1).clamp(min=0) / sigma**2
    if float(won.sum()) < WON * float((ends * e0 / sigma**2).sum()):
        return None
    density = won / won.sum()
    mean = float((density * place).sum())
    deviation = math.sqrt(float((density * (place - mean) ** 2).sum()))
    return (mean, deviation) if deviation > 0 else None


def _crossing(rising: Any) -> float:
    """The σ in [1e−5, 1e5] at which a rising function of σ is 0, by bisection in ln σ; an end if it is not there."""
    low, high = math.log(1e-5), math.log(1e5)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(math.exp(middle)) > 0 else (middle, high)
    return math.exp((low + high) / 2)


def _interpolated(levels: Tensor, values: Tensor, sigma: Tensor) -> Tensor:
    """A curve at levels between its own: linear in ln σ."""
    x, right = levels.log(), torch.searchsorted(levels, sigma).clamp(1, len(levels) - 1)
    part = (sigma.log() - x[right - 1]) / (x[right] - x[right - 1])
    return values[right - 1] + part * (values[right] - values[right - 1])


def _floats(pixels: Any) -> Tensor:
    return to_float(torch.from_numpy(pixels)).to(torch.float64)


def _cosines(images: Tensor) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II) of each channel of [m, C, H, H], shaped as it is."""
    side = images.shape[-1]
    k = torch.arange(side, dtype=torch.float64)
    basis = (math.pi / side * k[:, None] * (k[None] + 0.5)).cos() * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis @ images @ basis.T
