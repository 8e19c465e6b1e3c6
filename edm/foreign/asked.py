"""What a user may say about a file whose tensors do not say it."""

import math
from dataclasses import dataclass, fields
from typing import Any

from edm.errors import UserError

#: Names and their values, as `edm import`, `pretrained` in params.yaml and :func:`edm.foreign.read` take them.
CHOICES = {"attention_order": ("new", "old"), "noise_schedule": ("cosine", "linear"), "sde": ("vp", "subvp")}


@dataclass(frozen=True)
class Asked:
    """None where the user said nothing.

    resolution: image side of the model.
    Of guided-diffusion. channels_per_head: of its attention. attention_order: of the outputs of ``qkv``: "new" (q, k, v
    before the heads, ``use_new_attention_order``) or "old" (heads first). noise_schedule: "cosine" or "linear".
    Of score_sde. sde: "vp" or "subvp"; beta_min, beta_max: of the VP SDE; fir: whether resampling uses the filter
    (1, 3, 3, 1); skip_rescale: whether sums of two branches are scaled by √½; scale_by_sigma: whether the output is
    divided by σ.
    Raises UserError for a value that makes no sense.
    """

    resolution: int | None = None
    channels_per_head: int | None = None
    attention_order: str | None = None
    noise_schedule: str | None = None
    sde: str | None = None
    beta_min: float | None = None
    beta_max: float | None = None
    fir: bool | None = None
    skip_rescale: bool | None = None
    scale_by_sigma: bool | None = None

    def __post_init__(self):
        for name, value in self.given().items():
            if name in CHOICES:
                fits, kind = value in CHOICES[name], f"one of {', '.join(CHOICES[name])}"
            elif name in ("resolution", "channels_per_head"):
                fits, kind = type(value) is int and value >= 1, "a whole number of at least 1"
            elif name in ("beta_min", "beta_max"):
                fits, kind = type(value) in (int, float) and 0 < value < math.inf, "a number above 0"
            else:
                fits, kind = type(value) is bool, "true or false"
            if not fits:
                raise UserError(f"{name} is {value!r}; it must be {kind}")

    def given(self) -> dict[str, Any]:
        """What the user said."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def allow(self, *names: str) -> None:
        """Raises UserError where the user said something else, which has no effect on the file at hand."""
        for name in self.given():
            if name not in names:
                raise UserError(f"{name} was given, but the file says it itself; leave it out")

    def take(self, name: str, usual: Any, about: dict[str, Any]) -> Any:
        """What the user said of ``name``, else ``usual``, which ``about`` then calls assumed.

        usual: the value of the published files; None where the file is not one of theirs by its size. Raises UserError
        where neither says it.
        """
        value = getattr(self, name)
        if value is None and usual is None:
            raise UserError(f"the file does not tell {name}, and is not the published model; give {name}=")
        if value is None:
            about.setdefault("assumed", {})[name] = usual
        return usual if value is None else value


NAMES = tuple(field.name for field in fields(Asked))
