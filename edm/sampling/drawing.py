"""Images from seeds: image i depends on seed i alone.

The seed range is split into fixed blocks of consecutive seeds: seed s is always row s mod B of block s // B, and the
network always gets whole blocks. The images are therefore bit-identical for any number of images and any assignment
of blocks to processes. This includes the predictor–corrector ("ve-pc"), where an image depends on its whole block.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edm import registry
from edm.config import ADAPTIVE, AUTO, ORIGINAL, NetworkConfig, SamplerConfig
from edm.design import draws as noise
from edm.errors import UserError
from edm.networks.flops import flops
from edm.sampling.guidance import Guided, guided
from edm.sampling.originals import ORIGINAL_SAMPLERS
from edm.sampling.rk45 import rk45
from edm.sampling.sampler import Denoiser, Ode, Own, run

DEFAULT_BLOCK = 64
BLOCK_FLOPS = 2**44  # per evaluation of an automatic block: about 512 images of configuration F at 32x32
BLOCKS = (16, 1024)  # minimum and maximum size of an automatic block
CPU_FLOPS = 2**39  # the same on a CPU: seconds
TOGETHER = "ve-pc"  # the solver whose images depend on their whole block


#: Is told how many more images are done, also as fractions.
Advance = Callable[[float], object]


def untold(count: float) -> None:
    """The :data:`Advance` of those who do not ask."""


class _Share:
    """Tells of the images of one block, step by step. A solver without steps tells nothing before its end."""

    def __init__(self, images: int, steps: int, advance: Advance) -> None:
        self._left, self._step, self._advance = float(images), images / steps, advance

    def step(self, *_: object) -> None:
        self._tell(min(self._step, self._left))

    def end(self) -> None:
        self._tell(self._left)

    def _tell(self, count: float) -> None:
        self._left -= count
        self._advance(count)


@dataclass(frozen=True)
class Block:
    """Images float64 [n, C, H, W] of consecutive ``seeds`` [n], their class labels [n] or None, and their NFE [n]."""

    seeds: Tensor
    labels: Tensor | None
    images: Tensor
    nfe: Tensor


def part_of(seeds: range, block: int, index: int, count: int) -> range:
    """Part ``index`` (from 0) of ``count`` of a seed range; concatenated in order, the parts give the range.

    A block is never split between parts, so that none is computed twice. Part sizes differ by at most one block, and no
    part is larger than the first; with fewer blocks than parts, some are empty.
    """
    first, last = seeds.start // block, -(-seeds.stop // block)
    cuts = [(first + -(-(last - first) * i // count)) * block for i in (index, index + 1)]
    start, stop = (min(max(cut, seeds.start), seeds.stop) for cut in cuts)
    return range(start, stop)


def block_of(asked: int | str, network: NetworkConfig, on_cpu: bool = False) -> int:
    """Seeds per block: the given number or, for "auto", the power of two that keeps a large GPU busy.

    "auto" depends only on the network, not on the GPU in use, because the block size changes images by rounding.
    on_cpu: for a sheet by hand, where a block of a GPU takes many minutes and most of its images may not be asked for.
    """
    if asked != AUTO:
        return int(asked)
    low, high = (BLOCKS[0], DEFAULT_BLOCK) if on_cpu else BLOCKS
    size: int = 2 ** round(math.log2((CPU_FLOPS if on_cpu else BLOCK_FLOPS) / flops(network)))
    return min(max(size, low), high)


def generate(
    denoiser: Denoiser, config: SamplerConfig, seeds: range, shape: tuple[int, ...], *, classes: int = 0,
    class_label: int | None = None, block: int = DEFAULT_BLOCK, advance: Advance = untold,
) -> Iterator[Block]:  # fmt: skip
    """Yields the images of ``seeds`` block by block, in order.

    shape: (C, H, W); classes: of the model, 0 for none. Each seed draws a class, unless ``class_label`` sets one for
    all. block: seeds per block; images of different block sizes agree up to rounding. advance: is told how many
    more images are done; a step of a block counts as its share of the block. Latents are on ``denoiser.device``, or the
    CPU if it has none. Raises UserError for an empty range or an unknown class.
    """
    if len(seeds) == 0 or seeds.step != 1 or seeds.start < 0:
        raise UserError(f"seeds {seeds.start}-{seeds.stop - 1}: expected a range such as 0-63")
    if block < 1:
        raise UserError(f"block is {block}; it must hold at least 1 seed")
    if class_label is not None and not 0 <= class_label < classes:
        raise UserError(f"class {class_label} is not one of the model's {classes} classes")
    net = guided(denoiser, config)
    device = denoiser.device if hasattr(denoiser, "device") else torch.device("cpu")
    for number in range(seeds.start // block, -(-seeds.stop // block)):
        whole = torch.arange(number * block, (number + 1) * block, device=device)
        labels = None
        if classes:
            labels = noise.class_labels(whole, classes)
            labels = labels if class_label is None else torch.full_like(labels, class_label)
        draw = lambda step, x, whole=whole: noise.churn(whole, step, shape)
        wanted = slice(max(seeds.start - number * block, 0), min(seeds.stop - number * block, block))
        share = _Share(wanted.stop - wanted.start, config.num_steps, advance)
        own = Own(callback=share.step)
        images, nfe = draw_images(net, noise.latents(whole, shape), labels, config, draw, own)
        share.end()
        kept = None if labels is None else labels[wanted].cpu()
        yield Block(whole[wanted].cpu(), kept, images[wanted].cpu(), nfe[wanted].cpu())


def draw_images(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    config: SamplerConfig,
    noise: Callable[[int, Tensor], Tensor],
    own: Own | None = None,
) -> tuple[Tensor, Tensor]:
    """Images float64 [B, C, H, W] from the solver of ``config``, and the NFE of each, int64 [B].

    net: a denoiser, or what :func:`edm.sampling.guidance.guided` makes of it; the NFE count its guide, too.
    latents: standard-normal draws [B, C, H, W]; ``noise(i, x)`` gives the i-th further draw, shaped as x.
    own: as in :func:`edm.sampling.sampler.solve`, for its solvers.
    """
    before = net.evaluations if isinstance(net, Guided) else 0
    images, nfe = run(net, latents, class_labels, config, noise, own)
    if isinstance(net, Guided) and config.solver != ADAPTIVE:  # which counts all
        nfe = nfe + torch.as_tensor(net.evaluations - before).to(nfe)
    return images, nfe


def _rk45(ode: Ode, latents: Tensor, sigmas: list[float], noise: object) -> tuple[Tensor, Tensor]:
    config = ode.config
    return rk45(
        ode.net,
        latents,
        ode.class_labels,
        rtol=config.tolerance,
        atol=config.tolerance,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
    )


def _original(ode: Ode, latents: Tensor, sigmas: list[float], noise: Callable[[int, Tensor], Tensor]) -> Tensor:
    sampler = ORIGINAL_SAMPLERS[ode.config.solver]
    return sampler(ode.net, latents, ode.class_labels, num_steps=ode.config.num_steps, noise=noise)


registry.register("solver", ADAPTIVE, levels=False)(_rk45)
for _name in ORIGINAL:
    registry.register("solver", _name, levels=False)(_original)
