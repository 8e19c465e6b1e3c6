"""The ideal denoiser of a finite dataset (Figure 1, Appendix B.3)."""

import torch
from torch import Tensor

from edm.errors import UserError


class IdealDenoiser:
    """D(x; σ) = Σ_i w_i y_i with w = softmax(−‖x − y_i‖²/2σ²): what a network of unlimited capacity would learn.

    images: the training images y_i, [n, C, H, W] in [−1, 1]; labels: their classes [n], or None. Given class labels,
    the average runs over the images of that class. Float64 throughout; any σ ≥ 0.
    """

    sigma_min = 0.0
    sigma_max = float("inf")

    def __init__(self, images: Tensor, labels: Tensor | None = None):
        if len(images) == 0:
            raise UserError("the ideal denoiser needs at least one image")
        self.shape = tuple(images.shape[1:])
        self.points = images.to(torch.float64).flatten(1)
        self.squares = (self.points**2).sum(dim=1)
        self.labels = None if labels is None else labels.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.points.device

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W]; sigma: a number or [B]; class_labels: indices [B] or one-hot rows.

        Returns float64, shaped as x, on the images' device. Raises UserError for a class without images.
        """
        flat = x.to(self.device, torch.float64).flatten(1)
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=flat.device).reshape(-1, 1)
        distances = (flat**2).sum(dim=1, keepdim=True) - 2 * flat @ self.points.T + self.squares
        if class_labels is not None and self.labels is not None:
            indices = (class_labels if class_labels.ndim == 1 else class_labels.argmax(dim=1)).to(self.device)
            if not torch.isin(indices, self.labels).all():
                raise UserError("class_labels: a class is asked for of which the dataset has no image")
            distances = distances.masked_fill(indices[:, None] != self.labels[None], float("inf"))
        # At σ = 0 the nearest image has all the weight; a floor of σ gives the same without dividing by zero.
        weights = torch.softmax(-distances / (2 * sigma.clamp(min=1e-8) ** 2), dim=1)
        return (weights @ self.points).reshape(len(x), *self.shape)
