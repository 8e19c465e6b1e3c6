"""What a user may say about a file whose tensors do not say it."""

from dataclasses import dataclass, fields
from typing import Any

from edm.errors import UserError


@dataclass(frozen=True)
class Asked:
    """resolution: image side of the model; channels_per_head: of its attention. None where the user said nothing."""

    resolution: int | None = None
    channels_per_head: int | None = None

    def __post_init__(self):
        for name, value in self.given().items():
            if type(value) is not int or value < 1:
                raise UserError(f"{name} is {value!r}; it must be a whole number of at least 1")

    def given(self) -> dict[str, int]:
        """What the user said."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def refuse(self, *names: str) -> None:
        """Raises UserError where the user said something that has no effect on the file at hand."""
        for name in names:
            if name in self.given():
                raise UserError(f"{name} was given, but the file says it itself; leave it out")

    def take(self, name: str, published: int | None, about: dict[str, Any]) -> int:
        """What the user said of ``name``, else the value of the published model, which ``about`` then calls assumed.

        published: None where the file is not the published model's size. Raises UserError where nobody knows.
        """
        value = getattr(self, name)
        if value is None and published is None:
            raise UserError(f"the file does not tell {name}, and is not the published model; give {name}=")
        if value is None:
            about.setdefault("assumed", {})[name] = published
        return published if value is None else value
