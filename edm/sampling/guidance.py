"""Guidance: D_w = D_g + w (D − D_g) at noise levels σ in (lo, hi], and D elsewhere.

The guide D_g is the network itself with the null label (Ho and Salimans 2021), or another model, such as a smaller one
or an earlier snapshot (Karras et al. 2024); the interval is that of Kynkäänniemi et al. 2024. For data N(0, c²) and a
guide N(0, g²), the deviation of the images is T (g²/(g² + T²))^{(1−w)/2} (c²/(c² + T²))^{w/2}, with T = σ_max.
"""

import math
from typing import Any

import torch
from torch import Tensor

from edm.config import NULL, SamplerConfig
from edm.errors import UserError
from edm.sampling.sampler import Denoiser

SLACK = 1e-9  # relative: a solver's levels equal the bounds up to rounding


def guided(net: Denoiser, config: SamplerConfig, guide: Denoiser | None = None) -> Denoiser:
    """The denoiser D_w of a sampler's settings; ``net`` itself where they guide nothing: without a guide, or w = 1.

    guide: D_g; by default ``net`` with the null label, or the denoiser that ``net.guides`` has under the name
    ``config.guide``. Raises UserError if it has none.

    ``guided(net, edm.SamplerConfig(guide="null", guidance=2.0))``
    """
    if not config.guides:
        return net
    if guide is None and config.guide != NULL:
        known = getattr(net, "guides", {})
        if config.guide not in known:
            given = ", ".join([NULL, *known])
            raise UserError(f"guide {config.guide!r}: this model has no such network beside it; it has {given}")
        guide = known[config.guide]
    if guide is None and not takes_labels(net):
        raise UserError("guide null: the model is unconditional, so no label can be left out; name another guide")
    return Guided(net, guide, config)


def takes_labels(net: Any) -> bool:
    """Whether a denoiser is conditional; True for one of another kind, which does not tell."""
    network = getattr(net, "network", None)
    return bool(getattr(getattr(network, "config", None), "classes", True))


class Guided:
    """``net(x, sigma, class_labels=None)`` → D_w(x; σ), float64 shaped as x; other attributes are those of ``net``.

    sigma: one level, or one per image [B]. guide: None for ``net`` with the null label.
    ``evaluations`` counts the guide's evaluations per image since the start: a number, or [B] for levels per image.
    """

    def __init__(self, net: Denoiser, guide: Denoiser | None, config: SamplerConfig):
        self.net, self.guide, self.weight = net, guide, config.guidance
        self.low, self.high = config.guidance_min, config.most_guided
        self.evaluations: Tensor | int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)  # sigma_min, sigma_max, round_sigma, device, …

    def inside(self, sigma: Tensor) -> Tensor:
        """Whether levels are in (lo, hi], shaped as ``sigma``."""
        return (sigma > self.low * (1 + SLACK)) & (sigma <= self.high * (1 + SLACK))

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self._combined(self.net(x, sigma, class_labels), x, sigma, class_labels)

    def with_variance(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(D_w(x; σ), v); v is that of ``net``."""
        denoised, v = self.net.with_variance(x, sigma, class_labels)  # type: ignore[attr-defined]
        return self._combined(denoised, x, sigma, class_labels), v

    def _combined(self, denoised: Tensor, x: Tensor, sigma: Tensor, class_labels: Tensor | None) -> Tensor:
        sigma = torch.as_tensor(sigma)
        inside = self.inside(sigma)
        self.evaluations = self.evaluations + inside.long()
        denoised = denoised.to(torch.float64)
        if self.low == 0 and math.isinf(self.high):  # no level is read: a GPU would be waited for
            return self._mixed(denoised, x, sigma, class_labels)
        if inside.ndim == 0 or bool(inside.all()):
            return self._mixed(denoised, x, sigma, class_labels) if bool(inside.all()) else denoised
        rows = inside.nonzero()[:, 0]
        if len(rows):
            labels = None if class_labels is None else class_labels[rows]
            denoised = denoised.index_copy(0, rows, self._mixed(denoised[rows], x[rows], sigma[rows], labels))
        return denoised

    def _mixed(self, denoised: Tensor, x: Tensor, sigma: Tensor, class_labels: Tensor | None) -> Tensor:
        of, labels = (self.net, None) if self.guide is None else (self.guide, class_labels)
        other = of(x, sigma, labels).to(denoised)
        return other + self.weight * (denoised - other)
