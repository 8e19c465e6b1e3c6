"""What code alone decides of tables and figures: a change of it asks for another code number.

Labels and numbers that params.yaml and paper.yaml state are in the specifications. Words, colours and formats of the
code are not: here they are pinned to the number of their rule. Where a test fails, raise the rule's code number, so
that what exists is made again, and renew its digest and number here.
"""

from contextlib import contextmanager

import matplotlib
import pytest
import test_panels
from matplotlib.colors import to_hex

from edm.chain.rules import RULES
from edm.files.hashes import digest
from edm.params.paper import Published
from edm.report import page, style
from edm.report.cells import Cell, Table
from edm.report.results import Measurement
from edm.report.writers import WRITERS

matplotlib.use("Agg")
MEASURED = Measurement("vp-A", "ours", "num_steps=18", 0, 2.931, 35, 50_000, 0, {}, "FID", "Inception-v3", "c" * 40,
                       "true", "a" * 64, "d" * 64, "e/vp-A", {"kid": 0.0125})  # fmt: skip
TABLE = Table(
    "table3", "A title", "sampler", ["A", "B"],
    {"one": [Cell("2.93", 2.931, 35, 2.931, 2.97, 3, MEASURED, {"kid": 0.0125}, Published("2.93", 2.93, 35, True),
                  best=True),
             Cell(missing="not run", paper=Published("56", 56.0, None, False, True))],
     "two": [Cell("10", 10.0, paper=Published("12", 12.0, None, True)), Cell()]},
    ["A note: 50 % of p_train."], ("kid",), {"two": "two: a name"},
)  # fmt: skip


def look_of(figure):
    """Size, words outside of the ticks, and the colours, dashes, markers and widths of what is drawn."""
    words = [(text.get_text(), text.get_fontsize(), text.get_color()) for text in figure.texts]
    drawn = []
    for axes in figure.axes:
        words += [(text.get_text(), text.get_fontsize(), text.get_color()) for text in (
            axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]  # fmt: skip
        drawn += [(to_hex(line.get_color()) if line.get_color() != "none" else "none", str(line.get_linestyle()),
                   str(line.get_marker()), line.get_linewidth(), line.get_alpha()) for line in axes.lines]  # fmt: skip
        drawn += [(to_hex(color, keep_alpha=True)) for area in axes.collections for color in area.get_facecolor()]
        drawn += [list(image.get_array().shape) for image in axes.images]
        drawn += [[axes.get_xscale(), axes.get_yscale()]]
    words += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return {"size": [round(side, 3) for side in figure.get_size_inches()], "words": words, "drawn": drawn}


def figures(monkeypatch, folder):
    seen = []
    original = style.page

    @contextmanager
    def recording(*args, **kwargs):
        with original(*args, **kwargs) as figure:
            yield figure
            seen.append(look_of(figure))

    monkeypatch.setattr(style, "page", recording)
    for module in ("sketches", "layout", "lines"):
        monkeypatch.setattr(f"edm.report.panels.{module}.page", recording)
    for kind, draw in test_panels.KINDS.items():
        draw(folder / kind, [])
    return seen


def tables(monkeypatch, folder):
    return {suffix: write(TABLE) for suffix, write in WRITERS.items()}


def about(monkeypatch, folder):
    grid = page.grid(("choice", "value"), [("a", "1"), ("b", "2")], text=2, total=True)
    return page.page("A title", page.heading("Models"), page.paragraphs("A note."), grid)


@pytest.mark.first(1)
@pytest.mark.parametrize("rule, look, pinned, since", [("table", tables, "e01ac499a839", 5),
                                                       ("figure", figures, "129f3869c1a4", 4),
                                                       ("about", about, "e6e08eb03aa3", 1)])  # fmt: skip
def test_the_look_is_pinned_to_the_number_of_its_rule(monkeypatch, tmp_path, rule, look, pinned, since):
    assert digest(look(monkeypatch, tmp_path)) == pinned and RULES[rule].code >= since


@pytest.mark.slow
def test_another_colour_is_another_look(monkeypatch, tmp_path):
    before = digest(figures(monkeypatch, tmp_path))
    monkeypatch.setattr(style, "COLORS", ("#0072B3", *style.COLORS[1:]))
    assert digest(figures(monkeypatch, tmp_path)) != before
