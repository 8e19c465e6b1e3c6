"""What the paper used of each dataset (Section 5, Appendix F), and the checks of what is found against it."""

from dataclasses import dataclass, fields, replace

from edm.errors import UserError


@dataclass(frozen=True)
class Expected:
    """What a dataset must be; None where anything is accepted. ``stated``: the fields that the user gave."""

    images: int | None = None
    resolution: int | None = None
    channels: int | None = None
    classes: int | None = None
    source_size: int | None = None  # side of the images before they are resized
    stated: frozenset[str] = frozenset()

    def with_stated(self, **values: int | None) -> "Expected":
        """What a user states replaces what the paper used; None states nothing."""
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            least = 0 if name == "classes" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; expected a whole number from {least}")
        if given.get("channels", 1) not in (1, 3):
            raise UserError(f"channels is {given['channels']}; choose 1 (grey) or 3 (RGB)")
        return replace(self, **given, stated=self.stated | set(given))

    def why(self, name: str) -> str:
        """Who expects it."""
        return "as stated" if name in self.stated else "as in the paper"

    def require(self, name: str, found: int, where: str) -> None:
        """Raises UserError where ``found`` is not the expected number of that name."""
        expected = getattr(self, name)
        if expected is None or found == expected:
            return
        raise UserError(
            f"{where}: {_say(name, expected)} expected, {self.why(name)}; {_say(name, found)} found; "
            f"state {name}: {found} in params.yaml (--{name.replace('_', '-')} {found}) to accept"
        )


#: The sources and what the paper used of them. AFHQv2 has folders, but they are not classes; nor are FFHQ's.
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
SOURCES: tuple[str, ...] = tuple(PAPER)

#: What a specification of params.yaml may state about a dataset.
STATABLE: tuple[str, ...] = tuple(field.name for field in fields(Expected) if field.name != "stated")


def _say(name: str, number: int) -> str:
    if name == "resolution":
        return f"images of {number}x{number}"
    return f"{number:,} {name if number != 1 else {'classes': 'class'}.get(name, name.removesuffix('s'))}"
