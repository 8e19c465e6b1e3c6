"""Files of kinds that are known and not supported are named; wrappers and numbers of other programs are read."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from small_files import adm_file, authors_modules, equal, guided, make, module, score_sde_file

from edm import foreign
from edm.design.preconditioning import EDMPreconditioning, VEPreconditioning, VPPreconditioning
from edm.foreign.published import constructor_call, to_published
from edm.models import checkpoint

SMALL = {"resolution": 16, "channels_per_head": 16}


def wrapped(state):
    return OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())


# Kinds that are refused by name ---------------------------------------------------------------------------------------


def consistency(state):
    """Convolutions in two dimensions in the attention, and no learned variance."""
    state["out.2.weight"], state["out.2.bias"] = state["out.2.weight"][:3].clone(), state["out.2.bias"][:3].clone()
    attention = ("qkv.weight", "proj_out.weight")
    return OrderedDict((k, t[..., None] if k.endswith(attention) else t) for k, t in state.items())


def improved(state):
    """A plain convolution where guided-diffusion has a residual block that halves the image."""
    down = min(name for name in state if name.startswith("input_blocks.2.0."))
    assert down.startswith("input_blocks.2.0.")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("input_blocks.2.0.")}
    return OrderedDict(kept | {"input_blocks.2.0.op.weight": torch.zeros(32, 32, 3, 3)})


@pytest.mark.parametrize("wrap", [lambda state: state, wrapped], ids=["plain", "wrapped"])
@pytest.mark.parametrize(
    "change, message",
    [
        (consistency, "refused: it is one of OpenAI's consistency models, or their EDM of ImageNet-64"),
        (improved, "refused: it is a model of improved-diffusion, or of guided-diffusion without resblock_updown"),
    ],
)
def test_models_with_the_names_of_guided_diffusion_are_told_from_it(tmp_path, refused, change, message, wrap):
    path = adm_file(tmp_path / "a.pt", guided(), change=lambda state: wrap(change(state)))
    refused(message, path, **SMALL)
    refused(message, path)  # before anything is asked


def edm2(encoder=None):
    """A pickle of EDM2 with a small part of its network."""
    with authors_modules():
        parts = {"unet.emb_fourier.freqs": torch.zeros(4)}
        network = module("Precond", parts, {"img_resolution": 64, "channel_mult": [1, 2], "logvar_channels": 128})
        unet = network.meta["state"]["_modules"]["unet"]
        unet.meta["state"]["_modules"]["emb_fourier"].meta["class_name"] = "MPFourier"
        return pickle.dumps({"encoder": encoder, "ema": network}, 4)


@pytest.mark.parametrize("encoder", [None, np.arange(4.0)], ids=["pixels", "latents"])
def test_edm2_is_named(tmp_path, refused, encoder):
    """Its encoder of latents holds arrays of numpy, which no pickle of EDM has."""
    (tmp_path / "a.pkl").write_bytes(edm2(encoder))
    refused(r"refused: it is a model of EDM2 \(Karras et al. 2024\), .*; import a model of EDM", tmp_path / "a.pkl")


def test_the_state_of_a_training_is_named(tmp_path, refused):
    net = make("ddpmpp", EDMPreconditioning())
    class_name, init_kwargs = constructor_call(net)
    with authors_modules():
        network = module(class_name, to_published(net), init_kwargs)
        state = {"net": network, "optimizer_state": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{}]}}
        torch.save(state, tmp_path / "a.pt")
    message = "state of a training .*, without the EMA of the weights; import a snapshot of it"
    refused(message, tmp_path / "a.pt")
    torch.save({"state": {}, "net": {"x": torch.zeros(1)}, "optimizer": {}}, tmp_path / "b.pt")
    refused(message, tmp_path / "b.pt")


# What other programs write around a model -----------------------------------------------------------------------------


def test_the_prefix_of_distributed_training_is_taken_off_everywhere(tmp_path):
    net = guided(classes=3)
    assert equal(foreign.read(adm_file(tmp_path / "a.pt", net, change=wrapped), **SMALL).denoiser, net)
    checkpoint.save(tmp_path / "own.safetensors", net, None, {})
    foreign.export(tmp_path / "own.safetensors", tmp_path / "export.pt")
    content = torch.load(tmp_path / "export.pt", weights_only=True)
    torch.save({**content, "state_dict": wrapped(content["state_dict"])}, tmp_path / "wrapped.pt")
    assert equal(foreign.read(tmp_path / "wrapped.pt").denoiser, net)
    for design, architecture in ((VPPreconditioning, "ddpmpp"), (VEPreconditioning, "ncsnpp")):
        net = make(architecture, design())
        path = score_sde_file(tmp_path / "a.pth", net)
        assert all(name.startswith("module.") for name in torch.load(path, weights_only=True)["model"])
        assert equal(foreign.read(path, resolution=16).denoiser, net)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "stream"])
def test_numbers_of_numpy_in_files_of_torch_are_read(tmp_path, legacy):
    """torch.save writes protocol 2, whose bytes are text that is encoded."""
    net = make("ddpmpp", VPPreconditioning())

    def change(content):
        return {**content, "step": np.int64(7), "loss": np.float32(0.5), "best": [np.float64(-0.1), np.bool_(True)]}

    path = score_sde_file(tmp_path / "a.pth", net, legacy=legacy, change=change)
    assert b"_codecs" in path.read_bytes()
    assert equal(foreign.read(path, resolution=16).denoiser, net)


@pytest.mark.parametrize("words", [("x" * 17, "latin1"), ("x", "rot13"), ("\u0100", "latin1"), ("x",), (5, "latin1")])
def test_nothing_but_the_bytes_of_a_number_is_encoded(tmp_path, refused, words):
    program = pickle.dumps(words, 2)[2:-1]
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02c_codecs\nencode\n" + program + b"R.")
    refused("bytes in it are not those of a number", tmp_path / "a.pkl")
