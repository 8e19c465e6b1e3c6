"""3×3 convolutions with a quarter of the multiplications are the same convolutions."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edm.config import NetworkConfig
from edm.networks import native, winograd
from edm.networks.layers import Conv, GroupNorm, fused
from edm.networks.unet import UNet


def channels_last(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


def off(found, expected):
    """The largest difference, relative to the largest number."""
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


@pytest.fixture
def everywhere(monkeypatch):
    """Enables Winograd convolutions in the small networks of tests."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)


IMAGES = {
    "channels last": channels_last(20, 7, 8, 12),
    "pixels last": torch.randn(20, 7, 8, 12),
    "one tile": torch.randn(1, 7, 4, 4),
    "a slice": torch.randn(3, 7, 16, 8)[:, :, :8],
    "wide, bands of two sizes": torch.randn(2, 7, 12, 32),
    "a row of tiles per band": channels_last(1, 7, 8, 68),
    "more channels than a vector": torch.randn(3, 35, 8, 8),
    "vectors of channels": channels_last(3, 32, 8, 8),
}


@pytest.mark.parametrize("x", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("outputs", [6, 32, 33])
@pytest.mark.parametrize("order", ["inputs last", "pixels last", "outputs last"])
@pytest.mark.parametrize("room", [0, winograd.SHARED_TILES], ids=["small blocks", "large blocks"])
def test_results_and_gradients_are_those_of_a_convolution(x, outputs, order, room, monkeypatch):
    monkeypatch.setattr(winograd, "OWN_TILES", room)
    monkeypatch.setattr(winograd, "SHARED_TILES", room)
    weight = torch.randn(outputs, x.shape[1], 3, 3)
    if order == "inputs last":
        weight = weight.to(memory_format=torch.channels_last)
    elif order == "outputs last":
        weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    ours = [t.detach().requires_grad_() for t in (x, weight, torch.randn(outputs))]
    assert ours[0].stride() == x.stride() and ours[1].stride() == weight.stride()
    exact = [t.detach().double().requires_grad_() for t in ours]
    y, expected = winograd.convolve(*ours), F.conv2d(*exact, padding=1)
    assert off(y, expected) < 2e-5
    assert y.is_contiguous(memory_format=torch.channels_last) == (x.stride(1) == 1)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert all(off(a.grad, b.grad) < 5e-5 for a, b in zip(ours, exact, strict=True))


def test_results_depend_neither_on_the_number_of_threads_nor_on_the_images_beside(monkeypatch):
    x, weight, gradient = torch.randn(30, 24, 8, 8), torch.randn(40, 24, 3, 3), torch.randn(30, 40, 8, 8)
    with torch.no_grad():
        expected = winograd.convolve(x, weight), winograd.weight_gradient(x, gradient)
        threads = torch.get_num_threads()
        for number in (1, 3):
            torch.set_num_threads(number)
            found = winograd.convolve(x, weight), winograd.weight_gradient(x, gradient)
            torch.set_num_threads(threads)
            assert all(map(torch.equal, found, expected))
        assert torch.equal(winograd.convolve(x[7:9], weight), expected[0][7:9])
        monkeypatch.setattr(winograd, "SHARED_TILES", 0)
        assert torch.equal(winograd.weight_gradient(x, gradient), expected[1])


def test_no_images_give_no_images_and_no_gradient():
    x, weight = torch.randn(0, 5, 8, 8, requires_grad=True), torch.randn(6, 5, 3, 3, requires_grad=True)
    y = winograd.convolve(x, weight)
    y.sum().backward()
    assert y.shape == (0, 6, 8, 8) and x.grad.shape == x.shape and not weight.grad.any()


def test_rounding_errors_are_a_few_times_those_of_a_direct_convolution():
    x, weight, bias = channels_last(8, 256, 16, 16), channels_last(256, 256, 3, 3), torch.zeros(256)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct, ours = F.conv2d(x, weight, padding=1), winograd.convolve(x, weight, bias)
    rms = [float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt()) for found in (direct, ours)]
    assert rms[0] < rms[1] < 8 * rms[0] and rms[1] < 5e-6


