"""Where datasets come from. A source is a function that gives images uint8 [C, H, W] and their labels."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from edm.data import write_archive
from edm.errors import UserError
from edm.files import sha256_file

Source = Callable[[Path | None], tuple[Iterable[np.ndarray], list[int] | None]]


def digits(path: Path | None) -> tuple[Iterable[np.ndarray], list[int]]:
    """The 1,797 handwritten digits that scikit-learn ships: 8×8, grey, 10 classes (Alpaydin and Kaynak, UCI, 1998).

    Their 17 levels 0…16 are spread over 0…255.
    """
    if path is not None:
        raise UserError(f"{path}: the digits come with scikit-learn and take no input file")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return list(images), bunch.target.tolist()


SOURCES: dict[str, Source] = {"digits": digits}


def prepare(source: str, output: str | Path, path: str | Path | None = None) -> dict[str, object]:
    """Writes the archive of a source. Returns its number of images, of classes, and its SHA-256.

    Raises UserError for an unknown source or input that the source refuses.
    """
    if source not in SOURCES:
        raise UserError(f"dataset source {source!r} is unknown; choose one of {', '.join(SOURCES)}")
    images, labels = SOURCES[source](None if path is None else Path(path))
    count = write_archive(output, images, labels)
    return {"images": count, "classes": 0 if labels is None else len(set(labels)), "sha256": sha256_file(output)}
