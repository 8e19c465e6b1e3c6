"""The style of figures: legible in print and without colour vision, and the same bytes from the same numbers."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edm.files.writing import atomic_write

#: Okabe and Ito's colours, and a marker for each, so that lines differ in colour and in shape.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
FORMATS = (".png", ".svg")


def line_styles() -> Iterator[dict[str, str]]:
    """An infinite sequence of line styles, the first 28 of them different."""
    for dashes in itertools.cycle(DASHES):
        for color, marker in zip(COLORS, MARKERS, strict=True):
            yield {"color": color, "marker": marker, "linestyle": dashes}


@contextmanager
def page(
    path: Path, written: list[Path], width: float, height: float, dpi: int = 160, layout: str | None = "constrained"
) -> Iterator:
    """Yields an empty figure of that size in inches; afterwards writes it as PNG and SVG beside ``path``.

    ``path`` has no suffix; the files are appended to ``written``. On an exception nothing is written. layout: of
    matplotlib; with None the caller places everything.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
                         "axes.spines.right": False, "svg.hashsalt": "edm", "legend.frameon": False}):  # fmt: skip
        figure = plt.figure(figsize=(width, height), dpi=dpi, layout=layout)
        try:
            yield figure
            show_broken_formulas_as_text(figure)
            for suffix in FORMATS:
                target = path.parent / f"{path.name}{suffix}"
                with atomic_write(target) as temporary:
                    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
                    figure.savefig(temporary, dpi=dpi, metadata=metadata)
                written.append(target)
        finally:
            plt.close(figure)


def show_broken_formulas_as_text(figure: Any) -> None:
    """A label with dollar signs that is no valid formula would fail only when the figure is written."""
    from matplotlib.cbook import is_math_text
    from matplotlib.mathtext import MathTextParser
    from matplotlib.text import Text

    parser = MathTextParser("path")
    for text in figure.findobj(Text):
        try:
            if is_math_text(text.get_text()):
                parser.parse(text.get_text())
        except ValueError:
            text.set_parse_math(False)


@contextmanager
def canvas(path: Path, written: list[Path], width: float = 5.0, height: float = 3.4) -> Iterator:
    """Yields the axes of a figure with one pair of axes; afterwards writes it, as :func:`page` does."""
    with page(path, written, width, height) as figure:
        yield figure.subplots()


def log_ticks(axis) -> None:
    """Labels on a logarithmic axis: powers of ten for decades, more numbers for a smaller span."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 0.6:  # too small for round multiples of a power of ten; even steps work as well
        axis.set_major_locator(MaxNLocator(6))
    else:
        subs = (1, 1.5, 2, 3, 4, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 3 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axis.set_major_formatter("{x:g}" if decades < 5 else LogFormatterMathtext())
    axis.set_minor_formatter(NullFormatter())
