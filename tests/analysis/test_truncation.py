"""Figure 13a, b: local truncation error, where the exact solution is known."""

import json
import math

import pytest
import torch

import edm
from edm.analysis.truncation import true_step, truncation_errors
from edm.design import draws as noise
from edm.design.timesteps import edm_levels

SHAPE = (1, 2, 2)


def levels(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_truth_is_the_exact_solution(gaussian):
    x = 3 * noise.latents(torch.arange(5), SHAPE)
    one, following = levels(3.0, 2.0)
    exact = gaussian.flow(x, 3.0, 2.0)
    errors = [(true_step(gaussian, x, one, following, None, m) - exact).abs().max() for m in (200, 400)]
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)  # first order globally


@pytest.mark.slow
def test_euler_errs_by_the_square_and_heun_by_the_cube_of_the_step(gaussian):
    """Step i of N − 1 steps and step 2i of 2(N − 1) start at one noise level; the second is half as wide."""
    coarse, fine = (
        truncation_errors(gaussian, SHAPE, num_steps=n, rhos=(7.0,), substeps=1000, samples=4, sigma_min=0.1,
                          sigma_max=10.0)["curves"][0]
        for n in (25, 49)
    )  # fmt: skip
    assert fine["sigma"][::2] == pytest.approx(coarse["sigma"])
    for method, order in (("euler", 2), ("heun", 3)):
        ratios = [math.log2(a / b) for a, b in zip(coarse[method]["mean"], fine[method]["mean"][::2], strict=True)]
        assert sorted(ratios)[len(ratios) // 2] == pytest.approx(order, abs=0.15), (method, ratios)


def test_mean_and_spread_are_those_of_each_images_root_mean_square(gaussian):
    record = truncation_errors(gaussian, SHAPE, num_steps=8, rhos=(3.0,), substeps=2000, samples=6, sigma_max=5.0)
    t = edm_levels(8, 0.002, 5.0, 3.0)
    x = 5 * noise.latents(torch.arange(6), SHAPE)
    euler = x + (t[1] - t[0]) * (x - gaussian(x, t[0])) / t[0]
    rmse = ((euler - gaussian.flow(x, float(t[0]), float(t[1]))) ** 2).mean(dim=(1, 2, 3)).sqrt()
    (curve,) = record["curves"]
    assert curve["euler"]["mean"][0] == pytest.approx(float(rmse.mean()), rel=1e-2)
    assert curve["euler"]["std"][0] == pytest.approx(float(rmse.std()), rel=1e-2)


@pytest.mark.slow
def test_steps_start_on_the_true_trajectory_not_on_that_of_the_steps_before(gaussian):
    """If the true solution is exact, the error of a step depends only on its start: it equals that of a single step."""
    record = truncation_errors(gaussian, SHAPE, num_steps=6, rhos=(1.0,), substeps=4000, samples=3, sigma_max=10.0)
    t = edm_levels(6, 0.002, 10.0, 1.0)
    start = gaussian.flow(10 * noise.latents(torch.arange(3), SHAPE), 10.0, float(t[3]))
    step = start + (t[4] - t[3]) * (start - gaussian(start, t[3])) / t[3]
    rmse = ((step - gaussian.flow(start, float(t[3]), float(t[4]))) ** 2).mean(dim=(1, 2, 3)).sqrt().mean()
    assert record["curves"][0]["euler"]["mean"][3] == pytest.approx(float(rmse), rel=2e-2)


def test_uniform_steps_err_most_at_low_noise_and_a_large_rho_evens_it_out(gaussian):
    """Appendix D.1: ρ = 1 spends its steps where nothing happens."""
    options = {"num_steps": 16, "substeps": 50, "samples": 4, "sigma_min": 0.02}
    uniform, ours = truncation_errors(gaussian, SHAPE, rhos=(1.0, 7.0), **options)["curves"]
    assert len(set(round(a - b, 9) for a, b in zip(uniform["sigma"], uniform["sigma"][1:], strict=False))) == 1
    worst = [max(curve["heun"]["mean"]) for curve in (uniform, ours)]
    assert worst[0] > 5 * worst[1]
    assert uniform["heun"]["mean"].index(worst[0]) == 14


def test_blocks_do_not_change_the_numbers_and_the_record_is_json(gaussian):
    options = {"num_steps": 4, "rhos": (7.0,), "substeps": 10, "samples": 5}
    whole = truncation_errors(gaussian, SHAPE, block=5, **options)
    parts = truncation_errors(gaussian, SHAPE, block=2, **options)
    for method in ("euler", "heun"):
        assert whole["curves"][0][method]["mean"] == pytest.approx(parts["curves"][0][method]["mean"], rel=1e-12)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert (whole["sigma_min"], whole["sigma_max"]) == (0.002, 80.0)


def test_levels_stay_inside_what_the_model_supports_and_classes_are_drawn(gaussian):
    seen, given = [], []

    class Narrow:
        sigma_min, sigma_max = 0.02, 50.0

        def __call__(self, x, sigma, class_labels=None):
            seen.append(float(sigma))
            given.append(class_labels)
            return gaussian(x, sigma)

    truncation_errors(Narrow(), SHAPE, num_steps=4, rhos=(7.0,), substeps=3, samples=4, classes=10)
    assert min(seen) >= 0.02 * (1 - 1e-9) and max(seen) <= 50 * (1 + 1e-9)
    assert all((labels == noise.class_labels(torch.arange(4), 10)).all() for labels in given)


@pytest.mark.parametrize("option", ["num_steps", "substeps", "samples", "block"])
def test_numbers_too_small_are_named(gaussian, option):
    with pytest.raises(edm.UserError, match=f"{option} is 0"):
        truncation_errors(gaussian, SHAPE, **{option: 0})
