"""The denoiser and the loss of a configuration."""

from collections.abc import Callable

from torch import Tensor

from edm import registry
from edm.config import TrainingConfig
from edm.design.losses import EDMLoss, Loss, PluginLoss
from edm.design.preconditioning import EDMPreconditioning, PluginPreconditioning, Preconditioning
from edm.errors import UserError
from edm.models.denoiser import Denoiser
from edm.networks.building import network

Augment = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor | None]]


def build(config: TrainingConfig) -> Denoiser:
    """An untrained denoiser of a configuration; torch's global generator initialises the weights.

    It supports the noise levels of its training: EDM's preconditioning accepts any level, but a model trained with the
    noise distribution of another design (configuration D) has seen only the levels of that distribution.
    """
    return Denoiser(network(config.network()), preconditioning_of(config))


def preconditioning_of(config: TrainingConfig) -> Preconditioning:
    part = registry.find("preconditioning", config.preconditioning)
    if not part.own:
        return PluginPreconditioning(part, config.settings_of("preconditioning"), loss_of(config).sigma_range)
    preconditioning: Preconditioning = part()
    if isinstance(preconditioning, EDMPreconditioning):
        low, high = loss_of(config).sigma_range
        preconditioning = EDMPreconditioning(config.sigma_data, low, high)
    return preconditioning


def loss_of(config: TrainingConfig) -> Loss:
    """The training loss of a configuration."""
    part = registry.find("loss", config.loss)
    if not part.own:
        return PluginLoss(part, config.settings_of("loss"))
    if part.make is EDMLoss:
        return EDMLoss(config.P_mean, config.P_std, config.sigma_data)
    loss: Loss = part()
    return loss


def augmentation_of(config: TrainingConfig) -> Augment:
    """The augmentation of a configuration: a function of images, seeds and the probability (:mod:`edm.protocols`)."""
    part = registry.find("augmentation", config.augmentation)
    if part.own:
        own: Augment = part.make
        return own
    settings, width = config.settings_of("augmentation"), part.facts["width"]

    def augment(images: Tensor, seeds: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
        found = part(images, seeds, probability, **settings)
        pair = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        changed, labels = pair
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            told = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise UserError(f"{part.where}: returned {told} for images {list(images.shape)}; expected the same shape")
        if width and (not isinstance(labels, Tensor) or labels.shape != (len(images), width)):
            told = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise UserError(f"{part.where}: returned vectors {told}; expected [{len(images)}, {width}]")
        return changed.to(images.dtype), labels.to(images.dtype) if width and labels is not None else None

    return augment
