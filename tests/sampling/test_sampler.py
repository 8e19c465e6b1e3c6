"""Algorithms 1, 2 and 3 compared with the authors' numbers on a closed-form denoiser, and with theory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edm
from edm.design.timesteps import DEFAULT_RANGE
from edm.errors import UserError

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
ANALYTIC = json.loads((GOLDEN / "analytic.json").read_text())
CHOICES = set(edm.SamplerConfig().to_dict())


#: Deterministic runs into which the authors' code let one draw of noise: σ goes through σ⁻¹ and back even where γ = 0,
#: and where rounding made σ̂² − σ² a few units in the last place instead of 0, its root times the draw was added.
ROUNDED_UP = {"out/75", "out/76", "out/77", "out/78"}


def rounding_noise(difference, draw):
    """The part of ``difference`` along ``draw``, checked to be no larger than rounding can make it."""
    size = float((difference * draw).sum() / (draw * draw).sum())
    assert 0 < size < 2e-8, size
    return size * draw


def gaussian_denoiser(mu, std):
    """The ideal denoiser of data N(mu, std²)."""
    return lambda x, sigma, class_labels=None: (std**2 * x + sigma**2 * mu) / (std**2 + sigma**2)


def choices_of(run):
    return {name: run[name] for name in CHOICES & run.keys()}


@pytest.fixture(scope="module")
def analytic():
    return load_file(GOLDEN / "analytic.safetensors")


@pytest.mark.parametrize("run", ANALYTIC["runs"], ids=lambda run: run["key"])
def test_every_combination_agrees_with_the_authors_on_an_analytic_denoiser(run, analytic):
    net = gaussian_denoiser(analytic["mu"], ANALYTIC["data_std"])
    noises = analytic[run["noises"]]
    images = edm.sample(net, analytic["latents"], noise=lambda i, x: noises[i], **choices_of(run))
    expected = analytic[run["key"]]
    if run["key"] in ROUNDED_UP:
        expected = expected - rounding_noise(expected - images, noises[1])
    torch.testing.assert_close(images, expected, rtol=1e-9, atol=1e-9)


def two_peaks(std):
    """The ideal denoiser of an equal mixture of N(−1, std²) and N(1, std²): a flow that bends."""

    def denoise(x, sigma, class_labels=None):
        variance = std**2 + sigma**2
        weight = torch.tanh(x / variance)  # E[mu | x]
        return (std**2 * x + sigma**2 * weight) / variance

    return denoise


@pytest.mark.parametrize("solver, alpha, order", [("euler", 1, 1)] + [("heun", a, 2) for a in (0.5, 2 / 3, 1)])
@pytest.mark.first(2)
def test_order_of_convergence(solver, alpha, order):
    """The error falls as N^-1 for Euler and as N^-2 for every α of Algorithm 3.

    σ_min is so small that the last step, which is Euler for all of them, does not show.
    """
    latents = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(4, 1, 2, 2)

    def end_point(n, solver, alpha):
        return edm.sample(two_peaks(0.5), latents, num_steps=n, solver=solver, alpha=alpha, sigma_min=1e-6)

    exact = end_point(6000, "heun", 1)
    counts = (100, 200, 400)
    errors = torch.stack([(end_point(n, solver, alpha) - exact).abs().max() for n in counts])
    slopes = -torch.diff(errors.log2())
    assert (slopes - order).abs().max() < 0.15, slopes


@pytest.mark.parametrize("schedule, scaling", [("vp", "vp"), ("ve", "none"), ("linear", "none")])
def test_schedule_and_scaling_change_the_path_but_not_its_end(schedule, scaling):
    """Every schedule and scaling describes one flow (Section 3): with many steps all reach the same image."""
    latents = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(4, 1, 2, 2)
    net = gaussian_denoiser(torch.tensor(0.3, dtype=torch.float64), 0.5)
    ours = edm.sample(net, latents, num_steps=400)
    other = edm.sample(net, latents, num_steps=400, schedule=schedule, scaling=scaling)
    torch.testing.assert_close(other, ours, rtol=0, atol=2e-3)


def test_network_evaluations_are_counted_as_in_the_paper():
    calls = []

    def net(x, sigma, class_labels=None):
        calls.append(float(sigma))
        return x * 0

    for solver, nfe in (("heun", 35), ("euler", 18)):
        calls.clear()
        config = edm.SamplerConfig(num_steps=18, solver=solver)
        edm.sample(net, torch.zeros(1, 1, 8, 8), num_steps=18, solver=solver)
        assert len(calls) == config.nfe == nfe


def test_churn_keeps_the_distribution_of_the_ideal_denoiser():
    """Adding noise and removing it again leaves Gaussian data Gaussian: mean and deviation stay (Appendix E.1)."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(20_000, 1, 1, 1, dtype=torch.float64, generator=generator)
    net = gaussian_denoiser(torch.tensor(0.3, dtype=torch.float64), 0.5)
    noise = lambda i, x: torch.randn(x.shape, dtype=torch.float64, generator=generator)
    images = edm.sample(net, latents, num_steps=64, S_churn=40, S_min=0.01, S_max=50, noise=noise)
    assert abs(float(images.mean()) - 0.3) < 0.02
    assert abs(float(images.std()) - 0.5) < 0.02


