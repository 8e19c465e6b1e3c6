"""Imports become checkpoints of ours, ours become files of others, and nothing changes on the way."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_files import authors_pickle, equal, guided, make, outputs, score_sde_file

import edm
from edm import foreign
from edm.cli import main
from edm.design.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    LinearIDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from edm.foreign.published import constructor_call, from_published, to_published
from edm.models import building, checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden" / "index.json").read_text())
NEEDED = {
    "nvlabs-edm.pkl": {},
    "score_sde-vp.pth": {"resolution": 16},
    "score_sde-ve.pth": {"resolution": 16},
    "adm.pt": {"resolution": 16, "channels_per_head": 32},
}


def golden_denoiser(case):
    tensors = load_file(FIXTURES / "golden" / f"{case['name']}.safetensors")
    state = {name.removeprefix("param/"): t for name, t in tensors.items() if name.startswith("param/")}
    return from_published(case["class_name"], case["init_kwargs"], state), state


@pytest.mark.parametrize("name", NEEDED)
def test_a_converted_file_gives_the_same_images(tmp_path, name):
    path, out = FIXTURES / "checkpoints" / name, tmp_path / "out.safetensors"
    imported = foreign.convert(path, out, **NEEDED[name])
    loaded = edm.load(out)
    assert equal(loaded, imported.denoiser) and equal(loaded, foreign.read(path, **NEEDED[name]).denoiser)
    assert torch.equal(outputs(loaded), outputs(imported.denoiser))
    assert checkpoint.describe(out)["about"] == imported.about
    assert checkpoint.describe(out)["network"] == imported.denoiser.network.config.to_dict()


def test_equal_files_give_equal_bytes(tmp_path):
    path = FIXTURES / "checkpoints" / "adm.pt"
    copy = tmp_path / "another name.bin"
    copy.write_bytes(path.read_bytes())
    foreign.convert(path, tmp_path / "a.safetensors", **NEEDED["adm.pt"])
    foreign.convert(copy, tmp_path / "b.safetensors", **NEEDED["adm.pt"])
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    "net",
    [
        make(
            "ddpmpp", VPPreconditioning(beta_d=15.0, beta_min=0.2, steps=500, epsilon_t=1e-4), classes=4, augment_dim=9
        ),
        make("ncsnpp", VEPreconditioning(0.05, 20.0)),
        make("adm", IDDPMPreconditioning(c1=0.002, c2=0.009, steps=40), out_channels=6, channels_per_head=8),
        make("ddpmpp", EDMPreconditioning(sigma_data=0.3, sigma_min=0.01, sigma_max=90.0), channels_per_head=4),
    ],
    ids=["vp", "ve", "iddpm", "edm"],
)
class TestWhatNoTrainingOfOursMakes:
    """Networks and noise levels that no TrainingConfig can say."""

    def test_it_is_a_checkpoint_like_any_other(self, tmp_path, net):
        checkpoint.save(tmp_path / "a.safetensors", net, None, {"images": 3})
        header = checkpoint.describe(tmp_path / "a.safetensors")
        assert header["about"] == {"images": 3} and "config" not in header
        assert header["preconditioning"]["arguments"] == net.preconditioning.arguments()
        assert equal(edm.load(tmp_path / "a.safetensors"), net)

    @pytest.mark.parametrize("ending", [".safetensors", ".pt"])
    def test_exported_and_read_back_it_is_the_same(self, tmp_path, net, ending):
        checkpoint.save(tmp_path / "a.safetensors", net, None, {})
        foreign.export(tmp_path / "a.safetensors", tmp_path / f"out{ending}")
        imported = foreign.read(tmp_path / f"out{ending}")
        assert equal(imported.denoiser, net) and imported.about["source"] == "an export of this program"
        foreign.export(tmp_path / "a.safetensors", tmp_path / f"again{ending}")
        assert (tmp_path / f"out{ending}").read_bytes() == (tmp_path / f"again{ending}").read_bytes()

    def test_as_a_pickle_of_the_authors_it_is_the_same(self, tmp_path, net):
        assert equal(foreign.read(authors_pickle(tmp_path / "a.pkl", net)).denoiser, net)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_the_authors_constructor_calls_round_trip(case):
    net, _ = golden_denoiser(case)
    class_name, init_kwargs = constructor_call(net)
    assert class_name == case["class_name"]
    # What the authors leave to their defaults is said here; what they say is said alike.
    assert {name: init_kwargs[name] for name in case["init_kwargs"]} == case["init_kwargs"]
    assert equal(from_published(class_name, init_kwargs, to_published(net)), net)
    assert not {"channels_per_head", "out_channels"} & init_kwargs.keys()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_exports_carry_the_published_names_and_the_call(tmp_path, case):
    net, state = golden_denoiser(case)
    checkpoint.save(tmp_path / "a.safetensors", net, None, {})
    foreign.export(tmp_path / "a.safetensors", tmp_path / "out.safetensors")
    foreign.export(tmp_path / "a.safetensors", tmp_path / "out.pt")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        header = json.loads(file.metadata()["edm"])
    exported = load_file(tmp_path / "out.safetensors")
    assert exported.keys() == state.keys() and all(torch.equal(exported[name], state[name]) for name in state)
    assert header["class_name"] == case["class_name"]
    whole = torch.load(tmp_path / "out.pt", weights_only=True)
    assert whole["init_kwargs"] == header["init_kwargs"]
    assert all(torch.equal(whole["state_dict"][name], state[name]) for name in state)


def test_a_checkpoint_of_a_training_is_exported_too(tmp_path, tiny):
    config = tiny(preconditioning="iddpm", loss="iddpm")
    torch.manual_seed(0)
    net = building.build(config).eval()
    checkpoint.save(tmp_path / "a.safetensors", net, config, {"images": 7})
    foreign.export(tmp_path / "a.safetensors", tmp_path / "out.safetensors")
    imported = foreign.read(tmp_path / "out.safetensors")
    assert equal(imported.denoiser, net)
    assert imported.about["inferred"]["init_kwargs"]["out_channels"] == 1  # the published class would have 2


def test_an_export_of_iddpm_loads_in_the_authors_class(tmp_path):
    """Which has outputs for a learned variance always: names and shapes are those of the golden iDDPMPrecond."""
    case = next(case for case in GOLDEN if case["class_name"] == "iDDPMPrecond")
    _, state = golden_denoiser(case)
    # The same without variance.
    net = make("adm", IDDPMPreconditioning(), model_channels=32, attn_resolutions=(16, 8), classes=10)
    checkpoint.save(tmp_path / "a.safetensors", net, None, {})
    for ending in (".safetensors", ".pt"):
        assert foreign.export(tmp_path / "a.safetensors", tmp_path / f"b{ending}") == []
        assert equal(foreign.read(tmp_path / f"b{ending}").denoiser, net)
    exported = torch.load(tmp_path / "b.pt", weights_only=True)
    assert {name: t.shape for name, t in exported["state_dict"].items()} == {name: t.shape for name, t in state.items()}
    assert case["init_kwargs"].items() <= exported["init_kwargs"].items()
    assert "out_channels" not in exported["init_kwargs"]  # which the class does not take
    theirs = from_published(exported["class_name"], exported["init_kwargs"], exported["state_dict"])
    assert theirs.learned_variance
    torch.testing.assert_close(outputs(theirs), outputs(net), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "net, found",
    [
        (guided(channels_per_head=64), "its norms do not have min(32, C/4) groups"),
        (guided(norm_groups=None), "its attention has 16 channels per head"),
        (make("ddpmpp", VPPreconditioning(), channels_per_head=4), "its attention has 4 channels per head"),
        (make("adm", EDMPreconditioning(), out_channels=6), "it has 6 outputs"),
        (guided(model_channels=132, norm_groups=None, channels_per_head=64), "its norms do not have"),
        (guided(model_channels=128, channels_per_head=64), None),
    ],
)
def test_an_export_says_what_the_authors_class_cannot_be(tmp_path, capsys, net, found):
    """Where it differs below a shape, the call names an argument that the class does not take."""
    checkpoint.save(tmp_path / "a.safetensors", net, None, {})
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pt")]) == 0
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [found in line for line in lines] == ([True] if found else [])
    assert equal(foreign.read(tmp_path / "b.pt").denoiser, net)


def test_networks_of_no_published_class_are_not_exported(tmp_path):
    for number, net in enumerate(
        (guided(LinearIDDPMPreconditioning()), make("ddpmpp", VPPreconditioning(), skip_rescale=False))
    ):
        checkpoint.save(tmp_path / "a.safetensors", net, None, {})
        with pytest.raises(edm.UserError, match="cannot be exported"):
            foreign.export(tmp_path / "a.safetensors", tmp_path / f"{number}.pt")
        assert not (tmp_path / f"{number}.pt").exists()


def test_our_own_checkpoints_are_read_and_not_converted(tmp_path, tiny):
    config = tiny()
    net = building.build(config).eval()
    path = tmp_path / "a.pth"
    checkpoint.save(path, net, config, {"images": 7})
    imported = foreign.read(path)
    assert equal(imported.denoiser, net) and imported.about["about"] == {"images": 7}
    assert equal(foreign.load(path), net)
    with pytest.raises(edm.UserError, match="is a checkpoint of this program already"):
        foreign.convert(path, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_the_licence_goes_with_the_weights(tmp_path):
    foreign.convert(FIXTURES / "checkpoints" / "adm.pt", tmp_path / "a.safetensors", **NEEDED["adm.pt"])
    assert foreign.read(tmp_path / "a.safetensors").about["licence"].startswith("MIT")
    for ending in (".safetensors", ".pt"):
        foreign.export(tmp_path / "a.safetensors", tmp_path / f"b{ending}")
        assert foreign.read(tmp_path / f"b{ending}").about["licence"].startswith("MIT")


def test_endings_are_chosen_and_failures_leave_nothing(tmp_path):
    with pytest.raises(edm.UserError, match=r"choose an ending: \.safetensors or \.pt"):
        foreign.export(tmp_path / "a.safetensors", tmp_path / "out.pkl")
    path = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()))
    with pytest.raises(edm.UserError, match="give resolution="):
        foreign.convert(path, tmp_path / "out.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_a_network_that_the_published_classes_cannot_describe_is_not_exported(tmp_path):
    net = make("adm", EDMPreconditioning(), resample_filter=(1, 3, 3, 1), channels_per_head=8)
    checkpoint.save(tmp_path / "a.safetensors", net, None, {})
    with pytest.raises(edm.UserError, match="none that the published classes can describe"):
        foreign.export(tmp_path / "a.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"network": {"num_blocks": 10**9}}, "num_blocks outside of 1 to 64"),
        ({"network": {"model_channels": 2**60}}, "model_channels outside of"),
        ({"network": {"channels_per_head": 0}}, "channels_per_head outside of"),
        ({"network": {"channel_mult": [1] * 17}}, "channel_mult outside of"),
        ({"network": {"resample_filter": 1}}, "resample_filter is 1"),
        ({"network": {"resample_filter": [1, 1, 1]}}, "needs an even number of taps"),
        ({"network": {"model_channels": 4096}}, "has shape"),
        ({"network": {"size": 8}}, "field 'size' is unknown"),
        ({"network": 8}, "has no configuration"),
        ({"preconditioning": {"name": "os.system", "arguments": {}}}, "'os.system' is unknown"),
        ({"preconditioning": {"name": "vp", "arguments": {"c1": 1}}}, "has an unknown argument"),
        ({"preconditioning": {"name": "vp", "arguments": {"beta_d": "1"}}}, "is not a number"),
        ({"preconditioning": {"name": "vp", "arguments": {"beta_d": 10**400}}}, "no readable safetensors header"),
        ({"preconditioning": {"name": "vp", "arguments": {"beta_d": -1e9}}}, "give no noise levels"),
        ({"preconditioning": {"name": "ve", "arguments": {"sigma_min": 3, "sigma_max": 2}}}, "give no noise levels"),
        ({"preconditioning": {"name": "iddpm", "arguments": {"steps": 10**9}}}, "steps outside of 1 to 100000"),
        ({"preconditioning": {"name": "iddpm", "arguments": {"c1": 0}}}, "give no noise levels"),
        ({"preconditioning": {"name": "iddpm", "arguments": {"c1": 1e-300}}}, "give no noise levels"),
        ({"preconditioning": {"name": "iddpm", "arguments": {"c2": -1}}}, "give no noise levels"),
        ({"preconditioning": {"arguments": {}}}, "has no name"),
        ({"preconditioning": None}, "has no configuration"),
    ],
)
def test_descriptions_beyond_reason_are_refused_at_once(tmp_path, refused, change, message):
    net = make(
        "ddpmpp",
        VPPreconditioning(),
        resolution=8,
        channels=1,
        model_channels=4,
        attn_resolutions=(),
        channel_mult=(1,),
    )
    checkpoint.save(tmp_path / "a.safetensors", net, None, {})
    header = checkpoint.describe(tmp_path / "a.safetensors")
    for part, value in change.items():
        header[part] = header[part] | value if part == "network" and isinstance(value, dict) else value
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"edm": json.dumps(header)})
    refused(message, tmp_path / "b.safetensors")


def test_a_training_configuration_beyond_reason_is_refused_too(tmp_path, refused, tiny):
    config = tiny()
    checkpoint.save(tmp_path / "a.safetensors", building.build(config), config, {})
    tensors, header = load_file(tmp_path / "a.safetensors"), checkpoint.describe(tmp_path / "a.safetensors")
    for change, message in (
        ({"num_blocks": 10**9}, "num_blocks is 1000000000; it must be at least 1 and at most 64"),
        ({"channel_mult": [0, 1]}, "channel_mult is 0; it must be at least 1"),
        ({"duration": 10**400}, "no readable safetensors header"),
    ):
        edited = {**header, "config": {**header["config"], **change}}
        save_file(tensors, tmp_path / "b.safetensors", {"edm": json.dumps(edited)})
        refused(message, tmp_path / "b.safetensors")


def test_what_a_library_repeats_from_a_file_cannot_write_to_the_terminal(tmp_path, refused, tiny):
    config = tiny()
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, building.build(config), config, {})
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"\x7f\xc2\x9b"', 1))
    assert "\\x7f\\x9b" in refused("not a whole safetensors file", path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, refused, value):
    net = make("ddpmpp", VPPreconditioning())
    net.network.out_conv.bias.data[1] = value
    refused("'network.out_conv.bias' has non-finite values", authors_pickle(tmp_path / "a.pkl", net))
