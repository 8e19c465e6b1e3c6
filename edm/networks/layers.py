"""The layers of the U-Nets. Weights are float32; each layer casts them to the input's precision."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm.networks import few_pixels, winograd

XAVIER, KAIMING = "xavier", "kaiming"
WIDE = 128  # channels


def _uniform(shape: tuple[int, ...], fan_in: int, fan_out: int, mode: str, gain: float) -> Tensor:
    """U(−b, b) · gain with b = √(6/(fan_in + fan_out)) (Xavier) or √(3/fan_in) (Kaiming)."""
    if only_shapes():
        return torch.empty(shape)
    bound = math.sqrt(6 / (fan_in + fan_out)) if mode == XAVIER else math.sqrt(3 / fan_in)
    return (2 * torch.rand(shape) - 1) * bound * gain


def only_shapes() -> bool:
    """Whether a network is built for its shapes only: torch's meta arithmetic is slow and takes a second to import."""
    return torch.get_default_device().type == "meta"


def layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """The memory layout of weights with which a network is fastest on a device.

    Narrow networks on a CPU would spend a quarter of their time in group normalisation if the channels came last.
    """
    filters = (p.shape for p in network.parameters() if p.ndim == 4 and p.shape[-1] == 3)
    wide = any(min(shape[:2]) >= WIDE for shape in filters)
    return torch.channels_last if wide or device.type != "cpu" else torch.contiguous_format


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), in place unless the gradient needs x; nothing else may use x."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def joined(branch: Tensor, skip: Tensor, scale: float) -> Tensor:
    """(branch + skip) · scale, in place of ``branch`` unless gradients are wanted; nothing else may use it."""
    if torch.is_grad_enabled():
        return (branch + skip) * scale if scale != 1 else branch + skip
    return branch.add_(skip).mul_(scale) if scale != 1 else branch.add_(skip)


def fused(
    norm: "GroupNorm", conv: "Conv", x: Tensor, offset: Tensor | None = None, scale: Tensor | None = None,
    shift: Tensor | None = None, skip: Tensor | None = None, factor: float = 1.0,
) -> Tensor | None:  # fmt: skip
    """(conv(silu(norm(x + offset) · (1 + scale) + shift)) + skip) · factor in one pass; None if that does not pay.

    offset, scale, shift: [B, C]. It pays for small images on CPUs, without gradients.
    """
    same = all(p.dtype == x.dtype for p in (conv.weight, conv.bias, norm.weight, norm.bias))
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in (norm, conv))  # which want to see what is between
    if not same or hooks or not winograd.pays_activated(x, conv.weight, norm.groups):
        return None
    weight: Tensor = norm.weight
    bias: Tensor = norm.bias
    if scale is not None and shift is not None:
        weight, bias = weight * (scale + 1), torch.addcmul(shift, bias, scale + 1)
    return winograd.activated(x, conv.weight, conv.bias, norm.groups, weight, bias, norm.eps, offset, skip, factor)


class Linear(nn.Module):
    """y = x Wᵀ + b for float32 x [B, in]; initialised as in Table 8's notes."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, mode: str = XAVIER, gain: float = 1.0,
                 bias_gain: float = 0.0):  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(_uniform((outputs, inputs), inputs, outputs, mode, gain))
        self.bias = nn.Parameter(_uniform((outputs,), inputs, outputs, mode, bias_gain)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv(nn.Module):
    """A convolution with kernel 1 or 3 that keeps the image's size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, mode: str = XAVIER, gain: float = 1.0,
                 bias_gain: float = 0.0):  # fmt: skip
        super().__init__()
        fan_in, fan_out = inputs * kernel**2, outputs * kernel**2
        self.weight = nn.Parameter(_uniform((outputs, inputs, kernel, kernel), fan_in, fan_out, mode, gain))
        self.bias = nn.Parameter(_uniform((outputs,), fan_in, fan_out, mode, bias_gain))

    def forward(self, x: Tensor, padding: int | None = None, bias: Tensor | None = None) -> Tensor:
        weight, bias = self.weight.to(x.dtype), (self.bias if bias is None else bias).to(x.dtype)
        if padding is None and winograd.pays(x, weight):
            return winograd.convolve(x, weight, bias)
        if padding is None and weight.shape[-1] == 1 and few_pixels.pays(x):
            return few_pixels.pointwise(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2 if padding is None else padding)


