"""The error of a Fréchet distance: what its interval covers; parts of an evaluation give the bar of the whole."""

import itertools
import math

import numpy as np
import pytest
import torch

from edm.errors import UserError
from edm.metrics.error_bars import SIZES, Distance, Groups, limit
from edm.metrics.frechet import FeatureStatistics, ReferenceStatistics, frechet_distance
from edm.metrics.jackknife import (
    EXPECTED_MINIMUM,
    FEWEST_PER_FEATURE,
    GROUPS,
    Difference,
    expected_minimum,
    jackknife,
)

FEATURES = 8


@pytest.fixture(scope="module")
def reference():
    mixing = np.random.default_rng(0).standard_normal((FEATURES, FEATURES))
    return ReferenceStatistics("ref.npz", np.full(FEATURES, 0.1), mixing @ mixing.T / FEATURES)


def drawn(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, FEATURES)) + np.arange(FEATURES) / 4)


def grouped(features, total, start=0, batch=7):
    groups = Groups(total, start)
    for part in features.split(batch):
        groups.append(part)
    return groups


def flat(bar):
    return np.array([bar["s"], bar["corrected"], bar["limit"], *bar["without"], *np.ravel(bar["prefixes"])])


def test_a_bar_is_made_of_the_distances_without_each_group_and_of_the_first_groups(reference):
    features = drawn(203)  # groups of 10 and 11
    bar = grouped(features, 203).bar(reference)
    borders = [203 * group // GROUPS for group in range(GROUPS + 1)]

    def distance(some):
        return frechet_distance(some.mean(0).numpy(), torch.cov(some.T).numpy(), reference.mu, reference.sigma)

    without = [distance(torch.cat([features[:a], features[b:]])) for a, b in itertools.pairwise(borders)]
    assert bar["without"] == pytest.approx(without, rel=1e-10)
    assert [n for n, _ in bar["prefixes"]] == borders[-SIZES:]
    prefixes = [distance(features[:n]) for n in borders[-SIZES:]]
    assert [d for _, d in bar["prefixes"]] == pytest.approx(prefixes, rel=1e-10)
    whole, mean = distance(features), np.mean(without)
    assert bar["s"] == pytest.approx(math.sqrt(19 / 20 * np.square(without - mean).sum()), rel=1e-8)
    assert bar["corrected"] == pytest.approx(20 * whole - 19 * mean, rel=1e-8)
    assert bar["features"] == FEATURES


def test_the_distances_of_a_bar_are_counted_where_they_take_long(reference, monkeypatch, capsys):
    groups = grouped(drawn(203), 203)
    groups.bar(reference)
    assert not capsys.readouterr().err
    monkeypatch.setattr("edm.tracking.counting.EVERY", -1)
    groups.bar(reference)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == SIZES + GROUPS - 1 and lines[6].startswith("error bar: 7 of 35 distances (20 %), about ")


@pytest.mark.parametrize("cuts", [[0, 1, 90, 90, 203], [0, 3, 203], [0, *range(7, 203, 13), 203]])
def test_parts_that_cut_groups_merge_to_the_bar_of_one_pass(reference, cuts):
    features, merged = drawn(203), Groups(203)
    for start, stop in itertools.pairwise(cuts):
        sent = grouped(features[start:stop], 203, start).state()
        received = Groups(203)
        received.restore({name: tensor.clone() for name, tensor in sent.items()})
        merged.merge(received)
    assert merged.count == 203
    one = grouped(features, 203)
    assert flat(merged.bar(reference)) == pytest.approx(flat(one.bar(reference)), rel=1e-12, abs=1e-12)
    assert merged.whole().mean == pytest.approx(features.mean(0).numpy(), rel=1e-12)
    assert merged.whole().covariance == pytest.approx(torch.cov(features.T).numpy(), rel=1e-12, abs=1e-14)


def test_a_part_that_goes_on_from_its_state_stays_in_its_place(reference):
    features, again = drawn(203), Groups()
    again.restore(grouped(features[:50], 203).state())
    again.append(features[50:])
    assert flat(again.bar(reference)) == pytest.approx(flat(grouped(features, 203).bar(reference)), rel=1e-12)


def test_a_part_without_groups_leaves_the_distance_without_a_bar():
    """A shard file of an earlier version has statistics of all its images in one."""
    features = drawn(203)
    for first, second in ((203, 0), (0, 203)):
        merged = Groups(203)
        merged.merge(grouped(features[:90], first))
        merged.merge(grouped(features[90:], second, 90 if second else 0))
        assert merged.bar(None) is None
        assert merged.whole().covariance == pytest.approx(torch.cov(features.T).numpy(), rel=1e-12, abs=1e-14)


def test_too_few_images_have_no_bar_but_their_number_of_features(reference):
    fewest = FEWEST_PER_FEATURE * FEATURES
    assert grouped(drawn(fewest - 1), fewest - 1).bar(reference) == {"features": FEATURES}
    assert grouped(drawn(fewest), fewest).bar(reference)["s"] > 0
    assert Groups().bar(reference) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(groups=torch.tensor([203, 204])),
        lambda state: state.update(groups=torch.tensor([203.0, 0.0])),
        lambda state: state.update(groups=torch.tensor(203)),
        lambda state: state.pop("3/mean"),
        lambda state: state.update({"3/scatter": state["3/scatter"][1:]}),
        lambda state: state.update({"3/scatter": state["3/scatter"][None]}),
        lambda state: state["3/scatter"].fill_(torch.nan),
    ],
)
def test_what_is_not_the_state_of_groups_is_refused(change):
    state = grouped(drawn(203), 203).state()
    change(state)
    with pytest.raises(UserError, match="not a state of feature statistics"):
        Groups().restore(state)


