"""Weights of published networks: download and safe reading, which executes no code of the file."""

import os
import re
from pathlib import Path, PurePosixPath

import torch

from edm.errors import UserError
from edm.files.download import download
from edm.files.lock import exclusive
from edm.files.reading import open_regular
from edm.files.stored import Stored, StoredTensors
from edm.files.torch_files import saved


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state dict in a file of torch.save, on the CPU; executes no code of the file.

    Raises UserError if the file is missing or holds anything else. It takes no more memory than the file has bytes.
    """
    with open_regular(path, "the weights of a feature extractor") as file:
        try:
            state = saved(file)
            if isinstance(state, dict) and all(
                type(name) is str and isinstance(value, Stored) for name, value in state.items()
            ):
                return StoredTensors(file, state).together()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); download the weights again") from None
        except UserError as error:
            raise UserError(f"{path}: not a readable file of tensors ({error})") from None
    raise UserError(f"{path}: not a state dict; give the weights as they are published")


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
        raise UserError(
            f"{name}: no weights here: {error}, or give --weights FILE (--features pixels needs none)"
        ) from None


def hash_in_name(url: str) -> str:
    """First digits of the SHA-256 of a file published as ``name-<digits>.ext``, as torch.hub does."""
    return re.findall(r"-([0-9a-f]{8,64})\.[a-z]+$", url)[0]
