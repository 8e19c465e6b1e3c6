"""Weights of published networks: download and safe reading, which executes no code of the file."""

import os
import re
from pathlib import Path, PurePosixPath

import torch

from edm.errors import UserError
from edm.files.download import download
from edm.files.lock import exclusive


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state dict in a file of torch.save, on the CPU; executes no code of the file.

    Raises UserError if the file is missing or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path of the feature extractor's weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise UserError(f"{path}: not a readable file of tensors; download the weights again") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict; give the weights as they are published")
    return state


def downloaded(name: str, url: str, sha256: str) -> Path:
    """The file at ``url`` in torch's cache, as torch.hub stores it; downloads and verifies it if absent.

    name: of the extractor, for messages. sha256: hash of the file, or its first digits.
    Raises UserError if the file is absent and cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    if path.is_file():
        return path
    try:
        with exclusive(path.with_name(f".{path.name}.held"), patience=3600):  # for other jobs that start now
            return download(url, path, sha256)
    except UserError as error:
        raise UserError(f"{name}: no weights here: {error}, or give its path as the weights") from None


def hash_in_name(url: str) -> str:
    """First digits of the SHA-256 of a file published as ``name-<digits>.ext``, as torch.hub does."""
    return re.findall(r"-([0-9a-f]{8,64})\.[a-z]+$", url)[0]
