"""Arguments that a user may give about a file, where its tensors do not determine them."""

import math
from dataclasses import dataclass, fields
from typing import Any

from edm.errors import UserError

#: Arguments with a fixed choice of values, for `edm import`, `pretrained` in params.yaml and :func:`edm.foreign.read`.
CHOICES = {"attention_order": ("new", "old"), "noise_schedule": ("cosine", "linear"), "sde": ("vp", "subvp")}


@dataclass(frozen=True)
class Asked:
    """The user's arguments; None if not given.

    resolution: image side of the model.
    For guided-diffusion. channels_per_head: of the attention. attention_order: order of the outputs of ``qkv``: "new"
    (q, k, v before the heads, ``use_new_attention_order``) or "old" (heads first). noise_schedule: "cosine" or
    "linear". For score_sde. sde: "vp" or "subvp"; beta_min, beta_max: of the VP SDE; fir: whether resampling uses the
    filter (1, 3, 3, 1); skip_rescale: whether sums of two branches are scaled by √½; scale_by_sigma: whether the output
    is divided by σ.
    Raises UserError for an invalid value.
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
        """The arguments that the user gave."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def allow(self, *names: str) -> None:
        """Raises UserError if the user gave another argument, which has no effect on this file."""
        for name in self.given():
            if name not in names:
                raise UserError(f"{name} was given, but the file says it itself; leave it out")

    def take(self, name: str, usual: Any, about: dict[str, Any]) -> Any:
        """The user's value of ``name``, else ``usual``, which is then recorded as assumed in ``about``.

        usual: the value of the published files; None if the size of the file's model is not a published one. Raises
        UserError if both are None.
        """
        value = getattr(self, name)
        if value is None and usual is None:
            raise UserError(f"the file does not tell {name}, and is not the published model; give {name}=")
        if value is None:
            about.setdefault("assumed", {})[name] = usual
        return usual if value is None else value


NAMES = tuple(field.name for field in fields(Asked))
