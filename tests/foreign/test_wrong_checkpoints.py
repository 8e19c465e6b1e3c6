"""Files that are no checkpoint, or not a whole one, and what is to be said beside them: one line each."""

import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from small_files import adm_file, authors_pickle, guided, make, score_sde_file, tiny_files

import edm
from edm import foreign
from edm.design.preconditioning import EDMPreconditioning, VEPreconditioning, VPPreconditioning

# What is no checkpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "is a web page"),
        (b"\n <HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "of no known kind"),
        (b"\x1f\x8b\x08" + bytes(100), "of no known kind"),
        (b"PK\x05\x06" + bytes(18), "a zip archive, but not of torch.save"),
        (pickle.dumps([1, 2]), "it holds a list"),
        (pickle.dumps({"weights": 1, 5: 2}), "a dictionary of weights, 5, …"),
        (pickle.dumps({"ema": {"shadow_params": []}, "model": {}}), "a dictionary of ema, model, …"),
        (pickle.dumps({"ema": None}), "no known checkpoint"),
        (pickle.dumps({"x\ny\x1b[2J" + "z" * 500: 1}), r"dictionary of x\\ny\\x1b\[2Jzzz"),
        (struct.pack("<Q", 30) + b'{"__metadata__":{"edm":"[1]"}}' + bytes(9), "is None, expected 'edm-checkpoint/1'"),
        (struct.pack("<Q", 9) + b"{\0\xff\xfe\0\0\0\0\0" + bytes(9), "no readable safetensors header"),
        (struct.pack("<Q", 5000) + b"{" + b"[" * 4999 + bytes(9), "no readable safetensors header"),
        (struct.pack("<Q", 9) + b'{"a": ' + b"9" * 3 + bytes(9), "no readable safetensors header"),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoint_are_told(tmp_path, refused, content, message):
    (tmp_path / "a.pkl").write_bytes(content)
    refused(message, tmp_path / "a.pkl")


def test_places_that_are_no_file_are_told(tmp_path, refused):
    refused("no such file", tmp_path / "missing.pkl")
    refused("is a folder; expected a checkpoint", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused("is a pipe", tmp_path / "pipe")
    refused("is a device", Path("/dev/zero"))


def test_a_file_without_end_is_not_read(tmp_path, refused):
    with open(tmp_path / "a.pkl", "wb") as file:
        file.write(b"\x80\x04")
        file.truncate(1 << 40)
    refused("refused: it has 1,099,511,627,776 bytes", tmp_path / "a.pkl")


# Contents that do not fit ---------------------------------------------------------------------------------------------


def without(*path):
    """Removes an entry, given by the keys that lead to it."""

    def change(content):
        entries = lambda place: place if isinstance(place, (dict, list)) else place.meta["state"]
        place = content
        for key in path[:-1]:
            place = entries(place)[key]
        del entries(place)[path[-1]]
        return content

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (without("model", "module.all_modules.3.Conv_0.weight"), "EMA weights for"),
        (without("ema", "shadow_params", 0), "EMA weights for"),
        (without("ema", "shadow_params"), "holds no list of EMA weights"),
        (without("ema"), "no known checkpoint"),
        (lambda c: c["ema"]["shadow_params"].reverse() or c, "has another size than the parameter"),
        (lambda c: c["model"].update({"module.extra": torch.zeros(1)}) or c, "holds extra, which is no part"),
        (lambda c: c["model"].update({"module.all_modules.99.weight": torch.zeros(1)}) or c, "EMA weights for"),
        (lambda c: c["model"].update({"module.all_modules.3.Conv_0.weight": 3}) or c, "a parameter that is no tensor"),
    ],
)
def test_score_sde_files_that_are_incomplete_are_told(tmp_path, refused, change, message):
    path = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()), change=change)
    refused(message, path, resolution=16)


def test_other_models_of_score_sde_are_told_from_those_of_the_tables(tmp_path, refused):
    def renamed(old, new):
        def change(content):
            content["model"] = {name.replace(old, new): t for name, t in content["model"].items()}
            return content

        return change

    for old, new, message in (
        ("Conv_1", "Conv_9", "the weight all_modules.3.Conv_1.weight is missing"),
        ("GroupNorm_1", "GroupNorm_9", "its module 3 is no part of DDPM"),
        ("all_modules.2.", "all_modules.2x.", "not numbered from 0"),
    ):
        path = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()), change=renamed(old, new))
        refused(message, path, resolution=16)
    discrete = make("ncsnpp", VEPreconditioning(), embedding="positional", channel_mult_noise=1)
    refused("neither those of DDPM", score_sde_file(tmp_path / "a.pth", discrete), resolution=16)