class GroupNorm(nn.Module):
    """Group normalisation with ``groups`` groups; None for min(32, C/4), or the next smaller divisor of C."""

    def __init__(self, channels: int, eps: float, groups: int | None = None):
        super().__init__()
        self.groups = groups or next(g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Resample(nn.Module):
    """Halves or doubles the image with a separable filter of sum 1 (4 for doubling, which inserts zeros).

    filter: its taps in one dimension, an even number: (1, 1) is the box, (1, 3, 3, 1) NCSN++'s.
    """

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...], up: bool):
        super().__init__()
        self.up, self.box = up, tuple(taps) == (1, 1)
        self.pad = (len(taps) - 1) // 2
        line = torch.tensor(taps, dtype=torch.float32, device="cpu")
        kernel = torch.outer(line, line) / line.sum() ** 2
        kernel = (4 * kernel if up else kernel)[None, None]
        self.register_buffer("kernel", kernel.to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor, padding: int | None = None) -> Tensor:
        if self.box and padding is None:
            even = x.shape[2] % 2 == x.shape[3] % 2 == 0
            if even and few_pixels.pays(x) and not torch.compiler.is_compiling():
                return few_pixels.doubled(x) if self.up else few_pixels.halved(x)
            return F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        apply = F.conv_transpose2d if self.up else F.conv2d
        return apply(x, kernel, stride=2, padding=self.pad if padding is None else padding, groups=channels)


class DownConv(nn.Module):
    """NCSN++'s input-pyramid convolution: 3×3 with additional padding for the filter's margin, then the filter."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[int, ...]):
        super().__init__()
        self.conv, self.down = Conv(inputs, outputs, 3), Resample(taps, up=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.conv(x, padding=1 + self.down.pad), padding=0)
        return y


class PositionalEmbedding(nn.Module):
    """Sines and cosines of c_noise at ``width``/2 frequencies from 1 down to 10000⁻¹.

    song: frequencies 10000^(−k/(n/2 − 1)), ordered [sin, cos]; adm: 10000^(−k/(n/2)), ordered [cos, sin].
    """

    freqs: Tensor

    def __init__(self, width: int, style: str):
        super().__init__()
        half = width // 2
        self.style = style
        k = torch.arange(half, dtype=torch.float32, device="cpu")
        last = half - 1 if style == "song" else half
        freqs = (1 / 10000) ** (k / last)
        self.register_buffer("freqs", freqs.to(torch.get_default_device()), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = torch.outer(c_noise, self.freqs)
        pair = (angle.sin(), angle.cos()) if self.style == "song" else (angle.cos(), angle.sin())
        return torch.cat(pair, dim=1)


class FourierEmbedding(nn.Module):
    """[sin, cos] of 2π f c_noise at ``width``/2 fixed random frequencies f ~ N(0, 16²), part of the model (NCSN++)."""

    freqs: Tensor

    def __init__(self, width: int, scale: float = 16.0):
        super().__init__()
        freqs = torch.empty(width // 2) if only_shapes() else torch.randn(width // 2) * scale
        self.register_buffer("freqs", freqs)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = torch.outer(c_noise, 2 * math.pi * self.freqs)
        return torch.cat((angle.sin(), angle.cos()), dim=1)


class Attention(nn.Module):
    """Self-attention over the pixels of an image, x → proj(softmax(q·k/√d) v).

    The output channels of ``qkv`` are [q | k | v], each [head, channel of the head]. The bias of k shifts all logits
    of a query equally, which softmax ignores: its gradient is zero up to rounding, which Adam would amplify to full
    steps. The layer keeps this bias because published files contain it, but does not train it.

    The convolutions compute in the precision of x, attention in float32, forward and backward (Table 7). On a CPU, two
    products and a softmax are faster than torch's fused kernel where an image has few pixels.
    """

    def __init__(self, channels: int, heads: int, norm: GroupNorm, mode: str, gain: float, zero_gain: float,
                 bias_gain: float):  # fmt: skip
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.qkv = Conv(channels, 3 * channels, 1, mode, gain, bias_gain)
        self.proj = Conv(channels, channels, 1, mode, zero_gain)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x), bias=self._bias()).reshape(
            batch, 3, self.heads, channels // self.heads, height * width
        )
        qkv = qkv.to(torch.promote_types(x.dtype, torch.float32))
        attend = _products if x.device.type == "cpu" and height * width <= few_pixels.MOST_PIXELS else _fused
        y: Tensor = self.proj(attend(*qkv.unbind(1)).to(x.dtype).reshape(batch, channels, height, width))
        return y

    def _bias(self) -> Tensor:
        q, k, v = self.qkv.bias.chunk(3)
        return torch.cat((q, k.detach(), v))


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by one kernel: q, k, v [B, heads, channels of a head, pixels] → the same shape."""
    # Fused kernels need the channels of a head to be contiguous, as they are in channels_last.
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (t.transpose(-1, -2) for t in (q, k, v)))
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by two products and a softmax."""
    logits = (q * q.shape[-2] ** -0.5).transpose(-1, -2) @ k
    out: Tensor = v @ logits.softmax(dim=-1).transpose(-1, -2)
    return out
