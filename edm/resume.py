"""What lets an interrupted training go on as if nothing had happened: its state and its log."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from edm import checkpoint
from edm.config import TrainingConfig
from edm.data import Dataset
from edm.errors import UserError
from edm.files import digest, write_text

STATE_FORMAT = "edm-training-state/1"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
#: Fields that leave the weights after n images as they are: a state may be continued with others.
IRRELEVANT = {"duration", "microbatch", "snapshot_every", "level_samples"}


class TrainingLog:
    """log.jsonl: a row per tick. A resumed run drops the rows beyond its state, so that none is there twice."""

    def __init__(self, path: Path, images: int, active: bool):
        self.path, self.active = path, active
        if not active:
            return
        rows = path.read_text().splitlines() if images and path.exists() else []
        kept = [row for row in rows if _images_of(row) <= images]
        write_text(path, "".join(f"{row}\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        if self.active:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _images_of(row: str) -> float:
    try:
        return json.loads(row)["images"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line torn by a kill


class TrainingState:
    """What an interrupted run needs to go on: weights, their average, Adam's moments, counters."""

    def __init__(self, path: Path, config: TrainingConfig, dataset: Dataset, net, ema, optimizer):
        self.path, self.net, self.ema, self.optimizer = path, net, ema, optimizer
        changes = {name: value for name, value in config.changes().items() if name not in IRRELEVANT}
        self.identity = digest([changes, dataset.sha256])
        self.images, self.seconds, self.before = 0, 0.0, None

    def restore(self) -> int:
        """Loads the state of this very configuration and dataset, if there is one; returns the images it has seen.

        Any other file in its place is moved aside and named on stderr: training starts again rather than not at all.
        """
        if not self.path.exists():
            return 0
        try:
            tensors, header = checkpoint.load_tensors(self.path, STATE_FORMAT)
            reason = "belongs to another configuration or dataset" if header["identity"] != self.identity else None
        except UserError:
            reason = "is not a whole training state"
        if reason:
            aside = self.path.with_name(f"other-{self.path.name}")
            print(f"{self.path} {reason}: moved to {aside.name}, starting from the beginning", file=sys.stderr)
            self.path.replace(aside)
            return 0
        for prefix, module in (("net.", self.net), ("ema.", self.ema)):
            part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            checkpoint.load_weights(module, part, self.path)
        for index, parameter in enumerate(self.net.parameters()):
            # In the parameter's own memory format: fused Adam walks both side by side.
            moments = {k: torch.empty_like(parameter).copy_(tensors[f"adam.{index}.{k}"]) for k in MOMENTS}
            step = tensors[f"adam.{index}.step"].to(parameter.device)
            self.optimizer.state[parameter] = {"step": step, **moments}
        self.images, self.seconds, self.before = header["images"], header["seconds"], header["before"]
        return self.images

    def save(self, images: int, seconds: float) -> None:
        """Writes the state. Raises UserError, leaving the last one, where a weight is no longer finite."""
        tensors = {f"net.{name}": t for name, t in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.state_dict().items()}
        for index, parameter in enumerate(self.net.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{index}.{name}"] = value
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(
                f"{self.path.parent}: weights are not finite after {images:,} images; the last good state "
                f"({self.images:,} images) is kept. Try a lower learning_rate, clip_norm: 1.0 or precision: fp32"
            )
        header = {"format": STATE_FORMAT, "identity": self.identity, "images": images, "seconds": seconds}
        checkpoint.save_tensors(self.path, tensors, {**header, "before": self.before})
        self.images = images

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
