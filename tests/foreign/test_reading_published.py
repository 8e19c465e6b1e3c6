"""Foreign checkpoints: every kind opens by its content and gives the numbers its authors got."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_files import adm_file, authors_pickle, equal, guided, make, outputs, score_sde_file, write_authors

import edm
from edm import foreign
from edm.config import NetworkConfig
from edm.design.preconditioning import EDMPreconditioning, IDDPMPreconditioning, VEPreconditioning, VPPreconditioning
from edm.foreign import adm, score_sde
from edm.foreign.asked import Asked
from edm.networks.unet import UNet
from edm.params.catalogue import PUBLISHED

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden" / "index.json").read_text())
NEEDED = {
    "nvlabs-edm.pkl": {},
    "score_sde-vp.pth": {"resolution": 16},
    "score_sde-ve.pth": {"resolution": 16},
    "adm.pt": {"resolution": 16, "channels_per_head": 32},
}
SIZES = [
    {},
    {"channel_mult": (1, 1, 3), "num_blocks": 2, "attn_resolutions": (16, 4)},
    {"channel_mult": (2,), "num_blocks": 3, "attn_resolutions": ()},
    {"resolution": 32, "channels": 1, "channel_mult": (1, 2, 2, 2), "attn_resolutions": (16, 8), "model_channels": 8},
]


def relative(actual, expected):
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def expected_of(name):
    """Inputs and outputs that the authors' code gave for a file of the fixtures."""
    if name == "nvlabs-edm.pkl":
        return load_file(FIXTURES / "golden" / "ddpmpp-edm.safetensors")
    return load_file(FIXTURES / "checkpoints" / f"{name.partition('.')[0]}.expected.safetensors")


@pytest.mark.parametrize("name", NEEDED)
def test_every_kind_gives_its_authors_numbers(name):
    imported = foreign.read(FIXTURES / "checkpoints" / name, **NEEDED[name])
    expected = expected_of(name)
    labels = expected.get("class_index", expected.get("class_labels"))
    denoised = imported.denoiser(expected["x"], expected["sigma"], labels, expected.get("augment_labels"))
    assert denoised.dtype == torch.float32 and relative(denoised, expected["D"]) < 1e-5
    assert not imported.denoiser.training and not any(p.requires_grad for p in imported.denoiser.parameters())


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_is_known_by_its_content(name, tmp_path):
    renamed = tmp_path / "weights.safetensors"
    renamed.write_bytes((FIXTURES / "checkpoints" / name).read_bytes())
    original = foreign.read(FIXTURES / "checkpoints" / name, **NEEDED[name])
    imported = foreign.read(renamed, **NEEDED[name])
    assert equal(imported.denoiser, original.denoiser) and imported.about == original.about


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.first(6)
def test_pickles_of_every_preconditioning_and_architecture_open(case, protocol, tmp_path):
    tensors = load_file(FIXTURES / "golden" / f"{case['name']}.safetensors")
    state = {name.removeprefix("param/"): t for name, t in tensors.items() if name.startswith("param/")}
    path = write_authors(tmp_path / "a.pkl", case["class_name"], case["init_kwargs"], state, protocol)
    net = foreign.read(path).denoiser
    denoised = net(tensors["x"], tensors["sigma"], tensors.get("class_labels"), tensors.get("augment_labels"))
    assert relative(denoised, tensors["D"]) < 1e-5
    assert equal(net, edm.from_published(case["class_name"], case["init_kwargs"], state))


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "stream"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture, design", [("ddpmpp", VPPreconditioning), ("ncsnpp", VEPreconditioning)])
@pytest.mark.first(4)
def test_score_sde_opens_at_any_size(tmp_path, architecture, design, size, legacy):
    net = make(architecture, design(), **size)
    path = score_sde_file(tmp_path / "a.pth", net, legacy=legacy)
    imported = foreign.read(path, resolution=net.network.config.resolution)
    assert equal(imported.denoiser, net)
    assert torch.equal(outputs(imported.denoiser), outputs(net))


