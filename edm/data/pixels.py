"""Conversion of images between bytes and network inputs."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] → float32 in [−1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """clip(127.5 x + 128, 0, 255), truncated (the FID protocol, paper Section F)."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
