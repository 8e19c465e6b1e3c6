"""Training states and the training log, from which an interrupted run resumes with bit-identical results."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm.cluster.preemption import note_kept
from edm.cluster.processes import World
from edm.config import TrainingConfig
from edm.data.archive import Dataset
from edm.errors import UserError
from edm.files.background import Background
from edm.files.hashes import digest
from edm.files.tensors import checksum, load_tensors, read_header, save_tensors
from edm.models import checkpoint
from edm.models.denoiser import Denoiser
from edm.training.loss_levels import Levels

STATE_FORMAT = "edm-training-state/2"
#: Fields without effect on the weights after n images: a run may resume with other values.
IRRELEVANT = {"duration", "microbatch", "snapshot_every", "level_samples"}
#: Fields that states of earlier versions do not have: their defaults are left out of the identity.
LATER = {"label_dropout", "ema_widths"}
_HEADER = {"identity", "images", "seconds", "before", "overflowing", "checksum"}
SLOW_DISK = 50e6  # bytes per second; estimates the time to save until it is measured


def states(out: Path) -> list[Path]:
    """The files of a training run's last two states."""
    return [out / f"state-{slot}.safetensors" for slot in (0, 1)]


def remove_states(out: Path) -> None:
    """Removes the states of a finished training run."""
    for path in states(out):
        path.unlink(missing_ok=True)


