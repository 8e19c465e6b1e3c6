"""Counter-based random numbers: each draw is a pure function of (seed, stream, element), for any batch and device.

Generated images (a seed per image) and training (a seed per training sample) use the same generator: the draws of an
image or sample do not depend on how the work is split, and resuming needs no generator state. The generator is
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised over seeds.
"""

import math

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments (golden ratio, √3 − 1)
_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox4x32: four words of counter and two of key (int64 tensors holding 32 bits) → four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of the unsigned product.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _words(seeds: Tensor, stream: int, purpose: int, blocks: int) -> Tensor:
    """Random 32-bit words [B, 4, blocks] for int64 ``seeds`` [B]."""
    seeds = seeds.to(torch.int64)
    element = torch.arange(blocks, device=seeds.device)
    zero = torch.zeros_like(element)
    counter = (element, zero + (stream & _MASK), zero + (purpose & _MASK), zero)
    key = ((seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None])
    words = philox(tuple(c[None] for c in counter), key)
    return torch.stack([w.expand(len(seeds), blocks) for w in words], dim=1)


def uniform(seeds: Tensor, stream: int, count: int, purpose: int = 0) -> Tensor:
    """Uniform draws in (0, 1), float64 [B, count], one row per seed. Never 0 or 1."""
    words = _words(seeds, stream, purpose, -(-count // 4))
    return ((words.to(torch.float64) + 0.5) / 2**32).transpose(1, 2).flatten(1)[:, :count]


def normal(seeds: Tensor, stream: int, shape: tuple[int, ...], purpose: int = 0) -> Tensor:
    """Standard-normal draws (Box and Muller), float64 [B, *shape], one row per seed."""
    count = math.prod(shape)
    u = (_words(seeds, stream, purpose, -(-count // 4)).to(torch.float64) + 0.5) / 2**32
    radius = (-2 * u[:, :2].log()).sqrt()
    angle = 2 * math.pi * u[:, 2:]
    pairs = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
    return pairs.flatten(1)[:, :count].reshape(len(seeds), *shape)


# Draws of one seed for different purposes are independent.
LATENT, LABEL, CHURN = 1, 2, 3  # of an image
SIGMA, NOISE, FLIP, AUGMENT = 11, 12, 13, 14  # of a training sample
EVALUATION = 15
UNLABELLED = 16  # of a training sample
PROBE, DEQUANTISE = 21, 22  # of an image whose likelihood is computed


def latents(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The unit-variance latent of every seed, float64 [B, C, H, W]."""
    return normal(seeds, 0, shape, LATENT)


def churn(seeds: Tensor, step: int, shape: tuple[int, ...]) -> Tensor:
    """The draw of step ``step`` of Algorithm 2 for every seed, float64 [B, C, H, W]."""
    return normal(seeds, step, shape, CHURN)


def class_labels(seeds: Tensor, classes: int) -> Tensor:
    """A class drawn uniformly for every seed, int64 [B]."""
    return (uniform(seeds, 0, 1, LABEL)[:, 0] * classes).long()


def probes(seeds: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """``count`` vectors of −1 and 1 (Rademacher) for every seed, float64 [count, B, C, H, W]."""
    size = math.prod(shape)
    signs = [2.0 * (uniform(seeds, number, size, PROBE) < 0.5) - 1 for number in range(count)]
    return torch.stack(signs).reshape(count, len(seeds), *shape)
