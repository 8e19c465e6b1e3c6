"""Reads a checkpoint of any known kind as a denoiser; the content of the file determines its kind."""

import io
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO

import torch

from edm.errors import UserError, out_of_memory
from edm.files.reading import open_regular
from edm.files.refusals import printable, refused, shown
from edm.files.tensors import load_tensors, read_header
from edm.files.torch_files import LEGACY_START, legacy, plain, zipped
from edm.foreign import adm, exporting, persistent, score_sde
from edm.foreign.asked import Asked
from edm.models import checkpoint
from edm.models.denoiser import Denoiser

_LARGEST = 8 << 30  # bytes; the largest published file has 1.2 GB
_FAMILIES = (persistent, score_sde, adm, exporting)
_OWN = "a checkpoint of this program"
_EDM2 = b"MPFourier"  # a class name in the source code of every EDM2 network


@dataclass(frozen=True)
class Imported:
    """A denoiser from a file, and facts about it as plain values in ``about``:

    source: the kind of file; source_sha256: of its bytes; licence: of the published files of that kind;
    asked: the user's arguments; inferred: values from the file; assumed: defaults for all other values.
    """

    denoiser: Denoiser
    about: dict[str, Any]


def read(path: str | Path, **stated: Any) -> Imported:
    """The denoiser in a checkpoint of any known kind: float32, in evaluation mode, without gradients.

    The known kinds are pickles of the EDM authors, files of score_sde and guided-diffusion (torch.save), exports of
    this program, and its own checkpoints. No code in a file is ever run.
    stated: values that the file does not contain, by the names of :class:`edm.foreign.asked.Asked`. ``resolution`` and
    ``channels_per_head`` are required if the model does not have the published size; the others default to the values
    of the published files, and ``assumed`` lists them. Raises UserError, in one line, for a file of another kind, for a
    damaged, hostile or incomplete file, and for an argument that has no effect on it.
    """
    asked = Asked(**stated)
    try:
        with open_regular(path, "a checkpoint") as file:
            size = file.seek(0, io.SEEK_END)
            if size > _LARGEST:
                raise refused(f"it has {size:,} bytes, more than any checkpoint")
            file.seek(0)
            digest = file_digest(file, "sha256").hexdigest()
            source, denoiser, about = _read(path, file, asked)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give the path of a checkpoint") from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"{path}: there is not enough memory for its {size:,} bytes; free some") from None
    except UserError as error:
        raise UserError(f"{path}: {printable(str(error).removeprefix(f'{path}: '))}") from None
    about = {"source": source, "source_sha256": digest, **about}
    return Imported(denoiser, about | ({"asked": asked.given()} if asked.given() else {}))


def load(path: str | Path, device: str | torch.device = "cpu", **stated: Any) -> Denoiser:
    """The denoiser of a checkpoint of this program, EDM, score_sde or guided-diffusion, on a device.

    stated: what the file does not determine, such as ``attention_order="old"``. Executes no code from the file. Raises
    UserError for a file that is damaged, or of none of these kinds, and for an unknown device.
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device {device!r} is unknown; choose cpu, cuda or cuda:0") from None
    return read(path, **stated).denoiser.placed(place)


def convert(path: str | Path, out: str | Path, **stated: Any) -> Imported:
    """Writes the denoiser of :func:`read` as a checkpoint of this program, with the facts about it in the header.

    Equal files and arguments give equal bytes. Raises UserError like :func:`read`, and for a checkpoint of this
    program.
    """
    imported = read(path, **stated)
    if imported.about["source"] == _OWN:
        raise UserError(f"{path}: is a checkpoint of this program already; use it as it is")
    checkpoint.save(out, imported.denoiser, None, imported.about)
    return imported


def _read(path: str | Path, file: BinaryIO, asked: Asked) -> tuple[str, Denoiser, dict[str, Any]]:
    """(kind of file, denoiser, facts about it)."""
    file.seek(0)
    start = file.read(512)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:  # the length of a JSON header
        return _safetensors(path, asked)
    if start.startswith(b"PK"):
        value = zipped(file, persistent.NAMES)
    elif start.startswith(LEGACY_START):
        value = legacy(file, persistent.NAMES)
    elif start.startswith(b"\x80"):
        value = _authors(file)
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UserError("is a web page, not a checkpoint; get the file again, with a browser where a page asks first")
    elif not start:
        raise UserError("is empty; get the file again")
    else:
        raise UserError("is of no known kind: neither a pickle, nor a file of torch.save, nor safetensors")
    for family in _FAMILIES:
        if family.recognises(value):
            return family.SOURCE, *family.denoiser(value, file, asked)
    if persistent.is_training_state(value):
        raise persistent.training_state()
    keys = ", ".join(shown(key) for key in list(value)[:5]) if isinstance(value, dict) else ""
    raise refused(f"it holds {f'a dictionary of {keys}, …' if keys else shown(value)}, which is no known checkpoint")


def _authors(file: BinaryIO) -> Any:
    """The value of a plain pickle. EDM2's pickles may fail to load, since they contain objects that EDM's do not."""
    try:
        return plain(file, persistent.NAMES)
    except UserError:
        file.seek(0)
        if _EDM2 in file.read(4 << 20):
            raise persistent.edm2() from None
        raise


def _safetensors(path: str | Path, asked: Asked) -> tuple[str, Denoiser, dict[str, Any]]:
    """A checkpoint or an export of this program."""
    asked.allow()
    try:
        header = read_header(path, exporting.FORMAT)
    except UserError:
        denoiser, about = checkpoint.load(path), checkpoint.describe(path)["about"]
        return _OWN, denoiser, {"licence": exporting.licence(about), "inferred": {}, "assumed": {}, "about": about}
    tensors, _ = load_tensors(path, exporting.FORMAT)
    return exporting.SOURCE, *exporting.rebuilt({**header, "state_dict": tensors})
