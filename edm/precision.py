"""How float32 convolutions and products are computed on GPUs: in full, or with TF32's ten bits of mantissa."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Recurrent layers too, though we have none: torch's older switch refuses to be read where the two of cuDNN differ.
_PLACES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def set_float32(mode: str) -> None:
    """Mode "ieee" for full float32, "tf32" for TF32, in convolutions and matrix products; CPUs are not concerned."""
    for place in _PLACES:
        place.fp32_precision = mode


@contextmanager
def full_float32() -> Iterator[None]:
    """Full float32 inside the block; cuDNN's own default for convolutions is TF32."""
    before = [place.fp32_precision for place in _PLACES]
    set_float32("ieee")
    try:
        yield
    finally:
        for place, mode in zip(_PLACES, before, strict=True):
            place.fp32_precision = mode
