"""Checkpoints: weights as safetensors with the full configuration in the header. This module never unpickles."""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm import registry
from edm.config import NetworkConfig, TrainingConfig
from edm.design.preconditioning import Preconditioning, preconditioning_from
from edm.errors import UserError
from edm.files.reading import open_regular
from edm.files.tensors import load_tensors, read_header, save_tensors
from edm.files.torch_files import LEGACY_START
from edm.models.building import preconditioning_of
from edm.models.denoiser import Denoiser, assemble, require_shape
from edm.networks.limits import require_plausible

FORMAT = "edm-checkpoint/1"
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))  # the first instruction states the protocol
_START = 1024  # bytes of a file that tell its kind


def save(path: str | Path, denoiser: Denoiser, config: TrainingConfig | None, about: dict[str, Any]) -> None:
    """Writes the weights of a denoiser with its configuration and ``about`` (images seen, dataset hash, …).

    config: None for an imported denoiser; the header then describes its network and preconditioning instead.
    """
    description: dict[str, Any]
    if config is not None:
        description = {"config": config.to_dict()}
        if parts := config.parts():
            description["plugins"] = [_origin(part) for part in parts]
    else:
        preconditioning = denoiser.preconditioning
        description = {
            "network": denoiser.network.config.to_dict(),
            "preconditioning": {"name": preconditioning.name, "arguments": preconditioning.arguments()},
        }
    save_tensors(path, denoiser.state_dict(), {"format": FORMAT, **description, "about": about})


def load(path: str | Path, device: str | torch.device = "cpu") -> Denoiser:
    """Loads the denoiser of a checkpoint, ready for sampling. Raises UserError if the file is not a checkpoint."""
    _refuse_foreign(path)
    tensors, header = load_tensors(path, FORMAT)
    network, preconditioning = _description(header, path)
    denoiser = assemble(network, preconditioning, tensors, str(path))
    return denoiser.placed(device)


def describe(path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint; reads no weights.

    It holds ``about`` and ``config`` (a :class:`TrainingConfig`) or, for an imported model, ``network`` (a
    :class:`NetworkConfig`) and ``preconditioning`` (its name and arguments).
    """
    _refuse_foreign(path)
    header = read_header(path, FORMAT)
    _description(header, path)
    return header


def network_of(path: str | Path) -> NetworkConfig:
    """The network configuration of a checkpoint; reads no weights."""
    return _description(describe(path), path)[0]


def _refuse_foreign(path: str | Path) -> None:
    """Raises UserError, which names the remedy, for a pickle and for a file of torch.save, by the first bytes."""
    with open_regular(path, repr(FORMAT)) as file:
        start = file.read(_START)
    if (start.startswith(b"PK") and b"/data.pkl" in start) or start.startswith(LEGACY_START):
        kind = "a file of torch.save"
    elif start.startswith(_PICKLES):
        kind = "a pickle of the EDM authors' program" if b"torch_utils" in start else "a pickle"
    else:
        return
    raise UserError(
        f"{path}: {kind}; convert it first: {shlex.join(['edm', 'import', str(path), 'model.safetensors'])}"
    )


def _description(header: dict[str, Any], path: str | Path) -> tuple[NetworkConfig, Preconditioning]:
    """Network and preconditioning from a header. Raises UserError if this version does not support them."""
    parts = {key: value for key in ("config", "network", "preconditioning", "about")
             if isinstance(value := header.get(key), dict)}  # fmt: skip
    if "about" not in parts or not ("config" in parts or {"network", "preconditioning"} <= parts.keys()):
        raise UserError(f"{path}: its header has no configuration; it was not written by this program")
    _require_plugins(header.get("plugins"), path)
    try:
        if "config" in parts:
            config = TrainingConfig.from_dict(parts["config"])
            return config.network(), preconditioning_of(config)
        require_plausible(parts["network"])
        name, arguments = (parts["preconditioning"].get(key) for key in ("name", "arguments"))
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise UserError("its preconditioning has no name or no arguments")
        return NetworkConfig.from_dict(parts["network"]), preconditioning_from(name, arguments)
    except (UserError, ArithmeticError) as error:
        raise UserError(f"{path}: its configuration does not fit this version: {error}") from None


def _origin(part: registry.Part) -> dict[str, str]:
    """Where a part of a plugin comes from, for a header."""
    source = {"file": part.source.file, "sha256": part.source.sha256} if part.source else {}
    return {"kind": part.kind, "name": part.name, **source}


def _require_plugins(stated: Any, path: str | Path) -> None:
    """Raises UserError if a plugin that a header names is not loaded. The header only names it: no file is run.

    Warns on stderr of a plugin whose file has changed since.
    """
    for one in stated if isinstance(stated, list) else ():
        told = {key: value for key, value in one.items() if isinstance(value, str)} if isinstance(one, dict) else {}
        kind, name = told.get("kind", ""), told.get("name", "")
        if kind not in registry.KINDS or registry.is_own(kind, name):
            raise UserError(f"{path}: its header names {kind[:40]!r}, no kind of part of a plugin")
        if name not in registry.Names(kind):
            file, sha256 = told.get("file", "unknown"), told.get("sha256", "unknown")[:12]
            raise UserError(
                f"{path}: needs {kind} {name} of the plugin {file} (sha256 {sha256}); name its file "
                "under `plugins` in params.yaml, or in `edm --plugins FILE`"
            )
        source = registry.find(kind, name).source
        if source is not None and source.sha256 != told.get("sha256"):
            print(f"warning: {path}: made with another version of {kind} {name}; {source.file} has changed since",
                  file=sys.stderr)  # fmt: skip


def load_weights(denoiser: Denoiser, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Copies tensors into a denoiser. Raises UserError if names or shapes differ."""
    own = denoiser.state_dict()
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise UserError(f"{path}: tensor {odd[0]!r} is missing or has no place in its configuration ({len(odd)} odd)")
    for name, tensor in tensors.items():
        require_shape(name, tensor, own[name].shape, str(path))
    denoiser.load_state_dict(tensors)
