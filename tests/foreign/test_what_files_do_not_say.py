"""Files that leave out what decides their numbers: what the shapes tell, what is stated, what is assumed and said."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from small_files import adm_file, authors_pickle, equal, guided, make, outputs, score_sde_file

import edm
from edm import foreign
from edm.cli import main
from edm.design.preconditioning import (
    EDMPreconditioning,
    LinearIDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from edm.foreign.asked import NAMES, Asked
from edm.networks.layers import Attention, GroupNorm
from edm.params import schema

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
SMALL = {"resolution": 16, "channels_per_head": 16}


def largest_difference(a, b):
    x, y = outputs(a), outputs(b)
    return float((x - y).abs().max() / y.abs().max())


# guided-diffusion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_channels, mult", [(32, (1, 2)), (64, (1,)), (128, (1, 2))])
def test_guided_diffusion_has_32_groups_at_every_width(tmp_path, model_channels, mult):
    net = guided(model_channels=model_channels, channel_mult=mult)
    loaded = foreign.read(adm_file(tmp_path / "a.pt", net), **SMALL).denoiser
    assert {module.groups for module in loaded.modules() if isinstance(module, GroupNorm)} == {32}
    assert loaded.network.config.norm_groups == (None if model_channels == 128 else 32)


@pytest.mark.parametrize("mult", [(2, 1), (3, 3), (1, 2)])
def test_the_first_convolution_has_the_channels_of_the_first_level(tmp_path, mult):
    net = guided(channel_mult=mult)
    assert net.network.encoder[0].weight.shape[0] == 32 * mult[0]
    imported = foreign.read(adm_file(tmp_path / "a.pt", net), **SMALL)
    assert equal(imported.denoiser, net)
    assert imported.about["inferred"]["model_channels"] == 32 and imported.about["inferred"]["channel_mult"] == [*mult]


def test_the_old_attention_order_is_stated(tmp_path):
    net = guided(classes=3)
    path = adm_file(tmp_path / "a.pt", net, old=True)
    imported = foreign.read(path, attention_order="old", **SMALL)
    assert equal(imported.denoiser, net) and "attention_order" not in imported.about["assumed"]
    guessed = foreign.read(path, **SMALL)
    assert guessed.about["assumed"]["attention_order"] == "new" and largest_difference(guessed.denoiser, net) > 0.01
    one_head = foreign.read(path, resolution=16, channels_per_head=64)  # then both orders are one
    assert "attention_order" not in one_head.about["assumed"]


def test_the_old_order_is_heads_then_q_k_v(tmp_path):
    """guided-diffusion's default: qkv as [head, (q, k, v), channel], softmax over keys, √(channels of a head)."""
    path = adm_file(tmp_path / "a.pt", guided(), old=True)
    theirs = torch.load(path, weights_only=True)
    loaded = foreign.read(path, attention_order="old", **SMALL).denoiser
    attention = loaded.network.decoder[0].attention
    assert isinstance(attention, Attention)
    x = torch.randn(2, 64, 8, 8)
    h = F.group_norm(x, 32, theirs["middle_block.1.norm.weight"], theirs["middle_block.1.norm.bias"]).flatten(2)
    qkv = F.conv1d(h, theirs["middle_block.1.qkv.weight"], theirs["middle_block.1.qkv.bias"])
    q, k, v = qkv.reshape(2 * 4, 3 * 16, 64).split(16, dim=1)
    weights = torch.einsum("bct,bcs->bts", q, k).div(math.sqrt(16)).softmax(-1)
    a = torch.einsum("bts,bcs->bct", weights, v).reshape(2, 64, 64)
    a = F.conv1d(a, theirs["middle_block.1.proj_out.weight"], theirs["middle_block.1.proj_out.bias"])
    torch.testing.assert_close(attention(x), a.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_the_linear_schedule_is_stated(tmp_path):
    path = adm_file(tmp_path / "a.pt", guided())
    assert foreign.read(path, **SMALL).about["assumed"]["noise_schedule"] == "cosine"
    imported = foreign.convert(path, tmp_path / "b.safetensors", noise_schedule="linear", **SMALL)
    assert imported.about["assumed"]["beta_last"] == 0.02 and "noise_schedule" not in imported.about["assumed"]
    net = edm.load(tmp_path / "b.safetensors")
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    levels = np.sqrt((1 - alpha_bar) / alpha_bar)
    assert net.sigma_min == pytest.approx(levels[0], rel=1e-5) and net.sigma_max == pytest.approx(157.4, rel=1e-3)
    x = torch.randn(1, 3, 16, 16)
    for step in (0, 300, 999):  # ε of the noised image x/√(1 + σ²) at step t
        sigma = torch.tensor(levels[step], dtype=torch.float32)
        epsilon = net.network(x / (1 + sigma**2).sqrt(), torch.tensor([float(step)]))[:, :3]
        expected = x - sigma * epsilon
        assert float((net(x, sigma) - expected).abs().max() / expected.abs().max()) < 1e-4
        assert float(net.round_sigma(sigma * 1.0001)) == pytest.approx(float(sigma), rel=1e-5)
    shorter = np.prod(1 - np.linspace(4e-4, 0.08, 250))  # other numbers of steps divide the same schedule
    assert LinearIDDPMPreconditioning(steps=250).sigma_max == pytest.approx(
        math.sqrt((1 - shorter) / shorter), rel=1e-5
    )


def test_the_larger_published_models_are_asked_about_both(tmp_path, refused):
    net = guided(model_channels=256, channel_mult=(1,), num_blocks=2, attn_resolutions=(), channels_per_head=64)
    path = adm_file(tmp_path / "a.pt", net)
    refused("give noise_schedule=", path, resolution=16, channels_per_head=64)
    refused("give attention_order=", path, resolution=16, channels_per_head=64, noise_schedule="linear")
    stated = {"noise_schedule": "linear", "attention_order": "new", "resolution": 16, "channels_per_head": 64}
    assert foreign.read(path, **stated).about["asked"] == stated


# score_sde ------------------------------------------------------------------------------------------------------------


def test_the_vp_file_says_neither_its_sde_nor_its_filter_nor_its_scales(tmp_path):
    path = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()))
    assert foreign.read(path, resolution=16).about["assumed"] == {
        "sde": "vp", "beta_min": 0.1, "beta_max": 20.0, "fir": False, "skip_rescale": True, "scale_by_sigma": False,
        "centered": True, "continuous": True, "nonlinearity": "swish", "steps": 1000, "epsilon_t": 1e-5, "dropout": 0.1,
    }  # fmt: skip
    imported = foreign.read(path, resolution=16, beta_min=0.2, beta_max=15, fir=True, skip_rescale=False, sde="vp")
    config, vp = imported.denoiser.network.config, imported.denoiser.preconditioning
    assert (vp.schedule.beta_d, vp.schedule.beta_min) == (pytest.approx(14.8), 0.2)
    assert config.resample_filter == (1, 3, 3, 1) and not config.skip_rescale
    assert {"sde", "beta_min", "beta_max", "fir", "skip_rescale"}.isdisjoint(imported.about["assumed"])


