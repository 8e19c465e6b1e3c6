"""Figure 14: churn at a fixed noise level preserves images with an exact denoiser, degrades them otherwise."""

import math

import pytest
import torch

import edm
from edm.analysis.degradation import degrade
from edm.analysis.studies import degradation
from edm.data.pixels import to_float
from edm.design import draws as noise
from edm.models import building

SHAPE = (1, 8, 8)
COUNTS = (0, 50, 200)


def of_gaussian(gaussian, n=40):
    return gaussian.mu + gaussian.s * noise.latents(torch.arange(1000, 1000 + n), SHAPE)


def test_an_exact_denoiser_keeps_variance_and_mean(gaussian):
    shown = degrade(gaussian, of_gaussian(gaussian, 160), (0.02, 0.1), counts=COUNTS)
    assert shown.shape == (2, 3, 160, *SHAPE)
    for level, sigma in enumerate((0.02, 0.1)):
        # D reduces the variance of p(x; σ), s² + σ², to s⁴/(s² + σ²).
        expected = gaussian.s**2 / math.sqrt(gaussian.s**2 + sigma**2)
        for count in range(3):
            assert shown[level, count].std().item() == pytest.approx(expected, rel=0.03)
            assert shown[level, count].mean().item() == pytest.approx(gaussian.mu, abs=0.03)


def test_the_ideal_denoiser_of_a_dataset_shows_none(digits):
    """The analytic denoiser: after 200 repetitions every image is still a training image."""
    images = to_float(torch.from_numpy(digits.images[:100])).double()
    shown = degrade(edm.IdealDenoiser(images), images[:4], (0.1, 0.3), counts=COUNTS)
    distances = torch.cdist(shown.flatten(0, 2).flatten(1), images.flatten(1)).min(dim=1).values
    assert distances.max() < 0.05


def test_removing_slightly_too_much_noise_wears_the_image_and_inflated_noise_mends_it(gaussian):
    """Section 4: networks remove slightly too much noise; S_noise slightly above 1 counters the loss of detail."""

    def eager(x, sigma, class_labels=None):
        return x + 1.05 * (gaussian(x, sigma) - x)

    images = of_gaussian(gaussian)
    exact = degrade(gaussian, images, (0.1,), counts=COUNTS)[0]
    worn = degrade(eager, images, (0.1,), counts=COUNTS)[0]
    mended = degrade(eager, images, (0.1,), counts=COUNTS, S_noise=1.025)[0]
    assert worn[0].std() > worn[1].std()
    loss = [float(exact[-1].std() - shown[-1].std()) for shown in (worn, mended)]
    assert loss[0] > 0.01
    assert abs(loss[1]) < 0.6 * loss[0]


def test_no_repetition_shows_the_noisy_image_through_the_denoiser(gaussian):
    images = of_gaussian(gaussian, 3)
    shown = degrade(gaussian, images, (0.5, 1.0), counts=(0,), first_seed=7)
    for level, sigma in enumerate((0.5, 1.0)):
        draws = noise.latents(torch.arange(7, 10) + level * 2**40, SHAPE)
        torch.testing.assert_close(shown[level, 0], gaussian(images + sigma * draws, sigma))


def test_one_repetition_is_one_step_of_algorithm_2_back_to_its_own_level(gaussian):
    images, sigma = of_gaussian(gaussian, 3), 0.5
    seeds = torch.arange(3)
    shown = degrade(gaussian, images, (sigma,), counts=(1,), S_noise=1.007)[0, 0]
    hat = math.sqrt(2) * sigma
    x = images + sigma * noise.latents(seeds, SHAPE)
    x = x + math.sqrt(hat**2 - sigma**2) * 1.007 * noise.churn(seeds, 0, SHAPE)
    d = (x - gaussian(x, hat)) / hat
    trial = x + (sigma - hat) * d
    x = x + (sigma - hat) * (d + (trial - gaussian(trial, sigma)) / sigma) / 2
    torch.testing.assert_close(shown, gaussian(x, sigma))


def test_an_image_depends_on_its_own_seed_and_class(digits):
    images, labels = to_float(torch.from_numpy(digits.images[:50])).double(), torch.from_numpy(digits.labels[:50])
    ideal = edm.IdealDenoiser(images, labels)
    both = degrade(ideal, images[:2], (0.5, 3.0), counts=(0, 5), class_labels=labels[:2])
    second = degrade(ideal, images[1:2], (0.5, 3.0), counts=(5,), class_labels=labels[1:2], first_seed=1)
    torch.testing.assert_close(both[:, 1, 1], second[:, 0, 0])
    one_hot = torch.nn.functional.one_hot(labels[:2], 10)
    torch.testing.assert_close(degrade(ideal, images[:2], (0.5, 3.0), counts=(0, 5), class_labels=one_hot), both)


def test_levels_are_rounded_to_those_the_model_knows(gaussian):
    seen = set()

    class Rounding:
        sigma_min, sigma_max = 0.01, 10.0

        def round_sigma(self, sigma):
            return (sigma * 10).round() / 10

        def __call__(self, x, sigma, class_labels=None):
            seen.update(sigma.tolist())
            return gaussian(x, sigma)

    net = Rounding()
    degrade(net, of_gaussian(gaussian, 1), (0.52,), counts=(0, 1))
    assert seen == {0.5, 0.7}
    with pytest.raises(edm.UserError, match="sigma 9 and"):
        degrade(net, of_gaussian(gaussian, 1), (9.0,))


@pytest.mark.parametrize("counts", [(), (5, 2), (1, 1), (-1,)])
def test_counts_must_increase(gaussian, counts):
    with pytest.raises(edm.UserError, match="increasing"):
        degrade(gaussian, of_gaussian(gaussian, 1), (1.0,), counts=counts)


@pytest.mark.parametrize("design, smallest", [("vp", math.sqrt(math.expm1(0.5 * 19.9e-10 + 0.1e-5))), ("ve", 0.02)])
def test_smallest_is_the_least_level_that_the_model_supports(tiny, design, smallest):
    """VP: σ(ε_t) ≈ 0.001; VE: 0.02. The figure's labels show the value."""
    denoiser = building.build(tiny(preconditioning=design, loss=design)).eval()
    shown, numbers = degradation(denoiser, sigmas=[1, "smallest"], repetitions=[0, 1], images=2, num_steps=2)
    assert numbers["sigmas"] == [1, pytest.approx(smallest)] and shown["1"].shape == (2, 2, 2, 1, 8, 8)
