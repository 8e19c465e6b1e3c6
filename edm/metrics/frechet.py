"""Fréchet distance between two Gaussians, their streaming estimation, and the files that hold reference statistics.

Independent of images and networks: features are matrices. The evaluation protocol is that of Section 6 of
Karras et al. (2022), the distance that of Heusel et al. (2017), "GANs trained by a two time-scale update rule".
"""

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm.errors import UserError, one_line
from edm.files.reading import open_regular
from edm.files.writing import atomic_write

MOST_UNFOLDED = 1 << 28  # bytes of an array in a smaller file: a covariance of 5,792 features, compressed
SYMMETRY_TOLERANCE = 1e-6  # of the largest variance; covariances from other programs are symmetric up to rounding


class FeatureStatistics:
    """Count, mean and covariance of feature vectors, accumulated batch by batch in float64.

    Each batch is centred on its own mean before squaring, and merged by the pairwise update of Chan, Golub & LeVeque
    (1983): this avoids cancellation if the mean is large compared with the spread.
    Memory: 8 F² bytes, on the device of the first batch (on the CPU if that device has no float64).
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.empty(0, dtype=torch.float64)
        self._scatter = torch.empty(0, 0, dtype=torch.float64)  # sum of outer products about the mean

    def append(self, features: torch.Tensor | np.ndarray) -> None:
        """Adds a batch of feature vectors [N, F] of any dtype, on any device; N may be 0.

        Raises UserError and leaves the statistics unchanged if a feature is NaN or infinite, or if F differs.
        """
        batch = torch.as_tensor(features).detach()
        if batch.ndim != 2:
            raise ValueError(f"features must be [N, F], not {list(batch.shape)}")
        if batch.device.type == "mps":  # has no float64
            batch = batch.cpu()
        batch = batch.to(device=self._mean.device if self.count else batch.device, dtype=torch.float64)
        require_finite(batch, self.count)
        if len(batch):
            mean = batch.mean(dim=0)
            centred = batch - mean
            self._join(len(batch), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds the samples of ``other`` (a shard from another process); does not change ``other``.

        Raises UserError if the two have different numbers of features.
        """
        if other.count:
            device = self._mean.device if self.count else other._mean.device
            self._join(other.count, other._mean.to(device), other._scatter.to(device))

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors from which ``from_state`` restores them: "count" int64 [], "mean" [F], "scatter" [F, F]."""
        return {"count": torch.tensor(self.count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> "FeatureStatistics":
        """The inverse of :meth:`state`. Raises UserError if ``state`` is not such a state."""
        statistics = cls()
        try:
            number, mean, scatter = state["count"].item(), state["mean"], state["scatter"]
        except (KeyError, RuntimeError) as error:
            raise UserError(f"not a state of feature statistics ({error!r})") from None
        types = {mean.dtype, scatter.dtype} == {torch.float64} and isinstance(number, int) and number >= 0
        shapes = mean.ndim == 1 and scatter.shape == (len(mean), len(mean)) and bool(number) == bool(len(mean))
        if not (types and shapes and mean.isfinite().all() and scatter.isfinite().all()):
            raise UserError("not a state of feature statistics (types, shapes or values are not those of one)")
        statistics.count, statistics._mean, statistics._scatter = int(number), mean, scatter
        return statistics

    @property
    def mean(self) -> np.ndarray:
        """Mean feature vector, float64 (F,). Raises UserError below two samples."""
        self._require_two()
        return self._mean.cpu().numpy().copy()

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance (divisor n - 1, as numpy.cov), float64 (F, F). Raises UserError below two samples."""
        self._require_two()
        scatter = self._scatter.cpu().numpy()
        return (scatter + scatter.T) / (2 * (self.count - 1))  # the average: a matrix product is symmetric to rounding

    def moments(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """``mean`` [F] and ``covariance`` [F, F] as float64 tensors on a device."""
        self._require_two()
        mean, scatter = self._mean.to(device), self._scatter.to(device)
        return mean, (scatter + scatter.T) / (2 * (self.count - 1))

    def without(self, part: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of the samples that are not in ``part``, some of those seen; changes neither."""
        rest = FeatureStatistics()
        rest.count = self.count - part.count
        mean, scatter = part._mean.to(self._mean.device), part._scatter.to(self._mean.device)
        shift = self._mean - mean  # Chan, Golub & LeVeque's update, solved for one of the two sets
        rest._mean = self._mean + shift * (part.count / rest.count)
        rest._scatter = self._scatter - scatter - torch.outer(shift, shift) * (self.count * part.count / rest.count)
        return rest

    def _join(self, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if len(mean) != len(self._mean):
            raise UserError(
                f"features of {len(mean)} dimensions cannot join statistics of {len(self._mean)}; "
                "use one feature extractor throughout"
            )
        total = self.count + count
        shift = mean - self._mean
        self._scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    def _require_two(self) -> None:
        if self.count < 2:
            raise UserError(f"feature statistics need at least 2 images, got {self.count}; add images")


def require_finite(features: torch.Tensor, first: int) -> None:
    """Raises UserError if a feature [N, F] of the images from ``first`` is NaN or infinite."""
    if not torch.isfinite(features).all():
        raise UserError(
            f"features of images {first} to {first + len(features) - 1}: not all finite; "
            "check the images and the weights of the feature extractor"
        )


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray, device: torch.device | str = "cpu"
) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), in float64 on ``device``; never negative, never NaN.

    Takes means (F,) and covariances (F, F), full rank or not (fewer images than features leave Σ singular).
    It is called FID only in the features of Inception-v3.
    Raises UserError if the dimensions differ or the statistics are not those of a Gaussian.
    """
    mu1, sigma1 = _checked_moments(mu1, sigma1, "first feature statistics")
    mu2, sigma2 = _checked_moments(mu2, sigma2, "second feature statistics")
    if mu1.shape != mu2.shape:
        raise UserError(
            f"feature statistics of {mu1.size} and {mu2.size} dimensions cannot be compared; "
            "make both with the same feature extractor"
        )
    # With Σ = A Aᵀ, the eigenvalues of Σ₁Σ₂ are the squared singular values of A₁ᵀA₂. Singular values have rounding
    # errors of 1e-16 of the largest, square roots of eigenvalues 1e-8. This matters if Σ is singular, because every
    # zero eigenvalue would add the root of its error.
    overlap = torch.linalg.svdvals(factor(sigma1, device).T @ factor(sigma2, device)).sum().item()
    shift = mu1 - mu2
    return max(0.0, float(shift @ shift + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap))


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics of a dataset in the features of one extractor. Values that the file does not record are None.

    path: the file. mu: float64 (F,). sigma: float64 (F, F). count: number of images. features: name of the extractor.
    dataset_sha256, weights_sha256: hashes of the dataset archive and of the extractor's weights.
    features_count: number of images whose features the file holds, for ``load_reference_features``.
    """

    path: Path
    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None
    features: str | None = None
    dataset_sha256: str | None = None
    weights_sha256: str | None = None
    features_count: int | None = None


def save_statistics(
    path: str | os.PathLike,
    mu: np.ndarray,
    sigma: np.ndarray,
    extra: Mapping[str, int | str] | None = None,
    reference_features: np.ndarray | None = None,
) -> None:
    """Writes ``mu`` (F,) and ``sigma`` (F, F) as float64 .npz, the layout of the authors' ``fid-refs``.

    ``extra`` adds numbers and text; ``load_statistics`` reads ``count``, ``features``, ``dataset_sha256`` and
    ``weights_sha256``. ``reference_features`` [n, F], float32, adds the features of single images and their number,
    ``features_count``. Equal input gives equal bytes: numpy dates the members 1980.
    Raises UserError if the statistics are not those of a Gaussian or the file cannot be written.
    """
    mu, sigma = _checked_moments(mu, sigma, str(path))
    members: dict[str, Any] = {"mu": mu, "sigma": np.ascontiguousarray(sigma)}
    if reference_features is not None:
        members |= {"features_count": np.array(len(reference_features))}
        members |= {"reference_features": _checked_features(reference_features, mu.size, str(path))}
    for key, value in sorted((extra or {}).items()):
        if key in members or not isinstance(value, int | str):
            raise ValueError(f"extra[{key!r}] must be a number or text under a name of its own, got {value!r}")
        members[key] = np.array(value)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:  # an open file: numpy adds no suffix
        np.savez(file, **members)


def load_statistics(path: str | os.PathLike) -> ReferenceStatistics:
    """Reads an .npz with ``mu`` and ``sigma``: ``save_statistics``, the EDM authors' ``fid-refs``, ADM's ``VIRTUAL_*``.

    Unpickles nothing and does not read other keys. Raises UserError if the file is missing, damaged, lacks a key,
    holds Python objects, or if its values are not the statistics of a Gaussian.
    """
    path = Path(path)
    with _archive(path) as archive:
        missing = {"mu", "sigma"} - set(archive.files)
        if missing:
            raise UserError(f"{path}: has no {' and no '.join(sorted(missing))}; reference statistics need both")
        mu, sigma = _array(archive, "mu", path), _array(archive, "sigma", path)
        extra: dict[str, Any] = {
            key: _scalar(archive, key, kind, path) for key, kind in _EXTRAS.items() if key in archive.files
        }
    mu, sigma = _checked_moments(mu, sigma, str(path))
    return ReferenceStatistics(path, mu, sigma, **extra)


def load_reference_features(path: str | os.PathLike) -> np.ndarray:
    """The features of the reference images [features_count, F], float32, in a file of ``save_statistics``.

    Raises UserError if the file is missing, damaged, or has no features.
    """
    path = Path(path)
    with _archive(path) as archive:
        if "reference_features" not in archive.files:
            raise UserError(f"{path}: holds no features of the reference images; compute it again and keep them")
        features, dimension = _array(archive, "reference_features", path), _array(archive, "mu", path).size
    return _checked_features(features, dimension, str(path))


_EXTRAS = {"count": int, "features": str, "dataset_sha256": str, "weights_sha256": str, "features_count": int}


@contextmanager
def _archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an .npz, which reads its members on access. Raises UserError if opening or reading fails."""
    with open_regular(path, "reference statistics, which `edm fid-ref` writes") as file:
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: not a complete .npz file; compute or download it again")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                yield archive
        except UserError:
            raise
        except (
            Exception
        ) as error:  # zipfile's, zlib's, numpy's, and those of Python's tokenizer, with which numpy reads
            raise UserError(f"{path}: not readable as .npz ({one_line(error)}); compute or download it again") from None


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    """An array of the file. Raises UserError, before it allocates memory, for a small file that unfolds to much."""
    members = archive.zip.infolist() if archive.zip else []
    size = max(info.file_size for info in members if info.filename in (key, f"{key}.npy"))
    if size > max(MOST_UNFOLDED, path.stat().st_size):
        raise UserError(f"{path}: {key} unfolds to {size:,} bytes; more than {MOST_UNFOLDED:,} are refused")
    value = archive[key]
    if not isinstance(value, np.ndarray):  # numpy returns the bytes of a member that is no array
        raise UserError(f"{path}: {key} is not an array; compute or download the statistics again")
    return value


def _scalar(archive: np.lib.npyio.NpzFile, key: str, kind: type, path: Path) -> int | str:
    value = _array(archive, key, path)
    if value.ndim or not isinstance(value.item(), kind):
        raise UserError(f"{path}: {key} is not a single {kind.__name__}; remove it or compute the statistics again")
    return value.item()


def _checked_moments(mu: np.ndarray, sigma: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64. Raises UserError if they cannot be a mean (F,) and a covariance (F, F)."""
    mu, sigma = np.asarray(mu), np.asarray(sigma)
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        problem = f"mu and sigma are {mu.dtype} and {sigma.dtype}, not floating-point"
    elif mu.ndim != 1 or not mu.size or sigma.shape != (mu.size, mu.size):
        problem = f"mu and sigma have shapes {mu.shape} and {sigma.shape}, not (F,) and (F, F)"
    elif not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        problem = "mu or sigma holds NaN or infinity"
    elif np.abs(sigma - sigma.T).max() > SYMMETRY_TOLERANCE * np.abs(np.diag(sigma)).max():
        problem = "sigma is not symmetric"
    elif np.diag(sigma).min() < 0:
        problem = "sigma has a negative variance"
    else:
        return mu.astype(np.float64), sigma.astype(np.float64)
    raise UserError(f"{where}: {problem}; compute the statistics again")


def _checked_features(features: np.ndarray, dimension: int, where: str) -> np.ndarray:
    """The same array. Raises UserError if it is not features of single images, float32 [n, ``dimension``]."""
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != dimension:
        problem = f"reference features are {features.dtype} {features.shape}, not float32 (n, {dimension})"
    elif not np.isfinite(features).all():
        problem = "reference features hold NaN or infinity"
    else:
        return features
    raise UserError(f"{where}: {problem}; compute the statistics again")


def factor(sigma: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A [F, rank] with A Aᵀ = ``sigma``. Drops eigenvalues that are zero up to rounding, and negative ones."""
    values, vectors = torch.linalg.eigh(torch.as_tensor((sigma + sigma.T) / 2, device=device))
    keep = values > len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return vectors[:, keep] * values[keep].sqrt()
