"""Streaming statistics and the Fréchet distance."""

import numpy as np
import pytest
import torch

from edm.errors import UserError
from edm.metrics.frechet import FeatureStatistics, frechet_distance


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def correlated(rng: np.random.Generator, n: int, dimension: int) -> np.ndarray:
    """n samples of a Gaussian with a full covariance and a mean away from zero."""
    return rng.standard_normal((n, dimension)) @ rng.standard_normal((dimension, dimension)) + 3


def streamed(features: np.ndarray, sizes: list[int]) -> FeatureStatistics:
    statistics = FeatureStatistics()
    for batch in np.split(features, np.cumsum(sizes)[:-1]):
        statistics.append(batch)
    return statistics


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal to within ``tolerance`` of the largest expected magnitude."""
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


# Streaming


@pytest.mark.parametrize("sizes", [[500], [1, 499], [0, 7, 64, 129, 300], [1] * 500])
def test_streaming_equals_numpy_cov_whatever_the_batches(rng, sizes):
    features = correlated(rng, 500, 17)
    statistics = streamed(features, sizes)
    assert statistics.count == 500
    assert statistics.mean.dtype == statistics.covariance.dtype == np.float64
    assert_close(statistics.mean, features.mean(axis=0), 1e-12)
    assert_close(statistics.covariance, np.cov(features, rowvar=False), 1e-12)


def test_merging_shards_equals_one_pass_and_leaves_the_shards_alone(rng):
    features = correlated(rng, 600, 9)
    shards = [streamed(part, [len(part)]) for part in np.split(features, [1, 250, 251])]
    before = shards[1].covariance
    whole = FeatureStatistics()
    for shard in [FeatureStatistics(), *shards, FeatureStatistics()]:
        whole.merge(shard)
    assert whole.count == 600
    assert_close(whole.mean, features.mean(axis=0), 1e-9)
    assert_close(whole.covariance, np.cov(features, rowvar=False), 1e-9)
    assert (shards[1].covariance == before).all()


def test_merging_into_an_empty_one_shares_no_memory_with_the_shard(rng):
    shard, whole = streamed(rng.standard_normal((10, 3)), [10]), FeatureStatistics()
    whole.merge(shard)
    before = shard.mean, shard.covariance
    whole.append(rng.standard_normal((10, 3)) + 100)
    assert (shard.mean == before[0]).all()
    assert (shard.covariance == before[1]).all()


def test_a_mean_large_against_the_spread_leaves_the_covariance_intact(rng):
    """The textbook E[xx'] - E[x]E[x]' is wrong in the fourth digit here."""
    offset, features = 1e6, rng.standard_normal((400, 5))
    statistics = streamed(features + offset, [100] * 4)
    shifted = (features + offset) - offset  # the features after rounding to float64
    assert_close(statistics.covariance, np.cov(shifted, rowvar=False), 1e-9)


def test_half_precision_features_are_summed_in_float64(rng):
    features = torch.from_numpy(rng.standard_normal((4000, 3)) * 100).half()
    statistics = FeatureStatistics()
    for batch in features.split(7):
        statistics.append(batch)
    assert_close(statistics.covariance, np.cov(features.double().numpy(), rowvar=False), 1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_have_no_statistics(count):
    statistics = streamed(np.ones((count, 3)), [count])
    for moment in ("mean", "covariance"):
        with pytest.raises(UserError, match=f"at least 2 images, got {count}"):
            getattr(statistics, moment)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_refused_and_not_counted(rng, bad):
    features = rng.standard_normal((10, 3))
    statistics = streamed(features, [10])
    with pytest.raises(UserError, match="images 10 to 11: not all finite"):
        statistics.append(np.array([[1, 2, 3], [1, bad, 3]]))
    assert statistics.count == 10
    assert_close(statistics.covariance, np.cov(features, rowvar=False), 1e-12)


def test_features_of_two_extractors_do_not_mix(rng):
    with pytest.raises(UserError, match="one feature extractor"):
        streamed(rng.standard_normal((10, 3)), [10]).merge(streamed(rng.standard_normal((10, 4)), [10]))


# Distance


def test_distance_equals_the_formula_of_torch_fidelity(rng):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    first, second = moments(correlated(rng, 300, 40)), moments(correlated(rng, 200, 40))
    theirs = fid_statistics_to_metric(
        dict(zip(("mu", "sigma"), first, strict=True)), dict(zip(("mu", "sigma"), second, strict=True)), verbose=False
    )[KEY_METRIC_FID]
    assert frechet_distance(*first, *second) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("samples", [300, 12])
def test_distance_between_equal_statistics_is_zero(rng, samples):
    mu, sigma = moments(correlated(rng, samples, 40))
    assert 0 <= frechet_distance(mu, sigma, mu, sigma) <= 1e-10 * np.trace(sigma)


def test_distance_of_diagonal_gaussians_has_its_closed_form(rng):
    mu1, mu2, s1, s2 = rng.standard_normal(8), rng.standard_normal(8), rng.random(8) + 0.1, rng.random(8) + 0.1
    expected = ((mu1 - mu2) ** 2).sum() + ((s1 - s2) ** 2).sum()  # s are standard deviations
    assert frechet_distance(mu1, np.diag(s1**2), mu2, np.diag(s2**2)) == pytest.approx(expected, rel=1e-12)


def test_distance_is_symmetric_and_survives_rotation(rng):
    (mu1, sigma1), (mu2, sigma2) = moments(correlated(rng, 90, 20)), moments(correlated(rng, 10, 20))
    rotation = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    distance = frechet_distance(mu1, sigma1, mu2, sigma2)
    assert frechet_distance(mu2, sigma2, mu1, sigma1) == pytest.approx(distance, rel=1e-10)
    turned = (rotation @ mu1, rotation @ sigma1 @ rotation.T, rotation @ mu2, rotation @ sigma2 @ rotation.T)
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-10)


def test_fewer_samples_than_features_are_exact_in_the_subspaces_they_span(rng):
    """Two singular covariances: the distance equals that in their joint span, where rounding makes none singular."""
    first, second = rng.standard_normal((10, 100)), rng.standard_normal((15, 100)) * 2
    basis = np.linalg.qr(np.concatenate([first, second]).T)[0]  # [100, 25]: keeps all distances between the samples
    inside = frechet_distance(*moments(first @ basis), *moments(second @ basis))
    assert frechet_distance(*moments(first), *moments(second)) == pytest.approx(inside, rel=1e-10)


def test_disjoint_singular_gaussians_do_not_overlap():
    sigma1, sigma2 = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 0])
    assert frechet_distance(np.zeros(3), sigma1, np.zeros(3), sigma2) == pytest.approx(13)
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == pytest.approx(3)


def test_a_slightly_negative_eigenvalue_is_taken_as_zero():
    vectors = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    sigma = vectors @ np.diag([1, 1, 1, 1, -1e-16]) @ vectors.T
    assert frechet_distance(np.zeros(5), sigma, np.zeros(5), sigma) == pytest.approx(0, abs=1e-10)


def test_statistics_of_different_dimensions_are_not_compared():
    with pytest.raises(UserError, match="3 and 4 dimensions"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))


def test_statistics_that_are_not_finite_are_not_compared():
    with pytest.raises(UserError, match="second feature statistics: mu or sigma holds NaN"):
        frechet_distance(np.zeros(3), np.eye(3), np.array([0, np.nan, 0]), np.eye(3))
