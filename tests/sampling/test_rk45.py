"""The adaptive baseline compared with scipy's RK45 on closed-form denoisers, and its guarantees per image."""

import pytest
import torch
from scipy.integrate import solve_ivp

import edm
from edm.errors import UserError
from edm.sampling.rk45 import rk45


def per_image(sigma):
    return torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)


def one_peak(x, sigma, class_labels=None):
    """The ideal denoiser of data N(0.3, 0.5²)."""
    sigma = per_image(sigma)
    return (0.25 * x + sigma**2 * 0.3) / (0.25 + sigma**2)


def two_peaks(x, sigma, class_labels=None):
    """The ideal denoiser of an equal mixture of N(−1, 0.1²) and N(1, 0.1²): a flow that bends."""
    sigma = per_image(sigma)
    variance = 0.01 + sigma**2
    return (0.01 * x + sigma**2 * torch.tanh(x / variance)) / variance


def draws(batch, seed=0):
    return torch.randn(batch, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Spy:
    """Counts the calls of a denoiser and keeps the levels it was asked for."""

    def __init__(self, net, **attributes):
        self.net, self.sigmas = net, []
        self.__dict__.update(attributes)

    def __call__(self, x, sigma, class_labels=None):
        assert sigma.shape == (len(x),) and sigma.dtype == x.dtype == torch.float64
        self.sigmas.append(sigma.clone())
        return self.net(x, sigma, class_labels)


@pytest.mark.parametrize("net", [one_peak, two_peaks])
@pytest.mark.parametrize("rtol, atol", [(1e-3, 1e-3), (1e-6, 1e-5)])
def test_every_image_ends_where_scipy_takes_it_alone(net, rtol, atol):
    latents = draws(4)
    images, nfe = rk45(net, latents, rtol=rtol, atol=atol)
    assert images.dtype == torch.float64 and images.shape == latents.shape and nfe.dtype == torch.int64
    for image, latent, evaluations in zip(images, latents, nfe, strict=True):

        def derivative(sigma, flat, shape=latent.shape):
            x = torch.from_numpy(flat).reshape(1, *shape)
            return ((x - net(x, sigma)) / sigma).flatten().numpy()

        start = (latent * 80).flatten().numpy()
        found = solve_ivp(derivative, (80.0, 0.002), start, method="RK45", rtol=rtol, atol=atol)
        end = torch.from_numpy(found.y[:, -1]).reshape(1, *latent.shape)
        torch.testing.assert_close(image[None], net(end, 0.002), rtol=1e-8, atol=1e-8)
        assert evaluations == found.nfev  # the same steps; the Euler step is free


def test_an_image_is_the_same_alone_and_in_a_batch():
    scales = per_image(torch.tensor([0.1, 1.0, 3.0, 1.0, 0.5]))
    latents = draws(5) * scales
    images, nfe = rk45(two_peaks, latents, rtol=1e-4, atol=1e-4)
    assert len(set(nfe.tolist())) > 1  # otherwise this shows little
    for i in range(5):
        alone, evaluations = rk45(two_peaks, latents[i : i + 1], rtol=1e-4, atol=1e-4)
        assert evaluations == nfe[i]
        torch.testing.assert_close(alone[0], images[i], rtol=1e-12, atol=1e-12)


def test_the_network_always_sees_the_whole_batch():
    spy = Spy(two_peaks)
    _, nfe = rk45(spy, draws(4) * per_image(torch.tensor([0.1, 1.0, 3.0, 0.5])), rtol=1e-4, atol=1e-4)
    assert {len(sigma) for sigma in spy.sigmas} == {4}
    assert len(spy.sigmas) == nfe.max()


def test_class_labels_reach_the_network():
    net = lambda x, sigma, labels: 0 * x + per_image(labels)
    images, _ = rk45(net, draws(2), torch.tensor([-1, 1]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(images, per_image(torch.tensor([-1, 1])).expand_as(images), rtol=0, atol=1e-9)


def test_a_smaller_tolerance_buys_a_smaller_error_with_more_evaluations():
    """For one Gaussian the ODE has a solution: (x − μ)/√(σ² + s²) is constant."""
    latents = draws(3)
    shrink = ((0.002**2 + 0.25) / (80**2 + 0.25)) ** 0.5
    exact = one_peak(0.3 + (80 * latents - 0.3) * shrink, 0.002)
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        images, nfe = rk45(one_peak, latents, rtol=tolerance, atol=tolerance)
        errors.append(float((images - exact).abs().max()))
        evaluations.append(int(nfe.sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6, errors
    assert evaluations == sorted(evaluations) and len(set(evaluations)) == 4, evaluations


def test_heuns_steps_reach_the_same_images():
    latents = draws(3)
    images, _ = rk45(one_peak, latents, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(images, edm.sample(one_peak, latents, num_steps=1000), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_evaluations_are_counted_exactly(tolerance):
    spy = Spy(two_peaks)
    _, nfe = rk45(spy, draws(1), rtol=tolerance, atol=tolerance)
    assert nfe.tolist() == [len(spy.sigmas)]
    assert (len(spy.sigmas) - 2) % 6 == 0


def test_the_models_range_clamps_and_rounds_the_ends_but_not_the_stages():
    rounded = lambda sigma: (sigma * 4).round() / 4
    spy = Spy(one_peak, sigma_min=0.26, sigma_max=10.1, round_sigma=rounded)
    rk45(spy, draws(2), rtol=1e-3, atol=1e-3)
    sigmas = torch.cat(spy.sigmas)
    assert sigmas[0] == sigmas.max() == 10 and sigmas.min() == 0.25
    assert (rounded(sigmas) != sigmas).any()


def test_the_callers_range_is_used():
    spy = Spy(one_peak)
    rk45(spy, draws(2), rtol=1e-3, atol=1e-3, sigma_min=0.5, sigma_max=5.0)
    sigmas = torch.cat(spy.sigmas)
    assert sigmas.max() == 5 and sigmas.min() == 0.5


def test_a_single_level_is_one_evaluation_of_the_denoiser():
    latents = draws(2)
    images, nfe = rk45(one_peak, latents, rtol=1e-3, atol=1e-3, sigma_min=2.0, sigma_max=2.0)
    torch.testing.assert_close(images, one_peak(2 * latents, 2.0))
    assert nfe.tolist() == [1, 1]


def broken_below_one(x, sigma, class_labels=None):
    return torch.where(per_image(sigma) < 1, torch.nan, 0 * x)


def restless(x, sigma, class_labels=None):
    """Not a function of its arguments, so that no step is small enough."""
    restless.sign = -restless.sign
    return 0 * x + restless.sign


@pytest.mark.parametrize(
    "net, arguments, message",
    [
        (one_peak, {"rtol": -1}, "rtol is -1"),
        (one_peak, {"atol": 0}, "atol > 0"),
        (one_peak, {"sigma_min": 3, "sigma_max": 1}, "sigma_min"),
        (one_peak, {"max_evaluations": 20}, "image 0 .* not done after 20 network evaluations"),
        (broken_below_one, {}, "image 0 .* non-finite"),
        (lambda x, sigma, labels: x * torch.inf, {}, "image 0 .* at sigma 80: the network gave non-finite"),
        (restless, {"rtol": 0, "atol": 1e-18}, "no step is small enough for rtol 0 and atol 1e-18"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_one_line(net, arguments, message):
    restless.sign = 1.0
    with pytest.raises(UserError, match=message) as caught:
        rk45(net, draws(2), **{"rtol": 1e-3, "atol": 1e-3} | arguments)
    assert "\n" not in str(caught.value)