def test_without_skip_rescale_a_sum_stays_a_sum(tmp_path):
    path = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()))
    scaled, plain = (foreign.read(path, resolution=16, skip_rescale=on).denoiser.network for on in (True, False))
    x, emb = torch.randn(1, 16, 16, 16), torch.randn(1, 64)
    for i in (1, 2):  # a block at 16 pixels, without attention, and the one that halves them
        torch.testing.assert_close(plain.encoder[i](x, emb), scaled.encoder[i](x, emb) * math.sqrt(2))


def test_the_ve_file_says_its_filter_by_a_name_and_not_its_scales(tmp_path, refused):
    path = score_sde_file(tmp_path / "a.pth", make("ncsnpp", VEPreconditioning()))
    assert foreign.read(path, resolution=16).about["assumed"] == {
        "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "scale_by_sigma": True, "centered": False, "continuous": True,
        "nonlinearity": "swish", "dropout": 0.1,
    }  # fmt: skip
    for name, value in {"sde": "vp", "fir": True, "beta_min": 0.1}.items():
        refused(f"{name} was given, but the file says it itself", path, resolution=16, **{name: value})


def test_what_is_stated_and_not_supported_is_refused_by_name(tmp_path, refused):
    vp = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()))
    refused("it is a model of the sub-VP SDE; import one of the VP or the VE SDE", vp, resolution=16, sde="subvp")
    refused("a model with scale_by_sigma on", vp, resolution=16, scale_by_sigma=True)
    ve = score_sde_file(tmp_path / "b.pth", make("ncsnpp", VEPreconditioning()))
    refused("a model with scale_by_sigma off", ve, resolution=16, scale_by_sigma=False)
    refused("beta_min is 30, which is not below beta_max, 20; give both", vp, resolution=16, beta_min=30.0)


