"""A trained network as a denoiser D(x; σ)."""

import torch
from torch import Tensor, nn

from edm.errors import UserError
from edm.networks import UNet
from edm.preconditioning import Preconditioning


class Denoiser(nn.Module):
    """``net(x, sigma, class_labels=None, augment_labels=None)`` → D(x; σ), float32 of the shape of x.

    x: [B, C, H, W], any float dtype; sigma: a number, a scalar tensor, or one level per image [B];
    class_labels: class indices [B] (integers) or one-hot rows [B, classes]; None is the unconditional input of zeros;
    augment_labels: conditioning vectors [B, 9] of Table 6; None means not augmented.
    ``sigma_min``, ``sigma_max`` and ``round_sigma`` tell samplers which levels the model supports.
    ``compute_dtype`` is the precision of the network's convolutions and attention; embeddings stay in float32.
    """

    def __init__(self, network: UNet, preconditioning: Preconditioning):
        super().__init__()
        self.network, self.preconditioning = network, preconditioning
        self.compute_dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return self.network.out_conv.weight.device

    @property
    def sigma_min(self) -> float:
        return self.preconditioning.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.preconditioning.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level the model supports, shaped as ``sigma``."""
        return self.preconditioning.round_sigma(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, c_noise = self.preconditioning.coefficients(sigma)
        labels = self.one_hot(class_labels, len(x), x.device)
        raw = self.network((c_in * x).to(self.compute_dtype), c_noise.flatten().expand(len(x)), labels, augment_labels)
        # A network that also predicts its variance (iDDPM) has more channels than the image; D needs the first.
        return c_skip * x + c_out * raw[:, : x.shape[1]].to(torch.float32)

    def one_hot(self, class_labels: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """One-hot rows [B, classes] of indices or of rows; None for a model without classes. Raises UserError."""
        classes = self.network.config.classes
        if classes == 0:
            return None
        if class_labels is None:
            return torch.zeros(batch, classes, device=device)
        if class_labels.ndim not in (1, 2) or len(class_labels) != batch:
            raise UserError(
                f"class_labels of shape {list(class_labels.shape)}: expected {batch} indices or one-hot rows"
            )
        if class_labels.ndim == 1:
            if class_labels.is_floating_point():
                raise UserError("class_labels: indices must be integers; one-hot rows have two dimensions")
            # A look at values on a GPU would make the host wait for it.
            if class_labels.device.type == "cpu" and not ((class_labels >= 0) & (class_labels < classes)).all():
                raise UserError(f"class_labels must lie in 0 to {classes - 1}")
            return nn.functional.one_hot(class_labels.long().to(device), classes).to(torch.float32)
        if class_labels.shape[1] != classes:
            raise UserError(f"class_labels has {class_labels.shape[1]} columns; the model knows {classes} classes")
        return class_labels.to(device, torch.float32)
