"""Figure 5a: the loss as each model's training weights it."""

import math

import pytest
import torch

from edm import registry
from edm.design.losses import EDMLoss, VELoss
from edm.training.loss_levels import density, weighted


@pytest.mark.parametrize("sigma_data", [0.5, 1.25])
def test_an_untrained_network_starts_at_one_at_every_level(sigma_data):
    """With F = 0 the EDM preconditioning leaves D = c_skip x, whose error is (σ σ_data)²/(σ² + σ_data²)."""
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    error = (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2)
    measured = {"sigma": sigma.tolist(), "mean": error.tolist(), "std": (0.1 * error).tolist(), "samples": 7}
    curve = weighted(measured, EDMLoss(-1.2, 1.2, sigma_data))
    assert curve == {"sigma": sigma.tolist(), "mean": pytest.approx([1.0] * 9), "std": pytest.approx([0.1] * 9)}


@pytest.mark.parametrize("loss", ["vp", "ve", "iddpm"])
def test_the_other_losses_weight_by_the_inverse_square_of_the_level(loss):
    curve = weighted({"sigma": [0.1, 2.0], "mean": [0.03, 6.0], "std": [0.01, 1.0]}, registry.find("loss", loss)())
    assert curve["mean"] == pytest.approx([3.0, 1.5]) and curve["std"] == pytest.approx([1.0, 0.25])


def test_a_density_is_even_in_the_logarithm_from_the_lowest_to_the_highest_level():
    curve = density(VELoss(), 0.1, 10.0)
    steps = [math.log(b / a) for a, b in zip(curve["sigma"], curve["sigma"][1:], strict=False)]
    assert (curve["sigma"][0], curve["sigma"][-1]) == (pytest.approx(0.1), pytest.approx(10.0))
    assert max(steps) == pytest.approx(min(steps))
    assert curve["density"] == pytest.approx([1 / math.log(5000)] * len(curve["sigma"]))
