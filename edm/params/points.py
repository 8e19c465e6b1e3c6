"""The sampler settings of a grid: the product of its lists, of which a job resolves only its own."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edm.config import SamplerConfig
from edm.errors import UserError
from edm.files.writing import named

MAX_LABEL = 180  # characters of a point's name, which is the name of a file
ONLY = "only"  # the point of a grid without lists


@dataclass(frozen=True)
class Point:
    """One sampler setting of a grid; ``id`` states the swept values ("num_steps=18")."""

    id: str
    sampler: SamplerConfig


class Points(Sequence[Point]):
    """The points of one model in a grid, in the order of its lists, the last list fastest.

    All are resolved and checked when they are read as a sequence; :meth:`find` and the first point resolve one.
    here: place in params.yaml. choices: settings of every point, or in ``swept`` the list of a setting's values.
    """

    def __init__(self, here: str, model: str, choices: dict[str, Any], swept: Sequence[str]) -> None:
        self._here, self._model, self._choices = here, model, choices
        self._swept = {key: choices[key] for key in swept}

    @property
    def guides(self) -> list[str]:
        """The guides of all points, each once."""
        found = self._swept.get("guide", [self._choices.get("guide")])
        return [guide for guide in found if guide is not None]

    def find(self, id: str) -> Point | None:
        """The point of that name, or None. Raises UserError if its settings are invalid."""
        if "_all" in vars(self):  # resolved already
            return self._by_id.get(id)
        chosen, parts = dict[str, Any](), id.split(",")
        if len(parts) > max(1, len(self._swept)):
            return self._by_id.get(id)  # a comma inside a value
        for (key, values), part in zip(self._swept.items(), parts, strict=False):
            labels = {f"{key}={_label(value)}": value for value in values}
            if part not in labels:
                return None
            chosen[key] = labels[part]
        return self._point(chosen) if _name(chosen) == id and len(chosen) == len(self._swept) else None

    def __len__(self) -> int:
        return math.prod(map(len, self._swept.values()))

    def __getitem__(self, place: Any) -> Any:
        if place == 0 and "_all" not in vars(self):
            return self._point({key: values[0] for key, values in self._swept.items()})
        return self._all[place]

    def __iter__(self) -> Iterator[Point]:
        return iter(self._all)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all)

    @functools.cached_property
    def _all(self) -> tuple[Point, ...]:
        found: dict[SamplerConfig, Point] = {}
        for values in itertools.product(*self._swept.values()):
            point = self._point(dict(zip(self._swept, values, strict=True)))
            if point.sampler in found:
                raise UserError(f"{self._here}: {self._model} has the point {point.id} twice; leave one out")
            if len(point.id) > MAX_LABEL:
                raise UserError(
                    f"{self._here}: {point.id} is too long for the name of a file; sweep fewer settings at once"
                )
            found[point.sampler] = point
        return tuple(found.values())

    @functools.cached_property
    def _by_id(self) -> dict[str, Point]:
        return {point.id: point for point in self._all}

    def _point(self, chosen: dict[str, Any]) -> Point:
        id = _name(chosen)
        return Point(id, checked(f"{self._here} ({id})", SamplerConfig.from_dict, {**self._choices, **chosen}))


def checked(here: str, make: Callable[[dict[str, Any]], Any], values: dict[str, Any]) -> Any:
    """What ``make`` makes of values. Raises UserError with the place in params.yaml if it refuses them."""
    try:
        return make(values)
    except (UserError, TypeError) as error:
        raise UserError(f"{here}: {error}") from None


def _name(chosen: dict[str, Any]) -> str:
    return ",".join(f"{key}={_label(value)}" for key, value in chosen.items()) or ONLY


def _label(value: float | str) -> str:
    """A swept value as part of the name of a file."""
    return value.replace(" ", "-") if isinstance(value, str) else named(value)