class TrainingState:
    """The state from which a run resumes: weights, their average, Adam's moments, sums of the log, counters.

    The last two states are kept, in state-0.safetensors and state-1.safetensors alternately, so that one is complete
    while the other is written, and even if the newer one is damaged later. The number of images seen decides which
    state is newer, never a clock. A checksum covers the whole content of a state.

    All processes of a run call ``restore`` and ``save``; rank 0 chooses the state, and writes it.
    """

    def __init__(
        self, out: Path, config: TrainingConfig, dataset: Dataset, net: Denoiser, ema: Denoiser,
        optimizer: torch.optim.Optimizer, world: World, background: Background, made_from: str = "",
        tracks: Mapping[float, Denoiser] | None = None,
    ):  # fmt: skip
        """made_from: as in :func:`edm.training.loop.train`. tracks: further averages, by their widths."""
        self.out, self.net, self.ema, self.optimizer, self.world = out, net, ema, optimizer, world
        self.background, self.optimizer_name = background, config.optimizer
        self._modules = {"net.": net, "ema.": ema, **{f"ema-{width:g}.": one for width, one in (tracks or {}).items()}}
        self.paths = states(out)
        old = LATER - config.changes().keys()
        fields = {name: value for name, value in config.to_dict().items() if name not in IRRELEVANT | old}
        self.identity, self.made_from = digest([fields, dataset.sha256]), made_from
        self.end = config.steps * config.batch_size
        self.seen, self.seconds = 0, 0.0
        self.before: Levels | None = None
        self.overflowing = 0  # consecutive steps, see :class:`edm.training.overflows.Overflows`
        #: This process's sums since the last log row, accumulated by :class:`edm.training.step.TrainingStep`.
        self.sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        self._next = 0  # the slot to write: the one with the older state
        size = sum(tensor.nbytes for tensor in net.parameters())
        self.cost = (
            (2 + len(self._modules)) * size / SLOW_DISK
        )  # seconds to save: an estimate, then the longest time so far
        self._longest = 0.0

    def restore(self) -> int:
        """Loads the newest complete state of exactly this configuration and dataset; returns its number of images seen.

        Without such a state, training starts from the beginning. States of other runs and damaged states are moved
        aside and reported on stderr; they do not stop training.
        """
        slot = -1
        if self.world.is_first:
            slot, tensors, header = self._choose()
        slot = int(self.world.total(slot if self.world.is_first else 0)[0])
        if slot < 0:
            return 0
        path, self._next = self.paths[slot], 1 - slot
        if not self.world.is_first:
            try:
                tensors, header = self._read(path)
            except UserError as error:
                text = f"{path} {error} on process {self.world.rank}: all processes need the same folder"
                raise UserError(text) from None
        sums = tensors.pop("sums")  # one row per process
        if len(sums) == self.world.size:
            self.sums.copy_(sums[self.world.rank])
        elif self.world.is_first:  # the number of processes changed; the total of the log stays right
            self.sums.copy_(sums.sum(0))
        for prefix, module in self._modules.items():
            part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            checkpoint.load_weights(module, part, path)
        parameters = list(self.net.parameters())
        numbers = ((name, value) for name, value in header.get("numbers", {}).items())
        for name, value in (*tensors.items(), *numbers):
            if name.startswith("adam."):
                index, key = name.removeprefix("adam.").split(".", 1)
                parameter = parameters[int(index)]
                self.optimizer.state[parameter][key] = self._placed(key, value, parameter)
        self.seen, self.seconds, self.before = header["images"], header["seconds"], header["before"]
        self.overflowing = header["overflowing"]
        return self.seen

    def save(self, seen: int, seconds: float) -> None:
        """Copies the state and writes it over the older one in the background.

        If writing fails (full disk), prints a warning on stderr. Raises UserError, keeping both states, if a weight is
        no longer finite; reraises the error of a snapshot still being written, so no state is saved without it.
        """
        sums = self.sums.new_zeros(self.world.size, len(self.sums))
        sums[self.world.rank] = self.sums
        self.world.sum(sums)
        if not self.world.is_first:
            return
        begun = time.monotonic()
        self.background.wait()
        tensors = {
            f"{prefix}{name}": t for prefix, one in self._modules.items() for name, t in one.state_dict().items()
        }
        numbers: dict[str, float] = {}  # of the optimisers of plugins; those of Adam are tensors
        for index, parameter in enumerate(self.net.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"adam.{index}.{name}"] = value
                elif isinstance(value, (int, float)):
                    numbers[f"adam.{index}.{name}"] = value
                elif value is not None:
                    what = f"optimizer {self.optimizer_name}: its state {name} is of type {type(value).__name__}"
                    raise UserError(f"{what}; only tensors and numbers can be saved")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(
                f"{self.out}: weights are not finite after {seen:,} images; the last good state "
                f"({self.seen:,} images) is kept. Try a lower learning_rate, clip_norm: 1.0 or precision: fp32"
            )
        host = {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, tensor in (tensors | {"sums": sums}).items()}  # fmt: skip
        header: dict[str, Any] = {"format": STATE_FORMAT, "identity": self.identity, "made_from": self.made_from}
        header |= {"images": seen, "seconds": seconds, "before": self.before, "overflowing": self.overflowing}
        header |= {"numbers": numbers} if numbers else {}
        self.background.do(lambda: self._write(host, header, begun))

    def _placed(self, key: str, value: Any, parameter: torch.nn.Parameter) -> Any:
        """A value of the optimiser's state, where and as the optimiser keeps it."""
        if not isinstance(value, Tensor):
            return value
        if value.shape == parameter.shape:  # in the parameter's memory format: fused Adam reads both with one stride
            return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        group = self.optimizer.param_groups[0]
        on_host = key == "step" and not (group.get("fused") or group.get("capturable"))
        return value if on_host else value.to(parameter.device)

    def _write(self, host: dict[str, Tensor], header: dict[str, Any], begun: float) -> None:
        header["checksum"] = checksum(host, header)
        try:
            save_tensors(self.paths[self._next], host, header)
        except UserError as error:
            print(f"warning: {error}; the state of {self.seen:,} images is kept, continuing", file=sys.stderr)
            return
        self.seen, self._next = header["images"], 1 - self._next
        note_kept()
        self.cost = self._longest = max(self._longest, time.monotonic() - begun)

    def _choose(self) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        """Slot and content of the state to resume from; slot −1 if none is usable."""
        found, problems = [], []
        for slot, path in enumerate(self.paths):
            if path.exists():
                try:
                    found.append((self._header(path)["images"], slot))
                except UserError as error:
                    problems.append(self._set_aside(path, error))
        chosen: tuple[int, dict[str, Tensor], dict[str, Any]] = (-1, {}, {})
        for _, slot in sorted(found, reverse=True):
            try:
                chosen = (slot, *self._read(self.paths[slot]))
                break
            except UserError as error:
                problems.append(self._set_aside(self.paths[slot], error))
        if problems:
            seen = chosen[2].get("images")
            outcome = "starting from the beginning" if seen is None else f"continuing from {seen:,} images"
            print(f"{'; '.join(problems)}; {outcome}", file=sys.stderr)
        return chosen

    def _header(self, path: Path) -> dict[str, Any]:
        """The header of a state. Raises UserError with the reason if it does not belong to this training run."""
        try:
            header = read_header(path, STATE_FORMAT)
        except UserError:
            raise UserError("is not a complete training state") from None
        if not header.keys() >= _HEADER or not isinstance(header["images"], int):
            raise UserError("is not a complete training state")
        if header["identity"] != self.identity:
            raise UserError("belongs to another configuration or dataset")
        if header.get("made_from") != self.made_from:
            raise UserError("was made by other code, or from inputs made otherwise (CODE or a step before was changed)")
        return header

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and header of a state. Raises UserError with the reason if training cannot resume from it."""
        header = self._header(path)
        try:
            tensors, _ = load_tensors(path, STATE_FORMAT)
        except UserError:
            raise UserError("is not a complete training state") from None
        if header.pop("checksum") != checksum(tensors, header):
            raise UserError("is damaged (its checksum differs)")
        if header["images"] > self.end:
            raise UserError(f"has seen {header['images']:,} images, and this training run ends at {self.end:,}")
        return tensors, header

    def _set_aside(self, path: Path, reason: UserError) -> str:
        aside = path.with_name(f"other-{path.name}")
        try:
            path.replace(aside)
        except OSError as error:
            raise UserError(f"{path} {reason} and cannot be moved to {aside.name} ({error.strerror})") from None
        return f"{path} {reason}: moved to {aside.name}"
