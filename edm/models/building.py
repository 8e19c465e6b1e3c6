"""The denoiser and the loss of a configuration."""

from edm import registry
from edm.config import TrainingConfig
from edm.design.losses import EDMLoss, Loss, PluginLoss
from edm.design.preconditioning import EDMPreconditioning, PluginPreconditioning, Preconditioning
from edm.models.denoiser import Denoiser
from edm.networks.building import network


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
