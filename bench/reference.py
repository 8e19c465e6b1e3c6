"""The reference variant of the benchmarks: a straightforward implementation of training and sampling.

Plain PyTorch: eager float32 without TF32, contiguous layout, torch's convolutions, attention as two products and a
softmax, default malloc settings, a standard data loader, loops over the parameters to clean up gradients and to update
the moving average. It uses the formulas and network modules of ``edm``.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from edm.cluster.processes import World
from edm.config import TrainingConfig
from edm.data.archive import Dataset
from edm.design.augmentation import augment
from edm.design.losses import weighted_error
from edm.models import building
from edm.models.denoiser import Denoiser
from edm.networks import winograd
from edm.networks.precision import float32_as
from edm.training.step import ema_decay_at, learning_rate_at


def build(config: TrainingConfig, device: torch.device) -> Denoiser:
    """The network of a configuration, in torch's default memory layout."""
    torch.manual_seed(config.seed)
    return building.build(config).to(device)


class Training:
    """The same step as :class:`edm.training.step.TrainingStep`, with torch's random numbers."""

    def __init__(self, config: TrainingConfig, dataset: Dataset, device: torch.device):
        self.config, self.device = config, device
        self.net = build(config, device).train()
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.loss = building.loss_of(config)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8)
        self._batches = self._endless(dataset)

    def _endless(self, dataset: Dataset) -> Iterator[list[Tensor]]:
        labels = torch.from_numpy(np.asarray(dataset.labels))
        pairs = TensorDataset(torch.from_numpy(dataset.images), labels)
        gpu = self.device.type == "cuda"
        size = self.config.microbatch or self.config.batch_size
        loader = DataLoader(pairs, size, shuffle=True, drop_last=True, num_workers=2 * gpu, pin_memory=gpu)
        while True:
            yield from loader

    def __call__(self, images: int, sums: Tensor) -> None:
        """Trains on the minibatch after ``images`` images; adds the loss summed over pixels and the images to sums."""
        config, device = self.config, self.device
        rounds = config.batch_size // (config.microbatch or config.batch_size)
        for round_ in range(rounds):
            pixels, labels = (tensor.to(device) for tensor in next(self._batches))
            y = pixels.to(torch.float32) / 127.5 - 1
            if config.x_flip:
                y = torch.where(torch.rand(len(y), 1, 1, 1, device=device) < 0.5, y.flip(3), y)
            augment_labels = None
            if config.augment > 0:
                first = images + round_ * len(y)
                seeds = torch.arange(first, first + len(y), device=device)
                y, augment_labels = augment(y, seeds, config.augment)
            sigma = self.loss.sigma(torch.rand(len(y), device=device).clamp(1e-6, 1 - 1e-6)).to(torch.float32)
            labels = labels if config.conditional else None
            with straightforward():
                error = weighted_error(self.net, self.loss, y, sigma, torch.randn_like(y), labels, augment_labels)
                (error.sum() / config.batch_size).backward()
            sums[0] += error.detach().sum(dtype=torch.float64)
            sums[1] += len(y)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(config, images)
        finish_step(self.net, self.ema, self.optimizer, ema_decay_at(config, images))


def finish_step(net: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, beta: float) -> None:
    """Cleans up the gradients and updates weights and moving average, one parameter at a time."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for average, parameter in zip(ema.parameters(), net.parameters(), strict=True):
            average.copy_(parameter.lerp(average, beta))


@contextmanager
def straightforward() -> Iterator[None]:
    """Attention as products and a softmax, torch's own convolutions, float32 without TF32."""
    own = patch.object(winograd, "pays", lambda x, weight: False)
    with own, sdpa_kernel(SDPBackend.MATH), float32_as("fp32"):
        yield


def made_up(config: TrainingConfig, count: int) -> Dataset:
    """Images of noise; the speed does not depend on their content."""
    rng = np.random.default_rng(0)
    shape = (count, config.channels, config.resolution, config.resolution)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return Dataset(images, rng.integers(0, max(config.classes, 1), count), "made up", "made up")


def place_of(name: str) -> World:
    """A single process on the device with this name."""
    from edm.cluster.processes import pick_device

    return World(device=pick_device(name))
