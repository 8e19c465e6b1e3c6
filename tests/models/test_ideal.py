"""The ideal denoiser (Figure 1)."""

import torch

import edm

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(20, 1, 8, 8, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.arange(20) % 4


def test_without_noise_it_returns_the_nearest_image_and_with_much_the_mean():
    ideal = edm.IdealDenoiser(IMAGES)
    torch.testing.assert_close(ideal(IMAGES + 1e-4, 1e-3), IMAGES)
    torch.testing.assert_close(ideal(IMAGES, 0.0), IMAGES)
    mean = IMAGES.mean(0, keepdim=True).expand_as(IMAGES)
    torch.testing.assert_close(ideal(IMAGES, 1e6), mean, rtol=0, atol=1e-9)


def test_it_is_the_weighted_mean_of_eq_57():
    x, sigma = torch.randn(3, 1, 8, 8, generator=GENERATOR, dtype=torch.float64), torch.tensor([0.5, 2.0, 8.0])
    expected = []
    for one, s in zip(x, sigma.double(), strict=True):
        weights = torch.stack([torch.exp(-((one - y) ** 2).sum() / (2 * s**2)) for y in IMAGES])
        expected.append((weights[:, None, None, None] * IMAGES).sum(0) / weights.sum())
    torch.testing.assert_close(edm.IdealDenoiser(IMAGES)(x, sigma), torch.stack(expected))


def test_classes_restrict_the_average():
    ideal = edm.IdealDenoiser(IMAGES, LABELS)
    out = ideal(torch.zeros(4, 1, 8, 8), 1e6, torch.arange(4))
    for label in range(4):
        torch.testing.assert_close(out[label], IMAGES[label == LABELS].mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(ideal(torch.zeros(4, 1, 8, 8), 1e6, torch.eye(4)), out)


def test_its_flow_ends_in_training_images():
    latents = torch.randn(8, 1, 8, 8, generator=GENERATOR, dtype=torch.float64)
    images = edm.sample(edm.IdealDenoiser(IMAGES), latents, num_steps=40)
    distances = torch.cdist(images.flatten(1), IMAGES.flatten(1)).min(dim=1).values
    assert (distances < 0.02).all()