def test_features_that_are_not_finite_are_refused_before_any_is_added():
    groups, features = Groups(203), drawn(203)
    features[15, 0] = torch.nan
    with pytest.raises(UserError, match="images 0 to 202: not all finite"):
        groups.append(features)
    assert groups.count == 0


def test_the_distance_by_eigenvalues_is_that_by_singular_values(reference):
    seen = FeatureStatistics()
    seen.append(drawn(100))
    exact = frechet_distance(seen.mean, seen.covariance, reference.mu, reference.sigma)
    assert Distance(reference).of(seen) == pytest.approx(exact, rel=1e-12)


def test_fd_infinity_is_the_intercept_of_a_line_in_one_over_n():
    assert limit([[n, 3.5 + 700 / n] for n in range(300, 1001, 50)]) == pytest.approx(3.5, rel=1e-12)


# Simulations


@pytest.fixture(scope="module")
def simulated():
    """300 evaluations of 1,000 images in 32 features of known Gaussians: the true distance, and the bars."""
    random, features = torch.Generator().manual_seed(0), 32
    deviations = torch.linspace(0.5, 1.5, features, dtype=torch.float64)
    mean = torch.full((features,), 0.15, dtype=torch.float64)
    reference = ReferenceStatistics("ref.npz", np.zeros(features), np.eye(features))
    distance, bars = Distance(reference), []
    for _ in range(300):
        groups = Groups(1000)
        groups.append(torch.randn(1000, features, dtype=torch.float64, generator=random) * deviations + mean)
        bars.append(groups.measured(distance))
    return float(mean @ mean + (deviations - 1).square().sum()), bars


@pytest.mark.slow
def test_the_interval_covers_the_true_distance_and_the_plain_value_does_not(simulated):
    true, bars = simulated
    covered = {name: np.mean([abs(value(bar) - true) <= 1.96 * bar["s"] for bar in bars])
               for name, value in (("corrected", lambda bar: bar["corrected"]),
                                   ("plain", lambda bar: bar["prefixes"][-1][1]))}  # fmt: skip
    assert 0.91 <= covered["corrected"] <= 0.98
    assert covered["plain"] < 0.8


@pytest.mark.slow
def test_the_bias_falls_with_the_number_of_images_and_both_corrections_remove_it(simulated):
    """E[FD_N] − FD is a/N: the excess at 300, 500 and 1,000 images, times N, is one number a."""
    true, bars = simulated
    sizes = {int(n): np.mean([dict(bar["prefixes"])[n] for bar in bars]) - true for n in (300, 500, 1000)}
    excess = {n: n * value for n, value in sizes.items()}
    assert excess[300] == pytest.approx(excess[1000], rel=0.1) and excess[500] == pytest.approx(excess[1000], rel=0.1)
    for name in ("corrected", "limit"):
        assert abs(np.mean([bar[name] for bar in bars]) - true) < 0.1 * sizes[1000]


def test_the_expected_minimum_of_repeats_is_that_of_simulated_ones():
    values = np.random.default_rng(0).standard_normal((400_000, 5))
    for k, c in EXPECTED_MINIMUM.items():
        assert values[:, :k].min(axis=1).mean() == pytest.approx(-c, abs=0.005)
    assert EXPECTED_MINIMUM[2] == pytest.approx(0.5642, abs=5e-5)
    assert EXPECTED_MINIMUM[3] == pytest.approx(0.8463, abs=5e-5)
    assert expected_minimum([2.0, 2.1, 2.2]) == pytest.approx(2.1 - 0.8463 * 0.1, abs=1e-5)
    assert expected_minimum([2.0]) is None


# Numbers


def test_the_jackknife_of_a_mean_is_its_textbook_error():
    """Of 20 groups of one value each: s = deviation / √20, and a mean has no bias."""
    values = np.random.default_rng(1).standard_normal(20)
    corrected, s = jackknife(values.mean(), [(values.sum() - value) / 19 for value in values])
    assert (corrected, s) == pytest.approx((values.mean(), values.std(ddof=1) / math.sqrt(20)))


def test_a_difference_is_told_apart_from_two_standard_errors():
    assert Difference(0.2, 0.1, True).told_apart and not Difference(-0.19, 0.1, True).told_apart
    assert Difference(0.0, 0.0, True).z == 0


@pytest.mark.slow
def test_a_paired_difference_covers_the_true_one_and_is_far_narrower():
    """Two models that draw from the same seeds and differ a little, 100 times; 320 images of 8 features."""
    random, features = torch.Generator().manual_seed(1), 8
    distance = Distance(ReferenceStatistics("ref.npz", np.zeros(features), np.eye(features)))
    scales = (1.2, 1.22)  # of N(0, scale²): the distance is features · (scale − 1)²
    true, covered, narrower = features * (0.22**2 - 0.2**2), [], []
    for _ in range(100):
        noise, own = torch.randn(2, 320, features, dtype=torch.float64, generator=random)
        bars = []
        for scale, part in zip(scales, (0.0, 0.1), strict=True):
            groups = Groups(320)
            groups.append(scale * (math.sqrt(1 - part**2) * noise + part * own))
            bars.append(groups.measured(distance))
        _, s = jackknife(0, np.subtract(bars[1]["without"], bars[0]["without"]))
        covered.append(abs(bars[1]["corrected"] - bars[0]["corrected"] - true) <= 1.96 * s)
        narrower.append(math.hypot(bars[0]["s"], bars[1]["s"]) / s)
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.median(narrower) > 3
