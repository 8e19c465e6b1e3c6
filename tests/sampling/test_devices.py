"""No tensor is on the wrong device: inputs, sampling and features run on "cuda", pretended where there is no GPU."""

import numpy as np
import pytest
import torch
from on_cuda import CUDA, built, pretended

import edm
from edm import registry
from edm.config import ADAPTIVE, MULTISTEP, ORIGINAL, SHIPPED, SOLVERS, TrainingConfig
from edm.data.archive import Dataset
from edm.design import preconditioning as design
from edm.design.losses import weighted_error
from edm.metrics import frechet
from edm.metrics.classifier import Classifier
from edm.metrics.extractors import FEATURES, LOGITS, Features, _Averages, extract
from edm.metrics.vit import VisionTransformer
from edm.models import building
from edm.sampling.drawing import generate
from edm.training import batches

TINY = TrainingConfig(
    resolution=8, channels=1, classes=10, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,),
    batch_size=4, augment=0.5, dropout=0.0, label_dropout=0.2,
)  # fmt: skip


def network(config=TINY):
    return built(lambda: building.build(config))


def draw(solver="heun", config=TINY, **settings):
    """Two blocks of images, as every job draws them."""
    net = network(config).eval().requires_grad_(False)
    sampler = edm.SamplerConfig(solver=solver, num_steps=4, **settings)
    return list(generate(net, sampler, range(2, 7), (1, 8, 8), classes=10, block=4))


@pytest.mark.parametrize("solver", sorted({*SOLVERS, MULTISTEP, *SHIPPED, *ORIGINAL} - {"iddpm"}))
@pytest.mark.first(2)
def test_every_solver_draws_on_the_device_of_the_network(solver):
    """But for rk45, whose steps depend on values, and iddpm, whose network also predicts a variance."""
    assert registry.find("solver", solver).name != ADAPTIVE
    with pretended():
        blocks = draw(solver)
    assert [list(block.images.shape) for block in blocks] == [[2, 1, 8, 8], [3, 1, 8, 8]]
    assert all(block.images.device.type == "cpu" and block.labels.device.type == "cpu" for block in blocks)


@pytest.mark.parametrize("settings", [{"S_churn": 4.0}, {"schedule": "vp", "scaling": "vp"}])
@pytest.mark.first(1)
def test_churn_and_schedules_draw_on_the_device(settings):
    with pretended():
        assert len(draw(**settings)) == 2


@pytest.mark.parametrize("architecture", ["ncsnpp", "adm"])
@pytest.mark.first(1)
def test_every_architecture_draws_on_the_device(architecture):
    with pretended():
        assert len(draw(config=TrainingConfig(**{**TINY.to_dict(), "architecture": architecture}))) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_inputs_and_loss_of_training_are_on_the_device(precision, monkeypatch):
    monkeypatch.setattr(batches, "_fits", lambda images, device: True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    dataset = Dataset(pixels, rng.integers(0, 10, 12), "made up", "made up")
    with pretended() as device:
        loss, net = building.loss_of(TINY), network().train()
        net.precision = precision
        batch = batches.Batches(dataset, TINY, loss, device).draw(10, 4)  # across an epoch
        found = (batch.images, batch.labels, batch.augment_labels, batch.sigma, batch.noise)
        assert all(tensor.device == CUDA for tensor in found)
        error = weighted_error(net, loss, batch.images, batch.sigma, batch.noise, batch.labels, batch.augment_labels)
        assert error.device == CUDA and error.requires_grad and error.dtype == torch.float32


@pytest.mark.parametrize(
    "network, layers",
    [(_Averages, (FEATURES,)), (lambda: VisionTransformer(12, 1, 2), (FEATURES,)),
     (lambda: Classifier(3, 28, 10), (FEATURES, LOGITS))], ids=["pixels", "vit", "classifier"],
)  # fmt: skip
def test_features_and_their_statistics_are_on_the_device(network, layers, monkeypatch):
    monkeypatch.setattr(frechet, "require_finite", lambda features, first: None)  # reads a value
    with pretended() as device:
        body = built(network).eval().requires_grad_(False)

        def outputs(images):
            found = body(images.to(torch.float32) if isinstance(body, VisionTransformer) else images)
            return found if isinstance(found, tuple) else (found,)

        features = Features("made up", None, "FD", "made up", None, device, outputs, lambda x: x, layers)
        images = torch.zeros(4, 3, 28, 28, dtype=torch.uint8)
        statistics = extract(features, [images, images])
        assert statistics.count == 8
        assert features(images).device == CUDA


def test_a_tensor_on_the_wrong_device_fails(monkeypatch):
    """A planted fault: coefficients that forget the device of sigma."""
    right = design.EDMPreconditioning.coefficients

    def wrong(self, sigma):
        c_skip, c_out, c_in, c_noise = right(self, torch.ones(len(sigma), 1, 1, 1))
        return c_skip, c_out, c_in.expand(4, 1, 1, 1), c_noise

    monkeypatch.setattr(design.EDMPreconditioning, "coefficients", wrong)
    with pretended(), pytest.raises(RuntimeError, match="device"):
        draw()
