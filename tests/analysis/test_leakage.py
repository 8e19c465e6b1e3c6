"""Appendix F.2: the three distances distinguish clean samples from leaked ones."""

import numpy as np
import pytest
import torch

import edm
from edm.analysis.leakage import augmented, leakage
from edm.metrics.frechet import FeatureStatistics, frechet_distance


def pixels(images):
    return torch.as_tensor(images).flatten(1).float() / 127.5


@pytest.fixture
def halves(digits):
    order = np.random.default_rng(0).permutation(1796)
    return digits.images[order[:898]], digits.images[order[898:]]


def test_clean_samples_are_near_the_clean_data_and_far_from_the_augmented(halves):
    generated, training = halves
    distances = leakage(generated, training, pixels)
    assert distances["generated-clean"] < 0.1 * distances["generated-augmented"]
    assert distances["generated-augmented"] == pytest.approx(distances["clean-augmented"], rel=0.2)


def test_leaked_samples_are_near_the_augmented_data(halves):
    generated, training = halves
    distances = leakage(augmented(generated, first_seed=10**6), training, pixels)
    assert distances["generated-augmented"] < 0.2 * distances["generated-clean"]
    assert distances["generated-clean"] == pytest.approx(distances["clean-augmented"], rel=0.2)


def test_the_more_samples_leaked_the_further_from_clean(halves):
    generated, training = halves
    leaked = augmented(generated, first_seed=10**6).numpy()
    distances = [
        leakage(np.concatenate([leaked[:n], generated[n:]]), training, pixels)["generated-clean"]
        for n in (0, 225, 450, 898)
    ]
    assert distances == sorted(distances) and distances[1] > 2 * distances[0]


def test_distances_are_between_the_images_named_whatever_the_batch(halves):
    generated, training = halves[0][:40], halves[1][:50]
    expected, stats = {}, {}
    for name, images in (("generated", generated), ("clean", training), ("augmented", augmented(training, 0.5, 9))):
        stats[name] = FeatureStatistics()
        stats[name].append(pixels(images))
    for one, other in (("generated", "clean"), ("generated", "augmented"), ("clean", "augmented")):
        a, b = stats[one], stats[other]
        expected[f"{one}-{other}"] = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    for batch in (7, 100):
        measured = leakage(generated, training, pixels, probability=0.5, first_seed=9, batch=batch)
        assert measured == pytest.approx(expected, rel=1e-6)


def test_without_enabled_transforms_images_are_flipped_at_most(digits):
    images = torch.from_numpy(digits.images[:30])
    out = augmented(images, probability=0.0)
    same, flipped = ((out == other).flatten(1).all(dim=1) for other in (images, images.flip(3)))
    assert (same | flipped).all() and same.any() and flipped.any()


def test_a_single_image_has_no_spread(digits):
    with pytest.raises(edm.UserError, match="at least 2 images"):
        leakage(digits.images[:1], digits.images[:9], pixels)
