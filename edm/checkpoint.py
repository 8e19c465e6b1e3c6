"""Checkpoints: weights as safetensors with the full configuration in the header. Nothing is ever unpickled."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm.config import TrainingConfig
from edm.denoiser import Denoiser
from edm.errors import UserError
from edm.files import atomic_write
from edm.losses import LOSSES
from edm.networks import UNet
from edm.preconditioning import EDM, PRECONDITIONINGS

FORMAT = "edm-checkpoint/1"


def build(config: TrainingConfig) -> Denoiser:
    """An untrained denoiser of a configuration; its weights come from torch's global generator.

    The noise levels it supports are those that training shows it: EDM's preconditioning takes any level, but trained
    with another design's noise distribution (configuration D) it has seen that distribution's alone.
    """
    preconditioning = PRECONDITIONINGS[config.preconditioning]()
    if isinstance(preconditioning, EDM):
        low, high = loss_of(config).sigma_range
        preconditioning = EDM(config.sigma_data, low, high)
    return Denoiser(UNet(config.network()), preconditioning)


def loss_of(config: TrainingConfig):
    """The training loss of a configuration."""
    if config.loss == "edm":
        return LOSSES["edm"](config.P_mean, config.P_std, config.sigma_data)
    return LOSSES[config.loss]()


def save(path: str | Path, denoiser: Denoiser, config: TrainingConfig, about: dict[str, Any]) -> None:
    """Writes the weights of a denoiser with its configuration and ``about`` (images seen, dataset hash, …)."""
    header = {"format": FORMAT, "config": config.to_dict(), "about": about}
    save_tensors(path, denoiser.state_dict(), header)


def load(path: str | Path, device: str | torch.device = "cpu") -> Denoiser:
    """The denoiser of a checkpoint, ready to sample from. Raises UserError for any other file."""
    tensors, header = load_tensors(path, FORMAT)
    config = _config(header, path)
    with torch.random.fork_rng(devices=[]):  # a fresh network draws weights; loading one must not disturb the caller
        denoiser = build(config)
    load_weights(denoiser, tensors, path)
    return denoiser.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def describe(path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint: ``config`` and ``about``, without reading any weight."""
    header = read_header(path, FORMAT)
    _config(header, path)
    return header


def _config(header: dict[str, Any], path: str | Path) -> TrainingConfig:
    if not all(isinstance(header.get(key), dict) for key in ("config", "about")):
        raise UserError(f"{path}: its header has no configuration; it was not written by this program")
    try:
        return TrainingConfig.from_dict(header["config"])
    except UserError as error:
        raise UserError(f"{path}: its configuration does not fit this version: {error}") from None


def load_weights(denoiser: Denoiser, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Copies tensors into a denoiser. Raises UserError where names or shapes differ."""
    own = denoiser.state_dict()
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise UserError(f"{path}: tensor {odd[0]!r} is missing or has no place in its configuration ({len(odd)} odd)")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{path}: {name!r} has shape {list(tensor.shape)}, expected {list(own[name].shape)}")
    denoiser.load_state_dict(tensors)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes tensors and a JSON header as one safetensors file, atomically; equal input gives equal bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # One metadata key: safetensors does not keep the order of several.
        metadata = {"edm": json.dumps(header, sort_keys=True, allow_nan=False)}
        try:
            save_file(host, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, in the library's words
            raise UserError(f"{path}: cannot be written ({error}); nothing was changed") from None


def load_tensors(path: str | Path, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file written by :func:`save_tensors` with that format name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path, format)
    try:
        return load_file(path), header
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def read_header(path: str | Path, format: str) -> dict[str, Any]:
    """The JSON header of a safetensors file of ours. Raises UserError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(path.stat().st_size, 100_000_000):
                raise ValueError("its header is longer than the file")
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        header = json.loads(metadata["edm"])
    except (struct.error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a file of ours: no readable safetensors header ({error})") from None
    kind = header.get("format") if isinstance(header, dict) else None
    if kind != format:
        raise UserError(f"{path}: is {kind!r}, expected {format!r}")
    return header
