"""Precision of networks: full float32, TF32 (ten bits of mantissa, on GPUs), or half precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class _Place(Protocol):
    fp32_precision: str


# Recurrent layers too, although no network has any: torch's older switch is unreadable if cuDNN's two settings differ.
# torch replaces the module cudnn by an object, which its annotations do not declare.
_PLACES: tuple[_Place, ...] = (  # type: ignore[assignment]
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn,
)

#: Names in params.yaml → dtype of the U-Net's feature maps (convolutions, group norms, sums). Embeddings, the products
#: and the softmax of attention, preconditioning and everything computed from its result stay in float32.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def set_float32(precision: str) -> None:
    """Sets float32 convolutions and matrix products on GPUs to TF32 for "tf32", else to full float32."""
    for place in _PLACES:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"


@contextmanager
def float32_as(precision: str = "fp32") -> Iterator[None]:
    """Full float32 inside the block, or TF32 (cuDNN's default for convolutions) if ``precision`` is "tf32"."""
    before = [place.fp32_precision for place in _PLACES]
    set_float32(precision)
    try:
        yield
    finally:
        for place, mode in zip(_PLACES, before, strict=True):
            place.fp32_precision = mode
