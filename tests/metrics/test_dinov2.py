"""DINOv2 features: the network compared with torch's own layers, the extractor with torch-fidelity's."""

import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_sets import smooth_images
from torch import nn

from edm.errors import UserError
from edm.files import download
from edm.files.hashes import sha256_file
from edm.metrics import DINOV2
from edm.metrics.extractors import load_features
from edm.metrics.vit import GRID, PATCH, VisionTransformer

SMALL = "dinov2-vit-s-14"
LARGE = "dinov2-vit-l-14"


def with_random_parameters(network: VisionTransformer) -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            near_one = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 + near_one)
            if name.endswith("gamma"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the smallest network, in the layout of the published file."""
    path = tmp_path_factory.mktemp("dinov2") / "weights.pth"
    torch.save(with_random_parameters(VisionTransformer(384, 12, 6)).state_dict(), path)
    return path


# The network


@torch.no_grad()
def test_the_network_is_torchs_pre_norm_encoder_with_the_layer_scales_folded_in():
    width, heads, depth = 24, 3, 2
    network = with_random_parameters(VisionTransformer(width, depth, heads))
    images = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))

    projection = network.patch_embed["proj"]
    patches = nn.functional.unfold(images, PATCH, stride=PATCH).mT @ projection.weight.flatten(1).T + projection.bias
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), patches], dim=1) + network.pos_embed
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        scale1, scale2 = block.ls1.gamma, block.ls2.gamma
        for target, value in {
            layer.norm1.weight: block.norm1.weight,
            layer.norm1.bias: block.norm1.bias,
            layer.norm2.weight: block.norm2.weight,
            layer.norm2.bias: block.norm2.bias,
            layer.self_attn.in_proj_weight: block.attn.qkv.weight,
            layer.self_attn.in_proj_bias: block.attn.qkv.bias,
            layer.self_attn.out_proj.weight: scale1[:, None] * block.attn.proj.weight,
            layer.self_attn.out_proj.bias: scale1 * block.attn.proj.bias,
            layer.linear1.weight: block.mlp["fc1"].weight,
            layer.linear1.bias: block.mlp["fc1"].bias,
            layer.linear2.weight: scale2[:, None] * block.mlp["fc2"].weight,
            layer.linear2.bias: scale2 * block.mlp["fc2"].bias,
        }.items():
            target.copy_(value)
        tokens = layer.train()(tokens)  # there is no dropout; in evaluation mode torch takes a fused path
    torch.testing.assert_close(network(images), network.norm(tokens[:, 0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positions_are_resized_by_cubic_convolution_at_the_authors_scale():
    """16.1 patches, not 16, are laid over the 37 learned ones; a = −0.75 as in torch."""
    network = with_random_parameters(VisionTransformer(6, 0, 1))
    matrix = np.zeros((16, GRID))
    for row in range(16):
        at = (row + 0.5) * GRID / 16.1 - 0.5
        for neighbour in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d, a = abs(at - neighbour), -0.75
            near, far = ((a + 2) * d - (a + 3)) * d**2 + 1, a * (((d - 5) * d + 8) * d - 4)
            matrix[row, min(max(neighbour, 0), GRID - 1)] += near if d <= 1 else far
    learned = network.pos_embed[0, 1:].view(GRID, GRID, 6).double().numpy()
    expected = np.einsum("ri,cj,ijf->rcf", matrix, matrix, learned).reshape(256, 6)
    positions = network.positions(16, 16)[0]
    np.testing.assert_allclose(positions[1:].numpy(), expected, atol=1e-6)
    assert torch.equal(positions[0], network.pos_embed[0, 0])


def test_parameter_counts_are_the_published_ones():
    from edm.metrics.dinov2 import PUBLISHED

    counts = {}
    for name in DINOV2:
        with torch.device("meta"):
            network = VisionTransformer(PUBLISHED[name].width, PUBLISHED[name].depth, PUBLISHED[name].heads)
        counts[name] = sum(parameter.numel() for parameter in network.parameters())
    assert counts == {SMALL: 22_056_576, "dinov2-vit-b-14": 86_580_480, LARGE: 304_368_640}


# The extractor


def test_features_equal_those_of_torch_fidelitys_own_extractor(weights, monkeypatch):
    """torch-fidelity's extractor gets edm's network instead of downloading the authors' code; the rest is its own."""
    from torch_fidelity.utils import create_feature_extractor

    asked = []

    def load(*names):
        asked.append(names)
        network = VisionTransformer(384, 12, 6)
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network

    images = smooth_images(3, seed=1, contrast=60)
    ours = load_features(SMALL, weights)(images)
    assert not asked  # edm's extractor did not use torch.hub
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # torch-fidelity sets it for good
    monkeypatch.setattr(torch.hub, "load", load)
    (theirs,) = create_feature_extractor(SMALL, ["dinov2"], cuda=False, verbose=False)(images)
    assert asked == [("facebookresearch/dinov2", "dinov2_vits14")]
    assert torch.equal(ours, theirs)
    assert ours.shape == (3, 384)
    assert (ours[0] - ours[1]).abs().max() > 0.1  # the random network does tell images apart


def test_grey_images_are_three_equal_channels(weights):
    grey = smooth_images(1, seed=3, contrast=60)[:, :1]
    features = load_features(SMALL, weights)
    assert torch.equal(features(grey), features(grey.repeat(1, 3, 1, 1)))


def test_the_label_says_whether_the_weights_are_the_published_ones(weights, monkeypatch):
    from edm.metrics import dinov2

    assert load_features(SMALL, weights).label == "FD (dinov2-vit-s-14, other weights)"
    ours = replace(dinov2.PUBLISHED[SMALL], sha256=sha256_file(weights))
    monkeypatch.setitem(dinov2.PUBLISHED, SMALL, ours)
    features = load_features(SMALL, weights)
    assert (features.label, features.weights_sha256) == ("FD (dinov2-vit-s-14)", ours.sha256)


def test_without_weights_or_network_one_line_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", offline)
    with pytest.raises(UserError, match="dinov2-vit-l-14: no weights here") as caught:
        load_features(LARGE)
    message = str(caught.value)
    assert "\n" not in message
    assert "get https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth" in message
    assert f"{tmp_path / 'hub' / 'checkpoints' / 'dinov2_vitl14_pretrain.pth'}" in message


def test_weights_of_another_network_give_one_line(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    del state["norm.bias"]
    torch.save(state, tmp_path / "incomplete.pth")
    for name, path in ((SMALL, tmp_path / "incomplete.pth"), ("dinov2-vit-b-14", weights)):
        with pytest.raises(UserError, match=f"not in the layout of the weights of {name}") as caught:
            load_features(name, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
