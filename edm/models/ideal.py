"""The ideal denoiser of a finite dataset (Figure 1, Appendix B.3)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from edm.errors import UserError
from edm.models.denoiser import require_images


class IdealDenoiser:
    """D(x; σ) = Σ_i w_i y_i with w = softmax(−‖x − y_i‖²/2σ²): what a network of unlimited capacity would learn.

    images: the training images y_i, [n, C, H, W] in [−1, 1]; labels: their classes [n], or None. With class labels,
    the sum covers only the images of that class. Float64 throughout; any σ ≥ 0.
    """

    sigma_min = 0.0
    sigma_max = float("inf")

    def __init__(self, images: Tensor, labels: Tensor | None = None):
        require_images("images", images)
        if len(images) == 0:
            raise UserError("the ideal denoiser needs at least one image")
        if not bool(images.isfinite().all()):
            raise UserError("images: not all finite; expected pixels in [−1, 1]")
        self.images = images.to(torch.float64)
        self.labels = None if labels is None else torch.as_tensor(labels, device=self.device)
        if self.labels is not None and self.labels.shape != (len(images),):
            raise UserError(f"labels have shape {list(self.labels.shape)}; expected one per image, [{len(images)}]")

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W]; sigma: a number or [B]; class_labels: indices [B] or one-hot rows.

        Returns float64, shaped as x, on the images' device. Raises UserError for a class without images.
        """
        x = x.to(self.device, torch.float64)
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=self.device).reshape(-1).expand(len(x))
        if class_labels is None or self.labels is None:
            return ideal_denoised(x, sigma, [self.images])
        indices = (class_labels if class_labels.ndim == 1 else class_labels.argmax(dim=1)).to(self.device)
        if not torch.isin(indices, self.labels).all():
            raise UserError("class_labels: the dataset has no images of a requested class")
        denoised = torch.empty_like(x)
        for label in indices.unique():
            rows = indices == label
            denoised[rows] = ideal_denoised(x[rows], sigma[rows], [self.images[self.labels == label]])
        return denoised


def ideal_denoised(x: Tensor, sigma: Tensor, training: Iterable[Tensor]) -> Tensor:
    """D(x; σ) = Σ_i w_i y_i, w = softmax(−‖x − y_i‖²/2σ²), float64 shaped as x, in one pass over the images y_i.

    x: [B, C, H, W]; sigma: [B], σ ≥ 0; training: all training images as chunks [m, C, H, W] in [−1, 1], of any m.
    One pass serves all of x, and at most two float64 chunks are in memory. Raises UserError if ``training`` is empty or
    has images of another shape.
    """
    flat = x.to(torch.float64).flatten(1)
    # At σ = 0 the nearest image gets all the weight; a lower bound on σ has the same effect and avoids division by 0.
    precision = 0.5 / sigma.to(flat).clamp(min=1e-8)[:, None] ** 2
    peak = torch.full_like(flat[:, :1], -torch.inf)  # the largest exponent so far; weights are relative to it
    total, weighted = torch.zeros_like(peak), torch.zeros_like(flat)
    for chunk in training:
        if chunk.shape[1:] != x.shape[1:]:
            raise UserError(f"training images of shape {list(chunk.shape[1:])} beside images of {list(x.shape[1:])}")
        points = chunk.to(flat).flatten(1)
        exponents = -precision * ((flat**2).sum(dim=1, keepdim=True) - 2 * flat @ points.T + (points**2).sum(dim=1))
        highest = torch.maximum(peak, exponents.max(dim=1, keepdim=True).values)
        shrink, weights = (peak - highest).exp(), (exponents - highest).exp()
        total = shrink * total + weights.sum(dim=1, keepdim=True)
        weighted = shrink * weighted + weights @ points
        peak = highest
    if torch.isneginf(peak).any():
        raise UserError("the ideal denoiser needs at least one image")
    return (weighted / total).reshape(x.shape)
