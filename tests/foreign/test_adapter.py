"""Plain callables that predict ε, v or x₀ as denoisers: exact where the answer is known."""

from types import SimpleNamespace

import pytest
import torch

import edm
from edm.design.timesteps import iddpm_levels
from edm.foreign import DiscreteDenoiser
from edm.sampling.originals import ddim

MEAN, STD = 0.25, 0.4  # of Gaussian data, whose ideal denoiser is known
LINEAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)  # DDPM's steps
COSINE = 1 / (1 + iddpm_levels()[:-1].flip(0) ** 2)  # iDDPM's, as this project computes them


def ideal(x, sigma):
    """E[y | x] for data N(MEAN, STD²)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def model(prediction, alphas=LINEAR, wrap=lambda out: out):
    """The ideal model of discrete steps, in the terms in which such models are trained."""

    def predict(x_t, t):
        alpha = alphas[t].reshape(-1, 1, 1, 1).to(x_t)
        x0 = ideal(x_t / alpha.sqrt(), ((1 - alpha) / alpha).sqrt())
        eps = (x_t - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x0
        return wrap({"epsilon": eps, "v_prediction": v, "sample": x0}[prediction])

    return predict


def adapted(prediction="epsilon", alphas=LINEAR, **options):
    return DiscreteDenoiser(model(prediction, alphas), alphas, prediction, dtype=torch.float64, **options)


@pytest.fixture
def x():
    return torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alphas", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_every_prediction_gives_the_ideal_denoiser_at_the_models_levels(x, prediction, alphas):
    net = adapted(prediction, alphas)
    sigma = net.levels[torch.tensor([0, 3, 400, 900, 999])]
    # D keeps x − σ ε: its rounding grows with σ, to 20,000 for iDDPM's cosine.
    error = (net(x, sigma) - ideal(x, sigma.reshape(-1, 1, 1, 1))).abs().amax((1, 2, 3))
    assert (error <= 1e-12 * (1 + sigma)).all()
    assert net(x, sigma[2]).dtype == torch.float64 and net(x.float(), sigma[2]).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_samplers_give_what_the_ideal_denoiser_gives_them(x, prediction):
    class Ideal:
        net = adapted()
        sigma_min, sigma_max, round_sigma = net.sigma_min, net.sigma_max, net.round_sigma

        def __call__(self, x, sigma, class_labels=None):
            return ideal(x, sigma)

    for choices in (
        {"num_steps": 12, "discretization": "edm"},
        {"num_steps": 12, "S_churn": 10},
        {"num_steps": 9, "solver": "euler", "schedule": "vp", "scaling": "vp", "discretization": "vp"},
    ):
        images = edm.sample(adapted(prediction), x, noise=lambda i, x: x.sign(), **choices)
        expected = edm.sample(Ideal(), x, noise=lambda i, x: x.sign(), **choices)
        torch.testing.assert_close(images, expected, rtol=1e-9, atol=1e-9)


def test_the_probability_flow_ends_in_the_data(x):
    """Gaussian data: the ODE scales a latent from σ_max to the data's own width."""
    images = edm.sample(adapted(), x, num_steps=256)
    width = (STD**2 + adapted().sigma_max ** 2) ** 0.5
    expected = MEAN + (x * adapted().sigma_max - MEAN) * STD / width
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-3)


def test_it_takes_the_original_samplers_of_discrete_models(x):
    images = ddim(adapted(alphas=COSINE), x, num_steps=250, clip_denoised=False)
    torch.testing.assert_close(images, MEAN + x * STD, rtol=0, atol=0.05)


def test_levels_and_rounding():
    net = adapted(alphas=COSINE)
    assert net.sigma_min == pytest.approx(float(iddpm_levels()[-2])) and net.sigma_max > 20_000
    sigma = torch.tensor([[net.sigma_min / 2, 1.0], [1e9, 0.5]], dtype=torch.float64)
    rounded = net.round_sigma(sigma)
    assert rounded.shape == sigma.shape and rounded.dtype == sigma.dtype
    distances = (net.levels - sigma.reshape(-1, 1)).abs()
    assert torch.equal(rounded.flatten(), net.levels[distances.argmin(1)])
    assert rounded[0, 0] == net.sigma_min and rounded[1, 0] == net.sigma_max


def test_the_model_sees_the_number_of_the_nearest_level(x):
    seen = []
    net = DiscreteDenoiser(lambda x_t, t: seen.append((x_t, t)) or torch.zeros_like(x_t), LINEAR)
    net(x, net.levels[700] * 1.0001)
    (x_t, t), *_ = seen
    assert t.tolist() == [700] * 5 and x_t.dtype == torch.float32
    torch.testing.assert_close(x_t.double(), x * LINEAR[700].sqrt(), rtol=1e-3, atol=1e-6)


def test_labels_outputs_and_extra_channels(x):
    sigma = torch.tensor([0.3, 1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    sigma = adapted().round_sigma(sigma)
    expected = adapted()(x, sigma)
    wraps = (lambda out: SimpleNamespace(sample=out), lambda out: (out, None), lambda out: torch.cat([out, out], 1))
    for wrap in wraps:
        net = DiscreteDenoiser(model("epsilon", wrap=wrap), LINEAR, dtype=torch.float64)
        assert torch.equal(net(x, sigma), expected)
    got = []
    labelled = DiscreteDenoiser(lambda x_t, t, labels: got.append(labels) or x_t, LINEAR)
    labels = torch.tensor([1, 2, 3, 4, 0])
    labelled(x, 1.0, labels)
    assert torch.equal(got[0], labels)


def test_steps_without_a_finite_level_are_left_out(x):
    """Schedules rescaled to end in pure noise have ᾱ = 0 at the last step."""
    alphas = torch.cat([LINEAR[:-1], torch.zeros(1, dtype=torch.float64)])
    net = DiscreteDenoiser(model("v_prediction", alphas), alphas, "v_prediction", dtype=torch.float64)
    assert len(net.levels) == 999 and net.sigma_max == adapted().levels[998]
    torch.testing.assert_close(net(x, net.sigma_max), ideal(x, net.sigma_max), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "alphas", [[], [0.0], [1.0, 0.5], [0.5, 0.9], [0.9, 0.9], [0.5, -0.1], [float("nan"), 0.5], [0.9, float("nan")]]
)
def test_levels_that_make_no_sense_are_refused(alphas):
    with pytest.raises(edm.UserError, match=r"alphas_cumprod (must fall|holds no step)"):
        DiscreteDenoiser(lambda x_t, t: x_t, alphas)


def test_predictions_are_called_as_diffusers_calls_them():
    with pytest.raises(edm.UserError, match="'eps' is unknown; choose one of epsilon, v_prediction, sample"):
        DiscreteDenoiser(lambda x_t, t: x_t, LINEAR, "eps")


@pytest.mark.slow
def test_a_unet_of_diffusers_is_a_denoiser():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    scheduler = diffusers.DDPMScheduler()
    net = DiscreteDenoiser(unet, scheduler.alphas_cumprod, scheduler.config.prediction_type)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = scheduler.step(unet(x, 500).sample, 500, x).pred_original_sample  # clipped to [−1, 1], as x₀
        denoised = net(x / scheduler.alphas_cumprod[500].sqrt(), net.levels[500])
    torch.testing.assert_close(denoised.clamp(-1, 1), expected, rtol=1e-4, atol=1e-5)
    images = edm.sample(net, torch.randn(2, 3, 8, 8), num_steps=6)
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()
