"""The properties of each dataset in the paper (Section 5, Appendix F), and checks of the raw data against them."""

from dataclasses import dataclass, fields, replace

from edm import registry
from edm.config import LIMITS
from edm.errors import UserError


@dataclass(frozen=True)
class Expected:
    """The expected properties of a dataset; None accepts any value. stated: the fields that the user set."""

    images: int | None = None
    resolution: int | None = None
    channels: int | None = None
    classes: int | None = None
    source_size: int | None = None  # side of the images before they are resized
    stated: frozenset[str] = frozenset()

    def with_stated(self, **values: int | None) -> "Expected":
        """Replaces the paper's values by the user's; None keeps the paper's."""
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            least = 0 if name == "classes" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; expected a whole number from {least}")
        if given.get("channels", 1) not in (1, 3):
            raise UserError(f"channels is {given['channels']}; choose 1 (grey) or 3 (RGB)")
        side, limits = given.get("resolution", 8), LIMITS["resolution"]
        if not limits["minimum"] <= side <= limits["maximum"]:
            raise UserError(f"resolution is {side}; expected {limits['minimum']} to {limits['maximum']}")
        return replace(self, **given, stated=self.stated | set(given))

    def why(self, name: str) -> str:
        """The origin of an expected value, for messages."""
        return "as stated" if name in self.stated else "as in the paper"

    def require(self, name: str, found: int, where: str) -> None:
        """Raises UserError if ``found`` is not the expected number of that name."""
        expected = getattr(self, name)
        if expected is None or found == expected:
            return
        raise UserError(
            f"{where}: {_say(name, expected)} expected, {self.why(name)}; {_say(name, found)} found; "
            f"state {name}: {found} in params.yaml (--{name.replace('_', '-')} {found}) to accept"
        )


#: The sources and their properties in the paper. The folders of AFHQv2 and FFHQ are not classes.
PAPER: dict[str, Expected] = {
    "digits": Expected(images=1797, resolution=8, channels=1, classes=10),
    "cifar10": Expected(images=50_000, resolution=32, channels=3, classes=10),
    "mnist": Expected(images=60_000, resolution=32, channels=1, classes=10),
    "ffhq": Expected(images=70_000, resolution=64, channels=3, classes=0, source_size=1024),
    "afhqv2": Expected(images=15_803, resolution=64, channels=3, classes=0, source_size=512),
    "imagenet": Expected(images=1_281_167, resolution=64, channels=3, classes=1000),
    "folder": Expected(),
    "zip": Expected(),
}
SOURCES = registry.Names("source")
registry.own("source", PAPER, "edm.data.prepare.sources")

#: The expected properties that a dataset in params.yaml may set.
STATABLE: tuple[str, ...] = tuple(field.name for field in fields(Expected) if field.name != "stated")

TRAIN, TEST = SPLITS = ("train", "test")  # parts of a source
#: Sources without test images of their own, or without labels for them.
_WITHOUT = ("digits", "imagenet")
#: Images in the test splits that the paper's datasets have.
_PUBLISHED = {"cifar10": 10_000, "mnist": 10_000}


def check_split(source: str, split: str | None, held_out: float | None) -> None:
    """Raises UserError for a split that a source does not have, and for a fraction outside of 0 to 1."""
    if split not in (None, *SPLITS):
        raise UserError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if held_out is not None and not 0 < held_out < 1:
        raise UserError(f"held_out is {held_out}; expected a fraction between 0 and 1")
    if split is not None and held_out is None and source in SOURCES and source not in PAPER:
        raise UserError(f"split: a plugin's source {source} has no splits; state held_out: 0.1 to hold out a tenth")
    if split == TEST and held_out is None and source in _WITHOUT:
        raise UserError(f"split: {source} has no test images with labels; state held_out: 0.1 to hold out a tenth")


def expected_of_split(expected: Expected, source: str, split: str | None, held_out: float | None) -> Expected:
    """The expected properties of a part of a source; its number of images is the paper's only for published splits."""
    if held_out is None and (split is None or (split == TRAIN and source in (*_WITHOUT, *_PUBLISHED))):
        return expected
    return replace(expected, images=_PUBLISHED.get(source) if held_out is None else None)


def _say(name: str, number: int) -> str:
    if name == "resolution":
        return f"images of {number}x{number}"
    return f"{number:,} {name if number != 1 else {'classes': 'class'}.get(name, name.removesuffix('s'))}"
