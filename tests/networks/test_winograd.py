"""3×3 convolutions with a quarter of the multiplications are the same convolutions."""

import pytest
import torch
import torch.nn.functional as F

from edm.networks import winograd
from edm.networks.layers import Conv


def channels_last(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


def off(found, expected):
    """The largest difference, relative to the largest number."""
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


@pytest.fixture
def everywhere(monkeypatch):
    """As if it paid in networks of tests, too."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)


@pytest.mark.parametrize("x", [channels_last(5, 7, 8, 12), torch.randn(1, 7, 4, 4), torch.randn(3, 7, 16, 8)[:, :, :8]],
                         ids=["channels_last", "contiguous", "slice"])  # fmt: skip
@pytest.mark.parametrize("piece", [1, winograd.PIECE], ids=["by the image", "at once"])
def test_results_and_gradients_are_those_of_a_convolution(x, piece, monkeypatch):
    monkeypatch.setattr(winograd, "PIECE", piece)
    ours = [t.clone().requires_grad_() for t in (x, torch.randn(6, 7, 3, 3), torch.randn(6))]
    exact = [t.detach().double().requires_grad_() for t in ours]
    y, expected = winograd.convolve(*ours), F.conv2d(*exact, padding=1)
    assert off(y, expected) < 2e-5
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert all(off(a.grad, b.grad) < 2e-5 for a, b in zip(ours, exact, strict=True))


def test_rounding_errors_are_a_few_times_those_of_a_direct_convolution():
    x, weight, bias = channels_last(8, 256, 16, 16), channels_last(256, 256, 3, 3), torch.zeros(256)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct, ours = F.conv2d(x, weight, padding=1), winograd.convolve(x, weight, bias)
    rms = [float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt()) for found in (direct, ours)]
    assert rms[0] < rms[1] < 8 * rms[0] and rms[1] < 5e-6


@pytest.mark.parametrize("change, expected", [
    ({}, True),
    ({"x": torch.empty(1, 128, 32, 32)}, True),
    ({"x": torch.empty(1, 128, 16, 16)}, False),  # too few tiles
    ({"x": torch.empty(8, 128, 18, 16)}, False),  # no whole tiles
    ({"x": torch.empty(8, 128, 16, 16, dtype=torch.bfloat16)}, False),
    ({"x": torch.empty(8, 128, 16, 16, device="meta")}, False),
    ({"weight": torch.empty(64, 128, 3, 3)}, False),  # few channels
    ({"weight": torch.empty(128, 128, 1, 1)}, False),
])  # fmt: skip
def test_it_is_for_wide_layers_of_float32_on_cpus(change, expected):
    assert (
        winograd.pays(**{"x": torch.empty(8, 128, 16, 16), "weight": torch.empty(128, 128, 3, 3)} | change) == expected
    )


def test_a_layer_uses_it_where_it_pays_and_where_the_margin_is_its_own_not(monkeypatch):
    used = []
    monkeypatch.setattr(winograd, "convolve", lambda x, weight, bias: used.append(bias) or F.conv2d(x, weight, bias))
    layer, x = Conv(128, 128, 3), torch.randn(8, 128, 16, 16)
    layer(x)
    assert used == [layer.bias]
    layer(x, padding=2)
    layer(x.bfloat16())
    assert len(used) == 1


def test_torch_knows_it_as_an_operation_of_its_own():
    """Shapes without numbers, gradients and what compilers ask for agree with what it does."""
    x, weight, bias = channels_last(2, 3, 8, 8), torch.randn(5, 3, 3, 3), torch.randn(5)
    torch.library.opcheck(winograd.convolve, [t.requires_grad_() for t in (x, weight, bias)])
    torch.library.opcheck(winograd.weight_gradient, (x.detach(), channels_last(2, 5, 8, 8)))


def test_a_compiled_network_keeps_it(everywhere):
    layer, x = Conv(3, 5, 3), channels_last(2, 3, 8, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected, found = layer(x), compiled(x)
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    found.square().sum().backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(layer.parameters(), gradients, strict=True))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # in torch.func.jvp's own first call
def test_other_ways_to_differentiate_give_what_a_convolution_gives():
    """Forwards, and by torch.func, which know nothing of operations of ours: torch's own does it there."""
    conv, x = Conv(128, 128, 3), channels_last(4, 128, 16, 16)
    assert winograd.pays(x, conv.weight)
    direction = torch.randn_like(x)
    expected = F.conv2d(direction, conv.weight, padding=1)
    assert off(torch.func.jvp(conv, (x,), (direction,))[1], expected) < 2e-5
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        assert off(torch.autograd.forward_ad.unpack_dual(conv(dual)).tangent, expected) < 2e-5
    gradient = torch.func.grad(lambda x: conv(x).square().sum() / 2)(x)
    assert off(gradient, F.conv_transpose2d(conv(x), conv.weight, padding=1)) < 2e-5


def test_weights_and_images_may_be_of_two_precisions():
    conv, x = Conv(128, 128, 3), channels_last(4, 128, 16, 16)
    expected = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = conv(x)
        mixed.float().square().sum().backward()
    assert off(mixed, expected) < 3e-2 and conv.weight.grad.isfinite().all()
    assert off(conv.bfloat16()(x), expected) < 3e-2
