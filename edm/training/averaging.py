"""Averages of a training run's weights after the fact, from its snapshots: each file is read once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm.config import TrainingConfig
from edm.design.averages import HalfLife, PowerFunction, Profile, Recombination, doubts, recombine
from edm.errors import UserError
from edm.files.tensors import load_tensors, save_tensors
from edm.files.writing import named
from edm.models import checkpoint

TRACKS = "averages"  # folder of a training run with the snapshots of its power-function averages


@dataclass(frozen=True)
class Average:
    """An average that was written: its file, its width, how well it fits, and the number of snapshots."""

    path: Path
    width: float
    found: Recombination
    snapshots: int

    @property
    def doubts(self) -> list[str]:
        """What speaks against the average, in words."""
        return doubts(self.found.residual, self.found.total)


def snapshots_of(run: str | Path) -> list[Path]:
    """The snapshots of a training run's folder: of its power-function averages if it keeps any, else of its EMA.

    Raises UserError if it has none.
    """
    folder = Path(run)
    found = sorted(folder.glob(f"{TRACKS}/*/*.safetensors")) or sorted(folder.glob("snapshots/*.safetensors"))
    if not found:
        raise UserError(f"{folder}: has no snapshots; state snapshot_every, and train again")
    return found


def require_whole(run: str | Path, config: TrainingConfig) -> None:
    """Raises UserError unless a training run's folder has the snapshots of its configuration, and no others."""
    root, tracks = Path(run), [f"{TRACKS}/{width:g}" for width in config.ema_widths] or ["snapshots"]
    found = {str(path.relative_to(root)) for path in snapshots_of(root)}
    wanted = {f"{track}/{images:012d}.safetensors" for track in tracks for images in config.snapshots}
    if found != wanted:
        raise UserError(f"{root}: {len(found)} snapshots, {len(wanted)} expected; train again to have them all")


def average(
    snapshots: Sequence[str | Path], widths: Sequence[float], out: str | Path, images: int | None = None, mark: str = ""
) -> list[Average]:
    """Writes ``out``/ema-WIDTH.safetensors for each width: the average that training would have made.

    snapshots: of one training run, of its half-life's average or of power functions, in any order. widths: relative,
    such as 0.13. images: seen so far, t; by default those of the last snapshot. mark: after the width in the name of
    each file, such as "-at-20". Sums are float64.

    ``average(snapshots_of("runs/averaged/vp-F"), [0.05, 0.13], "runs/averaged/vp-F")``

    Raises UserError for files of different training runs, and for widths and times that no average has.
    """
    if len(set(widths)) < len(widths) or not widths:
        raise UserError(f"widths {list(widths)}: name each once")
    headers = {Path(path): checkpoint.describe(path) for path in snapshots}
    profiles = {path: _profile(path, header) for path, header in headers.items()}
    first = next(iter(headers))
    for path, header in headers.items():
        other = [name for name in ("config",) if header[name] != headers[first][name]]
        if other or header["about"].get("dataset_sha256") != headers[first]["about"].get("dataset_sha256"):
            raise UserError(f"{path}: is of another training run than {first}; name snapshots of one")
    at = images or max(int(seen) for _, seen in profiles.values())
    recombined = [recombine((PowerFunction(width), at), list(profiles.values())) for width in widths]
    sums = _summed(list(profiles), [one.weights for one in recombined])
    written = []
    for width, one, tensors in zip(widths, recombined, sums, strict=True):
        path = Path(out) / f"ema-{named(width)}{mark}.safetensors"
        ema = {"width": width, "residual": one.residual, "total": one.total, "snapshots": len(profiles)}
        about = {**headers[first]["about"], "images": at, "ema": ema}
        save_tensors(path, tensors, {**headers[first], "about": about})
        written.append(Average(path, width, one, len(profiles)))
    return written


def _profile(path: Path, header: dict[str, Any]) -> tuple[Profile, float]:
    """The profile of a snapshot, and the images seen."""
    about, stated = header["about"], header.get("config")
    seen, ema = about.get("images"), about.get("ema")
    if not isinstance(seen, int) or seen <= 0 or stated is None:
        raise UserError(f"{path}: is no snapshot of a training run (its header has no images or no configuration)")
    if isinstance(ema, dict):
        if "residual" in ema or not isinstance(ema.get("width"), float):
            raise UserError(f"{path}: is itself made of snapshots; name those of the training run")
        return PowerFunction(ema["width"]), float(seen)
    config = TrainingConfig.from_dict(stated)
    if config.ema_halflife == 0:
        raise UserError(f"{path}: ema_halflife is 0, so no snapshot averages anything")
    return HalfLife(config.ema_halflife * 1e6, config.ema_rampup or None), float(seen)


def _summed(paths: Sequence[Path], weights: Sequence[Sequence[float]]) -> list[dict[str, Tensor]]:
    """Σ_i w_i of the tensors of all files, float32, for each row of weights. What is the same in all files stays so."""
    first: dict[str, Tensor] = {}
    sums: list[dict[str, Tensor]] = [{} for _ in weights]
    constant: set[str] = set()
    for index, path in enumerate(paths):
        tensors, _ = load_tensors(path, checkpoint.FORMAT)
        if index == 0:
            first, constant = tensors, set(tensors)
            sums = [
                {name: torch.zeros_like(one, dtype=torch.float64) for name, one in tensors.items()} for _ in weights
            ]
        if tensors.keys() != first.keys() or any(one.shape != first[name].shape for name, one in tensors.items()):
            raise UserError(f"{path}: has other tensors than {paths[0]}; name snapshots of one training run")
        constant = {name for name in constant if torch.equal(tensors[name], first[name])}
        for row, total in zip(weights, sums, strict=True):
            for name, tensor in tensors.items():
                total[name].add_(tensor.to(torch.float64), alpha=row[index])
    return [
        {name: first[name] if name in constant else tensor.to(first[name].dtype) for name, tensor in total.items()}
        for total in sums
    ]
