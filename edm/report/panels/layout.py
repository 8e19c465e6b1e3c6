"""Blocks of small images on a page; every image pixel is an integer number of page pixels wide."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm.errors import UserError
from edm.report.style import page

DPI = 300  # of print; all lengths below are in its pixels
WIDTH = 2160  # about the text width of a page, 7.2 inches
GAP, LINE, CHARACTER = 30, 42, 17  # between blocks; a line of text and a letter of it
SIZE = 8  # points of text


@dataclass(frozen=True)
class Block:
    """A sheet of images with its labels.

    sheet: uint8 [h, w, 3], or None for missing images, whose place shows a note. title: lines of text above.
    columns, rows: labels and their positions, in pixels of the sheet. foot: a line of text below.
    """

    sheet: np.ndarray | None
    title: str = ""
    columns: Sequence[tuple[float, str]] = ()
    rows: Sequence[tuple[float, str]] = ()
    foot: str = ""

    @property
    def head(self) -> int:
        """Height of the text above the images."""
        lines = len(self.title.splitlines()) + bool(self.columns)
        return lines * LINE + (12 if lines else 0)

    @property
    def margin(self) -> int:
        """Width of the text left of the images."""
        letters = [len(re.sub(r"\\\w+|\$", "x", text)) for _, text in self.rows]
        return 20 + max(letters) * CHARACTER if letters else 0


@dataclass(frozen=True)
class Row:
    """Blocks side by side, with one vertical label at the left."""

    blocks: Sequence[Block]
    name: str = ""


def compose(rows: Sequence[Row], path: Path, written: list[Path], caption: str = "") -> None:
    """Draws rows of blocks, one above the other, and a caption below; writes PNG and SVG.

    All blocks have the same width, also in shorter rows. Raises UserError without blocks.
    """
    if not any(row.blocks for row in rows):
        raise UserError(f"{path}: there are no images to draw yet")
    edge, side = GAP // 2, LINE + 12 if any(row.name.strip() for row in rows) else 0
    most = max(len(row.blocks) for row in rows)
    sizes = [_sizes(row.blocks, most, WIDTH - side) for row in rows]
    width = 2 * edge + side - GAP + max(
        sum(block.margin + w + GAP for block, (_, w, _) in zip(row.blocks, size, strict=True))
        for row, size in zip(rows, sizes, strict=True)
    )  # fmt: skip
    heads = [max(block.head for block in row.blocks) for row in rows]
    bodies = [max(h for h, _, _ in size) for size in sizes]
    feet = [LINE * any(block.foot for block in row.blocks) for row in rows]
    lines = textwrap.wrap(caption, max(20, width // CHARACTER))
    height = 2 * edge + sum(heads) + sum(bodies) + sum(feet) + len(rows) * GAP + len(lines) * LINE
    with page(path, written, (width + 0.01) / DPI, (height + 0.01) / DPI, dpi=DPI, layout=None) as figure:

        def write(x: float, y: float, text: str, **options) -> None:
            figure.text(x / width, 1 - y / height, text, size=SIZE, **options)

        top = edge
        for row, size, head, body, foot in zip(rows, sizes, heads, bodies, feet, strict=True):
            left, below = edge + side, top + head
            write(edge, below + body / 2, row.name, rotation=90, ha="left", va="center")
            for block, (h, w, zoom) in zip(row.blocks, size, strict=True):
                left += block.margin
                axes = figure.add_axes((left / width, 1 - (below + h) / height, w / width, h / height))
                _draw(axes, block, zoom)
                write(left + w / 2, below - 12 - LINE * bool(block.columns), block.title, ha="center", va="bottom")
                if block.foot:
                    write(left + w / 2, below + h + 6, block.foot, ha="center", va="top")
                left += w + GAP
            top += head + body + foot + GAP
        for number, line in enumerate(lines):
            write(edge, top + number * LINE, line, va="top")


def _sizes(blocks: Sequence[Block], most: int, room: int) -> list[tuple[int, int, float]]:
    """(height, width, zoom) of every block, if ``most`` of them take about ``room`` pixels."""
    share = (room - sum(block.margin for block in blocks)) / most - GAP
    sizes: list[tuple[int, int, float] | None] = []
    for block in blocks:
        if block.sheet is None:
            sizes.append(None)
            continue
        h, w, _ = block.sheet.shape
        zoom = max(1, round(share / w)) if share / w > 0.8 else share / w
        sizes.append((round(h * zoom), round(w * zoom), zoom))
    # Missing images take the same space as their neighbours.
    present = next((size for size in sizes if size), (round(share / 2), round(share), 1))
    return [size or present for size in sizes]


def _draw(axes, block: Block, zoom: float) -> None:
    axes.grid(False)
    if block.sheet is None:
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set(visible=True, color="0.8")
        axes.text(0.5, 0.5, "not there yet", size=SIZE, color="0.4", ha="center", va="center", transform=axes.transAxes)
        return
    # An integer zoom copies pixels; a sheet that must shrink is filtered.
    axes.imshow(block.sheet, interpolation="none" if zoom >= 1 else "antialiased", aspect="auto")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, pad=2, top=False, labeltop=True, labelbottom=False, labelsize=SIZE - 0.5)
    axes.set_xticks([place - 0.5 for place, _ in block.columns], [text for _, text in block.columns])
    axes.set_yticks([place - 0.5 for place, _ in block.rows], [text for _, text in block.rows])
