"""How figures look: legible in print, told apart without colour vision, the same bytes from the same numbers."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edm.files import atomic_write

#: Okabe and Ito's colours, and a marker for each, so that neither colour nor shape alone has to carry the meaning.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
FORMATS = (".png", ".svg")


def line_styles() -> Iterator[dict[str, str]]:
    """Endlessly many styles of a line, the first 28 of them different."""
    for dashes in itertools.cycle(DASHES):
        for color, marker in zip(COLORS, MARKERS, strict=True):
            yield {"color": color, "marker": marker, "linestyle": dashes}


@contextmanager
def canvas(path: Path, written: list[Path], width: float = 5.0, height: float = 3.4) -> Iterator:
    """Yields a figure's axes; afterwards writes it as PNG and SVG beside ``path`` (which has no suffix)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
                "axes.spines.right": False, "svg.hashsalt": "edm", "legend.frameon": False}  # fmt: skip
    with plt.rc_context(settings):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        yield axes
        for suffix in FORMATS:
            target = path.parent / f"{path.name}{suffix}"
            with atomic_write(target) as temporary:
                metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
                figure.savefig(temporary, dpi=160, metadata=metadata)
            written.append(target)
        plt.close(figure)