def test_adm_files_that_do_not_fit_are_told(tmp_path, refused):
    net = guided(classes=3)

    def edited(message, resolution=16, channels_per_head=16, **change):
        def apply(state):
            for name, value in change.items():
                state.pop(name) if value is None else state.update({name: value})
            return state

        path = adm_file(tmp_path / "a.pt", net, change=apply)
        refused(message, path, resolution=resolution, channels_per_head=channels_per_head)

    edited("the weight middle_block.1.qkv.weight is missing", **{"middle_block.1.qkv.weight": None})
    edited("the weight extra has no place", extra=torch.zeros(1))
    edited("'out.2.bias' has shape .5., expected .6.", **{"out.2.bias": torch.zeros(5)})
    edited("an entry of the state dict is no tensor", **{"out.2.bias": 5})
    edited("makes images from noise alone", **{"input_blocks.0.0.weight": torch.zeros(16, 6, 3, 3)})
    edited("makes images from noise alone", **{"out.2.weight": torch.zeros(16)})
    edited("time_embed.0.weight is no matrix", **{"time_embed.0.weight": torch.zeros(16)})
    edited("levels have 32, 64 channels, not each a multiple of 24", **{"time_embed.0.weight": torch.zeros(96, 24)})
    edited("of 32, the groups of", **{"input_blocks.1.0.out_layers.3.weight": torch.zeros(48, 1)})
    edited("channels_per_head 12 does not divide the 64 channels", channels_per_head=12)
    edited("resolution 25: channel_mult has 2 levels", resolution=25)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["ema"].meta.update(class_name="UPrecond") or c, "class 'UPrecond' is unknown"),
        (lambda c: c["ema"].meta.update(class_name=5) or c, "not described by its class and its state"),
        (lambda c: c["ema"].meta.update(state=[]) or c, "not described by its class and its state"),
        (lambda c: c["ema"].meta["state"].update(_init_args=(16, 3)) or c, "made with positional arguments"),
        (without("ema", "_init_kwargs"), "holds no constructor arguments"),
        (without("ema", "_parameters"), "the _parameters of a module .EDMPrecond. are missing"),
        (without("ema", "_modules", "model"), "tensor 'model.[a-z0-9_.]*' is missing"),
        (lambda c: c["ema"].meta["state"]["_parameters"].update(x=3) or c, "x is not a tensor"),
        (lambda c: c["ema"].meta["state"]["_parameters"].update({3: None}) or c, "has no name"),
        (lambda c: c["ema"].meta["state"]["_modules"].update(x=[1]) or c, "not described by its class"),
        (lambda c: c["ema"].meta["state"]["_buffers"].update(x=torch.zeros(1)) or c, "'x' has no place"),
        (lambda c: {"ema": c["loss_fn"]}, "holds no constructor arguments"),
    ],
)
def test_authors_pickles_that_do_not_fit_are_told(tmp_path, refused, change, message):
    refused(message, authors_pickle(tmp_path / "a.pkl", make("ddpmpp", EDMPreconditioning()), change=change))


# What the user says ---------------------------------------------------------------------------------------------------


def test_what_a_file_does_not_tell_is_asked_for_by_name(tmp_path, refused):
    sde = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()))
    refused("does not tell resolution, and is not the published model; give resolution=", sde)
    adm = adm_file(tmp_path / "a.pt", guided())
    refused("give resolution=", adm, channels_per_head=16)
    refused("give channels_per_head=", adm, resolution=16)


def test_what_has_no_effect_is_refused(tmp_path, refused):
    sde = score_sde_file(tmp_path / "a.pth", make("ddpmpp", VPPreconditioning()))
    refused("channels_per_head was given, but the file says it itself", sde, resolution=16, channels_per_head=8)
    for path, asked in tiny_files(tmp_path).items():
        if not asked:
            refused("resolution was given", path, resolution=16)
    for value in (0, -8, "16", 16.0, True):
        with pytest.raises(edm.UserError, match="must be a whole number of at least 1"):
            foreign.read(sde, resolution=value)
