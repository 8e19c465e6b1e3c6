"""How float32 convolutions and products are computed on GPUs: in full, or with TF32's ten bits of mantissa."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_float32(mode: str) -> None:
    """Mode "ieee" for full float32, "tf32" for TF32, in convolutions and matrix products; CPUs are not concerned."""
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode


@contextmanager
def full_float32() -> Iterator[None]:
    """Full float32 inside the block; cuDNN's own default for convolutions is TF32."""
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    set_float32("ieee")
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before