def test_the_noise_levels_of_ve_are_those_of_the_file(tmp_path):
    net = make("ncsnpp", VEPreconditioning(0.04, 30.0))
    imported = foreign.read(score_sde_file(tmp_path / "a.pth", net), resolution=16)
    assert imported.denoiser.preconditioning.arguments() == {"sigma_min": 0.04, "sigma_max": 30.0}
    assert imported.about["inferred"]["sigma_max"] == 30.0

    def without(content):
        del content["model"]["module.sigmas"]
        return content

    imported = foreign.read(score_sde_file(tmp_path / "b.pth", net, change=without), resolution=16)
    assert (imported.denoiser.sigma_min, imported.denoiser.sigma_max) == (0.02, 100.0)
    assert imported.about["assumed"]["sigma_max"] == 100.0


def test_a_model_saved_without_data_parallel_opens_too(tmp_path):
    def bare(content):
        content["model"] = {name.removeprefix("module."): t for name, t in content["model"].items()}
        return content

    net = make("ncsnpp", VEPreconditioning())
    assert equal(foreign.read(score_sde_file(tmp_path / "a.pth", net, change=bare), resolution=16).denoiser, net)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes, outputs_per_channel", [(5, 2), (0, 1)])
def test_adm_opens_at_any_size(tmp_path, size, classes, outputs_per_channel):
    channels = size.get("channels", 3)
    out = None if outputs_per_channel == 1 else 2 * channels
    net = guided(**{**size, "model_channels": 32}, classes=classes, channels_per_head=8, out_channels=out)
    resolution = net.network.config.resolution
    imported = foreign.read(adm_file(tmp_path / "a.pt", net), resolution=resolution, channels_per_head=8)
    assert equal(imported.denoiser, net)
    assert torch.equal(outputs(imported.denoiser), outputs(net))
    assert imported.denoiser.learned_variance == (outputs_per_channel == 2)


def published_shapes(places, config):
    """The sizes of the tensors of a network, under their authors' names, without making it."""
    with torch.device("meta"):
        network = UNet(config)
    state, shapes = network.state_dict(), {}
    for name, theirs in places(network):
        size = state[name].shape
        if isinstance(theirs, str):
            size = size[:3] if ".attention." in name else size
            shapes[theirs] = tuple(size[::-1]) if name == "embedding.label.weight" else tuple(size)
            continue
        for part in theirs:
            rows = size[0] // len(theirs)
            shapes[part] = (rows, *size[1:2]) if ".NIN_" in part else tuple(size)
    return shapes, sum(p.numel() for p in network.parameters())


def test_the_published_adm_needs_no_argument():
    config = NetworkConfig.of(
        "adm", resolution=64, channels=3, out_channels=6, classes=1000, model_channels=192, channel_mult=(1, 2, 3, 4),
        num_blocks=3, attn_resolutions=(32, 16, 8),
    )  # fmt: skip
    shapes, parameters = published_shapes(adm.places, config)
    about = {"inferred": {}, "assumed": {}}
    assert adm.infer(shapes, Asked(), about) == config
    assert about["assumed"] == {"resolution": 64, "channels_per_head": 64}
    assert 295e6 < parameters < 297e6


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp"])
def test_the_published_score_sde_models_need_no_argument(architecture):
    config = NetworkConfig.of(architecture, resolution=32, channels=3, channel_mult=(1, 2, 2, 2))
    shapes, parameters = published_shapes(score_sde.places, config)
    about = {"inferred": {}, "assumed": {}}
    assert score_sde.infer(shapes, Asked(), about) == config
    assert about["assumed"]["resolution"] == 32
    assert 61.5e6 < parameters < 63.5e6