@pytest.mark.parametrize("change, expected", [
    ({}, True),
    ({"x": torch.empty(1, 16, 16, 16)}, True),
    ({"x": torch.empty(1, 16, 4, 4)}, True),
    ({"x": torch.empty(1, 128, 8, 8), "weight": torch.empty(128, 128, 3, 3)}, False),  # few tiles for a large filter
    ({"x": torch.empty(4, 128, 8, 8), "weight": torch.empty(128, 128, 3, 3)}, True),
    ({"x": torch.empty(0, 16, 8, 8)}, False),
    ({"x": torch.empty(8, 16, 8, 0)}, False),
    ({"x": torch.empty(8, 32, 16, 16)}, False),  # torch says that the weight has other channels
    ({"weight": torch.empty(16, 16, 3, 3, device="meta")}, False),
    ({"weight": torch.empty(16, 16, 3, 3, dtype=torch.float64)}, False),
    ({"x": torch.empty(8, 16, 18, 16)}, False),  # no whole tiles
    ({"x": torch.empty(8, 16, 16, 16, dtype=torch.bfloat16)}, False),
    ({"x": torch.empty(8, 16, 16, 16, device="meta")}, False),
    ({"weight": torch.empty(1, 16, 3, 3)}, True),  # the last layer
    ({"x": torch.empty(8, 8, 16, 16), "weight": torch.empty(16, 8, 3, 3)}, False),  # few input channels
    ({"weight": torch.empty(16, 16, 1, 1)}, False),
])  # fmt: skip
def test_it_is_for_layers_of_float32_on_cpus_that_can_compile_it(change, expected, monkeypatch):
    layer = {"x": torch.empty(8, 16, 16, 16), "weight": torch.empty(16, 16, 3, 3)} | change
    assert winograd.pays(**layer) == expected
    monkeypatch.setattr(native, "library", lambda source: None)
    assert not winograd.pays(**layer)


@pytest.fixture
def made(monkeypatch):
    """The weights whose filters were transformed, and kept ones that are forgotten afterwards."""
    weights, transformed = [], winograd._transformed_filter
    monkeypatch.setattr(winograd, "_KEPT", type(winograd._KEPT)())
    monkeypatch.setattr(winograd, "LEAST_KEPT", 0)
    monkeypatch.setattr(
        winograd, "_transformed_filter", lambda weight, *a: weights.append(weight) or transformed(weight, *a)
    )
    return weights


def test_small_and_very_large_filters_are_not_kept(made, monkeypatch):
    layer, x = Conv(16, 16, 3).requires_grad_(False), torch.randn(1, 16, 8, 8)
    for name, value in (("LEAST_KEPT", 36 * 16 * 16 * 4 + 1), ("LARGEST_KEPT", 36 * 16 * 16 * 4 - 1)):
        with monkeypatch.context() as patched:
            patched.setattr(winograd, name, value)
            winograd.convolve(x, layer.weight)
            assert not len(winograd._KEPT)
    winograd.convolve(x, layer.weight)
    assert len(winograd._KEPT) == 1


CHANGES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "unseen by torch": lambda layer: layer.weight.data.mul_(2),
    "by numpy": lambda layer: np.multiply(layer.weight.numpy(), 2, out=layer.weight.numpy()),
    "many at once, as a moving average": lambda layer: torch._foreach_lerp_([layer.weight], [layer.weight * 3], 0.5),
    "a checkpoint": lambda layer: layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()}),
    "another tensor for the same parameter": lambda layer: setattr(layer.weight, "data", 2 * layer.weight),
    "precision lost and back in new memory": lambda layer: layer.bfloat16().float(),
    "another parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(2 * layer.weight, False)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_filter_of_a_frozen_weight_is_transformed_once_until_the_weight_changes(change, made):
    layer, x = Conv(5, 6, 3).requires_grad_(False), channels_last(2, 5, 8, 8)
    for _ in range(3):
        before = winograd.convolve(x, layer.weight, layer.bias)
    assert len(made) == 1
    with torch.no_grad():
        change(layer)
        after = [winograd.convolve(x, layer.weight, layer.bias) for _ in range(3)][-1]
    assert len(made) == 2 and not torch.equal(before, after)
    assert off(after, F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)) < 2e-5


