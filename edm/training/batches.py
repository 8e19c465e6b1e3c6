"""Training inputs as a function of the sample's number: order, flips, augmentation, noise level and noise.

Sample k is the k-th image that the training run sees. All its random numbers come from its own seed, so they do not
depend on the number of processes, on gradient accumulation, or on interruptions.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from edm.config import MAX_SEED, TrainingConfig
from edm.data.archive import Dataset
from edm.data.pixels import to_float
from edm.design import draws as noise
from edm.design.losses import Loss
from edm.models.building import augmentation_of
from edm.models.compilation import Compiled
from edm.networks.precision import float32_as

_SEED_STRIDE = 2**63 // (MAX_SEED + 1)  # samples of different training seeds never share a draw


@dataclass(frozen=True)
class Batch:
    """images y [B, C, H, W] in [−1, 1], labels, augment_labels [B, 9] or None, sigma [B], noise as y.

    labels: class indices [B]; one-hot rows [B, classes] where some may be zeros (label dropout); or None.
    """

    images: Tensor
    labels: Tensor | None
    augment_labels: Tensor | None
    sigma: Tensor
    noise: Tensor


class Batches:
    """The samples of one training run. The dataset is kept on the device if it fits there; else its images are
    collected in host memory, those of the next call ahead of it.

    compiled: keyword arguments of ``torch.compile`` for the function that turns pixels and seeds into inputs; None does
        not compile it.
    """

    def __init__(
        self, dataset: Dataset, config: TrainingConfig, loss: Loss, device: torch.device,
        compiled: Compiled | None = None,
    ):  # fmt: skip
        self.config, self.loss, self.device = config, loss, device
        self._augment = augmentation_of(config)
        self._inputs = self._drawn if compiled is None else torch.compile(self._drawn, **compiled)
        images = torch.from_numpy(dataset.images)
        resident = _fits(images, device)
        self.images = images.to(device) if resident else images
        self._ahead = None if resident else Ahead(self._pixels)
        labels = torch.from_numpy(dataset.labels) if config.conditional else None
        self.labels = None if labels is None else labels.to(self.images.device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def draw(self, first: int, count: int, following: tuple[int, int] | None = None) -> Batch:
        """Samples ``first`` to ``first + count − 1``.

        following: ``first`` and ``count`` of the next call, if they are known: images in host memory are then collected
        while the device computes.
        """
        rows, pixels = self._pixels(first, count) if self._ahead is None else self._ahead.take(first, count, following)
        labels = None if self.labels is None else self._on_device(self.labels[rows])
        seeds = torch.arange(first, first + count, device=self.device) + self.config.seed * _SEED_STRIDE
        if labels is not None and self.config.label_dropout > 0:
            kept = noise.uniform(seeds, 0, 1, noise.UNLABELLED) >= self.config.label_dropout
            labels = one_hot(labels, self.config.classes).to(torch.float32) * kept
        with float32_as():  # the precision of a configuration is that of its network, not of its images
            images, augment_labels, quantiles, draws = self._inputs(self._on_device(pixels), seeds)
        return Batch(images, labels, augment_labels, self.loss.sigma(quantiles).to(torch.float32), draws)

    def _pixels(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Dataset rows of some samples, and their images."""
        rows = self._rows(first, count)
        return rows, self.images[rows]

    def _on_device(self, part: Tensor) -> Tensor:
        if part.device == self.device:
            return part
        return part.pin_memory().to(self.device, non_blocking=True)  # unpinned, the copy would block

    def _drawn(self, pixels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """From pixels uint8 [B, C, H, W]: images, augment_labels, the quantiles of σ, noise."""
        images = to_float(pixels)
        if self.config.x_flip:
            flip = noise.uniform(seeds, 0, 1, noise.FLIP)[:, 0] < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        augment_labels = None
        if self.config.augment > 0:
            images, augment_labels = self._augment(images, seeds, self.config.augment)
        draws = noise.normal(seeds, 0, images.shape[1:], noise.NOISE).to(torch.float32)
        return images, augment_labels, noise.uniform(seeds, 0, 1, noise.SIGMA)[:, 0], draws

    def _rows(self, first: int, count: int) -> Tensor:
        """Dataset rows of consecutive samples, on the device of the images. Every epoch is a new permutation."""
        total, rows = len(self.images), []
        while count > 0:
            epoch, place = divmod(first, total)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
                self._epoch = epoch
                self._order = torch.randperm(total, generator=generator).to(self.images.device)
            part = self._order[place : place + count]
            rows.append(part)
            first, count = first + len(part), count - len(part)
        return torch.cat(rows)


class Ahead:
    """Computes ``made(first, count)`` of the next call in a thread, one at a time, beside the caller's work."""

    def __init__(self, made: Callable[[int, int], tuple[Tensor, Tensor]]):
        self._made, self._thread = made, ThreadPoolExecutor(1, "images")
        self._next: tuple[tuple[int, int], Future[tuple[Tensor, Tensor]]] | None = None

    def take(self, first: int, count: int, following: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        wanted, ready = (first, count), self._next
        if ready is not None and ready[0] == wanted:
            result = ready[1].result()
        else:  # after the one that nobody asked for: the rows of samples have a state
            result = self._thread.submit(self._made, *wanted).result()
        self._next = following and (following, self._thread.submit(self._made, *following))
        return result


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the dataset takes less than a quarter of the device's free memory."""
    if device.type != "cuda":
        return True
    return images.nbytes < torch.cuda.mem_get_info(device)[0] / 4
