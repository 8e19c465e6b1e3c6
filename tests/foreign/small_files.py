"""Small checkpoints of every kind that is read, written as their programs write them, and raw pickles."""

import copyreg
import pickle
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import torch

from edm.config import NetworkConfig, TrainingConfig
from edm.design.preconditioning import IDDPMPreconditioning, VEPreconditioning, VPPreconditioning
from edm.foreign import adm, export, score_sde
from edm.foreign.published import constructor_call, to_published
from edm.models import building, checkpoint
from edm.models.denoiser import Denoiser
from edm.networks.unet import UNet

SOURCE = "import os\nos.mkdir('executed')\n"  # what module_src of the small files would do
_HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


# Denoisers ------------------------------------------------------------------------------------------------------------


def make(architecture, preconditioning, seed=0, **size):
    """A denoiser with random weights, without the layers of zeros that would hide an error."""
    torch.manual_seed(seed)
    size = {"resolution": 16, "channels": 3, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1,
            "attn_resolutions": (8,), "dropout": 0.1, **size}  # fmt: skip
    denoiser = Denoiser(UNet(NetworkConfig.of(architecture, **size)), preconditioning).placed("cpu")
    for name, parameter in denoiser.named_parameters():
        if parameter.ndim == 4 and ("proj" in name or "conv1" in name or "out_conv" in name):
            torch.nn.init.normal_(parameter, std=0.05)
    return denoiser.eval().requires_grad_(False)


def guided(preconditioning=None, **size):
    """A denoiser as guided-diffusion makes them: 32 groups in every norm, whatever the width."""
    size = {"model_channels": 32, "norm_groups": 32, "channels_per_head": 16, "out_channels": 6, **size}
    return make("adm", preconditioning or IDDPMPreconditioning(), **size)


def outputs(denoiser, sigmas=(0.05, 0.7, 9.0)):
    """D at fixed inputs, and the same for the classes that there are."""
    config = denoiser.network.config
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(sigmas), config.channels, config.resolution, config.resolution, generator=generator)
    labels = torch.arange(len(sigmas)) % config.classes if config.classes else None
    return denoiser(x, denoiser.round_sigma(torch.tensor(sigmas)), labels)


def equal(a, b):
    """Whether two denoisers are the same, to the bit: description, levels and weights."""
    same = a.network.config == b.network.config and type(a.preconditioning) is type(b.preconditioning)
    same = same and a.preconditioning.arguments() == b.preconditioning.arguments()
    ours, theirs = a.state_dict(), b.state_dict()
    return same and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# The authors' pickles -------------------------------------------------------------------------------------------------


class Saved:
    """An object of a decorated class: it pickles to a call with its class name, source and state."""

    def __init__(self, name, state, source=SOURCE):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextmanager
def authors_modules():
    """Stand-ins for the authors' modules, so that their names can be pickled."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("executed")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    easy_dict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    modules = {name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib")}
    modules["dnnlib.util"] = types.ModuleType("dnnlib.util")
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = easy_dict
    sys.modules.update(modules)
    try:
        yield easy_dict
    finally:
        for name in modules:
            del sys.modules[name]


def module(name, tensors, init_kwargs=None):
    """The saved module that holds these tensors, by their dotted names."""
    own = {key: tensor for key, tensor in tensors.items() if "." not in key}
    children = {}
    for key, tensor in tensors.items():
        first, dot, rest = key.partition(".")
        if dot:
            children.setdefault(first, {})[rest] = tensor
    buffers = {key: tensor for key, tensor in own.items() if key in ("resample_filter", "freqs", "u")}
    state = {
        "training": False,
        "_parameters": OrderedDict((k, torch.nn.Parameter(t, False)) for k, t in own.items() if k not in buffers),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        **{hooks: OrderedDict() for hooks in _HOOKS},
        "_modules": OrderedDict((key, module(key, part)) for key, part in children.items()),
        "skip_scale": np.sqrt(0.5),
        "_init_args": (),
        "_init_kwargs": init_kwargs or {},
    }
    if name not in ("enc", "dec"):
        return Saved(name, state)
    container = torch.nn.ModuleDict()
    container.__dict__.update({key: value for key, value in state.items() if key.startswith("_")})
    return container


def authors_pickle(path, denoiser, protocol=4, change=lambda content: content):
    """Writes {ema, loss_fn, augment_pipe, dataset_kwargs}."""
    class_name, init_kwargs = constructor_call(denoiser)
    tensors = {name: tensor.contiguous() for name, tensor in to_published(denoiser).items()}
    return write_authors(path, class_name, init_kwargs, tensors, protocol, change)


def write_authors(path, class_name, init_kwargs, tensors, protocol=4, change=lambda content: content):
    with authors_modules() as easy_dict:
        content = {
            "ema": module(class_name, tensors, {**init_kwargs, "use_fp16": False}),
            "loss_fn": Saved("EDMLoss", {"P_mean": np.float32(-1.2), "sigma_data": np.float64(0.5)}),
            "augment_pipe": None,
            "dataset_kwargs": easy_dict(path="data.zip", resolution=16),
        }
        path.write_bytes(pickle.dumps(change(content), protocol))
    return path


# score_sde and guided-diffusion ---------------------------------------------------------------------------------------


def score_sde_file(path, denoiser, legacy=False, change=lambda content: content):
    """Writes {optimizer, model, ema, step}; the weights beside the EMA are other numbers."""
    own = {name: tensor.contiguous() for name, tensor in denoiser.network.state_dict().items()}
    theirs = {}
    for name, parts in score_sde.places(denoiser.network):
        tensor = own[name]
        if name.endswith((".qkv.weight", ".proj.weight")):
            tensor = tensor[:, :, 0, 0]
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            theirs[part] = piece.T.contiguous() if part.endswith(".W") and piece.ndim == 2 else piece.clone()
    ve = isinstance(denoiser.preconditioning, VEPreconditioning)
    low, high = (denoiser.sigma_min / 2, denoiser.sigma_max / 2) if ve else (0.01, 50.0)
    model = {"module.sigmas": torch.linspace(np.log(high), np.log(low), 10, dtype=torch.float64).exp()}
    trained = [part for part in theirs if part != "0.W"]
    model |= {f"module.all_modules.{part}": theirs[part] if part == "0.W" else theirs[part] + 1 for part in theirs}
    content = {
        "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4}]},
        "model": OrderedDict(model),
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": [theirs[part] for part in trained]},
        "step": 7,
    }
    torch.save(change(content), path, _use_new_zipfile_serialization=not legacy)
    return path


def adm_file(path, denoiser, change=lambda content: content, old=False):
    """Writes the state dict, with the attribute that torch gives to those of modules.

    old: with the attention's channels in the order of guided-diffusion's default.
    """
    own = denoiser.network.state_dict()
    state = OrderedDict()
    for name, theirs in adm.places(denoiser.network):
        tensor = own[name].contiguous()
        tensor = tensor.T.contiguous() if name == "embedding.label.weight" else tensor
        if old and ".qkv." in name:  # (q, k, v; head; channel) to (head; q, k, v; channel)
            size = denoiser.network.config.channels_per_head
            heads = range(0, len(tensor) // 3, size)
            tensor = torch.cat([part[h : h + size] for h in heads for part in tensor.chunk(3)])
        state[theirs] = tensor[..., 0] if ".attention." in name and tensor.ndim == 4 else tensor
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(change(state), path)
    return path


# Tiny ones, to be mutated ---------------------------------------------------------------------------------------------

TINY = {"resolution": 8, "channels": 1, "model_channels": 4, "channel_mult": (1,), "attn_resolutions": (8,)}


def tiny_files(folder):
    """path → the arguments that it needs, of one small file per kind and container."""
    vp, ve = (
        make("ddpmpp", VPPreconditioning(), **TINY),
        make("ncsnpp", VEPreconditioning(), **{**TINY, "channel_mult": (1, 1)}),
    )
    cosine = guided(IDDPMPreconditioning(steps=20), **{**TINY, "model_channels": 32, "out_channels": 2, "classes": 2})
    files = {
        authors_pickle(folder / "authors.pkl", vp): {},
        score_sde_file(folder / "score-vp.pth", vp): {"resolution": 8},
        score_sde_file(folder / "score-ve.pth", ve, legacy=True): {"resolution": 8},
        adm_file(folder / "adm.pt", cosine): {"resolution": 8, "channels_per_head": 16},
        folder / "own.safetensors": {},
        folder / "trained.safetensors": {},
        folder / "export.pt": {},
    }
    checkpoint.save(folder / "own.safetensors", cosine, None, {})
    config = TrainingConfig(conditional=False, num_blocks=1, **TINY)
    checkpoint.save(folder / "trained.safetensors", building.build(config), config, {"images": 7})
    export(folder / "own.safetensors", folder / "export.pt")
    return files


# Raw pickles ----------------------------------------------------------------------------------------------------------


class Call:
    """Pickles to a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call

    def __call__(self):
        raise AssertionError("pickle wants something callable to be called")


EXECUTED = []


def execute(*arguments):
    """What a payload calls that is made of the tests' own functions."""
    EXECUTED.append(arguments)


class Extension:
    """Pickles to an entry of copyreg's extension registry (EXT1)."""


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module_name, name):
    """The instructions that push a global."""
    return text(module_name) + text(name) + b"\x93"


@contextmanager
def extension(code=240):
    copyreg.add_extension(__name__, "Extension", code)
    try:
        yield
    finally:
        copyreg.remove_extension(__name__, "Extension", code)