# How it is stated, and said -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated, message",
    [
        ({"attention_order": "newest"}, "attention_order is 'newest'; it must be one of new, old"),
        ({"noise_schedule": 3}, "must be one of cosine, linear"),
        ({"sde": "ve"}, "must be one of vp, subvp"),
        ({"beta_min": 0}, "must be a number above 0"),
        ({"beta_max": math.inf}, "must be a number above 0"),
        ({"fir": 1}, "fir is 1; it must be true or false"),
        ({"skip_rescale": "yes"}, "must be true or false"),
    ],
)
def test_values_that_make_no_sense_are_refused(stated, message):
    with pytest.raises(edm.UserError, match=message):
        Asked(**stated)


def test_what_has_no_effect_on_a_kind_is_refused(tmp_path, refused):
    values = {"resolution": 16, "channels_per_head": 16, "attention_order": "old", "noise_schedule": "linear"}
    of_score_sde = {"sde": "vp", "beta_min": 0.1, "beta_max": 20.0, "fir": True, "skip_rescale": True,
                    "scale_by_sigma": False}  # fmt: skip
    assert (*values, *of_score_sde) == NAMES
    pickle = authors_pickle(tmp_path / "a.pkl", make("ddpmpp", EDMPreconditioning()))
    for name, value in (values | of_score_sde).items():
        refused(f"{name} was given", pickle, **{name: value})
    path = adm_file(tmp_path / "a.pt", guided())
    for name, value in of_score_sde.items():
        refused(f"{name} was given", path, **SMALL, **{name: value})


def test_import_prints_what_it_assumes(tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    words = ["import", str(FIXTURES / "adm.pt"), str(out), "--resolution", "16", "--channels-per-head", "32"]
    assert main(words) == 0
    line = capsys.readouterr().err.splitlines()[1]
    assert line.startswith("assumed, because the file does not determine it: ")
    assert 'noise_schedule "cosine"' in line and 'attention_order "new"' in line and "resolution" not in line
    assert main([*words, "--attention-order", "old", "--noise-schedule", "linear"]) == 0
    line = capsys.readouterr().err.splitlines()[1]
    assert "attention_order" not in line and "noise_schedule" not in line and "beta_first 0.0001" in line
    words = ["import", str(FIXTURES / "score_sde-vp.pth"), str(out), "--resolution", "16", "--beta-min", "0.2"]
    assert main([*words, "--beta-max", "10", "--fir", "--no-skip-rescale", "--sde", "vp", "--no-scale-by-sigma"]) == 0
    line = capsys.readouterr().err.splitlines()[1]
    assert "centered true" in line and not any(word in line for word in ("beta", "fir", "skip", "sde", "scale_by"))
    assert main(["import", str(FIXTURES / "nvlabs-edm.pkl"), str(out)]) == 0
    assert "assumed" not in capsys.readouterr().err  # nothing is


def test_params_states_the_same_by_the_same_names(tmp_path, monkeypatch, capsys):
    properties = schema()["$defs"]["pretrained"]["properties"]
    assert properties.keys() == {*NAMES, "path", "like"}
    monkeypatch.chdir(tmp_path)
    entry = {"path": str(FIXTURES / "adm.pt"), "resolution": 16, "channels_per_head": 32, "attention_order": "old",
             "noise_schedule": "linear"}  # fmt: skip
    raw = yaml.safe_load((FIXTURES.parents[2] / "params.yaml").read_text())
    raw["pretrained"]["found"] = entry
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    words = ["import", entry["path"], "out.safetensors", "--published", "found"]
    assert main(words) == 0
    expected = foreign.read(entry.pop("path"), **entry).denoiser
    assert equal(edm.load("out.safetensors"), expected)
    capsys.readouterr()
    assert main([*words, "--resolution", "16"]) == 1
    assert "resolution is stated in params.yaml where --published is given" in capsys.readouterr().err
