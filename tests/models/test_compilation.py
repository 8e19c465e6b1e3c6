"""Compiled networks: when, and that they compute the same."""

import math

import pytest
import torch

import edm
from edm import params
from edm.config import COMPILE, TrainingConfig
from edm.design import draws as noise
from edm.design.augmentation import augment
from edm.models import building
from edm.models.compilation import PAYS, options, prepare
from edm.networks.flops import flops
from edm.sampling.drawing import BLOCKS, block_of
from edm.training import step
from edm.training.batches import Batches
from edm.training.step import TrainingStep

GPU = torch.device("cuda")
F = TrainingConfig(resolution=32, channels=3, classes=10, augment=0.12).network()


@pytest.mark.parametrize("choice, share, device, expected", [
    ("auto", 0.9, "cuda", None),
    ("auto", 1.1, "cuda", {"mode": "default"}),
    ("auto", math.inf, "cpu", None),
    ("yes", 0, "cuda", {"mode": "default"}),
    ("yes", 0, "cpu", {"mode": "default"}),
    ("graphs", 0, "cuda", {"mode": "reduce-overhead"}),
    ("graphs", 0, "cpu", {"mode": "default"}),  # without CUDA graphs
    ("no", math.inf, "cuda", None),
])  # fmt: skip
def test_networks_are_compiled_as_asked_and_automatically_where_it_pays(choice, share, device, expected):
    assert options(choice, F, share * PAYS / flops(F), torch.device(device)) == expected


def test_an_unknown_choice_is_refused():
    with pytest.raises(edm.UserError, match="compile is 'maybe'; choose one of auto, yes, graphs, no"):
        options("maybe", F, 1, GPU)


def test_fifty_thousand_images_of_the_paper_are_worth_it_and_a_sheet_is_not():
    assert options("auto", F, 50_000 * 35, GPU) and not options("auto", F, 64 * 35, GPU)


def test_the_schema_knows_the_same_choices():
    assert tuple(params.schema()["$defs"]["compile"]["enum"]) == COMPILE


@pytest.fixture
def captured(monkeypatch):
    """torch.compile without the slow code generator: runs the captured graphs as they are. Returns these graphs."""
    seen, compile = [], torch.compile

    def capture(function=None, **kwargs):
        seen.append(kwargs)
        kwargs.pop("mode", None)
        return compile(function, backend="eager", **kwargs)

    monkeypatch.setattr(torch, "compile", capture)
    return seen


@pytest.mark.slow
def test_a_compiled_training_step_does_the_same(tiny, digits, captured):
    config, weights = tiny(augment=0.5, dropout=0.0), {}
    for name, compiled in (("plain", None), ("compiled", {"mode": "default"})):
        training, sums = TrainingStep(config, digits, compiled=compiled), torch.zeros(4, dtype=torch.float64)
        for number in range(3):
            training(number * config.batch_size, sums)
        weights[name] = [p.detach().clone() for p in training.net.parameters()]
    assert len(captured) == 2  # the drawing of inputs, and the loss of the network
    assert max(float((a - b).abs().max()) for a, b in zip(*weights.values(), strict=True)) < 1e-5


@pytest.mark.slow
def test_what_draws_the_inputs_is_one_graph(tiny, digits, monkeypatch):
    """No graph breaks: a GPU runs augmentation and noise as a few kernels without synchronisation."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend="eager", fullgraph=True))
    config = tiny(augment=0.5, x_flip=True)
    plain, whole = (Batches(digits, config, building.loss_of(config), torch.device("cpu"), compiled)
                    for compiled in (None, {}))  # fmt: skip
    ours, theirs = plain.draw(64, 32), whole.draw(64, 32)
    for name in ("images", "labels", "augment_labels", "sigma", "noise"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_augmenting_all_at_once_gives_what_augmenting_the_moved_ones_gives():
    """The code path of GPUs and of compiled code leaves unmoved images bit-identical."""
    seeds = torch.arange(64)
    images = noise.normal(seeds, 0, (3, 8, 8)).float()
    whole, _ = torch.compile(augment, backend="eager", fullgraph=True)(images, seeds, 0.12)
    few, labels = augment(images, seeds, 0.12)
    still = (labels[:, 2:] == 0).all(dim=1)
    assert 10 < still.sum() < 60
    assert torch.equal(whole[still], few[still])
    torch.testing.assert_close(whole, few, rtol=1e-5, atol=1e-5)


def test_a_prepared_denoiser_is_compiled_and_computes_the_same(tiny, captured):
    x, sigma, labels = torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.arange(4)
    denoiser = building.build(tiny()).eval().requires_grad_(False)
    expected = denoiser(x, sigma, labels)
    names = set(denoiser.state_dict())
    prepare(denoiser, "fp32", "yes", 1)
    torch.testing.assert_close(denoiser(x, sigma, labels), expected, rtol=1e-5, atol=1e-6)
    assert len(captured) == 1 and set(denoiser.state_dict()) == names  # compilation does not change the names in files


@pytest.mark.parametrize("precision, tolerance", [("fp32", 0), ("tf32", 0), ("bf16", 0.05), ("fp16", 0.01)])
def test_precision_is_that_of_the_network_and_the_result_stays_float32(tiny, precision, tolerance):
    """On a CPU TF32 is float32."""
    x, sigma, labels = torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.arange(4)
    denoiser = building.build(tiny()).eval().requires_grad_(False)
    torch.nn.init.normal_(denoiser.network.out_conv.weight, std=0.1)
    expected = denoiser(x, sigma, labels)
    found = prepare(denoiser, precision, "auto", 1)(x, sigma, labels)
    assert found.dtype == torch.float32
    off = float((found - expected).abs().max() / expected.abs().max())
    assert off <= tolerance and (off > 0) == (precision in ("bf16", "fp16"))


def test_an_automatic_block_follows_from_the_network_alone():
    assert block_of(250, F) == 250
    assert block_of("auto", F) == 512
    large = TrainingConfig(resolution=64, channels=3, classes=1000, architecture="adm", model_channels=192,
                           channel_mult=(1, 2, 3, 4), num_blocks=3, attn_resolutions=(32, 16, 8)).network()  # fmt: skip
    small = TrainingConfig(
        resolution=8, channels=1, model_channels=16, channel_mult=(1, 2), conditional=False
    ).network()
    assert block_of("auto", small) == BLOCKS[1] > block_of("auto", F) > block_of("auto", large) >= BLOCKS[0]


def test_gradients_start_at_zero_in_every_step(tiny, digits):
    training, sums = TrainingStep(tiny(), digits), torch.zeros(4, dtype=torch.float64)
    training(0, sums)
    assert all((p.grad == 0).all() for p in training.net.parameters())
    assert sums[1] == tiny().batch_size and step.clean(torch.ones(3), tiny()) is None
