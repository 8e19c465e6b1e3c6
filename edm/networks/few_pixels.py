"""Layers over small images on CPUs as matrix products, faster than by torch's own kernels.

Each is linear in the images and a composition of torch's differentiable operations: torch differentiates, vectorises
and compiles it like any other function. Results agree with torch's layers to rounding.

A 3×3 convolution of 4×4 pixels is one tile of Winograd's F(4×4, 3×3) (:mod:`edm.networks.winograd`): 36 products for
each pair of channels instead of 144. The pixels around the image are zeros, so B transforms the 16 inside only.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm.networks.winograd import INPUTS, LEAST_CHANNELS, RESULTS, TWICE, twice

#: Pixels of an image up to which these are faster than torch's layers.
MOST_PIXELS = 64
#: Whether torch's convolutions use AVX-512, with which those of 4×4 pixels are as fast as :func:`tile`, or faster.
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
#: Bᵀ ⊗ Bᵀ without the columns of the pixels around the image: [36, 16].
INNER = TWICE["BT"].reshape(-1, INPUTS, INPUTS)[:, 1:-1, 1:-1].reshape(-1, RESULTS**2)


def pays(x: Tensor) -> bool:
    """Whether x [B, C, H, W] are small images in float32 on a CPU, in torch's default layout."""
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[2] * x.shape[3] <= MOST_PIXELS
        and x.is_contiguous() and not torch.is_autocast_enabled("cpu")
    )  # fmt: skip


def is_tile(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`tile` supports this convolution and is faster than torch's, and than that of wide layers."""
    narrow = min(weight.shape[:2]) < LEAST_CHANNELS
    return not AVX512 and x.shape[2:] == (RESULTS, RESULTS) and weight.shape[2] == 3 and narrow


def tile(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of x [B, C, 4, 4] with weight [C_out, C, 3, 3], padded by one pixel, plus bias [C_out]."""
    batch, inputs, outputs = len(x), x.shape[1], len(weight)
    tiles = (torch.from_numpy(INNER) @ x.view(batch * inputs, RESULTS**2).t()).view(INPUTS**2, batch, inputs)
    filters = (twice("G") @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(INPUTS**2, inputs, outputs)
    products = torch.bmm(tiles, filters).view(INPUTS**2, batch * outputs)
    each = bias.expand(batch, -1).reshape(-1, 1)
    return torch.addmm(each, products.t(), twice("AT").t()).view(batch, outputs, RESULTS, RESULTS)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of x [B, C, H, W] with weight [C_out, C, 1, 1], plus bias [C_out]."""
    batch, inputs, height, width = x.shape
    filters = weight.reshape(1, -1, inputs).expand(batch, -1, -1)
    products = torch.baddbmm(bias[:, None], filters, x.view(batch, inputs, height * width))
    return products.view(batch, len(weight), height, width)


def halved(x: Tensor) -> Tensor:
    """The means of 2×2 pixels of x [B, C, H, W], H and W even."""
    height, width = x.shape[2:]
    return (x.view(-1, height * width) @ _means(height, width)).view(*x.shape[:2], height // 2, width // 2)


def doubled(x: Tensor) -> Tensor:
    """x [B, C, H, W] with every pixel repeated in 2×2: [B, C, 2H, 2W]."""
    height, width = x.shape[2:]
    copies = 4 * _means(2 * height, 2 * width).t()
    return (x.view(-1, height * width) @ copies).view(*x.shape[:2], 2 * height, 2 * width)


def _means(height: int, width: int) -> Tensor:
    """The matrix [H·W, H·W/4] of :func:`halved`."""
    return torch.from_numpy(_kept_means(height, width))  # like winograd.TWICE


@cache
def _kept_means(height: int, width: int) -> NDArray[np.float32]:
    rows, columns = (np.kron(np.eye(side // 2), [[0.5], [0.5]]) for side in (height, width))
    return np.kron(rows, columns).astype(np.float32)
