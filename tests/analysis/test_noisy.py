"""Figure 1: noisy images and the ideal denoiser, in bounded memory."""

import weakref

import numpy as np
import pytest
import torch

import edm
from edm.analysis.noisy import SIGMAS, noisy_and_ideal, noisy_images
from edm.data.pixels import to_float
from edm.models.ideal import ideal_denoised


@pytest.fixture
def images(digits):
    return in_floats(digits.images[:6])


def in_floats(images):
    return to_float(torch.from_numpy(images))


@pytest.mark.parametrize("size", [1, 37, 300, 1000])
def test_in_chunks_of_any_size_it_is_the_ideal_denoiser(digits, images, size):
    training = digits.images[:300]
    noisy = noisy_images(images).flatten(0, 1)
    sigma = torch.tensor(SIGMAS).repeat_interleave(6)
    expected = edm.IdealDenoiser(in_floats(training))(noisy, sigma)
    found = ideal_denoised(noisy, sigma, in_floats(training).split(size))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_one_chunk_is_in_memory_at_a_time(digits, images):
    alive, most = weakref.WeakSet(), 0

    def counted():
        nonlocal most
        for part in np.split(digits.images[:1700], 17):
            chunk = in_floats(part)
            alive.add(chunk)
            most = max(most, len(alive))
            yield chunk
            del chunk

    ideal_denoised(images, torch.ones(6), counted())
    assert most <= 2  # the last summed chunk and the next


def test_a_chunk_far_from_the_image_does_not_spoil_the_sum(images):
    """Weights far below the smallest float64 come first; the near image, which comes last, still gets all weight."""
    far, near = images[:1] + 1e3, images[:1]
    denoised = ideal_denoised(near.double(), torch.tensor([0.01]), [far, near])
    torch.testing.assert_close(denoised, near.double())


def test_little_noise_is_undone_and_much_gives_the_mean(digits, images):
    noisy, denoised = noisy_and_ideal(images, in_floats(digits.images).split(500))
    assert noisy.shape == denoised.shape == (len(SIGMAS), 6, 1, 8, 8)
    for level in (0, 1):  # σ = 0, 0.2
        torch.testing.assert_close(denoised[level], images.double(), rtol=0, atol=1e-3)
    mean = in_floats(digits.images).double().mean(dim=0)
    assert (denoised[-1] - mean).abs().max() < 0.1  # σ = 50
    torch.testing.assert_close(noisy[0], images.double())


def test_one_draw_per_image_at_all_levels(images):
    noisy = noisy_images(images, (0.5, 2.0), first_seed=3) - images
    torch.testing.assert_close(noisy[1], 4 * noisy[0])
    torch.testing.assert_close(noisy[0, 1:], noisy_images(images[1:], (0.5,), first_seed=4)[0] - images[1:])
    assert (noisy[0] / 0.5).std() == pytest.approx(1, abs=0.15)


def test_no_image_and_images_of_another_size_are_named(images):
    x, sigma = images.double(), torch.ones(6)
    with pytest.raises(edm.UserError, match="at least one image"):
        ideal_denoised(x, sigma, [])
    with pytest.raises(edm.UserError, match=r"shape \[1, 4, 4\]"):
        ideal_denoised(x, sigma, [images[..., :4, :4]])
