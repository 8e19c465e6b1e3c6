"""Figure 3: trajectories between noise and two Dirac peaks."""

import numpy as np
import pytest
import torch

import edm
from edm.analysis.trajectories import PARAMETRISATIONS, even_quantiles, positions, trajectories, two_peaks

Z = even_quantiles(12)


def test_the_denoiser_is_the_ideal_one_of_two_points():
    ideal = edm.IdealDenoiser(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for sigma in (0.3, 1.0, 4.0):
        torch.testing.assert_close(two_peaks(x, sigma), ideal(x, sigma))


def test_trajectories_end_on_the_peaks_and_begin_spread_like_the_noise():
    x = positions(Z, torch.tensor([0.0, 1e6]))
    torch.testing.assert_close(x[:, 0], Z.sign(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x[:, 1] / 1e6, Z, rtol=0, atol=1e-6)


def test_each_keeps_its_share_of_probability():
    """Transport in one dimension: the probability under p(x; σ) to the left of a trajectory is constant."""
    sigma = torch.logspace(-1.5, 1.5, 20, dtype=torch.float64)
    x = positions(Z, sigma)
    share = (torch.special.ndtr((x - 1) / sigma) + torch.special.ndtr((x + 1) / sigma)) / 2
    torch.testing.assert_close(share, torch.special.ndtr(Z)[:, None].expand_as(share), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(PARAMETRISATIONS))
def test_each_solves_the_ode_of_eq_4_in_its_own_time(name):
    """The slope of x(t), by central differences, against (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ)."""
    schedule, scaling = PARAMETRISATIONS[name]
    t = schedule.inverse(torch.linspace(0.2, 25, 40, dtype=torch.float64))
    h = 1e-5 * t

    def x_of(t):
        return scaling(schedule, t)[0] * positions(Z, schedule.sigma(t))

    (s, s_dot), sigma, sigma_dot = scaling(schedule, t), schedule.sigma(t), schedule.sigma_dot(t)
    x = x_of(t)
    expected = (sigma_dot / sigma + s_dot / s) * x - (sigma_dot * s / sigma) * two_peaks(x / s, sigma)
    measured = (x_of(t + h) - x_of(t - h)) / (2 * h)
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-7)


def test_ve_and_edm_draw_one_curve_over_sigma_and_vp_shrinks_it():
    panels = trajectories(Z, sigma_max=25.0, points=50)
    for name, panel in panels.items():
        assert panel["x"].shape == (12, 50) and panel["t"][0] == 0
        assert panel["sigma"][-1] == pytest.approx(25)
        unscaled = panel["x"] * (1 + panel["sigma"] ** 2).sqrt() if name == "VP" else panel["x"]
        torch.testing.assert_close(unscaled, positions(Z, panel["sigma"]))
    ve, edm_ = ({key: panels[name][key].numpy() for key in ("sigma", "x")} for name in ("VE", "EDM"))
    for of_ve, of_edm in zip(ve["x"], edm_["x"], strict=True):
        np.testing.assert_allclose(np.interp(ve["sigma"], edm_["sigma"], of_edm), of_ve, atol=0.05)
    assert panels["VP"]["x"].abs().max() < 3 < panels["EDM"]["x"].abs().max()
    assert [float(panels[name]["t"][-1]) for name in ("VE", "EDM")] == [pytest.approx(625), pytest.approx(25)]


def test_the_sampler_ends_where_the_trajectories_do():
    latents = Z.reshape(-1, 1, 1, 1)
    images = edm.sample(two_peaks, latents, num_steps=60, sigma_max=80.0)
    torch.testing.assert_close(images.flatten(), positions(Z, torch.zeros(1))[:, 0], rtol=0, atol=1e-3)


def test_no_noise_level_no_figure():
    with pytest.raises(edm.UserError, match="expected sigma > 0"):
        trajectories(Z, sigma_max=0.0)
