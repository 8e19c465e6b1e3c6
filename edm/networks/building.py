"""The network of a configuration: the U-Net of Table 8, or a plugin's."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from edm import registry
from edm.config import NetworkConfig
from edm.errors import UserError
from edm.networks.unet import UNet


class PluginNetwork(nn.Module):
    """The network of a plugin, called as :class:`UNet`; its errors are one line, and its output has the shape of x.

    Half precision is torch's automatic mixed precision around the network, whose weights stay in float32.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config, self._part = config, registry.find("architecture", config.architecture)
        body = self._part(config.resolution, config.channels, config.classes, config.augment_dim,
                          **config.settings_of("architecture"))  # fmt: skip
        if not isinstance(body, nn.Module) or not any(True for _ in body.parameters()):
            raise UserError(f"{self._part.where}: {type(body).__name__} is no torch.nn.Module with parameters")
        if any(parameter.dtype != torch.float32 for parameter in body.parameters()):
            raise UserError(f"{self._part.where}: its parameters are not all float32")
        self.body = body

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None,
                augment_labels: Tensor | None = None) -> Tensor:  # fmt: skip
        half = x.dtype != torch.float32
        if augment_labels is None and self.config.augment_dim:  # not augmented
            augment_labels = torch.zeros(len(x), self.config.augment_dim, device=x.device)
        with registry.guarded(self._part), torch.autocast(x.device.type, x.dtype) if half else nullcontext():
            out: Any = self.body(x.to(torch.float32), c_noise, class_labels, augment_labels)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            told = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(f"{self._part.where}: returned {told} for x {list(x.shape)}; expected the same shape")
        return out


def network(config: NetworkConfig) -> UNet | PluginNetwork:
    """The network of a configuration, with initial weights from torch's global generator."""
    return PluginNetwork(config) if config.architecture else UNet(config)


def counted(config: NetworkConfig) -> tuple[int, int]:
    """FLOPs of a forward pass of a plugin's network over one image, as torch counts them, and its parameters."""
    try:
        return _counted(config, torch.device("meta"))
    except UserError:  # a network that looks at values, which tensors without data do not have
        return _counted(config, torch.device("cpu"))


def _counted(config: NetworkConfig, device: torch.device) -> tuple[int, int]:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    with torch.random.fork_rng(devices=[]), torch.no_grad(), device:
        net = PluginNetwork(config).eval()
        x = torch.zeros(1, config.channels, config.resolution, config.resolution)
        labels = [torch.zeros(1, width) if width else None for width in (config.classes, config.augment_dim)]
        with FlopCounterMode(display=False) as counter:
            net(x, torch.zeros(1), *labels)
    return counter.get_total_flops(), sum(parameter.numel() for parameter in net.parameters())
