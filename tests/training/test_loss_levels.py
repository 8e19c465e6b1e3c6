"""Figure 5a: the loss as training weights it."""

import pytest
import torch

from edm.training.loss_levels import weighted


def test_an_untrained_network_starts_at_one_at_every_level():
    """With F = 0 the EDM preconditioning leaves D = c_skip x, whose error is (σ σ_data)²/(σ² + σ_data²)."""
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    error = (sigma * 0.5) ** 2 / (sigma**2 + 0.25)
    curve = weighted({"sigma": sigma.tolist(), "mean": error.tolist(), "std": (0.1 * error).tolist(), "samples": 7})
    assert curve == {"sigma": sigma.tolist(), "mean": pytest.approx([1.0] * 9), "std": pytest.approx([0.1] * 9)}
