"""The studies of params.yaml (``analyses``): each takes a trained model and returns tensors to plot and numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm import registry
from edm.analysis.degradation import degrade
from edm.analysis.leakage import Transform, augmented, leakage
from edm.analysis.truncation import truncation_errors
from edm.checked import fits
from edm.config import SamplerConfig
from edm.data.pixels import to_float
from edm.design.augmentation import augment as default_transform
from edm.design.draws import class_labels
from edm.errors import UserError
from edm.files.documents import AMOUNT, COUNT, NUMBER, TEXT, Kind, Names, between, require_shape
from edm.files.tensors import read_header, save_tensors
from edm.files.writing import named
from edm.models.denoiser import Denoiser
from edm.networks.precision import float32_as
from edm.params import studies as _names  # noqa: F401  names our own studies
from edm.sampling.sample_files import draw

FORMAT = "edm-analysis/1"
_ADVICE = "delete it and run snakemake again"
_SIGMA = between(1e-9, 1e9)
_ERROR = {"mean": [AMOUNT], "std": [AMOUNT]}
_NUMBERS: dict[str, Any] = {
    "truncation": {"num_steps": COUNT, "curves": [{"rho": NUMBER, "sigma": [_SIGMA], "euler": _ERROR, "heun": _ERROR}]},
    "degradation": {"sigmas": [_SIGMA], "repetitions": [COUNT], "S_noise": [AMOUNT]},
    "leakage": {"distances": Names(AMOUNT), "metric": TEXT},
    "memorisation": {
        "pairs": [{"seed": COUNT, "training": COUNT, "distance": AMOUNT, "ratio": AMOUNT}],
        "images": COUNT,
        "k": COUNT,
        "below": AMOUNT,
        "share": AMOUNT,
        "share_of_reference": AMOUNT,
        "reference_features": COUNT,
        "description": TEXT,
    },
}
_OF_PLUGINS = Names(Kind("a number, or a list of numbers", lambda value: fits(value, float)
                         or fits(value, tuple[float, ...])))  # fmt: skip
SHOWN = 64  # images of each kind stored for display
BLOCK = 64


@registry.register("study", "truncation")
def truncation(
    denoiser: Denoiser, dataset: None = None, features: None = None, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Figure 13a, b; settings are those of :func:`edm.analysis.truncation.truncation_errors`."""
    config = denoiser.network.config
    shape = (config.channels, config.resolution, config.resolution)
    with float32_as():
        return {}, truncation_errors(denoiser, shape, classes=config.classes, **settings)


