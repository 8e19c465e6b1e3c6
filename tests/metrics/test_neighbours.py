"""Metrics of nearest neighbours: brute force, closed forms, copies, blocks of any size, bounded memory."""

import math
import subprocess
import sys

import pytest
import torch

from edm.metrics import METRICS, OF_NEIGHBOURS, WORST
from edm.metrics.neighbours import Balls, Nearest, Pair
from edm.metrics.reference import _Sample, places_of_features
from edm.metrics.sets import neighbour_metrics


def gaussians(count, dimension, seed, shift=0.0):
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)) + shift


def brute(ours, theirs):
    """The definitions of the papers with all distances in memory, float64."""
    a, b = ours.double(), theirs.double()
    alone = lambda x: (
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf).sort(dim=1)
    )
    across = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    own_ours, own_theirs = alone(a).values, alone(b).values
    near = across.sort(dim=1)
    return {
        "precision": (across <= own_theirs[:, 2]).any(dim=1).double().mean().item(),
        "recall": (across <= own_ours[:, 2, None]).any(dim=0).double().mean().item(),
        "density": (across <= own_theirs[:, 4]).double().sum().item() / (5 * len(a)),
        "coverage": (across <= own_theirs[:, 4]).any(dim=0).double().mean().item(),
        "authpct": 100 * (near.values[:, 0] > own_theirs[near.indices[:, 0], 0]).double().mean().item(),
        "memorisation": 100 * (near.values[:, 0] < 0.5 * near.values[:, :50].mean(dim=1)).double().mean().item(),
        "memorisation_of_reference": 100
        * (own_theirs[:, 0] < 0.5 * own_theirs[:, :50].mean(dim=1)).double().mean().item(),
        "memorisation_lowest": (near.values[:, 0] / near.values[:, :50].mean(dim=1)).min().item(),
    }


def test_the_metrics_are_those_of_the_papers_by_brute_force():
    ours, theirs = gaussians(70, 3, 1, 0.3), gaussians(90, 3, 2)
    found = neighbour_metrics(ours, theirs, METRICS)
    pairs = found.pop("pairs")
    assert found == pytest.approx(brute(ours, theirs), rel=1e-5)
    assert 0 < found["memorisation"] < 100
    assert 0 < found["precision"] < 1
    assert 0 < found["authpct"] < 100
    assert len(pairs) == WORST
    assert [pair["ratio"] for pair in pairs] == sorted(pair["ratio"] for pair in pairs)
    worst = pairs[0]
    distances = (theirs - ours[worst["image"]]).double().norm(dim=1)
    assert worst["training"] == distances.argmin()
    assert worst["distance"] == pytest.approx(distances.min().item(), rel=1e-6)
    assert worst["ratio"] == pytest.approx(found["memorisation_lowest"])


def test_neighbours_and_balls_do_not_depend_on_the_size_of_the_blocks():
    theirs = gaussians(100, 8, 2)
    ours = torch.cat([theirs[:20], gaussians(40, 8, 3)])  # copies: many distances equal a radius
    results = []
    for strip in (1, 700, 1 << 25):
        near, across = Nearest(7), Nearest(4)
        Pair(theirs, strip=strip).go(near)
        balls = Balls(near.squared[:, 2])
        Pair(ours, theirs, strip=strip).go(across, balls)
        results.append((near.squared, near.places, across.squared, across.places, balls.counts, balls.reached))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    exact = (ours[:, None] - theirs).square().double().sum(dim=2)
    assert torch.equal(results[0][4], (exact <= results[0][0][:, 2] * (1 + 1e-12)).sum(dim=1))
    assert torch.equal(results[0][3][:20, 0], torch.arange(20))
    assert results[0][2][:20, 0].eq(0).all()


