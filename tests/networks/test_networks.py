"""The networks and preconditionings compared with the authors' numbers, and their sizes with the paper."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edm
from edm import registry
from edm.config import NetworkConfig
from edm.design.preconditioning import EDMPreconditioning
from edm.foreign.published import to_published
from edm.networks import winograd
from edm.networks.unet import UNet

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())
CHOICES = set(edm.SamplerConfig().to_dict())


ADM_64 = {"resolution": 64, "classes": 1000, "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
          "attn_resolutions": (32, 16, 8)}  # fmt: skip


def relative(actual, expected):
    return float(
        (actual.detach().double() - expected.detach().double()).abs().max() / expected.detach().double().abs().max()
    )


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case["name"])
def golden(request):
    case = request.param
    tensors = load_file(GOLDEN / f"{case['name']}.safetensors")
    state = {name.removeprefix("param/"): t for name, t in tensors.items() if name.startswith("param/")}
    net = edm.from_published(case["class_name"], case["init_kwargs"], state)
    return case, tensors, state, net


#: Largest difference to the authors' outputs, relative to the largest number, in each mode that a network may run in.
MODES = {"plain": 1e-5, "wide on a CPU": 1e-5, "channels_last": 1e-5, "compiled": 1e-5, "tf32": 1e-5, "bf16": 2e-2,
         "fp16": 3e-3}  # fmt: skip
SLOW = ("compiled", "tf32", "bf16", "fp16")


@pytest.fixture(params=[pytest.param(mode, marks=[pytest.mark.slow] * (mode in SLOW)) for mode in MODES])
def in_mode(request, golden, monkeypatch):
    """A golden network in a mode, and its tolerance. Of a compiler there is the front half; TF32 is float32 on CPUs."""
    net, mode = copy.deepcopy(golden[3]), request.param
    if mode == "wide on a CPU":
        monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
        monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    elif mode == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    elif mode == "compiled":
        net.network.compile(backend="eager")
    elif mode != "plain":
        net.precision = mode
    yield net, MODES[mode]
    torch.compiler.reset()


def test_network_outputs_agree_with_the_authors_to_rounding(golden, in_mode):
    (_, tensors, _, _), (net, tolerance) = golden, in_mode
    x, sigma = tensors["x"], tensors["sigma"]
    labels = tensors.get("class_labels")
    assert relative(net(x, sigma, labels, tensors.get("augment_labels")), tensors["D"]) < tolerance
    assert relative(net(x, sigma, labels), tensors["D_noaug"]) < tolerance


def test_parameter_counts_are_the_published_ones(golden):
    case, _, _, net = golden
    assert sum(p.numel() for p in net.parameters()) == case["n_params"]


def test_published_names_round_trip_exactly(golden):
    _, _, state, net = golden
    back = to_published(net)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.first(2)
def test_samplers_over_networks_agree_with_the_authors(golden, in_mode):
    """Images may differ by ten times the tolerance of one evaluation."""
    (case, tensors, _, _), (net, tolerance) = golden, in_mode
    labels = tensors.get("class_labels")
    labels = None if labels is None else labels[: len(tensors["latents"])]
    for run in case["samplers"]:
        choices = {name: run[name] for name in CHOICES & run.keys()}
        images = edm.sample(net, tensors["latents"], labels, noise=lambda i, x: tensors["noises"][i], **choices)
        assert relative(images, tensors[run["key"]]) < 10 * tolerance, run["key"]


def test_class_indices_and_one_hot_rows_are_the_same_condition():
    config = NetworkConfig.of("ddpmpp", resolution=8, channels=1, classes=10, model_channels=8)
    net = edm.Denoiser(UNet(config), EDMPreconditioning()).eval()
    torch.nn.init.normal_(net.network.out_conv.weight)
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    indices = torch.tensor([3, 0, 9])
    assert torch.equal(net(x, sigma, indices), net(x, sigma, torch.eye(10)[indices]))
    assert not torch.equal(net(x, sigma, indices), net(x, sigma))


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.parametrize("preconditioning", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("resolution, channels", [(8, 1), (16, 3)])
def test_any_architecture_takes_any_preconditioning(architecture, preconditioning, resolution, channels):
    config = NetworkConfig.of(
        architecture, resolution=resolution, channels=channels, classes=4, augment_dim=9, model_channels=16,
        channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,),
    )  # fmt: skip
    net = edm.Denoiser(UNet(config), registry.find("preconditioning", preconditioning)())
    x = torch.randn(2, channels, resolution, resolution)
    out = net(x, torch.tensor([0.05, 5.0]), torch.tensor([0, 3]), torch.zeros(2, 9))
    assert out.shape == x.shape and out.dtype == torch.float32 and out.isfinite().all()


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
def test_bfloat16_agrees_to_its_precision_and_channels_last_to_rounding(architecture):
    torch.manual_seed(0)
    config = NetworkConfig.of(
        architecture, resolution=16, channels=3, model_channels=64, channel_mult=(1, 2), num_blocks=1,
        attn_resolutions=(8,), dropout=0.0,
    )  # fmt: skip
    net = edm.Denoiser(UNet(config), EDMPreconditioning()).eval()
    for name, parameter in net.named_parameters():  # layers that start at zero would hide an error
        if parameter.ndim == 4 and ("proj" in name or "conv1" in name or "out_conv" in name):
            torch.nn.init.normal_(parameter, std=0.02)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 3.0])
    expected = net(x, sigma)
    assert relative(net.to(memory_format=torch.channels_last)(x, sigma), expected) < 1e-5
    net.precision = "bf16"
    assert 1e-6 < relative(net(x, sigma), expected) < 2e-2


@pytest.mark.parametrize(
    "architecture, size, millions",
    [
        ("ddpmpp", {"resolution": 32, "classes": 10, "channel_mult": (2, 2, 2), "augment_dim": 9}, (55.6, 55.8)),
        ("ncsnpp", {"resolution": 32, "classes": 10, "channel_mult": (2, 2, 2), "augment_dim": 9}, (55.6, 56.5)),
        ("ddpmpp", {"resolution": 64, "channel_mult": (1, 2, 2, 2), "augment_dim": 9}, (61.7, 61.9)),
        ("ddpmpp", {"resolution": 32, "channel_mult": (1, 2, 2, 2)}, (61.5, 63.5)),
        ("adm", ADM_64, (295, 296.5)),
    ],
)
def test_the_papers_networks_have_the_papers_sizes(architecture, size, millions):
    """Table 8 and paper Section F: 55.7 M at 32×32, 61.8 M at 64×64, ADM 295 to 296 M."""
    with torch.device("meta"):
        network = UNet(NetworkConfig.of(architecture, **{"channels": 3, **size}))
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions[0] <= count <= millions[1], count


def test_class_labels_that_make_no_sense_are_refused():
    net = edm.Denoiser(
        UNet(NetworkConfig.of("ddpmpp", resolution=8, channels=1, classes=3, model_channels=8)), EDMPreconditioning()
    )
    x = torch.zeros(2, 1, 8, 8)
    for labels, message in (
        (torch.tensor([0, 3]), "0 to 2"),
        (torch.tensor([-1, 0]), "0 to 2"),
        (torch.tensor(1), "expected 2"),
        (torch.eye(3), "expected 2"),
        (torch.eye(4)[:2], "4 columns"),
        (torch.tensor([0.0, 1.0]), "integers"),
    ):
        with pytest.raises(edm.UserError, match=message):
            net(x, 1.0, labels)


def test_loading_leaves_the_callers_random_numbers_alone(golden):
    case, _, state, _ = golden
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    edm.from_published(case["class_name"], case["init_kwargs"], state)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.first(1)
def test_a_network_is_one_graph_to_the_compiler(architecture):
    """No graph breaks: what torch.compile gets is the whole network, with its conditions, in one piece."""
    config = NetworkConfig.of(
        architecture, resolution=8, channels=1, classes=3, augment_dim=9, model_channels=64, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(8,), dropout=0.0,
    )  # fmt: skip
    network = UNet(config).eval()
    x, c_noise, labels, augment = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 2.0]), torch.eye(3)[:2], torch.randn(2, 9)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, c_noise, labels, augment), network(x, c_noise, labels, augment))