@registry.register("study", "degradation")
def degradation(
    denoiser: Denoiser,
    dataset: None = None,
    features: None = None,
    *,
    sigmas: Sequence[float | str],
    repetitions: Sequence[int],
    S_noise: Sequence[float] = (1.0,),
    images: int = 8,
    num_steps: int = 18,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Figure 14: the model's own images under repeated churn, as float32, per S_noise.

    sigmas: "smallest" is the model's smallest supported noise level. Raises UserError if the model has no such limit.
    """
    levels = [denoiser.sigma_min if isinstance(sigma, str) else sigma for sigma in sigmas]
    classes = denoiser.network.config.classes
    clean = to_float(_drawn(denoiser, images, num_steps)).to(denoiser.device)
    labels = class_labels(torch.arange(images, device=denoiser.device), classes) if classes else None
    with float32_as():
        degraded = {noise: degrade(denoiser, clean, levels, counts=repetitions, S_noise=noise, class_labels=labels)
                    for noise in S_noise}  # fmt: skip
    shown = {named(noise): images.float() for noise, images in degraded.items()}
    return shown, {"sigmas": levels, "repetitions": list(repetitions), "S_noise": list(S_noise)}


@registry.register("study", "leakage")
def leaked(
    denoiser: Denoiser,
    dataset: Any,
    features: Any,
    *,
    augment: float,
    images: int,
    num_steps: int = 18,
    transform: Transform = default_transform,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Appendix F.2: distances of the model's images to clean and to augmented training images, in ``features``."""
    generated = _drawn(denoiser, images, num_steps)
    training = torch.from_numpy(dataset.images[: max(images, 2)])
    distances = leakage(generated, training, features, probability=augment, transform=transform)
    first = training[:SHOWN]
    shown = {
        "dataset": first,
        "augmented": augmented(first, augment, transform=transform),
        "generated": generated[:SHOWN],
    }
    return shown, {"distances": distances, "metric": features.label, "images": images}


@registry.register("study", "memorisation")
def memorised(
    denoiser: Denoiser,
    dataset: None = None,
    features: None = None,
    *,
    draws: Sequence[tuple[SamplerConfig, int, int]],
    training: Tensor,
    numbers: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The images that lie suspiciously near to one training image, drawn again, beside that image.

    draws: of each image its sampler, its seed and the seeds per block. Images of different block sizes agree up to
    rounding, so a block of one seed costs least; the images of some samplers depend on their whole block.
    training: its nearest training image, uint8 [n, C, H, W]. numbers: of the evaluation that found them, as they are.
    """
    drawn = [pixels for sampler, seed, block in draws for pixels, _ in draw(denoiser, sampler, range(seed, seed + 1),
                                                                            block)]  # fmt: skip
    return {"generated": torch.cat(drawn), "training": training}, numbers


def study(
    kind: str, denoiser: Denoiser, dataset: Any = None, features: Any = None, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers) of a registered study. Raises UserError if a plugin's returns anything else."""
    part = registry.find("study", kind)
    found = part(denoiser, dataset, features, **settings)
    return found if part.own else _checked(part.where, found)


def _checked(where: str, found: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, dict) for one in found)):
        raise UserError(f"{where}: returned {type(found).__name__}; expected two dictionaries, (images, numbers)")
    images, numbers = found[0], {str(name): _plain(one) for name, one in found[1].items()}
    for name, one in images.items():
        if not isinstance(one, Tensor) or one.dtype != torch.uint8 or one.ndim != 4 or one.shape[1] not in (1, 3):
            told = f"{one.dtype} {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise UserError(f"{where}: returned images {name!r} {told}; expected uint8 [n, C, H, W]")
    for name, one in numbers.items():
        if not (fits(one, float) or fits(one, tuple[float, ...])):
            raise UserError(f"{where}: returned {name!r} {one!r:.60}; expected a finite number, or a list of them")
    return {str(name): one.cpu().contiguous() for name, one in images.items()}, numbers


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as those of Python."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _drawn(denoiser: Denoiser, images: int, num_steps: int) -> Tensor:
    """The first images of the model under Algorithm 1, uint8 on the CPU."""
    seeds = range(images)
    block = min(BLOCK, images)
    return torch.cat([pixels for pixels, _ in draw(denoiser, SamplerConfig(num_steps=num_steps), seeds, block)])


def save_study(
    path: str | Path, tensors: dict[str, Tensor], numbers: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Writes the result of a study; ``about`` describes its model and settings."""
    save_tensors(path, tensors, {"format": FORMAT, **about, "numbers": numbers})


def read_numbers(path: str | Path, kind: str) -> dict[str, Any]:
    """The numbers in a file of :func:`save_study`, of a kind of study. Raises UserError for any other file."""
    header = read_header(path, FORMAT)
    require_shape(header, {"numbers": _NUMBERS.get(kind, _OF_PLUGINS)}, path, _ADVICE)
    numbers: dict[str, Any] = header["numbers"]
    for number, curve in enumerate(numbers.get("curves", ()), 1):
        values = [curve["sigma"], *(curve[method][name] for method in ("euler", "heun") for name in ("mean", "std"))]
        if len({len(entries) for entries in values} - {0}) != 1:
            raise UserError(f"{path}: curve {number} has lists of different lengths; {_ADVICE}")
    return numbers
