"""Bits per dimension of a dataset: a model of known density, processes that share the images, the command."""

import json
import math

import numpy as np
import pytest
import torch

import edm
from edm.analysis.likelihood import bits_of
from edm.cli import main
from edm.cluster.processes import World
from edm.data.archive import write_archive
from edm.models import building, checkpoint
from edm.sampling.likelihood import dequantised

SETTINGS = {"num_steps": 4, "probes": 2}


@pytest.fixture(scope="module")
def config():
    return edm.TrainingConfig(resolution=8, channels=1, classes=3, model_channels=8, channel_mult=(1,), num_blocks=1,
                              attn_resolutions=(), dropout=0.0)  # fmt: skip


@pytest.fixture(scope="module")
def untrained(config):
    """An untrained network: with weights of 0 at its end, D is c_skip x, that of N(0, 0.5²) to the bit."""
    torch.manual_seed(0)
    return building.build(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def dataset():
    random = np.random.default_rng(0)
    return edm.Dataset.from_arrays(random.integers(0, 256, (10, 1, 8, 8)).astype(np.uint8), np.arange(10) % 3)


@pytest.mark.slow
def test_an_untrained_network_is_the_gaussian_of_its_preconditioning(untrained, dataset):
    """So bits per dimension have a closed form: those of N(0, σ_data² + σ_min²) at the dequantised pixels."""
    found = bits_of(untrained, dataset, 10, block=4, trace="exact", num_steps=8)
    x, variance = dequantised(torch.from_numpy(dataset.images), torch.arange(10)), 0.25 + 0.002**2
    nats = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).flatten(1).mean(dim=1)
    expected = -nats / math.log(2) + math.log2(127.5)
    np.testing.assert_allclose(found["each"], expected, atol=1e-4)
    assert found["bits_per_dimension"] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert found["s"] == pytest.approx(expected.std().item() / math.sqrt(10), rel=1e-3)
    assert (found["images"], found["spread"]) == (10, 0)
    assert bits_of(untrained, dataset, 4, num_steps=2)["spread"] is None


class Rank(World):
    """One of two processes, whose tensors are kept."""

    def __init__(self, rank, kept):
        super().__init__(rank, 2, torch.device("cpu"))
        object.__setattr__(self, "kept", kept)

    def gather(self, tensors):
        self.kept[self.rank] = tensors
        return [self.kept[0], self.kept[1]] if self.rank == 0 else []


@pytest.mark.slow
def test_processes_share_the_images_and_an_image_depends_on_its_place_alone(config, dataset):
    torch.manual_seed(1)
    net = building.build(config).eval()
    with torch.no_grad():
        net.network.out_conv.weight.normal_(0, 0.1)
    net.requires_grad_(False)
    whole, kept = bits_of(net, dataset, 10, block=2, **SETTINGS), {}
    assert bits_of(net, dataset, 10, 2, Rank(1, kept), **SETTINGS) == {}
    shared = bits_of(net, dataset, 10, 2, Rank(0, kept), **SETTINGS)
    assert len(kept[0]["bits"]) == 6 and shared == whole
    np.testing.assert_allclose(bits_of(net, dataset, 3, block=3, **SETTINGS)["each"], whole["each"][:3], rtol=1e-5)
    other = edm.Dataset.from_arrays(dataset.images, (np.arange(10) + 1) % 3)
    assert bits_of(net, other, 10, block=2, **SETTINGS)["each"] != whole["each"]  # the density of another class


def test_the_command_writes_the_bits_of_every_image(config, untrained, dataset, tmp_path, capsys):
    checkpoint.save(tmp_path / "model.safetensors", untrained, config, {"images": 0})
    write_archive(tmp_path / "data.zip", dataset.images, dataset.labels.tolist())
    words = [str(tmp_path / name) for name in ("model.safetensors", "data.zip", "bits.json")]
    assert main(["likelihood", *words, "--images", "5", "--steps", "4", "--probes", "2", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "bits.json").read_text())
    np.testing.assert_allclose(record["each"], bits_of(untrained, dataset, 5, **SETTINGS)["each"], rtol=1e-8)
    assert record["format"] == "edm-likelihood/1" and record["dataset_sha256"] and record["checkpoint"]["sha256"]
    assert (record["num_steps"], record["probes"], record["images"]) == (4, 2, 5)
    assert f"{record['bits_per_dimension']:.4f} ± " in capsys.readouterr().err
    write_archive(tmp_path / "data.zip", dataset.images, None)
    assert main(["likelihood", *words, "--device", "cpu"]) == 1
    assert main(["likelihood", *words, "--images", "1", "--device", "cpu"]) == 1