def test_the_models_range_clamps_the_samplers():
    seen = []

    class Limited:
        sigma_min, sigma_max = 0.1, 10.0

        def __call__(self, x, sigma, class_labels=None):
            seen.append(float(sigma))
            return x * 0

    edm.sample(Limited(), torch.zeros(1, 1, 8, 8), num_steps=5)
    assert max(seen) == pytest.approx(10) and min(seen) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"S_min": 2, "S_max": 1}, "S_min 2 is larger than S_max 1"),
        ({"solver": "hein"}, "'hein' is unknown"),
        ({"solver": "vp-ode", "rho": 5}, "solver vp-ode has no rho; it takes num_steps"),
        ({"discretization": "edn"}, "choose one of vp, ve, iddpm, edm"),
        ({"alpha": 0}, "alpha is 0"),
        ({"rho": -1}, "rho is -1"),
        ({"sigma_min": 3, "sigma_max": 1}, "sigma_min"),
    ],
)
def test_choices_that_do_not_fit_are_refused_in_one_line(choices, message):
    with pytest.raises(UserError, match=message) as caught:
        edm.sample(lambda x, sigma, labels: x, torch.zeros(1, 1, 8, 8), **choices)
    assert "\n" not in str(caught.value)


def test_a_choice_that_the_solver_does_not_know_is_refused():
    """Otherwise the results file would record a setting without effect."""
    with pytest.raises(UserError, match="solver heun has no tolerance"):
        edm.SamplerConfig(tolerance=0.1)
    with pytest.raises(UserError, match="solver rk45 has no num_steps"):
        edm.SamplerConfig(solver="rk45", num_steps=5)


def test_defaults_are_the_papers_to_rounding():
    """σ(ε_s) and σ(1) of the VP schedule, as the authors' runs name them (golden: 0.0104859…, 152.1669…)."""
    run = next(run for run in ANALYTIC["runs"] if run["discretization"] == "vp")
    assert DEFAULT_RANGE["vp"] == pytest.approx((run["sigma_min"], run["sigma_max"]), rel=1e-12)


def test_images_can_be_changed_in_place_and_a_denoiser_may_use_gradients():
    """Guidance differentiates inside the denoiser; what comes out is an ordinary tensor."""

    def guided(x, sigma, class_labels=None):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((y**2).sum(), y)
        return 0.1 * gradient

    images = edm.sample(guided, torch.ones(1, 1, 8, 8), num_steps=3)
    assert images.clamp_(-1, 1).max() <= 1
