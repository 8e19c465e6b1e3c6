"""Noise distributions and weights of Table 1."""

import math

import pytest
import torch

from edm.config import NetworkConfig
from edm.design import losses
from edm.design.preconditioning import EDM
from edm.design.timesteps import iddpm_levels
from edm.models.denoiser import Denoiser
from edm.networks.unet import UNet

U = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)


def test_edm_draws_a_log_normal():
    levels = losses.EDM().sigma(U).log()
    assert levels.mean() == pytest.approx(-1.2, abs=1e-6)
    assert levels.std() == pytest.approx(1.2, rel=0.01)


def test_ve_draws_log_uniformly_from_002_to_100():
    levels = losses.VE().sigma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(levels, torch.tensor([0.02, math.sqrt(0.02 * 100), 100.0], dtype=torch.float64))


def test_vp_draws_its_time_uniformly():
    """σ² + 1 = exp(½β_d t² + β_min t) at the median t = (1 + ε_t)/2 (Table 1)."""
    t = (1 + 1e-5) / 2
    expected = math.sqrt(math.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1)
    assert float(losses.VP().sigma(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(expected)


def test_iddpm_draws_each_of_its_levels_once_in_m():
    drawn = losses.IDDPM().sigma(U)
    assert torch.equal(drawn, iddpm_levels()[:1000].flip(0))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_quantile_functions_grow(name):
    assert (losses.LOSSES[name]().sigma(U).diff() >= 0).all()


def test_edm_weight_makes_every_level_start_at_a_loss_of_one():
    """Appendix B.6: for data of deviation σ_data an untrained network (F = 0) has weighted loss 1 at every σ."""
    config = NetworkConfig.of("ddpmpp", resolution=8, channels=1, model_channels=8, channel_mult=(1,), num_blocks=1)
    network = UNet(config)
    torch.nn.init.zeros_(network.out_conv.weight)
    net = Denoiser(network, EDM())
    generator = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(2000, 1, 8, 8, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    for sigma in (0.01, 0.5, 20.0):
        with torch.no_grad():
            error = losses.weighted_error(net, losses.EDM(), images, torch.full((2000,), sigma), noise, None)
        assert float(error.mean()) == pytest.approx(1, rel=0.02)