def test_filters_of_trained_weights_and_more_than_the_limit_are_not_kept(made, monkeypatch):
    x, layers = channels_last(2, 5, 8, 8), [Conv(5, 6, 3) for _ in range(3)]
    for layer in layers * 2:
        winograd.convolve(x, layer.weight, layer.bias)
    assert len(made) == 6 and not len(winograd._KEPT)
    monkeypatch.setattr(winograd, "MOST_KEPT", 2 * winograd._filters(layers[0].weight, False).nbytes)
    made.clear()
    for layer in layers * 2:
        winograd.convolve(x, layer.requires_grad_(False).weight, layer.bias)
    assert len(made) == 4 and len(winograd._KEPT) == 2


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # in torch.func.jvp's own first call
def test_a_kept_filter_serves_every_mode_and_gives_the_same_bits_as_a_new_one(made, monkeypatch):
    layer, x = Conv(160, 128, 3).requires_grad_(False), channels_last(2, 160, 16, 16)
    with torch.inference_mode():
        expected = winograd.convolve(x, layer.weight, layer.bias)
    with torch.no_grad():
        assert torch.equal(winograd.convolve(x, layer.weight, layer.bias), expected)
    of_x = lambda x: winograd.convolve(x, layer.weight, layer.bias)
    found, change = torch.func.jvp(of_x, (x,), (x,))
    assert torch.equal(found, expected) and off(change, F.conv2d(x, layer.weight, padding=1)) < 2e-5
    of_x(x.requires_grad_()).sum().backward()  # whose gradient needs another filter
    assert x.grad.isfinite().all() and sum(weight is layer.weight for weight in made) == 2
    monkeypatch.setattr(winograd, "MOST_KEPT", 0)
    winograd._KEPT.clear()
    assert torch.equal(of_x(x), expected) and not len(winograd._KEPT)


def test_a_filter_goes_with_its_weight(made):
    layer, x = Conv(5, 6, 3).requires_grad_(False), channels_last(2, 5, 8, 8)
    winograd.convolve(x, layer.weight, layer.bias)
    assert len(winograd._KEPT) == 1
    copied = copy.deepcopy(layer)
    assert len(winograd._KEPT) == 1
    made.clear()
    del layer
    gc.collect()
    assert not len(winograd._KEPT) and copied.weight.isfinite().all()


def test_a_layer_uses_it_where_it_pays_and_where_the_margin_is_its_own_not(monkeypatch):
    used = []
    monkeypatch.setattr(winograd, "convolve", lambda x, weight, bias: used.append(bias) or F.conv2d(x, weight, bias))
    layer, x = Conv(16, 16, 3), torch.randn(8, 16, 16, 16)
    layer(x)
    assert used == [layer.bias]
    layer(x, padding=2)
    layer(x.bfloat16())
    assert len(used) == 1


def test_torch_knows_it_as_an_operation_of_its_own():
    """Shapes without numbers, and what compilers ask for, agree with what it does."""
    x = channels_last(2, 3, 8, 8)
    torch.library.opcheck(torch.ops.edm.convolve.default, (x, torch.randn(5, 3, 3, 3), torch.randn(5), False))
    torch.library.opcheck(
        torch.ops.edm.convolve.default, (torch.randn(2, 5, 4, 8), torch.randn(5, 3, 3, 3), None, True)
    )
    more = (torch.randn(2, 3), torch.randn(2, 5, 8, 8), 0.7)
    inputs = (torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3), torch.randn(5), 3, torch.ones(3), torch.ones(3), 1e-5)
    torch.library.opcheck(torch.ops.edm.convolve_activated.default, (*inputs, *more))
    torch.library.opcheck(torch.ops.edm.convolve_weight_gradient.default, (x, channels_last(2, 5, 8, 8)))


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
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap takes image by image, which says so
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "without"])  # of torch.no_grad
@pytest.mark.parametrize("changed", [0, 1, 2], ids=["x", "weight", "bias"])
@pytest.mark.parametrize("way", [
    lambda f, at, to: torch.func.jvp(f, (at,), (to,))[1],
    lambda f, at, to: torch.func.vjp(f, at)[1](f(to))[0],
    lambda f, at, to: torch.func.vmap(f)(torch.stack((at, to))),
    lambda f, at, to: torch.func.jvp(torch.func.grad(lambda at: (f(at) ** 3).sum()), (at,), (to,))[1],
    lambda f, at, to: torch.func.grad(lambda at: (torch.func.grad(lambda at: (f(at) ** 3).sum())(at) * to).sum())(at),
    lambda f, at, to: dual(f, at, to),
], ids=["jvp", "vjp", "vmap", "forward over reverse", "reverse over reverse", "dual numbers"])  # fmt: skip
def test_every_way_to_differentiate_gives_what_a_convolution_gives(way, changed, gradients):
    inputs = [channels_last(2, 3, 8, 8), torch.randn(5, 3, 3, 3), torch.randn(5)]
    to = torch.randn_like(inputs[changed])

    def by(function, dtype):
        others = [t.to(dtype) for t in inputs]
        of_one = lambda at: function(*others[:changed], at, *others[changed + 1 :])
        return way(of_one, others[changed], to.to(dtype))

    with torch.set_grad_enabled(gradients):
        exact = by(lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1), torch.float64)
        assert off(by(winograd.convolve, torch.float32), exact) < 5e-5


