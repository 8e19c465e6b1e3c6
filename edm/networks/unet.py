"""The U-Net of Table 8: DDPM++, NCSN++ (Song et al.) and ADM (Dhariwal and Nichol) as one network."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edm import registry
from edm.config import ARCHITECTURES, NetworkConfig
from edm.networks.layers import (
    KAIMING,
    XAVIER,
    Attention,
    Conv,
    DownConv,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    Resample,
    fused,
    joined,
    only_shapes,
    silu,
)


class Style:
    """Differences between the two families: block structure and weight initialisation (notes to Table 8)."""

    def __init__(self, config: NetworkConfig):
        adm = config.style == "adm"
        self.adaptive = adm  # the embedding scales and shifts the norm's output; else it is added before it
        self.skip_scale = 1.0 if adm or not config.skip_rescale else math.sqrt(0.5)
        self.eps, self.groups = 1e-5 if adm else 1e-6, config.norm_groups
        self.mode = KAIMING if adm else XAVIER
        self.gain = math.sqrt(1 / 3) if adm else 1.0
        self.bias_gain = math.sqrt(1 / 3) if adm else 0.0
        self.zero_gain = 0.0 if adm else 1e-5  # of layers that are initialised to (almost) zero
        self.qkv_gain = math.sqrt(1 / 3) if adm else math.sqrt(0.2)

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(channels, self.eps, self.groups)


class Block(nn.Module):
    """A residual block, with optional resampling and self-attention.

    h = conv1(dropout(silu(norm1(conv0(silu(norm0 x)) + affine(emb))))), joined to the skip path; then attention.
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, style: Style, resample: str | None = None,
                 attention: bool = False):  # fmt: skip
        super().__init__()
        self.style, self.dropout = style, config.dropout
        s = style
        self.resample = None if resample is None else Resample(config.resample_filter, up=resample == "up")
        self.norm0 = s.norm(inputs)
        self.conv0 = Conv(inputs, outputs, 3, s.mode, s.gain, s.bias_gain)
        emb = config.model_channels * 4
        self.affine = Linear(emb, outputs * (2 if s.adaptive else 1), True, s.mode, s.gain, s.bias_gain)
        self.norm1 = s.norm(outputs)
        self.conv1 = Conv(outputs, outputs, 3, s.mode, s.zero_gain)
        self.skip = None
        if inputs != outputs or (resample is not None and not s.adaptive):
            self.skip = Conv(inputs, outputs, 1, s.mode, s.gain, s.bias_gain)
        heads = config.heads(outputs) if attention else 0
        self.attention = None
        if heads:
            self.attention = Attention(outputs, heads, s.norm(outputs), s.mode, s.qkv_gain, s.zero_gain, s.bias_gain)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = fused(self.norm0, self.conv0, x) if self.resample is None else None
        if h is None:
            h = silu(self.norm0(x))
            if self.resample is not None:
                h, x = self.resample(h), self.resample(x)
            h = self.conv0(h)
        embedded = self.affine(emb).to(x.dtype)
        skip = x if self.skip is None else self.skip(x)
        x = self._second(h, embedded, skip)
        if self.attention is not None:
            x = joined(self.attention(x), x, self.style.skip_scale)
        return x

    def _second(self, h: Tensor, embedded: Tensor, skip: Tensor) -> Tensor:
        """The second convolution of h, which nothing else uses, joined to the skip path."""
        adaptive, factor = self.style.adaptive, self.style.skip_scale
        scale, shift = embedded.chunk(2, dim=1) if adaptive else (None, None)
        if not (self.training and self.dropout):
            offset = None if adaptive else embedded
            found = fused(self.norm1, self.conv1, h, offset, scale, shift, skip, factor)
            if found is not None:
                return found
        if scale is not None and shift is not None:
            h = silu(torch.addcmul(shift[:, :, None, None], self.norm1(h), scale[:, :, None, None] + 1))
        else:
            embedded = embedded[:, :, None, None]
            h = silu(self.norm1(h + embedded if torch.is_grad_enabled() else h.add_(embedded)))
        return joined(self.conv1(F.dropout(h, self.dropout, self.training)), skip, factor)


