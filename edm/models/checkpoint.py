"""Checkpoints: weights as safetensors with the full configuration in the header. This module never unpickles."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm.config import NetworkConfig, TrainingConfig
from edm.design.losses import LOSSES
from edm.design.preconditioning import PRECONDITIONINGS, EDMPreconditioning, Preconditioning, preconditioning_from
from edm.errors import UserError
from edm.files.writing import atomic_write, digest
from edm.models.denoiser import Denoiser, assemble, require_shape
from edm.networks.limits import require_plausible
from edm.networks.unet import UNet

FORMAT = "edm-checkpoint/1"
_LONGEST_HEADER = 16 << 20  # bytes; parsed JSON can take 25 times as much memory


def build(config: TrainingConfig) -> Denoiser:
    """An untrained denoiser of a configuration; torch's global generator initialises the weights.

    It supports the noise levels of its training: EDM's preconditioning accepts any level, but a model trained with the
    noise distribution of another design (configuration D) has seen only the levels of that distribution.
    """
    return Denoiser(UNet(config.network()), _preconditioning(config))


def _preconditioning(config: TrainingConfig) -> Preconditioning:
    preconditioning = PRECONDITIONINGS[config.preconditioning]()
    if isinstance(preconditioning, EDMPreconditioning):
        low, high = loss_of(config).sigma_range
        preconditioning = EDMPreconditioning(config.sigma_data, low, high)
    return preconditioning


def loss_of(config: TrainingConfig):
    """The training loss of a configuration."""
    if config.loss == "edm":
        return LOSSES["edm"](config.P_mean, config.P_std, config.sigma_data)
    return LOSSES[config.loss]()


def save(path: str | Path, denoiser: Denoiser, config: TrainingConfig | None, about: dict[str, Any]) -> None:
    """Writes the weights of a denoiser with its configuration and ``about`` (images seen, dataset hash, …).

    config: None for an imported denoiser; the header then describes its network and preconditioning instead.
    """
    if config is not None:
        description = {"config": config.to_dict()}
    else:
        preconditioning = denoiser.preconditioning
        description = {
            "network": denoiser.network.config.to_dict(),
            "preconditioning": {"name": preconditioning.name, "arguments": preconditioning.arguments()},
        }
    save_tensors(path, denoiser.state_dict(), {"format": FORMAT, **description, "about": about})


def load(path: str | Path, device: str | torch.device = "cpu") -> Denoiser:
    """Loads the denoiser of a checkpoint, ready for sampling. Raises UserError if the file is not a checkpoint."""
    tensors, header = load_tensors(path, FORMAT)
    network, preconditioning = _description(header, path)
    denoiser = assemble(network, preconditioning, tensors, str(path))
    return denoiser.to(device).to(memory_format=torch.channels_last)


def describe(path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint; reads no weights.

    It holds ``about`` and ``config`` (a :class:`TrainingConfig`) or, for an imported model, ``network`` (a
    :class:`NetworkConfig`) and ``preconditioning`` (its name and arguments).
    """
    header = read_header(path, FORMAT)
    _description(header, path)
    return header


def network_of(path: str | Path) -> NetworkConfig:
    """The network configuration of a checkpoint; reads no weights."""
    return _description(read_header(path, FORMAT), path)[0]


def _description(header: dict[str, Any], path: str | Path) -> tuple[NetworkConfig, Preconditioning]:
    """Network and preconditioning from a header. Raises UserError if this version does not support them."""
    parts = {key: value for key in ("config", "network", "preconditioning", "about")
             if isinstance(value := header.get(key), dict)}  # fmt: skip
    if "about" not in parts or not ("config" in parts or {"network", "preconditioning"} <= parts.keys()):
        raise UserError(f"{path}: its header has no configuration; it was not written by this program")
    try:
        if "config" in parts:
            config = TrainingConfig.from_dict(parts["config"])
            return config.network(), _preconditioning(config)
        require_plausible(parts["network"])
        name, arguments = (parts["preconditioning"].get(key) for key in ("name", "arguments"))
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise UserError("its preconditioning has no name or no arguments")
        return NetworkConfig.from_dict(parts["network"]), preconditioning_from(name, arguments)
    except (UserError, ArithmeticError) as error:
        raise UserError(f"{path}: its configuration does not fit this version: {error}") from None


def load_weights(denoiser: Denoiser, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Copies tensors into a denoiser. Raises UserError if names or shapes differ."""
    own = denoiser.state_dict()
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise UserError(f"{path}: tensor {odd[0]!r} is missing or has no place in its configuration ({len(odd)} odd)")
    for name, tensor in tensors.items():
        require_shape(name, tensor, own[name].shape, str(path))
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
        except SafetensorError as error:  # such as a full disk
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


def checksum(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """Checksum of the names, types, shapes and bytes of the tensors (on the host, contiguous), and of the header.

    CRC-32 detects accidental damage as reliably as a cryptographic hash in a third of the time: 0.5 s for 1.2 GB.
    """
    parts = [
        [
            name,
            str(tensor.dtype),
            list(tensor.shape),
            zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data),
        ]
        for name, tensor in sorted(tensors.items())
    ]
    return digest([header, parts])


def read_header(path: str | Path, format: str) -> dict[str, Any]:
    """The JSON header of a file written by :func:`save_tensors`. Raises UserError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(path.stat().st_size, _LONGEST_HEADER):
                raise ValueError("its header is longer than the file or than the limit")
            metadata = json.loads(file.read(length).decode()).get("__metadata__", {})  # json would guess the encoding
        header = json.loads(metadata["edm"])
    except (struct.error, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a file of this program: no readable safetensors header ({error})") from None
    kind = header.get("format") if isinstance(header, dict) else None
    if kind != format:
        raise UserError(f"{path}: is {kind!r}, expected {format!r}")
    return header