def test_copies_of_training_images_are_not_authentic_and_all_are_named():
    theirs = gaussians(200, 16, 1)
    copied = torch.arange(60) * 3
    found = neighbour_metrics(theirs[copied], theirs, ["authpct", "memorisation", "precision", "density"])
    assert found["authpct"] == 0
    assert found["memorisation"] == 100
    assert found["memorisation_of_reference"] == 0
    assert found["precision"] == 1
    assert [(pair["image"], pair["training"], pair["distance"], pair["ratio"]) for pair in found["pairs"]] == [
        (image, int(training), 0, 0) for image, training in enumerate(copied)
    ]
    hidden = torch.cat([gaussians(500, 16, 5), theirs[:2]])  # two copies among many others come first
    pairs = neighbour_metrics(hidden, theirs, ["memorisation"])["pairs"]
    assert [(pair["image"], pair["training"]) for pair in pairs[:2]] == [(500, 0), (501, 1)]
    assert pairs[2]["ratio"] > 0.1


def test_the_expected_coverage_of_equal_distributions_has_a_closed_form():
    """E = 1 − (N−1)…(N−k)/((M+N−1)…(M+N−k)), for any distribution; density is 1 on average."""
    N, M, k = 100, 60, 5
    expected = 1 - math.prod(N - i for i in range(1, k + 1)) / math.prod(M + N - i for i in range(1, k + 1))
    found = [neighbour_metrics(gaussians(M, 4, 2 * i), gaussians(N, 4, 2 * i + 1), ["coverage", "density"])
             for i in range(200)]  # fmt: skip
    for name, truth in (("coverage", expected), ("density", 1)):
        values = torch.tensor([one[name] for one in found])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - truth) < 3 * error
        assert error < 0.01 * truth
    assert expected == pytest.approx(0.91, abs=1e-4)


def test_features_far_from_the_origin_are_measured_about_their_centre():
    """Products of these numbers in float32 would lose all digits."""
    ours, theirs = (gaussians(80, 8, seed).mul(1024).round() / 1024 for seed in (1, 2))  # exact after the shift
    near, far = (neighbour_metrics(ours + shift, theirs + shift, OF_NEIGHBOURS) for shift in (0, 4096))
    assert [pair["training"] for pair in near.pop("pairs")] == [pair["training"] for pair in far.pop("pairs")]
    assert far == pytest.approx(near, rel=1e-5)


def test_fewer_references_than_neighbours_are_all_of_them():
    ours, theirs = gaussians(5, 3, 1), gaussians(10, 3, 2)
    found = neighbour_metrics(ours, theirs, ["memorisation"])
    distances = torch.cdist(ours.double(), theirs.double())
    assert found["memorisation_lowest"] == pytest.approx((distances.min(dim=1).values / distances.mean(dim=1)).min())
    assert neighbour_metrics(ours, theirs, ["kid"]) == {}


def test_images_that_are_all_equal_are_measured():
    """A collapsed model."""
    theirs = gaussians(20, 3, 1)
    found = neighbour_metrics(theirs[:1].expand(12, 3), theirs, OF_NEIGHBOURS)
    assert found["recall"] == 1 / 20  # only the image itself is at the distance 0
    assert found["authpct"] == 0
    assert found["memorisation_lowest"] == 0


def test_a_kept_feature_leads_back_to_its_image():
    rows = gaussians(500, 2, 1).numpy()
    for kept in (1, 37, 500, 600):
        sample = _Sample(kept)
        for batch in (rows[:123], rows[123:]):
            sample.append(batch)
        assert (rows[places_of_features(500, kept)] == sample.rows).all()


GROWTH = """
import resource, torch
from edm.metrics.neighbours import Pair
torch.set_num_threads(1)
points = torch.randn(1000, 2048)
pair, rows, columns = Pair(points), torch.arange(1000), torch.randint(0, 1000, (1000, 58))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pair.squared(rows, columns)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
def test_distances_of_candidates_take_little_memory_however_many_they_are():
    """Their differences have 475 MB in all, and are formed in pieces of 17 MB."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150