class Embedding(nn.Module):
    """c_noise, class and augmentation as one vector of 4 · model_channels, in float32."""

    def __init__(self, config: NetworkConfig, style: Style):
        super().__init__()
        self.adm, self.classes = config.style == "adm", config.classes
        f, width = config.model_channels, config.model_channels * 4
        features = f * config.channel_mult_noise
        noise = FourierEmbedding(features) if config.embedding == "fourier" else None
        self.noise = noise or PositionalEmbedding(features, config.style)
        s = style
        self.label = self.augment = None
        if config.classes:
            self.label = Linear(config.classes, width if self.adm else features, bias=not self.adm)
            if self.adm and not only_shapes():
                nn.init.normal_(self.label.weight)
        if config.augment_dim:
            self.augment = Linear(config.augment_dim, features, False, s.mode, 0.0 if self.adm else 1.0)
        self.layer0 = Linear(features, width, True, s.mode, s.gain, s.bias_gain)
        self.layer1 = Linear(width, width, True, s.mode, s.gain, s.bias_gain)

    def forward(self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.noise(c_noise)
        if self.augment is not None and augment_labels is not None:
            emb = emb + self.augment(augment_labels.to(emb.dtype))
        if self.label is not None and not self.adm:
            assert class_labels is not None
            # √L keeps the variance of a one-hot row at 1.
            emb = emb + self.label(class_labels * math.sqrt(self.classes))
        emb = self.layer1(F.silu(self.layer0(emb)))
        if self.label is not None and self.adm:
            emb = emb + self.label(class_labels)
        return F.silu(emb)


class UNet(nn.Module):
    """F(x; c_noise, class, augmentation): [B, C, H, W] → [B, C_out, H, W], in the precision of x.

    ``encoder`` and ``decoder`` run in order. A stack keeps every encoder output; each decoder block that is neither at
    the bottleneck nor an upsampling pops the last one. ``residual`` holds NCSN++'s input pyramid.
    recompute: whether training keeps only the inputs of the blocks and computes each block again for its gradient: less
    memory, up to a third more time, the same bits.
    """

    recompute = False

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        style = Style(config)
        self.skip_scale = style.skip_scale
        self.embedding = Embedding(config, style)
        widths = [config.model_channels * m for m in config.channel_mult]
        levels = list(enumerate(zip(config.resolutions, widths, strict=True)))

        self.encoder, self.residual = nn.ModuleList(), nn.ModuleDict()
        kept, last, pyramid = [], config.channels, config.channels
        for level, (resolution, width) in levels:
            if level == 0:
                last = config.first_channels
                self.encoder.append(Conv(config.channels, last, 3, style.mode, style.gain, style.bias_gain))
            else:
                if config.residual_input:
                    self.residual[str(len(self.encoder))] = DownConv(pyramid, last, config.resample_filter)
                    pyramid = last
                self.encoder.append(Block(last, last, config, style, resample="down"))
            kept.append(last)
            for _ in range(config.num_blocks):
                attention = resolution in config.attn_resolutions
                self.encoder.append(Block(last, width, config, style, attention=attention))
                kept.append(last := width)

        self.decoder = nn.ModuleList()
        self.joins: list[bool] = []
        for level, (resolution, width) in reversed(levels):
            if level == len(levels) - 1:
                self._decode(Block(last, last, config, style, attention=True), joins=False)
                self._decode(Block(last, last, config, style), joins=False)
            else:
                self._decode(Block(last, last, config, style, resample="up"), joins=False)
            for block in range(config.num_blocks + 1):
                # Song et al. use attention in the last block of a resolution, ADM in every block.
                attention = resolution in config.attn_resolutions and (
                    config.style == "adm" or block == config.num_blocks
                )
                self._decode(Block(last + kept.pop(), width, config, style, attention=attention), joins=True)
                last = width
        self.out_norm = style.norm(last)
        self.out_conv = Conv(last, config.out_channels or config.channels, 3, style.mode, style.zero_gain)

    def _decode(self, block: Block, joins: bool) -> None:
        self.decoder.append(block)
        self.joins.append(joins)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embedding(c_noise, class_labels, augment_labels)
        pyramid, kept = x, []
        for i, layer in enumerate(self.encoder):
            x = layer(x) if i == 0 else self._through(layer, emb, x)
            if str(i) in self.residual:
                pyramid = x = joined(self.residual[str(i)](pyramid), x, self.skip_scale)
            kept.append(x)
        for block, joins in zip(self.decoder, self.joins, strict=True):
            x = self._through(block, emb, x, *([kept.pop()] if joins else []))
        out = fused(self.out_norm, self.out_conv, x)
        return self.out_conv(silu(self.out_norm(x))) if out is None else out

    def _through(self, block: nn.Module, emb: Tensor, *parts: Tensor) -> Tensor:
        """The output of a block whose input has these parts of the channels."""

        def compute(emb: Tensor, *parts: Tensor) -> Tensor:
            found: Tensor = block(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], emb)
            return found

        if not (self.recompute and torch.is_grad_enabled()):
            return compute(emb, *parts)
        random = self.config.dropout > 0
        again: Tensor = checkpoint(compute, emb, *parts, use_reentrant=False, preserve_rng_state=random)
        return again


for _name in ARCHITECTURES:
    registry.register("architecture", _name)(UNet)
