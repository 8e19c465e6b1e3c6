"""Non-leaky augmentation (Table 6, Appendix F.2): geometric transforms, which also condition the network.

:func:`random_transforms` draws a transform; its conditioning vector of nine numbers is computed from it; zeros mean
"no change". The vector does not determine the transform: it lacks the sign of the anisotropic scale.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edm import registry
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


class Transforms(NamedTuple):
    """One transform per image, as drawn; all entries are [B], ``shift`` is [B, 2]; 0 if the transform is off.

    flip_x, flip_y: booleans. w_scale, w_aniso: standard normal, with their signs. angle, direction: radians.
    shift: standard normal, (x, y).
    """

    flip_x: Tensor
    flip_y: Tensor
    w_scale: Tensor
    angle: Tensor
    w_aniso: Tensor
    direction: Tensor
    shift: Tensor

    def labels(self) -> Tensor:
        """The conditioning vectors [B, 9], float32. (w, r) and (−w, r + π) share one and are inverse transforms."""
        columns = (self.flip_x, self.flip_y, self.w_scale, self.angle.cos() - 1, self.angle.sin(),
                   self.w_aniso * self.direction.cos(), self.w_aniso * self.direction.sin(), *self.shift.T)  # fmt: skip
        return torch.stack([column.to(torch.float32) for column in columns], dim=1)


def random_transforms(seeds: Tensor, probability: float) -> Transforms:
    """One random transform per seed (Table 6): a fair coin for the x-flip, each other one with ``probability``."""
    u = noise.uniform(seeds, 0, 10, noise.AUGMENT)
    w = noise.normal(seeds, 1, (4,), noise.AUGMENT)
    on = u[:, :5] < probability  # y-flip, scale, rotation, anisotropy, translation
    return Transforms(
        flip_x=u[:, 5] < 0.5,
        flip_y=on[:, 0] & (u[:, 6] < 0.5),
        w_scale=on[:, 1] * w[:, 0],
        angle=on[:, 2] * math.pi * (2 * u[:, 7] - 1),
        w_aniso=on[:, 3] * w[:, 1],
        direction=torch.where(u[:, 8] < 0.5, 0.0, math.pi * (2 * u[:, 9] - 1)),
        shift=on[:, 4, None] * w[:, 2:4],
    )


@registry.register("augmentation", "edm", width=len(LABELS))
def augment(images: Tensor, seeds: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] under one random transform per seed, and their conditioning vectors [B, 9]."""
    transforms = random_transforms(seeds, probability)
    return apply(images, transforms), transforms.labels()


def augment_with(images: Tensor, labels: Tensor) -> Tensor:
    """Applies to each image the transform that its conditioning vector describes.

    images: [B, C, H, W], any float dtype, H = W; labels: [B, 9], in the order of ``LABELS``. Returns images shaped and
    typed as the input. Raises UserError if the shapes do not match.

    Two transforms share a vector v = (aniso_x, aniso_y). If aniso_y is exactly 0, as in the half of all draws with
    r = 0, aniso_x is w with its sign; otherwise w is taken as |v|, along v. Training uses :func:`augment` instead,
    which applies the drawn transform itself.
    """
    if labels.ndim != 2 or labels.shape[1] != len(LABELS) or len(labels) != len(images):
        raise UserError(f"augment labels have shape {list(labels.shape)}, expected [{len(images)}, {len(LABELS)}]")
    if images.shape[-1] != images.shape[-2]:
        raise UserError(f"images of shape {list(images.shape)} are not square")
    v = labels.to(torch.float64)
    upright = v[:, 6] == 0
    return apply(images, Transforms(
        flip_x=v[:, 0] > 0.5,
        flip_y=v[:, 1] > 0.5,
        w_scale=v[:, 2],
        angle=torch.atan2(v[:, 4], v[:, 3] + 1),
        w_aniso=torch.where(upright, v[:, 5], v[:, 5:7].norm(dim=1)),
        direction=torch.where(upright, 0.0, torch.atan2(v[:, 6], v[:, 5])),
        shift=v[:, 7:9],
    ))  # fmt: skip


