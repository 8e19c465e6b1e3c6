"""The original samplers compared with their authors' code on a closed-form denoiser, and their peculiarities."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edm.config import ORIGINAL
from edm.errors import UserError
from edm.sampling.originals import ORIGINAL_SAMPLERS, ddim, iddpm, ve_pc, vp_sde

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
ABOUT = json.loads((GOLDEN / "original-samplers.json").read_text())
STOCHASTIC = {"vp-sde", "ve-pc", "iddpm"}


def sampler_of(case):
    """The name in this project of a case of the fixture."""
    if case["family"] == "guided-diffusion":
        return "iddpm" if case["eta"] is None else "ddim"
    deterministic = case["probability_flow"]
    if case["family"] == "score_sde VP":
        return "vp-ode" if deterministic else "vp-sde"
    return "ve-ode" if deterministic else "ve-pc"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "original-samplers.safetensors")


class Analytic:
    """The ideal denoiser of data N(mu, std²), with v = cos(5 mu). Remembers what it was called with."""

    def __init__(self, mu, std=ABOUT["data_std"]):
        self.mu, self.std, self.inputs, self.sigmas = mu, std, [], []

    def __call__(self, x, sigma, class_labels=None):
        self.inputs.append(x)
        self.sigmas.append(float(sigma))
        return (self.std**2 * x + sigma**2 * self.mu) / (self.std**2 + sigma**2)

    def variance(self, x, sigma, class_labels=None):
        assert x is self.inputs[-1] and float(sigma) == self.sigmas[-1]
        return torch.cos(5 * self.mu).expand_as(x)


def options(name):
    return {"clip_denoised": False} if name in ("ddim", "iddpm") else {}


@pytest.mark.parametrize("case", ABOUT["cases"], ids=lambda case: case["name"])
def test_agreement_with_the_authors(case, golden):
    name, draws = sampler_of(case), golden[f"{case['name']}/noise"]
    sampler = ORIGINAL_SAMPLERS[name]
    noise = lambda k, x: draws[1 + k]
    images = sampler(Analytic(golden["mu"]), draws[0], num_steps=case["N"], noise=noise, **options(name))
    expected = golden[f"{case['name']}/out"]
    assert images.dtype == torch.float64
    assert float((images - expected).abs().max() / expected.abs().max()) < 1e-4  # float32 rounding is about 4e-6


@pytest.mark.parametrize("name", ORIGINAL_SAMPLERS)
def test_evaluations_per_step_and_the_float32_state(name):
    sampler, per_step = ORIGINAL_SAMPLERS[name], ORIGINAL[name]
    net = Analytic(torch.tensor(0.2))
    used = []

    def noise(k, x):
        assert x.dtype == torch.float32
        used.append(k)
        return torch.ones_like(x)

    images = sampler(net, torch.ones(2, 1, 4, 4, dtype=torch.float64), num_steps=20, noise=noise)
    assert len(net.inputs) == 20 * per_step
    assert {x.dtype for x in net.inputs} == {torch.float32}
    assert net.sigmas == sorted(net.sigmas, reverse=True)
    assert torch.equal(images, images.to(torch.float32).to(torch.float64))
    # One draw per evaluation, in order, except the last: the noise-free mean is what is returned.
    assert used == (list(range(20 * per_step - 1)) if name in STOCHASTIC else [])


@pytest.mark.parametrize("sampler", [vp_sde, ve_pc, iddpm])
def test_the_mean_of_the_last_step_carries_no_noise(sampler):
    """For one data point D is that point: the last step's mean lies on it, however noisy the path was."""
    net = Analytic(torch.tensor(0.2), std=0.0)
    torch.manual_seed(0)
    images = sampler(net, torch.randn(2, 1, 4, 4), num_steps=1000)
    error = float((images - 0.2).abs().max())
    assert error < {vp_sde: 0.008, ve_pc: 1e-4, iddpm: 1e-6}[sampler], error  # the noise left out: 0.01 to 0.02


def test_without_a_noise_function_draws_come_from_the_global_generator():
    def images(seed):
        torch.manual_seed(seed)
        return vp_sde(Analytic(torch.tensor(0.2)), torch.ones(1, 1, 4, 4), num_steps=10)

    assert torch.equal(images(0), images(0)) and not torch.equal(images(0), images(1))


def test_only_the_predictor_corrector_depends_on_its_batch():
    draws = torch.randn(20, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    draws[:, 1] *= 2
    for name, sampler in ORIGINAL_SAMPLERS.items():
        net = Analytic(torch.tensor(0.2))
        together = sampler(net, draws[0], num_steps=10, noise=lambda k, x: draws[k % 20])
        alone = sampler(net, draws[0, :1], num_steps=10, noise=lambda k, x: draws[k % 20, :1])
        assert torch.allclose(together[:1], alone, rtol=1e-5, atol=1e-5) == (name != "ve-pc"), name


@pytest.mark.parametrize("sampler", [ddim, iddpm])
def test_denoised_images_are_clipped_unless_asked_not_to(sampler):
    net, latents = Analytic(torch.tensor(3.0)), torch.ones(1, 1, 4, 4)
    noise = lambda k, x: torch.zeros_like(x)
    assert sampler(net, latents, num_steps=20, noise=noise).max() <= 1
    assert sampler(net, latents, num_steps=20, noise=noise, clip_denoised=False).max() > 2


def test_the_variance_can_be_given_and_is_needed():
    mu = torch.tensor(0.2)
    net, latents = Analytic(mu), torch.ones(1, 1, 4, 4)
    bare = lambda x, sigma, class_labels=None: net(x, sigma, class_labels)
    noise = lambda k, x: torch.ones_like(x)
    given = iddpm(bare, latents, num_steps=10, noise=noise, variance=net.variance)
    assert torch.equal(given, iddpm(net, latents, num_steps=10, noise=noise))
    with pytest.raises(UserError, match="no learned variance"):
        iddpm(bare, latents, num_steps=10)


@pytest.mark.parametrize(
    "name, num_steps", [(name, n) for name in ORIGINAL_SAMPLERS for n in (0, 1)] + [("ddim", 501), ("iddpm", 1001)]
)
def test_a_number_of_steps_that_cannot_be_taken_is_refused_in_one_line(name, num_steps):
    sampler = ORIGINAL_SAMPLERS[name]
    with pytest.raises(UserError, match=f"num_steps is {num_steps}; ") as caught:
        sampler(Analytic(torch.tensor(0.2)), torch.ones(1, 1, 4, 4), num_steps=num_steps)
    assert "\n" not in str(caught.value)


def test_a_model_without_the_samplers_levels_is_refused():
    net = Analytic(torch.tensor(0.2))
    net.sigma_min, net.sigma_max = 0.02, 100.0
    latents = torch.ones(1, 1, 4, 4)
    ORIGINAL_SAMPLERS["ve-ode"](net, latents, num_steps=10)
    with pytest.raises(UserError, match=r"needs noise levels from 0\.01049 to 152\.2; the model supports 0\.02 to 100"):
        ORIGINAL_SAMPLERS["vp-ode"](net, latents, num_steps=10)
