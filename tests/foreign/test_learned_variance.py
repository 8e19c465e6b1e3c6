"""Learned variance comes from the same evaluation of the network as D, and the iDDPM sampler uses it."""

from pathlib import Path

import pytest
import torch
from small_files import make

import edm
from edm import foreign
from edm.design.preconditioning import IDDPMPreconditioning, VPPreconditioning
from edm.sampling.originals import iddpm

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"


@pytest.fixture(scope="module")
def net():
    return foreign.read(FIXTURES / "adm.pt", resolution=16, channels_per_head=32).denoiser


@pytest.fixture
def evaluations(net):
    """Counts evaluations of the network."""
    seen = []
    handle = net.network.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def test_the_extra_channels_are_the_variance_and_cost_nothing(net, evaluations):
    torch.manual_seed(0)
    x, sigma, labels = torch.randn(2, 3, 16, 16), net.preconditioning.u[500], torch.tensor([3, 7])
    assert net.learned_variance
    denoised, v = net.with_variance(x, sigma, labels)
    assert len(evaluations) == 1 and v.shape == x.shape and v.dtype == torch.float32
    assert torch.equal(denoised, net(x, sigma, labels))
    raw = net.network(x * (sigma**2 + 1).rsqrt(), torch.full((2,), 499.0), torch.eye(10)[labels])
    assert torch.equal(v, raw[:, 3:])


def test_ancestral_sampling_takes_one_evaluation_per_step(net, evaluations):
    torch.manual_seed(0)
    latents, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 7])
    noise = lambda k, x: torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
    images = iddpm(net, latents, labels, num_steps=5, noise=noise)
    assert len(evaluations) == 5 and images.isfinite().all()
    # The same variance from evaluations of its own gives the same images.
    apart = iddpm(
        net, latents, labels, num_steps=5, noise=noise, variance=lambda *inputs: net.with_variance(*inputs)[1]
    )
    assert len(evaluations) == 5 + 9 and torch.equal(images, apart)
    other = iddpm(net, latents, labels, num_steps=5, noise=noise, variance=lambda x, *_: torch.full_like(x, -1.0))
    assert not torch.equal(images, other)


def test_the_variance_survives_conversion(tmp_path, net):
    foreign.convert(FIXTURES / "adm.pt", tmp_path / "a.safetensors", resolution=16, channels_per_head=32)
    loaded = edm.load(tmp_path / "a.safetensors")
    x, sigma, labels = torch.ones(1, 3, 16, 16), loaded.preconditioning.u[300], torch.tensor([1])
    assert all(torch.equal(a, b) for a, b in zip(loaded.with_variance(x, sigma, labels),
                                                 net.with_variance(x, sigma, labels), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    "net", [make("adm", IDDPMPreconditioning()), make("ddpmpp", VPPreconditioning())], ids=["adm", "ddpmpp"]
)
def test_models_without_learned_variance_say_so(net):
    assert not net.learned_variance
    with pytest.raises(edm.UserError, match="no learned variance"):
        net.with_variance(torch.zeros(1, 3, 16, 16), 1.0)
    with pytest.raises(edm.UserError, match="no learned variance"):
        iddpm(net, torch.zeros(1, 3, 16, 16), num_steps=5)
