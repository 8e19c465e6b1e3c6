"""A trained network as a denoiser D(x; σ)."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from edm.config import NetworkConfig
from edm.design.preconditioning import Preconditioning
from edm.errors import UserError
from edm.networks.building import PluginNetwork
from edm.networks.building import network as build_network
from edm.networks.layers import layout
from edm.networks.limits import require_plausible
from edm.networks.precision import DTYPES
from edm.networks.unet import UNet


class Denoiser(nn.Module):
    """``net(x, sigma, class_labels=None, augment_labels=None)`` → D(x; σ), float32 of the shape of x.

    x: [B, C, H, W], any float dtype; sigma: a number, a scalar tensor, or one level per image [B];
    class_labels: class indices [B] (integers) or one-hot rows [B, classes]; None is the unconditional input of zeros;
    augment_labels: conditioning vectors [B, 9] of Table 6; None means not augmented.
    ``sigma_min``, ``sigma_max`` and ``round_sigma`` define the noise levels that the model supports.
    ``precision`` (a key of :data:`edm.networks.precision.DTYPES`) is that of feature maps. On GPUs "tf32" takes effect
    only inside :func:`edm.networks.precision.float32_as`, which sets torch's global switch.
    ``learned_variance``: whether the network also predicts the variance of a sampling step (iDDPM, ADM);
    :meth:`with_variance` returns it from the same evaluation.
    ``guides``: further denoisers by the names that :attr:`SamplerConfig.guide` gives them, for samplers with guidance.
    A call raises UserError, a ValueError, for arguments of another type or shape, and for labels out of range.
    """

    def __init__(self, network: UNet | PluginNetwork, preconditioning: Preconditioning):
        super().__init__()
        self.network, self.preconditioning = network, preconditioning
        self.precision = "fp32"
        self.guides: dict[str, Denoiser] = {}

    def placed(self, device: torch.device | str) -> Self:
        """Itself, moved to a device, with its weights in the memory layout that is fastest there."""
        self.to(torch.device(device))
        return self.to(memory_format=layout(self.network, self.device))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def sigma_min(self) -> float:
        return self.preconditioning.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.preconditioning.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level that the model supports, shaped as ``sigma``."""
        return self.preconditioning.round_sigma(sigma)

    @property
    def learned_variance(self) -> bool:
        config = self.network.config
        return config.out_channels == 2 * config.channels

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        return self._evaluate(x, sigma, class_labels, augment_labels)[0]

    def with_variance(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(D(x; σ), v) from one evaluation of the network, both float32 of the shape of x.

        v, about [−1, 1], is −1 for the variance of the posterior and 1 for β (Nichol and Dhariwal, Eq. 15).
        Raises UserError for a network without learned variance.
        """
        if not self.learned_variance:
            raise UserError("the model has no learned variance; choose another sampler than iddpm")
        return self._evaluate(x, sigma, class_labels, None)

    def _evaluate(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """D(x; σ), and the network's outputs beyond the image channels."""
        self._require_input(x)
        x = x.to(torch.float32)
        sigma = _levels(sigma, len(x), x.device)
        self._require_augment_labels(augment_labels, len(x))
        c_skip, c_out, c_in, c_noise = self.preconditioning.coefficients(sigma)
        labels = self.one_hot(class_labels, len(x), x.device)
        inputs = (c_in * x).to(DTYPES[self.precision])
        raw = self.network(inputs, c_noise.flatten().expand(len(x)), labels, augment_labels)
        raw = raw.to(torch.float32)
        return c_skip * x + c_out * raw[:, : x.shape[1]], raw[:, x.shape[1] :]

    def _require_input(self, x: Tensor) -> None:
        config = self.network.config
        require_images("x", x)
        multiple = 1 if config.architecture else 1 << (len(config.channel_mult) - 1)
        if x.shape[1] != config.channels or x.shape[2] % multiple or x.shape[3] % multiple:
            raise UserError(
                f"x of shape {list(x.shape)}: the model takes {config.channels} channels, and sides that are multiples "
                f"of {multiple}"
            )

    def _require_augment_labels(self, labels: Tensor | None, batch: int) -> None:
        if labels is None:
            return
        width = self.network.config.augment_dim
        if not isinstance(labels, Tensor) or labels.shape != (batch, width):
            found = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            takes = f"[{batch}, {width}]" if width else "None: the model was trained without augmentation"
            raise UserError(f"augment_labels: {found}; expected {takes}")

    def one_hot(self, class_labels: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """Converts indices or one-hot rows to one-hot rows [B, classes]; None for an unconditional model.

        Raises UserError for labels of another shape, type or range.
        """
        classes = self.network.config.classes
        if classes == 0:
            return None
        if class_labels is None:
            return torch.zeros(batch, classes, device=device)
        if not isinstance(class_labels, Tensor):
            kind = type(class_labels).__name__
            raise UserError(f"class_labels is of type {kind}; expected a tensor, such as torch.as_tensor(labels)")
        if class_labels.ndim not in (1, 2) or len(class_labels) != batch:
            raise UserError(
                f"class_labels of shape {list(class_labels.shape)}: expected {batch} indices or one-hot rows"
            )
        if class_labels.ndim == 1:
            if class_labels.is_floating_point() or class_labels.dtype == torch.bool or class_labels.is_complex():
                raise UserError("class_labels: indices must be integers; one-hot rows have two dimensions")
            # Reading values on a GPU would synchronise the host, and break the graph of compiled code.
            seen = class_labels.device.type == "cpu" and not torch.compiler.is_compiling()
            if seen and not ((class_labels >= 0) & (class_labels < classes)).all():
                raise UserError(f"class_labels must lie in 0 to {classes - 1}")
            return nn.functional.one_hot(class_labels.long().to(device), classes).to(torch.float32)
        if class_labels.shape[1] != classes:
            raise UserError(f"class_labels has {class_labels.shape[1]} columns; the model has {classes} classes")
        if (
            class_labels.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not class_labels.isfinite().all()
        ):
            raise UserError("class_labels: not all finite; expected one-hot rows")
        return class_labels.to(device, torch.float32)


def assemble(
    config: NetworkConfig, preconditioning: Preconditioning, tensors: Mapping[str, Tensor], source: str
) -> Denoiser:
    """Builds a denoiser from its description and tensors, ready for sampling: float32, evaluation mode, no gradients.

    tensors: under the names of :meth:`Denoiser.state_dict`, any floating type. source: prefix of error messages.
    Raises UserError if a size is implausible, if a tensor is missing, superfluous, not finite or of the wrong shape, or
    if the noise levels are invalid. Checks all names and shapes before it allocates the network.
    """
    require_plausible(config.to_dict())
    with torch.device("meta"):
        shapes = {f"network.{name}": tensor.shape for name, tensor in build_network(config).state_dict().items()}
    shapes |= {f"preconditioning.{name}": tensor.shape for name, tensor in preconditioning.state_dict().items()}
    if shapes.keys() != tensors.keys():
        odd = sorted(shapes.keys() ^ tensors.keys())
        raise UserError(f"{source}: tensor {odd[0]!r} is missing or has no place in its configuration ({len(odd)} odd)")
    for name, tensor in tensors.items():
        require_shape(name, tensor, shapes[name], source)
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise UserError(f"{source}: {name!r} has non-finite values; get the file or train again")
    with torch.random.fork_rng(devices=[]):  # initialising a network must not change the caller's random state
        denoiser = Denoiser(build_network(config), preconditioning).placed("cpu")
    denoiser.load_state_dict(tensors)
    if not 0 <= denoiser.sigma_min <= denoiser.sigma_max:
        raise UserError(f"{source}: its noise levels, {denoiser.sigma_min:g} to {denoiser.sigma_max:g}, are invalid")
    return denoiser.eval().requires_grad_(False)


def _levels(sigma: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """Noise levels [1 or B, 1, 1, 1], float32 on ``device``.

    Raises UserError for another number of them, and for NaN or levels below 0 where looking does not wait for a GPU.
    """
    try:
        levels = torch.as_tensor(sigma, device=device).to(torch.float32).reshape(-1, 1, 1, 1)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"sigma is {sigma!r}; expected a noise level, or one for each of {batch} images") from None
    if len(levels) not in (1, batch):
        raise UserError(f"sigma has {len(levels)} levels; expected one, or one for each of {batch} images")
    if device.type == "cpu" and not torch.compiler.is_compiling() and not bool((levels >= 0).all()):
        raise UserError(f"sigma is {sigma}; noise levels are numbers of at least 0")
    return levels


def require_images(name: str, images: Tensor) -> None:
    """Raises UserError unless images are a tensor of real floats [B, C, H, W]."""
    if not isinstance(images, Tensor):
        raise UserError(f"{name} is of type {type(images).__name__}; expected a tensor [B, C, H, W]")
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(f"{name} is {images.dtype} {list(images.shape)}; expected floats [B, C, H, W]")


def require_shape(name: str, tensor: Tensor, shape: torch.Size, source: str) -> None:
    """Raises UserError if a tensor has another shape."""
    if tensor.shape != shape:
        raise UserError(f"{source}: {name!r} has shape {list(tensor.shape)}, expected {list(shape)}")
