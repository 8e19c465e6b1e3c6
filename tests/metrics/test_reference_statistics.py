"""Files of reference statistics: edm's, the EDM authors', guided-diffusion's, and damaged ones."""

import zipfile
from itertools import pairwise

import numpy as np
import pytest

from edm.cluster.processes import World
from edm.errors import UserError
from edm.metrics import reference
from edm.metrics.extractors import load_features
from edm.metrics.frechet import load_reference_features, load_statistics, save_statistics
from edm.metrics.reference import reference_statistics, save_reference


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def test_statistics_come_back_exactly_with_what_was_said_of_them(rng, tmp_path):
    mu, sigma = moments(rng.standard_normal((50, 6)))
    path = tmp_path / "new" / "reference.npz"
    save_statistics(path, mu, sigma, {"count": 50, "features": "digits-classifier", "dataset_sha256": "ab" * 32})
    loaded = load_statistics(path)
    assert (loaded.mu == mu).all()
    assert (loaded.sigma == sigma).all()
    assert (loaded.count, loaded.features, loaded.dataset_sha256) == (50, "digits-classifier", "ab" * 32)


def test_equal_statistics_are_equal_bytes_without_a_date(rng, tmp_path):
    mu, sigma = moments(rng.standard_normal((50, 6)))
    save_statistics(tmp_path / "a.npz", mu, sigma, {"count": 50, "features": "x"})
    save_statistics(tmp_path / "b.npz", mu, np.asfortranarray(sigma), {"features": "x", "count": 50})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_our_files_are_plain_npz_for_the_authors_tools(rng, tmp_path):
    mu, sigma = moments(rng.standard_normal((50, 6)))
    save_statistics(tmp_path / "plain.npz", mu, sigma)
    with np.load(tmp_path / "plain.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"mu", "sigma"}
        assert archive["mu"].dtype == archive["sigma"].dtype == np.float64
        assert (archive["sigma"] == sigma).all()


def test_the_layout_of_the_authors_fid_refs_loads(rng, tmp_path):
    mu, sigma = moments(rng.standard_normal((64, 2048)))
    np.savez(tmp_path / "cifar10-32x32.npz", mu=mu, sigma=sigma)
    loaded = load_statistics(tmp_path / "cifar10-32x32.npz")
    assert (loaded.mu == mu).all()
    assert (loaded.sigma == sigma).all()
    assert (loaded.count, loaded.features, loaded.dataset_sha256) == (None, None, None)


def test_the_layout_of_guided_diffusion_loads_without_reading_its_other_keys(rng, tmp_path):
    """VIRTUAL_*.npz carries images and spatial statistics too; an object array stands for whatever may lie there."""
    mu, sigma = moments(rng.standard_normal((64, 8)).astype(np.float32))
    others = {"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "mu_s": np.zeros(4), "objects": np.array([{}], dtype=object)}
    np.savez_compressed(tmp_path / "VIRTUAL.npz", mu=mu, sigma=sigma, **others)
    loaded = load_statistics(tmp_path / "VIRTUAL.npz")
    assert loaded.mu.dtype == np.float64
    assert (loaded.mu == mu).all()


def test_extra_keys_cannot_shadow_the_moments_nor_hold_objects(tmp_path):
    for extra in ({"mu": 1}, {"count": [1, 2]}, {"count": None}):
        with pytest.raises(ValueError, match="extra"):
            save_statistics(tmp_path / "x.npz", np.zeros(2), np.eye(2), extra)
    assert not list(tmp_path.iterdir())


# Features of single images


def ramp(count: int) -> np.ndarray:
    """Images of one pixel, uint8 [count, 1, 1, 1]: the feature of image i is i / 255."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None]


def kept_of(count: int, keep: int, batch: int) -> list[int]:
    """The kept images of ``ramp``, in order."""
    images = ramp(count)
    batches = [images[start : start + batch] for start in range(0, count, batch)]
    return np.round(reference_statistics(load_features("pixels"), batches, keep)[1][:, 0] * 255).astype(int).tolist()


def test_features_of_the_reference_images_come_back_exactly(rng, tmp_path):
    features = rng.standard_normal((50, 6)).astype(np.float32)
    save_statistics(tmp_path / "r.npz", *moments(features.astype(float)), {"count": 70}, features)
    loaded, again = load_statistics(tmp_path / "r.npz"), load_reference_features(tmp_path / "r.npz")
    assert (loaded.count, loaded.features_count) == (70, 50)
    assert again.dtype == np.float32
    assert (again == features).all()


def test_equal_images_are_equal_bytes_with_features_too(tmp_path):
    for name in ("a.npz", "b.npz"):
        extractor = load_features("pixels")
        statistics, kept = reference_statistics(extractor, [ramp(100), ramp(80)], keep_features=60)
        save_reference(tmp_path / name, extractor, statistics, "ab" * 32, kept)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = load_statistics(tmp_path / "a.npz")
    assert (loaded.count, loaded.features_count, loaded.features) == (180, 60, "pixels")
    assert (loaded.dataset_sha256, loaded.weights_sha256) == ("ab" * 32, None)


def test_statistics_are_of_all_images_however_few_features_are_kept():
    few, none = (reference_statistics(load_features("pixels"), [ramp(100)], keep) for keep in (10, None))
    assert (few[0].covariance == none[0].covariance).all()
    assert (len(few[1]), none[1]) == (10, None)


def test_up_to_the_limit_all_features_are_kept_in_order():
    assert kept_of(100, keep=100, batch=30) == kept_of(100, keep=5000, batch=100) == list(range(100))


def test_the_same_images_are_kept_whatever_the_batches():
    kept = kept_of(200, keep=40, batch=200)
    assert kept == kept_of(200, keep=40, batch=7) == kept_of(200, keep=40, batch=1)
    assert len(set(kept)) == 40


@pytest.mark.parametrize("cuts", [[0, 90, 200], [0, 0, 20, 20, 160, 200], [0, 200, 200]])
def test_the_same_images_are_kept_where_several_processes_see_a_part_each(cuts):
    """They run one after the other here; the first, which gets the parts of all, last."""
    states = []

    class Other(World):
        def gather(self, tensors):
            states.append(tensors)
            return []

    class First(World):
        def gather(self, tensors):
            return [tensors, *states]

    def seen(part, place):
        images = ramp(200)[part[0] : part[1]]
        return reference_statistics(load_features("pixels"), [images] if len(images) else [], 40, part[0], place)

    first, *others = pairwise(cuts)
    for part in others:
        seen(part, Other())
    statistics, kept = seen(first, First())
    assert np.round(kept[:, 0] * 255).astype(int).tolist() == kept_of(200, keep=40, batch=200)
    assert statistics.count == 200
    assert statistics.mean == pytest.approx(ramp(200).mean() / 255, rel=1e-6)


@pytest.mark.slow
def test_every_image_is_equally_likely_to_be_kept(monkeypatch):
    """Over 2,000 seeds, the one kept of five images: χ² of four degrees of freedom, below its 99.9 % point."""
    counts = np.zeros(5)
    for seed in range(2000):
        monkeypatch.setattr(reference, "SUBSET_SEED", seed)
        counts[kept_of(5, keep=1, batch=4)] += 1
    assert ((counts - 400) ** 2 / 400).sum() < 18.5


def test_a_reference_of_before_has_no_features_and_says_so(tmp_path):
    save_statistics(tmp_path / "old.npz", np.zeros(2), np.eye(2), {"count": 5})
    assert load_statistics(tmp_path / "old.npz").features_count is None
    with pytest.raises(UserError, match=r"old\.npz: holds no features of the reference images; compute it again"):
        load_reference_features(tmp_path / "old.npz")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((4, 3), np.float32), r"not float32 \(n, 2\)"),
        (np.zeros((4, 2)), r"float64 \(4, 2\), not float32"),
        (np.full((4, 2), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_features_that_do_not_fit_are_neither_written_nor_read(features, message, tmp_path):
    with pytest.raises(UserError, match=message):
        save_statistics(tmp_path / "x.npz", np.zeros(2), np.eye(2), None, features)
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "x.npz", mu=np.zeros(2), sigma=np.eye(2), reference_features=features, features_count=4)
    with pytest.raises(UserError, match=message) as caught:
        load_reference_features(tmp_path / "x.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'x.npz'}: ")


def test_a_limit_of_no_features_is_refused():
    with pytest.raises(UserError, match="features of 0 reference images"):
        reference_statistics(load_features("pixels"), [ramp(10)], keep_features=0)


# Damaged files


class Trap:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def _missing(path):
    pass


def _truncated(path):
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    path.write_bytes(path.read_bytes()[:-40])


def _flipped(path):
    np.savez(path, mu=np.full(100, 1.5), sigma=np.eye(100))
    data = bytearray(path.read_bytes())
    data[300] ^= 0xFF
    path.write_bytes(data)


def _bare_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def _object_array(path):
    np.savez(path, mu=np.array([Trap(path.parent / "sprung")], dtype=object), sigma=np.eye(1))


def _not_npy(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", b"hello")
        archive.writestr("sigma.npy", b"hello")


def _unfolding(path):
    """A covariance of 4,096 features in 130 KB, where 64 MiB are allowed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in (("mu", np.zeros(4096)), ("sigma", np.zeros((4096, 4096)))):
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array)


def _unfinished_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0\x05\0{'a(\n")


def _saved(**arrays):
    return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing, "no such file"),
        (_truncated, "not a complete .npz"),
        (_flipped, "not readable as .npz"),
        (_bare_array, "not a complete .npz"),
        (_object_array, "not readable as .npz"),
        (_not_npy, "mu is not an array"),
        (_unfolding, "sigma unfolds to 134,217,856 bytes; more than 67,108,864 are refused"),
        (_unfinished_header, "not readable as .npz"),
        (_saved(mu=np.zeros(3)), "has no sigma"),
        (_saved(other=np.zeros(3)), "has no mu and no sigma"),
        (_saved(mu=np.zeros(3), sigma=np.eye(4)), "have shapes"),
        (_saved(mu=np.zeros((3, 1)), sigma=np.eye(3)), "have shapes"),
        (_saved(mu=np.zeros(0), sigma=np.zeros((0, 0))), "have shapes"),
        (_saved(mu=np.zeros(2, int), sigma=np.eye(2)), "not floating-point"),
        (_saved(mu=np.array(["a", "b"]), sigma=np.eye(2)), "not floating-point"),
        (_saved(mu=np.array([0, np.nan]), sigma=np.eye(2)), "NaN or infinity"),
        (_saved(mu=np.zeros(2), sigma=np.array([[1, np.inf], [np.inf, 1]])), "NaN or infinity"),
        (_saved(mu=np.zeros(2), sigma=np.array([[1, 0.5], [0.1, 1]])), "not symmetric"),
        (_saved(mu=np.zeros(2), sigma=-np.eye(2)), "negative variance"),
        (_saved(mu=np.zeros(2), sigma=np.eye(2), count=np.arange(3)), "count is not a single int"),
        (_saved(mu=np.zeros(2), sigma=np.eye(2), features=np.array(7)), "features is not a single str"),
    ],
)
def test_a_bad_file_gives_one_line_that_names_it(make, message, tmp_path, monkeypatch):
    monkeypatch.setattr("edm.metrics.frechet.MOST_UNFOLDED", 64 << 20)
    path = tmp_path / "bad.npz"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        load_statistics(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_statistics_that_are_no_gaussians_are_not_written(tmp_path):
    with pytest.raises(UserError, match="not symmetric"):
        save_statistics(tmp_path / "x.npz", np.zeros(2), np.array([[1, 0.5], [0.1, 1]]))
    assert not list(tmp_path.iterdir())
