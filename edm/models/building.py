"""The denoiser and the loss of a configuration."""

from edm.config import TrainingConfig
from edm.design.losses import LOSSES
from edm.design.preconditioning import PRECONDITIONINGS, EDMPreconditioning, Preconditioning
from edm.models.denoiser import Denoiser
from edm.networks.unet import UNet


def build(config: TrainingConfig) -> Denoiser:
    """An untrained denoiser of a configuration; torch's global generator initialises the weights.

    It supports the noise levels of its training: EDM's preconditioning accepts any level, but a model trained with the
    noise distribution of another design (configuration D) has seen only the levels of that distribution.
    """
    return Denoiser(UNet(config.network()), preconditioning_of(config))


def preconditioning_of(config: TrainingConfig) -> Preconditioning:
    preconditioning = PRECONDITIONINGS[config.preconditioning]()
    if isinstance(preconditioning, EDMPreconditioning):
        low, high = loss_of(config).sigma_range
        preconditioning = EDMPreconditioning(config.sigma_data, low, high)
    return preconditioning


def loss_of(config: TrainingConfig):
    """The training loss of a configuration."""
    if config.loss == "edm":
        return LOSSES["edm"](config.P_mean, config.P_std, config.sigma_data)
    return LOSSES[config.loss]()
