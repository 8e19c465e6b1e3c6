"""Layers over small images as matrix products are the same layers."""

import pytest
import torch
import torch.nn.functional as F

from edm.config import NetworkConfig
from edm.networks import few_pixels, layers
from edm.networks.unet import UNet

LAYERS = {
    "1x1": (few_pixels.pointwise, F.conv2d, (5, 6, 4, 8), ((7, 6, 1, 1), (7,))),
    "halved": (few_pixels.halved, lambda x: F.avg_pool2d(x, 2), (2, 3, 4, 6), ()),
    "doubled": (few_pixels.doubled, lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), (2, 3, 4, 2), ()),
}


def drawn(shape, weights, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in (shape, *weights)]


def off(found, expected):
    """The largest difference, relative to the largest number."""
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("ours, theirs, shape, weights", LAYERS.values(), ids=LAYERS)
def test_results_and_gradients_are_those_of_torchs_layer(ours, theirs, shape, weights):
    inputs, exact = drawn(shape, weights), drawn(shape, weights, torch.float64)
    expected = theirs(*exact)
    few_pixels._kept_means.cache_clear()
    with torch.inference_mode():  # a preview before the first step
        assert off(ours(*inputs), expected) < 1e-5
    found = ours(*inputs)
    assert off(found, expected) < 1e-5
    gradients = [torch.autograd.grad(y.square().sum(), of) for y, of in ((found, inputs), (expected, exact))]
    for one, other in zip(*gradients, strict=True):
        assert off(one, other) < 1e-5


@pytest.mark.parametrize("ours, theirs, shape, weights", LAYERS.values(), ids=LAYERS)
def test_derivatives_forwards_and_by_the_image_are_those_of_torchs_layer(ours, theirs, shape, weights):
    """As likelihoods take them: Jacobian-vector products, and one gradient per image."""
    x, *rest = (one.detach() for one in drawn(shape, weights))
    found, expected = (torch.func.jvp(lambda x, f=f: f(x, *rest), (x,), (x + 1,))[1] for f in (ours, theirs))
    assert off(found, expected) < 1e-5
    few_pixels._kept_means.cache_clear()
    each = lambda f: torch.vmap(torch.func.grad(lambda x: f(x[None], *rest).square().sum()))(x)
    assert off(each(ours), each(theirs)) < 1e-5
    assert off(ours(x, *rest), theirs(x, *rest)) < 1e-5  # nothing of the transform was kept


@pytest.mark.parametrize("ours, theirs, shape, weights", LAYERS.values(), ids=LAYERS)
def test_no_images_give_no_images(ours, theirs, shape, weights):
    x, *rest = drawn(shape, weights)
    assert ours(x[:0], *rest).shape == theirs(x[:0], *rest).shape


def test_several_biases_are_tried_at_once_without_gradients_too():
    ours, theirs, shape, weights = LAYERS["1x1"]
    x, weight, bias = (one.detach() for one in drawn(shape, weights))
    biases = torch.stack((bias, 2 * bias))
    with torch.no_grad():
        found = torch.vmap(lambda bias: ours(x, weight, bias))(biases)
    assert off(found, torch.stack([theirs(x, weight, one) for one in biases])) < 1e-5


def test_a_network_uses_them_and_computes_the_same_without(monkeypatch):
    torch.manual_seed(0)
    network = UNet(NetworkConfig.of("ddpmpp", resolution=8, channels=1, model_channels=16, channel_mult=(1, 2),
                                    num_blocks=1, attn_resolutions=(4,), dropout=0.0))  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    used = []
    for name in ("pointwise", "halved", "doubled"):
        layer = getattr(few_pixels, name)
        monkeypatch.setattr(few_pixels, name, lambda *a, layer=layer, name=name: used.append(name) or layer(*a))
    x, c_noise = torch.randn(3, 1, 8, 8), torch.rand(3)
    with torch.no_grad():
        found = network(x, c_noise)
        assert set(used) == {"pointwise", "halved", "doubled"}
        monkeypatch.setattr(few_pixels, "pays", lambda x: False)
        expected = network(x, c_noise)
    assert off(found, expected) < 1e-5


@pytest.mark.parametrize("x, expected", [
    (torch.empty(2, 16, 8, 8), True),
    (torch.empty(2, 16, 16, 8), False),  # many pixels
    (torch.empty(2, 16, 8, 8, dtype=torch.bfloat16), False),
    (torch.empty(2, 16, 8, 8, device="meta"), False),
    (torch.empty(2, 16, 8, 8).to(memory_format=torch.channels_last), False),
])  # fmt: skip
def test_they_are_for_small_contiguous_images_of_float32_on_cpus(x, expected):
    assert few_pixels.pays(x) == expected


def test_a_layer_with_a_margin_of_its_own_and_one_of_odd_sides_are_torchs():
    torch.manual_seed(0)
    conv, x = layers.Conv(3, 5, 3), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(conv(x, padding=2), F.conv2d(x, conv.weight, conv.bias, padding=2))
    assert layers.Resample((1, 1), up=False)(torch.ones(1, 1, 5, 4)).shape == (1, 1, 2, 2)
