"""The bound on the likelihood from the loss per noise level: closed forms, and what it bounds."""

import math

import numpy as np
import pytest
import torch

import edm
from edm.tracking import Journal, read_journal
from edm.training.bound import APART, bound, density, prior, reconstruction
from edm.training.curves import read_curves
from edm.training.loop import train
from edm.training.loss_levels import LEVELS

GRID = np.arange(256) / 127.5 - 1


def levels(error, low=0.002, high=80.0, number=64, std=0.0, samples=100):
    sigma = np.geomspace(low, high, number)
    mean = np.array([error(s) for s in sigma])
    return {"sigma": sigma.tolist(), "mean": mean.tolist(), "std": (std * mean).tolist(), "samples": samples}


def test_the_diffusion_term_of_a_gaussian_has_a_closed_form():
    """N(0, 0.5²) from 0.002 to 80: ½ ln((1 + c²/σ_min²)/(1 + c²/σ_max²)) = 5.52144938693 nats."""
    error = lambda s: s**2 * 0.25 / (s**2 + 0.25)
    assert bound(levels(error)).diffusion * math.log(2) == pytest.approx(5.52144938693, abs=1e-6)
    # The levels of levels.json, five per decade, are enough: between them the curve is a cubic.
    sigma = LEVELS.numpy()
    few = bound({"sigma": sigma, "mean": error(sigma), "std": 0 * sigma, "samples": 1})
    exact = 0.5 * math.log((1 + 0.25 / sigma[0] ** 2) / (1 + 0.25 / sigma[-1] ** 2))
    assert few.diffusion * math.log(2) == pytest.approx(exact, abs=1e-5)
    assert (few.sigma_min, few.sigma_max) == pytest.approx((10**-2.6, 100))


def test_the_prior_is_the_divergence_of_two_gaussians():
    x = np.linspace(-500, 500, 200_001)
    normal = lambda mean, variance: np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    p, q = normal(0.3, 80.0**2), normal(0.0, 80.0**2 + 0.25)
    divergence = np.sum(p * np.log2(p / q)) * (x[1] - x[0])
    assert prior(80.0, 0.5, 0.3**2) == pytest.approx(divergence, rel=1e-4)
    assert 0 < prior(80.0) < 2e-4


def test_the_reconstruction_is_that_of_a_simulation():
    random, middle = np.random.default_rng(0), 128
    for sigma in (0.002, 0.02):
        z = GRID[middle] + sigma * random.standard_normal(20_000)
        exponents = -((z[:, None] - GRID) ** 2) / (2 * sigma**2)
        logarithms = exponents[:, middle] - np.log(np.exp(exponents).sum(axis=1))
        error = logarithms.std() / math.log(2) / math.sqrt(len(z))
        assert abs(reconstruction(sigma) + logarithms.mean() / math.log(2)) < 4 * error
    assert reconstruction(1e-4) < 1e-12
    assert reconstruction(0.05) == pytest.approx(math.log2(math.sqrt(2 * math.pi * math.e) * 0.05 / APART), abs=1e-6)


def ideal_error(values, shares, worse=1.0):
    """e(σ) of the ideal denoiser of pixels with these values, or of one that moves them towards 0."""
    n = np.linspace(-7, 7, 141)
    of_n = np.exp(-0.5 * n**2) / np.exp(-0.5 * n**2).sum()

    def error(sigma):
        x = values[:, None] + sigma * n
        exponents = -((x[..., None] - values) ** 2) / (2 * sigma**2)
        weights = shares * np.exp(exponents - exponents.max(axis=2, keepdims=True))
        denoised = worse * (weights @ values) / weights.sum(axis=2)
        return float(shares @ ((denoised - values[:, None]) ** 2 @ of_n))

    return error


def test_the_bound_of_the_ideal_denoiser_is_near_the_entropy_of_the_pixels_and_never_below_it():
    """16 neighbouring values have 4 bits; the decoder knows neither that there are no others nor where they end."""
    near = bound(levels(ideal_error(GRID[120:136], np.full(16, 1 / 16)), number=40)).bits
    assert 4 < near < 4.05
    four, shares = GRID[[0, 100, 110, 255]], np.array([0.1, 0.2, 0.3, 0.4])
    entropy = -float(shares @ np.log2(shares))
    found = bound(levels(ideal_error(four, shares), number=40)).bits
    worse = bound(levels(ideal_error(four, shares, worse=0.98), number=40)).bits
    assert entropy < found < worse


def test_the_bound_is_never_below_the_likelihood_of_the_ode():
    """Data N(0, 0.5²): diffusion + prior + ½ ln 2πe σ_min² bounds E[−ln p(x; σ_min)], in nats.

    A model that is the ideal denoiser of any distribution, here N(0, c²), reaches the bound. One whose c depends on σ
    is that of none, and does not.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x = torch.from_numpy(nodes * math.sqrt(0.25 + 0.002**2)).reshape(-1, 1, 1, 1)

    def gap(c):
        share = lambda s: c(s) ** 2 / (c(s) ** 2 + s**2)
        error = lambda s: share(s) ** 2 * s**2 + (1 - share(s)) ** 2 * 0.25
        found, last = bound(levels(error, number=200)), c(80.0)
        most = (found.diffusion + prior(80.0, last, 0.25)) * math.log(2) + 0.5 * math.log(
            2 * math.pi * math.e * 0.002**2
        )
        denoiser = lambda x, sigma, labels=None: x * share(float(sigma))
        nats = edm.log_likelihood(denoiser, x, num_steps=200, trace="exact", data_std=last).numpy()
        return most + float(weights @ nats / weights.sum())

    assert all(abs(gap(lambda s, c=c: c)) < 1e-9 for c in (0.3, 0.5, 0.8))
    for wave in (0.2, -0.2, 0.4):
        assert gap(lambda s, wave=wave: 0.5 * (1 + wave * math.sin(math.log(s)))) > 1e-3


def test_a_training_run_records_the_bound_of_its_own_errors(tiny, digits, tmp_path):
    """A scalar per training run for MLflow, after its last image."""
    run = Journal(tmp_path / "journal.jsonl").run("tiny")
    config = tiny(duration=64e-6, level_samples=3)
    train(config, digits, tmp_path / "run", run=run)
    (record,) = read_journal(tmp_path / "journal.jsonl")
    found = bound(read_curves(tmp_path / "run" / "levels.json")["after"], config.sigma_data)
    for name, value in (("bits_per_dimension_bound", found.bits), ("bits_per_dimension_bound_s", found.s)):
        ((images, point),) = record.metrics[name].items()
        assert images == 64 and point.value == pytest.approx(value) and value > 0


def test_the_standard_error_is_that_of_errors_that_agree_at_all_levels():
    error = lambda s: s**2 * 0.25 / (s**2 + 0.25)
    found = bound(levels(error, std=2.0, samples=400))
    assert found.s == pytest.approx(found.diffusion * 2 / 20)
    assert bound({**levels(error), "samples": None}).s is None
    curve = density(levels(error, std=2.0, samples=400))
    area = np.trapezoid(curve["mean"], np.log(curve["sigma"]))
    assert area == pytest.approx(found.diffusion) and curve["s"][3] == pytest.approx(curve["mean"][3] / 10)
