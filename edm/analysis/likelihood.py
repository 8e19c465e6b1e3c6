"""The likelihood of images that exist under a model, in bits per dimension, shared by the processes of a run."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.analysis.bits import summary
from edm.cluster.processes import ALONE, World
from edm.data.archive import Dataset
from edm.errors import UserError
from edm.models.denoiser import Denoiser
from edm.networks.precision import float32_as
from edm.sampling.drawing import part_of
from edm.sampling.likelihood import LN_2, bits_per_dimension, dequantised, log_likelihood


def images_of(denoiser: Denoiser, dataset: Dataset, images: int) -> range:
    """The places of the first images of a dataset. Raises UserError if they do not fit the model, or are too few."""
    config = denoiser.network.config
    dataset.require(config.resolution, config.channels, config.classes)
    count = min(images, len(dataset.images))
    if count < 2:
        raise UserError(f"images is {images}; a standard error needs at least 2")
    return range(count)


def bits_of(
    denoiser: Denoiser, dataset: Dataset, images: int, block: int = 64, world: World = ALONE, **settings: Any
) -> dict[str, Any]:
    """Bits per dimension of the first images of a dataset, by the ODE upwards with uniform dequantisation.

    settings: of :func:`edm.log_likelihood`. The seed of an image, for its dequantisation and its probes, is its place
    in the dataset: its result depends on nothing else. Of a conditional model it is the density of the image's class.
    The processes of ``world`` share the images in whole blocks; rank 0 gets the results, the others an empty one.

    Returns the :func:`edm.analysis.bits.summary`; its "spread" is 0 of the exact trace.
    Raises UserError if the images do not fit the model, or if it needs labels that the dataset lacks.
    """
    found = bits_of_part(denoiser, dataset, images_of(denoiser, dataset, images), block, world, **settings)
    return summary(found["each"], found["spreads"]) if found else {}


def bits_of_part(
    denoiser: Denoiser, dataset: Dataset, places: range, block: int = 64, world: World = ALONE, **settings: Any
) -> dict[str, Any]:
    """As :func:`bits_of`, of the images at some places: "each", their bits, and "spreads" over probes, or None."""
    config = denoiser.network.config
    part, size = part_of(places, block, world.rank, world.size), dataset.images[0].size
    bits, spreads = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
    with (
        float32_as(denoiser.precision),
        tqdm(total=len(part), unit="img", disable=None if world.is_first else True) as bar,
    ):
        for start in range(part.start, part.stop, block):
            at = torch.arange(start, min(start + block, part.stop))
            x = dequantised(torch.from_numpy(dataset.images[at.numpy()]), at).to(denoiser.device)
            labels: Tensor | None = None
            if config.classes and dataset.labels is not None:
                labels = torch.from_numpy(dataset.labels[at.numpy()]).to(denoiser.device)
            nats, spread = log_likelihood(denoiser, x, labels, seeds=at, spread=True, **settings)
            bits.append(bits_per_dimension(nats, size).cpu())
            spreads.append(spread.cpu() / (size * LN_2))
            bar.update(len(at))
    gathered = world.gather({"bits": torch.cat(bits), "spread": torch.cat(spreads)})
    if not gathered:
        return {}
    each, spread = (torch.cat([one[name] for one in gathered]) for name in ("bits", "spread"))
    return {"each": each.tolist(), "spreads": None if spread.isnan().any() else spread.tolist()}
