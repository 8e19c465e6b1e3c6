"""FLOPs and parameters of a network, computed from its configuration. Imports torch only for a plugin's network.

The count follows :mod:`edm.networks.unet` layer by layer; tests compare it with the network itself. A FLOP is one
multiplication or one addition in a convolution, a matrix product or attention; as in profilers, nothing else counts.
"""

from functools import cache

from edm.config import NetworkConfig, TrainingConfig

BACKWARD = 2  # FLOPs of a backward pass, in forward passes: gradients of activations and of weights


def flops(config: NetworkConfig | TrainingConfig) -> int:
    """FLOPs of one network evaluation: a forward pass over one image, its class and augmentation vector."""
    return _counted(_network(config))[0]


def training_flops(config: NetworkConfig | TrainingConfig) -> int:
    """FLOPs of the network per training image, forward and backward: three times those of a forward pass."""
    return (1 + BACKWARD) * flops(config)


def parameters(config: NetworkConfig | TrainingConfig) -> int:
    """The number of weights and biases of the network."""
    return _counted(_network(config))[1]


def _network(config: NetworkConfig | TrainingConfig) -> NetworkConfig:
    return config.network() if isinstance(config, TrainingConfig) else config


@cache
def _counted(config: NetworkConfig) -> tuple[int, int]:
    if config.architecture:
        from edm.networks.building import counted

        return counted(config)
    count = _Count(config)
    count.network()
    return count.flops, count.parameters


class _Count:
    """Adds up the layers of the U-Net in order. Each method returns the layer's output channels."""

    def __init__(self, config: NetworkConfig):
        self.config, self.adm = config, config.style == "adm"
        self.flops = self.parameters = 0

    def network(self) -> None:
        config = self.config
        widths = [config.model_channels * m for m in config.channel_mult]
        levels = list(zip(config.resolutions, widths, strict=True))
        self.embedding()

        x = self.conv(config.channels, config.first_channels, 3, config.resolution)
        kept, pyramid = [x], config.channels
        for side, width in levels:
            if side != config.resolution:
                if config.residual_input:
                    pyramid = self.pyramid(pyramid, x, side)
                x = self.block(x, x, side, resample="down")
                kept.append(x)
            for _ in range(config.num_blocks):
                x = self.block(x, width, side, attention=side in config.attn_resolutions)
                kept.append(x)

        bottom = levels[-1][0]
        x = self.block(x, x, bottom, attention=True)
        x = self.block(x, x, bottom)
        for side, width in reversed(levels):
            if side != bottom:
                x = self.block(x, x, side, resample="up")
            for block in range(config.num_blocks + 1):
                attention = side in config.attn_resolutions and (self.adm or block == config.num_blocks)
                x = self.block(x + kept.pop(), width, side, attention=attention)
        self.norm(x)
        self.conv(x, config.out_channels or config.channels, 3, config.resolution)

    def embedding(self) -> None:
        config = self.config
        features, width = config.model_channels * config.channel_mult_noise, config.model_channels * 4
        if config.classes:
            self.linear(config.classes, width if self.adm else features, bias=not self.adm)
        if config.augment_dim:
            self.linear(config.augment_dim, features, bias=False)
        self.linear(features, width)
        self.linear(width, width)

    def block(
        self, inputs: int, outputs: int, side: int, *, resample: str | None = None, attention: bool = False
    ) -> int:
        """A residual block whose convolutions get images of ``side`` pixels."""
        if resample:
            for _ in ("residual path", "skip path"):
                self.resample(inputs, side, up=resample == "up")
        self.norm(inputs)
        self.conv(inputs, outputs, 3, side)
        self.linear(self.config.model_channels * 4, outputs * (2 if self.adm else 1))
        self.norm(outputs)
        self.conv(outputs, outputs, 3, side)
        if inputs != outputs or (resample and not self.adm):
            self.conv(inputs, outputs, 1, side)
        if attention and self.config.heads(outputs):
            self.norm(outputs)
            self.conv(outputs, 3 * outputs, 1, side)
            self.flops += 2 * 2 * side**4 * outputs  # q·k of all pairs of pixels, and the sums of v that they weight
            self.conv(outputs, outputs, 1, side)
        return outputs

    def pyramid(self, inputs: int, outputs: int, side: int) -> int:
        """A level of NCSN++'s input pyramid: a convolution that keeps the filter's margin, then the filter to ``side``.

        The box filter is applied as a convolution here, like any other filter.
        """
        taps = len(self.config.resample_filter)
        self.conv(inputs, outputs, 3, 2 * side + 2 * ((taps - 1) // 2))
        self.flops += 2 * side**2 * taps**2 * outputs
        return outputs

    def resample(self, channels: int, side: int, *, up: bool) -> None:
        """The filter with output of ``side`` pixels. The box filter is a mean or a copy and does not count."""
        taps = self.config.resample_filter
        if taps != (1, 1):
            applied = side // 2 if up else side  # upsampling spreads the filter's taps from every input pixel
            self.flops += 2 * applied**2 * len(taps) ** 2 * channels

    def conv(self, inputs: int, outputs: int, kernel: int, side: int) -> int:
        """A convolution; side: of the output, in pixels."""
        self.flops += 2 * side**2 * kernel**2 * inputs * outputs
        self.parameters += kernel**2 * inputs * outputs + outputs
        return outputs

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.flops += 2 * inputs * outputs
        self.parameters += inputs * outputs + outputs * bias

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels
