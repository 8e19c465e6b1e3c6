"""One step of training: the gradient of a minibatch, Adam, and the moving average of the weights."""

import copy
import inspect
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from edm import registry
from edm.cluster.processes import ALONE, World
from edm.config import TrainingConfig
from edm.data.archive import Dataset
from edm.design.averages import PowerFunction
from edm.design.losses import weighted_error
from edm.design.optimizers import uncompiled
from edm.errors import UserError
from edm.models import building
from edm.models.compilation import Compiled
from edm.models.denoiser import Denoiser
from edm.training.batches import Batches

#: The option of DistributedDataParallel that broadcasts buffers in each step. These networks have constant buffers.
CONSTANT_BUFFERS = "forward_sync_buffers"
if CONSTANT_BUFFERS not in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters:
    CONSTANT_BUFFERS = "broadcast_buffers"  # before torch 2.15
_ALIGNED = 64  # elements: gradients start at multiples of this, so that kernels can read 16 bytes at once


class TrainingStep:
    """A network (``net``), its moving average (``ema``) and its ``optimizer``; each call trains on one minibatch.

    compiled: keyword arguments of ``torch.compile`` for the drawing of inputs, the network and the loss; None does
    not compile. recompute: whether the network computes its blocks again for their gradients, instead of keeping all.
    Raises UserError if the network cannot.
    """

    def __init__(
        self, config: TrainingConfig, dataset: Dataset, world: World = ALONE, compiled: Compiled | None = None,
        recompute: bool = False,
    ):  # fmt: skip
        self.config, self.world = config, world
        torch.manual_seed(config.seed)
        self.net = building.build(config).placed(world.device).train()
        self.net.precision = config.precision
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        #: Power-function averages by their relative width.
        self.tracks = {width: copy.deepcopy(self.ema) for width in config.ema_widths}
        self._powers = [(PowerFunction(width), list(one.parameters())) for width, one in self.tracks.items()]
        if recompute:
            if not hasattr(self.net.network, "recompute"):
                raise UserError(f"architecture {config.architecture}: has no attribute recompute; leave recompute out")
            self.net.network.recompute = True
        self.optimizer = optimizer_of(config, list(self.net.parameters()))
        self._parameters, self._averages = list(self.net.parameters()), list(self.ema.parameters())
        self._gradients = one_vector_of_gradients(self._parameters)
        self.loss = building.loss_of(config)
        self._batches = Batches(dataset, config, self.loss, world.device, compiled)
        self._error = weighted_error if compiled is None else torch.compile(weighted_error, **compiled)
        self._model: Denoiser | nn.parallel.DistributedDataParallel = self.net
        if world.size > 1:
            constant: dict[str, Any] = {CONSTANT_BUFFERS: False}
            self._model = nn.parallel.DistributedDataParallel(self.net, **constant)
        self._first, self._share = _share(config.batch_size, world)
        self._micro = min(config.microbatch or self._share, self._share)

    def __call__(self, seen: int, sums: Tensor) -> None:
        """Trains on this process's share of the minibatch that starts at sample ``seen``, ``microbatch`` at a time.

        Adds to ``sums`` (float64 [4], on the device, without synchronising): the loss summed over pixels, the number of
        images, the number of non-finite gradient entries, and 1 if that number is above 0.
        """
        config, world = self.config, self.world
        if config.dropout > 0:
            torch.manual_seed(_step_seed(config.seed, seen, world.rank))
        first = seen + self._first
        parts = [(first + start, min(self._micro, self._share - start)) for start in range(0, self._share, self._micro)]
        following = [*parts[1:], (parts[0][0] + config.batch_size, parts[0][1])]
        for (start, count), then in zip(parts, following, strict=True):
            batch = self._batches.draw(start, count, then)
            last = (start, count) == parts[-1]
            with nullcontext() if last or isinstance(self._model, Denoiser) else self._model.no_sync():
                pixels = self._error(self._model, self.loss, batch.images, batch.sigma, batch.noise, batch.labels,
                                     batch.augment_labels)  # fmt: skip
                # Summed over pixels, averaged over the whole minibatch; DDP divides by the number of processes.
                summed = pixels.sum() * (config.loss_scale * world.size / config.batch_size)
                summed.backward()  # type: ignore[no-untyped-call]  # torch has no types
            sums[0] += pixels.detach().sum(dtype=torch.float64)
            sums[1] += count
        replaced = clean(self._gradients, config)
        if replaced is not None and world.is_first:  # under DDP every process has the same gradients
            sums[2] += replaced
            sums[3] += replaced > 0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(config, seen)
        self.optimizer.step()
        self._gradients.zero_()
        average = get_ema_multi_avg_fn(ema_decay_at(config, seen))  # type: ignore[no-untyped-call]  # torch has no types
        average(self._averages, self._parameters, None)
        for power, averages in self._powers:
            decay = power.decay(seen // config.batch_size + 1)
            average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has no types
            average(averages, self._parameters, None)


def one_vector_of_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """Gives every parameter a zero gradient that is a view of one vector, and returns that vector.

    An operation on all gradients is then one kernel, not one per parameter. Each view has the memory layout of its
    parameter; the gaps between views stay zero.
    """
    starts, size = [], 0
    for parameter in parameters:
        starts.append(size)
        size += -(-parameter.numel() // _ALIGNED) * _ALIGNED
    vector = torch.zeros(size, device=parameters[0].device)
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.grad = vector.as_strided(parameter.shape, parameter.stride(), start)
    return vector


def clean(gradients: Tensor, config: TrainingConfig) -> Tensor | None:
    """Undoes the loss scale, replaces NaN by 0 and ±inf by ±1e5, and clips, all in place.

    Returns the number of replaced entries, a tensor; None in full precision, where a non-finite gradient is an error
    that shows in the loss.
    """
    replaced = None
    if config.loss_scale != 1.0:
        gradients.div_(config.loss_scale)
    if config.precision in ("fp16", "bf16"):
        replaced = (~gradients.isfinite()).sum()
        torch.nan_to_num(gradients, nan=0.0, posinf=1e5, neginf=-1e5, out=gradients)
    if config.clip_norm is not None:
        norm = torch.linalg.vector_norm(gradients)
        gradients.mul_((config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return replaced


def learning_rate_at(config: TrainingConfig, seen: int) -> float:
    """The learning rate of the step after ``seen`` images: by default a linear ramp over ``lr_rampup`` Mimg (Table 7).

    A ramp is 0 in the first step of a ramp, as in the authors' code: Adam's moments are updated, the weights are not.
    """
    part = registry.find("lr_schedule", config.lr_schedule)
    settings = {"lr_rampup": config.lr_rampup} if part.own else config.settings_of("lr_schedule")
    rate = part(config.learning_rate, seen, config.steps * config.batch_size, **settings)
    if not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
        raise UserError(f"{part.where}: returned {rate!r} after {seen:,} images; expected a finite number from 0")
    return rate


@registry.register("lr_schedule", "ramp")
def ramp(learning_rate: float, seen: int, total: int, lr_rampup: float) -> float:
    """A linear ramp over ``lr_rampup`` Mimg, then constant."""
    images = lr_rampup * 1e6
    return learning_rate * min(seen / images, 1.0) if images else learning_rate


@registry.register("optimizer", "adam")
def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with the paper's settings."""
    return uncompiled(torch.optim.Adam)(parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)


def optimizer_of(config: TrainingConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a configuration."""
    part = registry.find("optimizer", config.optimizer)
    found = part(parameters, **({} if part.own else config.settings_of("optimizer")))
    if not isinstance(found, torch.optim.Optimizer):
        raise UserError(f"{part.where}: returned {type(found).__name__}; expected a torch.optim.Optimizer")
    return found


def ema_decay_at(config: TrainingConfig, seen: int) -> float:
    """β = 0.5^(batch/half-life); the half-life is capped at ``ema_rampup`` × images seen (Table 7)."""
    halflife = config.ema_halflife * 1e6
    if config.ema_rampup is not None:
        halflife = min(halflife, config.ema_rampup * seen)
    return 0.5 ** (config.batch_size / halflife) if halflife > 0 else 0.0


def _share(batch_size: int, world: World) -> tuple[int, int]:
    """(first sample, number of samples) of this process in every minibatch. Shares differ by at most one image."""
    first, last = (batch_size * (world.rank + more) // world.size for more in (0, 1))
    return first, last - first


def _step_seed(seed: int, seen: int, rank: int) -> int:
    """The seed of a step's dropout, so that resuming needs no generator state."""
    return (seed * 1_000_003 + seen * 4099 + rank) % 2**63
