"""What lets an interrupted training go on as if nothing had happened: its state and its log."""

import json
import math
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
        self.identity = digest([config.changes(), dataset.sha256])
        self.images, self.seconds, self.before = 0, 0.0, None

    def restore(self) -> int:
        """Loads the state of this very configuration and dataset, if there is one; returns the images it has seen."""
        if not self.path.exists():
            return 0
        try:
            tensors, header = checkpoint.load_tensors(self.path, STATE_FORMAT)
        except UserError:
            return 0  # torn or foreign: start again rather than not at all
        if header["identity"] != self.identity:
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
        tensors = {f"net.{name}": t for name, t in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.state_dict().items()}
        for index, parameter in enumerate(self.net.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{index}.{name}"] = value
        header = {"format": STATE_FORMAT, "identity": self.identity, "images": images, "seconds": seconds}
        checkpoint.save_tensors(self.path, tensors, {**header, "before": self.before})
        self.images = images

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
