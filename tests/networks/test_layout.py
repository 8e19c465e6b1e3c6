"""Memory layout and attention on a CPU: what is chosen for speed computes the same."""

import pytest
import torch

from edm.config import NetworkConfig
from edm.networks import layers
from edm.networks.unet import UNet


@pytest.mark.parametrize(
    "channels, device, expected",
    [
        (16, "cpu", torch.contiguous_format),  # group normalisation takes four times as long in channels_last
        (128, "cpu", torch.channels_last),  # wide convolutions are Winograd's, which want the channels last
        (16, "cuda", torch.channels_last),
    ],
)
def test_narrow_networks_on_a_cpu_are_contiguous_and_all_others_channels_last(channels, device, expected):
    with torch.device("meta"):
        network = UNet(NetworkConfig.of("ddpmpp", resolution=8, channels=1, model_channels=channels, num_blocks=1,
                                        channel_mult=(1, 2)))  # fmt: skip
    assert layers.layout(network, torch.device(device)) is expected


@pytest.mark.parametrize("heads, pixels", [(1, 16), (3, 64)])
def test_attention_by_products_is_that_of_the_fused_kernel(heads, pixels):
    q, k, v = (torch.randn(2, heads, 8, pixels, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found, expected = layers._products(q, k, v), layers._fused(q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    gradients = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
def test_sums_in_place_give_the_images_that_sums_with_gradients_give(architecture):
    torch.manual_seed(0)
    config = NetworkConfig.of(architecture, resolution=8, channels=1, model_channels=16, channel_mult=(1, 2),
                              num_blocks=1, attn_resolutions=(4,), dropout=0.0)  # fmt: skip
    network = UNet(config)
    for parameter in network.parameters():  # layers that start at zero would hide an error
        torch.nn.init.normal_(parameter, std=0.1)
    x, noise = torch.randn(2, 1, 8, 8), torch.ones(2)
    before = x.clone()
    expected = network(x, noise)
    with torch.no_grad():
        assert torch.allclose(network(x, noise), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