def dual(f, at, to):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(at, to))).tangent


def test_weights_and_images_may_be_of_two_precisions():
    conv, x = Conv(128, 128, 3), channels_last(4, 128, 16, 16)
    expected = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = conv(x)
        mixed.float().square().sum().backward()
    assert off(mixed, expected) < 3e-2 and conv.weight.grad.isfinite().all()
    assert off(conv.bfloat16()(x), expected) < 3e-2


@pytest.mark.parametrize("shape, groups", [((5, 16, 8, 8), 4), ((3, 24, 4, 4), 3), ((2, 40, 16, 16), 10),
                                           ((2, 20, 4, 16), 5), ((3, 32, 12, 4), 32)])  # fmt: skip
@pytest.mark.parametrize("each", [False, True], ids=["all images alike", "by the image"])
@pytest.mark.parametrize("around", [False, True], ids=["alone", "offset and skip path"])
def test_activation_and_convolution_in_one_pass_are_those_in_turn(shape, groups, each, around):
    batch, channels, *sides = shape
    x, weight, bias = torch.randn(shape) * 3 + 100, torch.randn(9, channels, 3, 3), torch.randn(9)
    scale, shift = torch.randn(2, *([batch] if each else []), channels)
    offset, skip = (torch.randn(batch, channels), torch.randn(batch, 9, *sides)) if around else (None, None)
    found = winograd.activated(x, weight, bias, groups, scale, shift, 1e-5, offset, skip, 0.7 if around else 1.0)
    exact = x.double() + (offset.double()[:, :, None, None] if around else 0)
    exact = F.group_norm(exact, groups, eps=1e-5)
    exact = F.silu(exact * scale[..., None, None].double() + shift[..., None, None].double())
    exact = F.conv2d(exact, weight.double(), bias.double(), padding=1)
    assert off(found, (exact + skip) * 0.7 if around else exact) < 5e-5


