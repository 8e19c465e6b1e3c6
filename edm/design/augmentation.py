"""Non-leaky augmentation (Table 6, Appendix F.2): geometric transforms that the network is told about.

A transform is described by a conditioning vector of nine numbers; zeros are "not augmented".
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edm.design import draws as noise
from edm.errors import UserError

#: The entries of the conditioning vector, in order.
LABELS = ("flip_x", "flip_y", "w_scale", "cos_theta_minus_1", "sin_theta", "aniso_x", "aniso_y", "shift_x", "shift_y")
SCALE_STD = 0.2  # standard deviation of log2 of the scale, isotropic and anisotropic
SHIFT_STD = 0.125  # of the translation, in image sides

#: sym6 wavelet low-pass filter (Daubechies, Ten Lectures on Wavelets, Table 6.3), before normalisation to sum 1.
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_LOW_PASS = [tap / sum(_SYM6) for tap in _SYM6]


def random_labels(seeds: Tensor, probability: float) -> Tensor:
    """Conditioning vectors [B, 9] of one random transform per seed (Table 6), float32.

    The x-flip is a fair coin; each other transform is enabled with ``probability`` and then drawn.
    """
    u = noise.uniform(seeds, 0, 10, noise.AUGMENT)
    w = noise.normal(seeds, 1, (4,), noise.AUGMENT)
    on = u[:, :5] < probability  # y-flip, scale, rotation, anisotropy, translation
    flip_x = u[:, 5] < 0.5
    flip_y = on[:, 0] & (u[:, 6] < 0.5)
    scale = on[:, 1] * w[:, 0]
    theta = on[:, 2] * math.pi * (2 * u[:, 7] - 1)
    direction = torch.where(u[:, 8] < 0.5, 0.0, math.pi * (2 * u[:, 9] - 1))
    aniso = on[:, 3] * w[:, 1]
    shift = on[:, 4, None] * w[:, 2:4]
    columns = (flip_x, flip_y, scale, theta.cos() - 1, theta.sin(), aniso * direction.cos(), aniso * direction.sin())
    return torch.cat((torch.stack([c.to(torch.float64) for c in columns], dim=1), shift), dim=1).to(torch.float32)


def augment_with(images: Tensor, labels: Tensor) -> Tensor:
    """Applies to every image the transform that its conditioning vector describes.

    images: [B, C, H, W], any float dtype, H = W; labels: [B, 9], in the order of ``LABELS``. (w, r) and (−w, r + π)
    share a vector of the anisotropic scale; w = |v| along v is meant. Returns images shaped and typed as the input.
    Raises UserError where shapes do not fit.
    """
    if labels.ndim != 2 or labels.shape[1] != len(LABELS) or len(labels) != len(images):
        raise UserError(f"augment labels have shape {list(labels.shape)}, expected [{len(images)}, {len(LABELS)}]")
    if images.shape[-1] != images.shape[-2]:
        raise UserError(f"images of shape {list(images.shape)} are not square")
    flip_x, flip_y = (labels[:, i, None, None, None] > 0.5 for i in (0, 1))
    images = torch.where(flip_x, images.flip(3), images)
    images = torch.where(flip_y, images.flip(2), images)
    moves = (labels[:, 2:] != 0).any(dim=1)
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        # All are resampled, and what does not move is taken as it was: to learn which these are, a GPU is waited for.
        warped = _warp(images, _inverse_transform(labels.to(torch.float64), images.shape[-1]))
        return torch.where(moves[:, None, None, None], warped, images)
    moved = moves.nonzero()[:, 0]
    if len(moved) == 0:
        return images
    # Only what moves is resampled: at the paper's probabilities most images are flipped at most.
    out = images.clone()
    out[moved] = _warp(images[moved], _inverse_transform(labels[moved].to(torch.float64), images.shape[-1]))
    return out


def _inverse_transform(labels: Tensor, side: int) -> Tensor:
    """Matrices [B, 3, 3] from output to input pixels, both counted from the image's centre."""
    scale = 2 ** (SCALE_STD * labels[:, 2])
    theta = torch.atan2(labels[:, 4], labels[:, 3] + 1)
    stretch = 2 ** (SCALE_STD * labels[:, 5:7].norm(dim=1))
    direction = torch.atan2(labels[:, 6], labels[:, 5])
    shift = SHIFT_STD * side * labels[:, 7:9]
    inverse = _diagonal(1 / scale, 1 / scale) @ _rotation(theta)
    inverse = inverse @ _rotation(-direction) @ _diagonal(1 / stretch, stretch) @ _rotation(direction)
    translation = torch.eye(3, dtype=labels.dtype, device=labels.device).repeat(len(labels), 1, 1)
    translation[:, :2, 2] = -shift
    return inverse @ translation


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack((x, y, torch.ones_like(x)), dim=1))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = (cos, -sin, zero, sin, cos, zero, zero, zero, one)
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def _warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Reflect, supersample by 2 with the low-pass filter, warp bilinearly once, filter and subsample by 2.

    The margin is the largest that reflection allows, whatever the transform, so that shapes never depend on data.
    """
    batch, side = len(images), images.shape[-1]
    taps = torch.tensor(_LOW_PASS, dtype=images.dtype).to(images.device, non_blocking=True)
    pad = side - 1
    wide = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    fine = _separable(wide, 2 * taps, up=True)
    # Sample positions: supersampled output pixels, and those the last filter reaches, in supersampled input pixels.
    count = 2 * side + len(taps) - 2
    grid = (torch.arange(count, dtype=torch.float64, device=images.device) - (count - 1) / 2 + 0.5) / 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), dim=-1).reshape(-1, 3)
    source = (2 * (points @ inverse.transpose(1, 2))[..., :2] - 0.5) * (2 / fine.shape[-1])
    source = source.reshape(batch, count, count, 2).to(images.dtype)
    warped = F.grid_sample(fine, source, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _separable(warped, taps, up=False)


def _separable(images: Tensor, taps: Tensor, up: bool) -> Tensor:
    channels, half = images.shape[1], len(taps) // 2
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = taps.reshape(shape).expand(channels, *[-1] * 3)
        vertical = shape[2] == -1
        stride = (2, 1) if vertical else (1, 2)
        if up:
            padding = (half - 1, 0) if vertical else (0, half - 1)
            images = F.conv_transpose2d(images, kernel, stride=stride, padding=padding, groups=channels)
        else:
            images = F.conv2d(images, kernel, stride=stride, groups=channels)
    return images
