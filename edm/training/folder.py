"""Records which training run a folder belongs to.

A finished run is not repeated, and another run does not overwrite it unless the user asks for that.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm.config import TrainingConfig
from edm.data.archive import Dataset
from edm.errors import UserError
from edm.files.documents import ANY, FLAG, TEXT, DamagedError, Names, read_document
from edm.files.writing import write_json
from edm.models import checkpoint
from edm.training.state import IRRELEVANT, LATER

RECORD, FORMAT = "training.json", "edm-training/1"
FINAL = ("model.safetensors", "levels.json")


@dataclass(frozen=True)
class TrainingFolder:
    """The folder ``out`` of a training run, and the folder ``final`` of its ``FINAL`` files.

    made_from: as in :func:`edm.training.loop.train`.
    """

    out: Path
    final: Path
    config: TrainingConfig
    dataset: Dataset
    made_from: str = ""

    def note(self, finished: bool) -> None:
        """Records which training run this folder belongs to, and whether that run is finished."""
        write_json(self.out / RECORD, {"format": FORMAT, **self._own(), "finished": finished})

    def is_finished(self) -> bool:
        """Whether exactly this training run is finished and its files exist."""
        found = self._found()
        if found is None or not found["finished"] or self._differences(found):
            return False
        return all((self.final / name).exists() for name in FINAL) and self._is_own(self.final / FINAL[0])

    def require_own(self) -> None:
        """Raises UserError if training here would destroy another training run, or a finished one."""
        found, model = self._found(), self.final / FINAL[0]
        if found is not None:
            differing = self._differences(found)
            if not found["finished"]:  # fields without effect on the weights may change; state.py checks made_from
                differing = [name for name in differing if name not in (*IRRELEVANT, "made_from")]
            what = f"with another {', '.join(differing)}" if differing else f"whose files are not in {self.final}"
            if found["finished"] or differing:
                stage = "a finished" if found["finished"] else "an interrupted"
                raise UserError(f"{self.out}: holds {stage} training run {what}; {_ADVICE}")
        if model.exists() and not (found and self._is_own(model)):
            raise UserError(f"{model}: no training run in {self.out} made it; {_ADVICE}")

    def _own(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "dataset": self.dataset.sha256, "made_from": self.made_from}

    def _found(self) -> dict[str, Any] | None:
        """The record in the folder; None if it is missing or damaged. Raises UserError if it cannot be read."""
        if not os.path.lexists(self.out / RECORD):
            return None
        shape = {"config": Names(ANY), "dataset": TEXT, "made_from": TEXT, "finished": FLAG}
        try:
            found: dict[str, Any] = read_document(self.out / RECORD, FORMAT, shape, "a record of training", _ADVICE)
        except DamagedError:
            return None
        return found

    def _differences(self, found: dict[str, Any]) -> list[str]:
        own = self._own()
        theirs = _complete(found["config"])
        fields = [name for name, value in own["config"].items() if theirs.get(name) != value]
        return fields + [name for name in ("dataset", "made_from") if found[name] != own[name]]

    def _is_own(self, model: Path) -> bool:
        """Whether a checkpoint is the result of this training run, according to its header."""
        try:
            header = checkpoint.describe(model)
        except UserError:
            return False
        about = header["about"]
        found = (_complete(header.get("config") or {}), about.get("dataset_sha256"), about.get("images"))
        return found == (self.config.to_dict(), self.dataset.sha256, self.config.steps * self.config.batch_size)


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration, with the defaults of the fields that its version did not have."""
    fields = [field for field in dataclasses.fields(TrainingConfig) if field.default is not dataclasses.MISSING]
    defaults = {field.name: field.default for field in fields if field.name in LATER}
    return {**{name: list(one) if isinstance(one, tuple) else one for name, one in defaults.items()}, **config}


_ADVICE = "choose another --out, or replace it with --overwrite"
