"""A job: one rule applied once, with the files it reads by name."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

#: Rules whose jobs share the work of a job of another rule, which merges their files and deletes them.
SHARES = {"shard": "evaluate", "likelihood_shard": "likelihood"}


@dataclass(frozen=True)
class Job:
    """One rule applied once.

    key: distinguishes the job from the rule's other jobs; the first entry is its dataset, experiment or report.
    inputs: name → paths, such as ``{"model": (…,), "references": (…, …)}``; the rule's command reads them by name.
    parts: shard files, deleted when the job completes.
    """

    rule: str
    key: tuple[str, ...]
    inputs: Mapping[str, tuple[str, ...]] = field(hash=False)
    outputs: tuple[str, ...]
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as "train digits/vp-F"."""
        return f"{self.rule} {'/'.join(self.key)}"

    @property
    def files(self) -> tuple[str, ...]:
        """All inputs, in the order of their names."""
        return tuple(path for paths in self.inputs.values() for path in paths)

    def one(self, name: str) -> str:
        """The only input of that name."""
        (path,) = self.inputs[name]
        return path


@dataclass(frozen=True)
class Only:
    """Which jobs a rule states: all, or only the one of a ``key``, so that a single job is found without the others."""

    key: tuple[str, ...] = ()

    def __call__(self, place: int, names: Collection[str]) -> Collection[str]:
        """Those of the names that may stand at a place of the key."""
        if not self.key:
            return names
        return [self.key[place]] if len(self.key) > place and self.key[place] in names else []


EVERY = Only()


def named(**inputs: str | Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Inputs by name, one path or several each; a name without paths is left out."""
    every = {name: (given,) if isinstance(given, str) else tuple(given) for name, given in inputs.items()}
    return {name: paths for name, paths in every.items() if paths}