def test_what_is_known_is_told(tmp_path):
    net = make("ddpmpp", EDMPreconditioning(sigma_min=0.01, sigma_max=90.0), classes=3, augment_dim=9)
    path = authors_pickle(tmp_path / "a.pkl", net)
    about = foreign.read(path).about
    assert about["source"] == "a pickle of the EDM authors' program" and about["licence"].startswith("CC BY-NC-SA 4.0")
    assert about["source_sha256"] == edm.files.hashes.sha256_file(path)
    assert about["inferred"]["init_kwargs"]["sigma_max"] == 90.0 and about["assumed"] == {}
    about = foreign.read(FIXTURES / "checkpoints" / "adm.pt", **NEEDED["adm.pt"]).about
    assert about["licence"].startswith("MIT") and about["inferred"]["out_channels"] == 6
    assert about["asked"] == {"resolution": 16, "channels_per_head": 32}
    assert about["assumed"]["noise_schedule"] == "cosine" and about["assumed"]["steps"] == 1000


def test_baseline_pickles_name_the_authors_of_the_weights(tmp_path):
    for net, licence in ((make("ddpmpp", VPPreconditioning()), "Apache-2.0"),
                         (make("ncsnpp", VEPreconditioning()), "Apache-2.0"),
                         (make("adm", IDDPMPreconditioning(), out_channels=6), "MIT")):  # fmt: skip
        assert licence in foreign.read(authors_pickle(tmp_path / "a.pkl", net)).about["licence"]


def test_the_levels_of_a_pickle_are_its_own(tmp_path):
    """A published iDDPM file carries u_j in float32; they are used, not computed again."""
    net = make("adm", IDDPMPreconditioning(steps=50), out_channels=6)
    net.preconditioning.u = net.preconditioning.u * 1.25
    loaded = foreign.read(authors_pickle(tmp_path / "a.pkl", net)).denoiser
    assert torch.equal(loaded.preconditioning.u, net.preconditioning.u)
    assert loaded.sigma_max == float(net.preconditioning.u[0])


def test_constructor_arguments_that_mean_nothing_to_us_are_named(tmp_path):
    def change(content):
        arguments = content["ema"].meta["state"]["_init_kwargs"]
        arguments |= {"label_dropout": 0, "new_option": 3, "sigma_max": math.inf}
        return content

    imported = foreign.read(authors_pickle(tmp_path / "a.pkl", make("ddpmpp", EDMPreconditioning()), change=change))
    assert imported.about["assumed"] == {"ignored constructor arguments": ["new_option"]}
    assert imported.denoiser.sigma_max == math.inf
    assert "label_dropout" not in imported.about["inferred"]["init_kwargs"]


def test_the_label_dropout_of_a_published_training_is_read(tmp_path):
    """Guidance by the null label needs a network that knows it."""

    def change(content):
        content["ema"].meta["state"]["_init_kwargs"]["label_dropout"] = 0.1
        return content

    imported = foreign.read(authors_pickle(tmp_path / "a.pkl", make("ddpmpp", EDMPreconditioning()), change=change))
    assert imported.about["inferred"]["init_kwargs"]["label_dropout"] == 0.1 and imported.about["assumed"] == {}


def test_half_precision_files_become_float32(tmp_path):
    net = guided()

    def half(state):
        return type(state)((name, tensor.half()) for name, tensor in state.items())

    path = adm_file(tmp_path / "a.pt", net, change=half)
    loaded = foreign.read(path, resolution=16, channels_per_head=16).denoiser
    expected = {name: t.half().float() for name, t in net.network.state_dict().items()}
    assert all(torch.equal(t, expected[name]) for name, t in loaded.network.state_dict().items())


def test_reading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    foreign.read(FIXTURES / "checkpoints" / "adm.pt", **NEEDED["adm.pt"])
    assert torch.equal(torch.rand(3), expected)


def test_the_catalogue_names_every_published_file_of_the_tables():
    assert len(PUBLISHED) == 15
    for entry in PUBLISHED.values():
        assert entry.family in ("edm", "score_sde", "adm") and entry.licence and entry.where
        assert (entry.url is None) == (entry.family == "score_sde")
        assert entry.url is None or (entry.url.startswith("https://") and entry.url.endswith(entry.file))
    baseline = PUBLISHED["baseline-imagenet-64x64-cond-adm"]
    assert baseline.url.endswith("/edm/pretrained/baseline/baseline-imagenet-64x64-cond-adm.pkl")
