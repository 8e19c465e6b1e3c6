"""Layers over small images on CPUs as matrix products, faster than by torch's own kernels.

Each is linear in the images and a composition of torch's differentiable operations: torch differentiates, vectorises
and compiles it like any other function. Results agree with torch's layers to rounding.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Pixels of an image up to which these are faster than torch's layers.
MOST_PIXELS = 64


def pays(x: Tensor) -> bool:
    """Whether x [B, C, H, W] are small images in float32 on a CPU, in torch's default layout."""
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[2] * x.shape[3] <= MOST_PIXELS
        and x.is_contiguous() and not torch.is_autocast_enabled("cpu")
    )  # fmt: skip


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
    return torch.from_numpy(_kept_means(height, width))  # a kept tensor would remember the mode it was made in


@cache
def _kept_means(height: int, width: int) -> NDArray[np.float32]:
    rows, columns = (np.kron(np.eye(side // 2), [[0.5], [0.5]]) for side in (height, width))
    return np.kron(rows, columns).astype(np.float32)