def apply(images: Tensor, transforms: Transforms) -> Tensor:
    """Square images [B, C, H, W] under one transform each, shaped and typed as the input."""
    flip_x, flip_y = (flip[:, None, None, None] for flip in transforms[:2])
    images = torch.where(flip_x, images.flip(3), images)
    images = torch.where(flip_y, images.flip(2), images)
    moves = (transforms.w_scale != 0) | (transforms.angle != 0) | (transforms.w_aniso != 0)
    moves = moves | (transforms.shift != 0).any(dim=1)
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        # Resample all images, then restore the unmoved ones: selecting the moved ones would wait for the GPU.
        warped = _warp(images, _inverse(transforms, images.shape[-1]))
        return torch.where(moves[:, None, None, None], warped, images)
    moved = moves.nonzero()[:, 0]
    if len(moved) == 0:
        return images
    # Resample only the moved images: at the paper's probabilities most are at most flipped.
    out = images.clone()
    out[moved] = _warp(images[moved], _inverse(Transforms(*(part[moved] for part in transforms)), images.shape[-1]))
    return out


def _inverse(transforms: Transforms, side: int) -> Tensor:
    """Matrices [B, 3, 3] from output to input pixels, both counted from the image's centre; without the flips."""
    scale, stretch = 2 ** (SCALE_STD * transforms.w_scale), 2 ** (SCALE_STD * transforms.w_aniso)
    direction = transforms.direction
    inverse = _diagonal(1 / scale, 1 / scale) @ _rotation(transforms.angle)
    inverse = inverse @ _rotation(-direction) @ _diagonal(1 / stretch, stretch) @ _rotation(direction)
    translation = torch.eye(3, dtype=scale.dtype, device=scale.device).repeat(len(scale), 1, 1)
    translation[:, :2, 2] = -SHIFT_STD * side * transforms.shift
    return inverse @ translation


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack((x, y, torch.ones_like(x)), dim=1))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = (cos, -sin, zero, sin, cos, zero, zero, zero, one)
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def _warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Reflect, supersample by 2 with the low-pass filter, warp bilinearly once, filter and subsample by 2.

    The margin is always the largest that reflection allows, so that shapes do not depend on data.
    """
    batch, side = len(images), images.shape[-1]
    fine = _along_sides(images, _upsampled)
    # Sample positions: supersampled output pixels, and those the last filter reaches, in supersampled input pixels.
    count = 2 * side + len(_LOW_PASS) - 2
    grid = (torch.arange(count, dtype=torch.float64, device=images.device) - (count - 1) / 2 + 0.5) / 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), dim=-1).reshape(-1, 3)
    source = (2 * (points @ inverse.transpose(1, 2))[..., :2] - 0.5) * (2 / fine.shape[-1])
    source = source.reshape(batch, count, count, 2).to(images.dtype)
    warped = F.grid_sample(fine, source, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _along_sides(warped, _subsampled)


def _upsampled(lines: Tensor) -> Tensor:
    """Lines [N, L], continued by reflection and supersampled by 2 with the low-pass filter: [N, 6L − 4]."""
    taps = _taps(lines)
    margin = lines.shape[1] - 1
    wide = F.pad(lines[:, None], (margin, margin), mode="reflect")
    return F.conv_transpose1d(wide, 2 * taps, stride=2, padding=taps.shape[-1] // 2 - 1)[:, 0]


def _subsampled(lines: Tensor) -> Tensor:
    """Lines [N, 2L + 10], filtered and subsampled by 2: [N, L]."""
    return F.conv1d(lines[:, None], _taps(lines), stride=2)[:, 0]


def _taps(lines: Tensor) -> Tensor:
    return torch.tensor(_LOW_PASS, dtype=lines.dtype).to(lines.device, non_blocking=True)[None, None]


def _along_sides(images: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a linear map of lines to the columns and the rows of square images, as two products with its matrix.

    torch's convolutions with one filter per channel take several times as long on a CPU.
    """
    matrix = linear(torch.eye(images.shape[-1], dtype=images.dtype, device=images.device))
    return matrix.T @ images @ matrix