def test_silu_of_every_number_is_torchs():
    """A filter whose middle is 1 gives what is convolved, and a normalisation of zeros gives its bias."""
    values = torch.cat((torch.linspace(-200, 200, 99_978), torch.tensor([0.0, 1e-30, -1e-30, 1e4, -1e4, -5.0])))
    biases, none = values.view(-1, 16), torch.zeros(16)
    middle = torch.eye(16)[:, :, None, None] * F.pad(torch.ones(1, 1), (1, 1, 1, 1))
    x = torch.zeros(len(biases), 16, 4, 4)
    found = winograd.activated(x, middle, none, 4, torch.zeros_like(biases), biases, 1e-5)[:, :, 1, 1].flatten()
    torch.testing.assert_close(found, F.silu(values), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("x, groups, expected", [
    (torch.empty(8, 16, 16, 16), 4, True),
    (torch.empty(8, 16, 32, 32), 4, False),  # several units
    (torch.empty(8, 48, 8, 8), 3, False),  # large groups
    (torch.empty(8, 16, 8, 8).to(memory_format=torch.channels_last), 4, False),
    (torch.empty(8, 16, 8, 0), 4, False),
])  # fmt: skip
def test_one_pass_is_for_evaluations_of_small_images(x, groups, expected):
    weight = torch.empty(16, x.shape[1], 3, 3)
    assert not winograd.pays_activated(x, weight, groups)
    with torch.no_grad():
        assert winograd.pays_activated(x, weight, groups) == expected
        with torch.autograd.forward_ad.dual_level():
            assert not winograd.pays_activated(x, weight, groups)


@pytest.mark.parametrize("change", [
    {"x": torch.zeros(2, 5, 8, 8)}, {"x": torch.zeros(2, 3, 8, 6)}, {"x": torch.zeros(2, 3, 0, 8)},
    {"x": torch.zeros(2, 3, 8, 8).double()}, {"weight": torch.zeros(4, 3, 1, 1)},
    {"weight": torch.zeros(4, 3, 3, 3).half()}, {"bias": torch.zeros(1)}, {"bias": torch.zeros(4).double()},
])  # fmt: skip
def test_what_c_would_misread_is_refused(change):
    layer = {"x": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(4, 3, 3, 3), "bias": torch.zeros(4)} | change
    norm = (3, torch.ones(3), torch.ones(3), 1e-5)
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected"):
        winograd.convolve(**layer)
    with pytest.raises(RuntimeError):
        winograd.activated(*layer.values(), *norm)


def test_one_pass_refuses_what_belongs_to_other_images():
    x, weight, bias, ones = torch.zeros(2, 4, 8, 8), torch.zeros(4, 4, 3, 3), torch.zeros(4), torch.ones(4)
    for wrong in (
        {"offset": torch.zeros(3, 4)},
        {"skip": torch.zeros(3, 4, 8, 8)},
        {"offset": torch.zeros(2, 4).double()},
    ):
        with pytest.raises(RuntimeError):
            winograd.activated(x, weight, bias, 4, ones, ones, 1e-5, **wrong)
    with pytest.raises(RuntimeError):
        winograd.activated(x, weight, bias, 4, ones.double(), ones, 1e-5)


def test_a_layer_with_a_hook_and_one_of_two_precisions_are_computed_in_turn():
    norm, conv, x = GroupNorm(16, 1e-5), Conv(16, 16, 3), torch.randn(4, 16, 8, 8)
    with torch.no_grad():
        assert fused(norm, conv, x) is not None
        handle = conv.register_forward_hook(lambda *a: None)
        assert fused(norm, conv, x) is None
        handle.remove()
        norm.bias.data = norm.bias.data.double()
        assert fused(norm, conv, x) is None


def test_threads_may_keep_filters_at_the_same_time(made):
    networks = [[Conv(16, 16, 3).requires_grad_(False) for _ in range(100)] for _ in range(8)]
    x = torch.randn(1, 16, 4, 4)

    def evaluate(network):
        with torch.no_grad():
            return [winograd.convolve(x, layer.weight, layer.bias) for layer in network]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(evaluate, networks))
    assert len(winograd._KEPT) == 800
    assert all(map(torch.equal, found[3], evaluate(networks[3])))


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
def test_a_network_computes_the_same_with_gradients_as_in_one_pass_without(architecture, monkeypatch):
    torch.manual_seed(0)
    config = NetworkConfig.of(architecture, resolution=8, channels=1, model_channels=16, num_blocks=1,
                              channel_mult=(1, 2), attn_resolutions=(4,))  # fmt: skip
    network = UNet(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    used, activated = [], winograd.activated
    monkeypatch.setattr(winograd, "activated", lambda *a: used.append(a[8] is not None) or activated(*a))
    x, c_noise = torch.randn(16, 1, 8, 8), torch.rand(16)
    expected = network(x, c_noise)
    assert not used
    with torch.no_grad():
        assert off(network(x, c_noise), expected) < 1e-5
    assert sum(used) >= 7 and len(used) - sum(used) >= 7  # the second and the first layers of blocks
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert off(compiled(x, c_noise), expected) < 1e-5
        assert off(network(x, c_noise[:1]), network(x, c_noise[:1].expand(16))) < 1e-5  # one noise level for all
    used.clear()
    mixed = copy.deepcopy(network).bfloat16()
    mixed.embedding.float()
    with torch.no_grad():
        assert off(mixed(x, c_noise), expected) < 0.1 and not used  # weights of another precision than x
    if config.dropout:
        used.clear()
        with torch.no_grad():
            network.train()(x, c_noise)
        assert not any(used)
