"""Exports checkpoints under the published names, so that other programs can use them."""

import io
from pathlib import Path
from typing import Any, BinaryIO

import torch

from edm.errors import UserError
from edm.files.refusals import damaged
from edm.files.tensors import save_tensors
from edm.files.writing import atomic_write
from edm.foreign.asked import Asked
from edm.foreign.published import constructor_call, differences, from_published, known_arguments, to_published
from edm.foreign.tensors import Stored, StoredTensors, unwrapped
from edm.models import checkpoint
from edm.models.denoiser import Denoiser

FORMAT = "edm-published/1"
SOURCE = "an export of this program"


def export(checkpoint_path: str | Path, out: str | Path) -> list[str]:
    """Writes the weights of a checkpoint of this program as a state dict under the published names.

    out: ``.safetensors``, with ``class_name`` and ``init_kwargs`` (the published constructor call) in its header, or
    ``.pt``, a dictionary written by torch.save that also holds the state dict. :func:`edm.foreign.read` reads both back
    exactly. Returns the reasons why that call of the authors' class gives another model; [] means that the authors'
    class loads the state dict and computes the same. Raises UserError for another suffix, and for a network that the
    published classes cannot describe.
    """
    if Path(out).suffix not in (".safetensors", ".pt"):
        raise UserError(f"{out}: choose an ending: .safetensors or .pt")
    denoiser = checkpoint.load(checkpoint_path)
    class_name, init_kwargs = constructor_call(denoiser)
    found = differences(denoiser, init_kwargs)
    # iDDPMPrecond always has a learned variance, without an argument for it; importing removes it again.
    without = class_name == "iDDPMPrecond" and denoiser.network.config.out_channels is None
    own = {"out_channels": init_kwargs.pop("out_channels")} if without else {}
    about = checkpoint.describe(checkpoint_path)["about"]
    header = {"format": FORMAT, "class_name": class_name, "init_kwargs": init_kwargs, "own": own, "about": about}
    tensors = {name: tensor.detach().contiguous() for name, tensor in to_published(denoiser).items()}
    if Path(out).suffix == ".safetensors":
        save_tensors(out, tensors, header)
        return found
    buffer = io.BytesIO()
    torch.save({**header, "state_dict": tensors}, buffer)  # in memory: torch writes file names into files
    with atomic_write(out) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return found


def recognises(value: Any) -> bool:
    return isinstance(value, dict) and {"class_name", "init_kwargs", "state_dict"} <= value.keys()


def denoiser(value: dict[str, Any], file: BinaryIO, asked: Asked) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of an export to ``.pt``, and the facts about it. Raises UserError."""
    asked.allow()
    state = unwrapped(value["state_dict"]) if type(value["state_dict"]) is dict else None
    if state is None or not all(isinstance(tensor, Stored) for tensor in state.values()):
        raise damaged("its state dict holds something else than tensors")
    return rebuilt({**value, "state_dict": StoredTensors(file, state)})


def rebuilt(value: dict[str, Any]) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of an export, whose ``state_dict`` maps names to tensors, and facts about it. Raises UserError."""
    class_name, init_kwargs, own = value.get("class_name"), value.get("init_kwargs"), value.get("own", {})
    if type(class_name) is not str or type(init_kwargs) is not dict or type(own) is not dict:
        raise damaged("it names no class and no constructor arguments")
    known, _ = known_arguments(init_kwargs | own)
    about = {"licence": licence(value.get("about")), "inferred": {"class_name": class_name, "init_kwargs": known},
             "assumed": {}}  # fmt: skip
    return from_published(class_name, known, value["state_dict"]), about


def licence(about: Any) -> str:
    """The licence that a file of this program inherits from its source file."""
    found = about.get("licence") if isinstance(about, dict) else None
    return found[:200] if isinstance(found, str) else "its maker's"
