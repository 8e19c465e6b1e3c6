"""A sheet: many small images as one image, and which images it shows."""

from collections.abc import Iterable

import numpy as np

COLUMNS = 4  # of a sheet whose images have no classes, and the least of one with classes


def by_class(labels: Iterable[np.ndarray | None], count: int) -> tuple[list[np.ndarray], int] | None:
    """The places of about ``count`` images of each sheet, with as many of every class, and their number per line.

    labels: of the images of each sheet. Columns are classes in their order; of each class the first images are taken,
    -1 stands for one that is missing. None if images have no labels, or more classes than give two lines.
    """
    given = list(labels)
    known = [one for one in given if one is not None]
    if not known or len(known) < len(given):
        return None
    classes: np.ndarray = np.unique(np.concatenate(known))
    each = -(-COLUMNS // max(len(classes), 1))  # columns of a class
    columns = each * len(classes)
    if len(classes) < 2 or 2 * columns > count:
        return None
    lines = count // columns
    chosen = []
    for one in known:
        places = np.full((lines, len(classes), each), -1)
        for index, label in enumerate(classes):
            found = np.full(lines * each, -1)
            first = np.flatnonzero(one == label)[: lines * each]
            found[: len(first)] = first
            places[:, index] = found.reshape(lines, each)
        chosen.append(places.reshape(-1))
    return chosen, columns


def image_grid(images: np.ndarray, columns: int, gap: int = 1, scale: int = 1) -> np.ndarray:
    """Images uint8 [N, C, H, W] tiled row by row on white, uint8 [rows, cols, 3]; each pixel ``scale`` wide."""
    count, _, side, _ = images.shape
    rows = -(-count // columns)
    cell = side + gap
    canvas = np.full((rows * cell + gap, columns * cell + gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * cell, gap + index % columns * cell
        canvas[top : top + side, left : left + side] = image.transpose(1, 2, 0)
    return canvas.repeat(scale, axis=0).repeat(scale, axis=1)
