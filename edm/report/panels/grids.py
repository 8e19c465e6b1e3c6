"""Figures made of images: noisy ones (Figure 1), samples (6 to 12), degraded ones (14), augmented ones (App. F.2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm.data.pixels import to_uint8
from edm.report.panels.layout import Block, Row, compose
from edm.report.sheet import image_grid

SHEET_COLUMNS = 8
PAIRS = 8  # in a row


def noisy_grid(
    noisy: np.ndarray,
    denoised: np.ndarray,
    sigmas: Sequence[float],
    path: Path,
    written: list[Path],
    *,
    sigma_data: float = 0.5,
) -> None:
    """Noisy images above, ideal denoiser outputs below; a column per σ, a row per image (Figure 1).

    noisy, denoised: float [levels, n, C, H, W], about [−1, 1] without noise. Noisy images are scaled by
    σ_data/√(σ² + σ_data²) to the contrast of clean ones: unscaled, high noise levels would have saturated colours.
    """
    noisy, sigma = np.asarray(noisy), np.asarray(sigmas, dtype=np.float64).reshape(-1, 1, 1, 1, 1)
    calmed = noisy * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    names = [rf"$\sigma$ = {level:g}" if index == 0 else f"{level:g}" for index, level in enumerate(sigmas)]
    titles = ("(a) Noisy images (scaled to the contrast of clean ones)", "(b) Ideal denoiser outputs")
    rows = []
    for images, title in zip((calmed, denoised), titles, strict=True):
        pixels = _pixels(images).swapaxes(0, 1)  # images, levels
        sheet = image_grid(pixels.reshape(-1, *pixels.shape[2:]), len(sigmas))
        rows.append(Row([Block(sheet, title, _above(pixels, names))]))
    compose(rows, path, written)


def degradation_grid(
    images: Mapping[float, np.ndarray],
    sigmas: Sequence[float],
    counts: Sequence[int],
    path: Path,
    written: list[Path],
) -> None:
    """Images after repeated churn: a block per S_noise, rows of σ, a column per number of repetitions (Figure 14).

    images: {S_noise: float [levels, counts, n, C, H, W]}; the n images of a level are stacked.
    """
    blocks: list[Block] = []
    for S_noise, shown in images.items():
        pixels = _pixels(shown).swapaxes(1, 2)  # levels, images, counts
        bands = [image_grid(level.reshape(-1, *level.shape[2:]), len(counts)) for level in pixels]
        height, width, _ = bands[0].shape
        # A wider gap separates the levels.
        gap = np.full((pixels.shape[-1] // 4 if pixels.shape[1] > 1 else 0, width, 3), 255, dtype=np.uint8)
        sheet = np.concatenate([part for band in bands for part in (band, gap)])[: -len(gap) or None]
        middles = [level * (height + len(gap)) + height / 2 for level in range(len(sigmas))]
        names = [rf"$\sigma$={sigma:g}" for sigma in sigmas]
        labels = [] if blocks else list(zip(middles, names, strict=True))
        title = rf"$S_{{noise}}$ = {S_noise:.3f}, repetitions:"
        blocks.append(Block(sheet, title, _above(pixels, [f"{count}" for count in counts]), labels))
    compose([Row(blocks)], path, written)


def sheets(
    rows: Mapping[str, Mapping[str, np.ndarray | None]],
    path: Path,
    written: list[Path],
    *,
    columns: int | Mapping[str, int] = SHEET_COLUMNS,
    caption: str = "",
    feet: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Sheets of samples side by side, in labelled rows (Figures 6 to 12).

    rows: {row label: {sheet label: uint8 images [n, C, H, W]}}; image k has the same place in every sheet. None
    instead of images leaves the sheet's place empty, with a note. A label may have several lines; an empty row label
    takes no space. columns: images per line of a sheet, of all rows or by row. caption: text below all rows. feet: {row
    label: {sheet label: text below that sheet}}. Raises UserError if no sheet has images.
    """
    drawn = []
    for name, cells in rows.items():
        most = columns if isinstance(columns, int) else columns[name]
        tiles = {
            label: None if images is None else image_grid(np.asarray(images), min(most, len(images)))
            for label, images in cells.items()
        }
        if tiles:
            below = (feet or {}).get(name, {})
            drawn.append(Row([Block(sheet, label, foot=below.get(label, "")) for label, sheet in tiles.items()], name))
    compose(drawn, path, written, caption)


def leakage_sheet(
    dataset: np.ndarray,
    augmented: np.ndarray,
    samples: np.ndarray,
    distances: Mapping[str, float],
    path: Path,
    written: list[Path],
    *,
    metric: str = "Fréchet distance",
    columns: int = SHEET_COLUMNS,
) -> None:
    """Training images, augmented training images and samples side by side, and their distances (Appendix F.2).

    dataset, augmented, samples: uint8 [n, C, H, W]; distances: {pair: value}; metric: the name of the distance.
    """
    cells = {"(a) clean: training images": dataset, "(b) augmented: the same": augmented, "(c) generated": samples}
    numbers = "; ".join(f"{pair.replace('-', ' to ')} {value:.3g}" for pair, value in distances.items())
    sheets({"": cells}, path, written, columns=columns, caption=f"{metric}: {numbers}.")


def pairs_sheet(
    generated: np.ndarray, training: np.ndarray, numbers: Mapping[str, Any], path: Path, written: list[Path]
) -> None:
    """Each generated image beside its nearest training image, with their ratio above, the lowest first.

    generated, training: uint8 [n, C, H, W]. numbers: of :func:`edm.analysis.studies.memorised`.
    """
    blocks = [Block(image_grid(np.stack(images), 2), f"{pair['ratio']:.2f}", foot=f"{pair['seed']}, {pair['training']}")
              for *images, pair in zip(generated, training, numbers["pairs"], strict=False)]  # fmt: skip
    rows = [Row(blocks[start : start + PAIRS]) for start in range(0, len(blocks), PAIRS)]
    caption = (
        f"Left of each pair: a generated image, below it its seed; right: the nearest of "
        f"{numbers['reference_features']:,} training images in the features: {numbers['description']}; below it its "
        f"place in the dataset. Above: their distance over the mean distance of the {numbers['k']} nearest. It is "
        f"below {numbers['below']:g} for {numbers['share']:.3g} % of {numbers['images']:,} generated images, and for "
        f"{numbers['share_of_reference']:.3g} % of the training images among themselves."
    )
    compose(rows, path, written, caption)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Float images about [−1, 1] as uint8 of the same shape."""
    return to_uint8(torch.as_tensor(np.ascontiguousarray(images))).numpy()


def _above(images: np.ndarray, names: Sequence[str]) -> list[tuple[float, str]]:
    """A label for every column of a grid of such images, and its position."""
    side = images.shape[-1]
    return [(1 + index * (side + 1) + side / 2, name) for index, name in enumerate(names)]
