"""Noise distributions and weights of Table 1."""

import math

import pytest
import torch

from edm import registry
from edm.config import NetworkConfig
from edm.design import losses
from edm.design.preconditioning import EDMPreconditioning
from edm.design.timesteps import iddpm_levels
from edm.models.denoiser import Denoiser
from edm.networks.unet import UNet

U = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)


def test_edm_draws_a_log_normal():
    levels = losses.EDMLoss().sigma(U).log()
    assert levels.mean() == pytest.approx(-1.2, abs=1e-6)
    assert levels.std() == pytest.approx(1.2, rel=0.01)


def test_ve_draws_log_uniformly_from_002_to_100():
    levels = losses.VELoss().sigma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(levels, torch.tensor([0.02, math.sqrt(0.02 * 100), 100.0], dtype=torch.float64))


def test_vp_draws_its_time_uniformly():
    """σ² + 1 = exp(½β_d t² + β_min t) at the median t = (1 + ε_t)/2 (Table 1)."""
    t = (1 + 1e-5) / 2
    expected = math.sqrt(math.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1)
    assert float(losses.VPLoss().sigma(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(expected)


def test_iddpm_draws_each_of_its_levels_once_in_m():
    drawn = losses.IDDPMLoss().sigma(U)
    assert torch.equal(drawn, iddpm_levels()[:1000].flip(0))


@pytest.mark.parametrize("name", registry.Names("loss"))
def test_quantile_functions_grow(name):
    assert (registry.find("loss", name)().sigma(U).diff() >= 0).all()


def test_edm_weight_makes_every_level_start_at_a_loss_of_one():
    """Appendix B.6: for data of deviation σ_data an untrained network (F = 0) has weighted loss 1 at every σ."""
    config = NetworkConfig.of("ddpmpp", resolution=8, channels=1, model_channels=8, channel_mult=(1,), num_blocks=1)
    network = UNet(config)
    torch.nn.init.zeros_(network.out_conv.weight)
    net = Denoiser(network, EDMPreconditioning())
    generator = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(2000, 1, 8, 8, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    for sigma in (0.01, 0.5, 20.0):
        with torch.no_grad():
            error = losses.weighted_error(net, losses.EDMLoss(), images, torch.full((2000,), sigma), noise, None)
        assert float(error.mean()) == pytest.approx(1, rel=0.02)


# The density of ln σ, in closed form from Table 1 ---------------------------------------------------------------------


@pytest.mark.parametrize("loss", [losses.VPLoss(), losses.VELoss(), losses.IDDPMLoss(), losses.EDMLoss(-0.4, 0.7, 1.0)])
def test_the_density_is_that_of_the_levels_which_the_quantiles_give(loss):
    sigma = torch.logspace(-5, 5, 40_001, dtype=torch.float64)
    density = loss.density(sigma)
    assert (density >= 0).all() and torch.trapezoid(density, sigma.log()) == pytest.approx(1, abs=2e-3)
    middles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for low, high in ((0.01, 0.1), (0.1, 1.0), (1.0, 10.0), (10.0, 100.0)):
        inside = (sigma >= low) & (sigma <= high)
        drawn = loss.sigma(middles)
        share = ((drawn > low) & (drawn <= high)).double().mean()
        assert torch.trapezoid(density[inside], sigma[inside].log()) == pytest.approx(float(share), abs=3e-3)


def test_the_densities_are_the_closed_forms_of_table_1():
    sigma = torch.tensor([1e-4, 0.03, 1.0, 40.0, 2e4], dtype=torch.float64)
    # VP: t = (r − β_min)/β_d with r = √(β_min² + 2 β_d ln(1 + σ²)) is uniform; dt/d ln σ = 2σ²/((1 + σ²) r).
    vp = [2 * s**2 / ((1 + s**2) * math.sqrt(0.01 + 39.8 * math.log1p(s**2))) / (1 - 1e-5) for s in (0.03, 1.0, 40.0)]
    assert losses.VPLoss().density(sigma).tolist() == pytest.approx([0, *vp, 0])
    assert losses.VELoss().density(sigma).tolist() == pytest.approx([0, *[1 / math.log(5000)] * 3, 0])
    edm = [math.exp(-(((math.log(s) + 0.4) / 0.7) ** 2) / 2) / (0.7 * math.sqrt(2 * math.pi)) for s in sigma.tolist()]
    assert losses.EDMLoss(-0.4, 0.7).density(sigma).tolist() == pytest.approx(edm)
    # iDDPM: 1/M over the width of a level's cell, which for 642 (u_1) lies between √(642 · 20291) and √(642 · 321).
    u = iddpm_levels(1000)[:4].tolist()
    cell = math.log(math.sqrt(u[0] * u[1]) / math.sqrt(u[1] * u[2]))
    at = torch.tensor([u[1], 0.9 * u[1], 1e-4], dtype=torch.float64)
    assert losses.IDDPMLoss().density(at).tolist() == pytest.approx([1e-3 / cell, 1e-3 / cell, 0])
