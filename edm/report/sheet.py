"""A sheet: many small images as one image."""

import numpy as np


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
