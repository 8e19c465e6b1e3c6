"""Random numbers: Philox as published, and independence of how the work is split."""

import pytest
import torch
from scipy import stats

from edm.design import draws as noise


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # known answers of the Random123 distribution
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = lambda text: tuple(torch.tensor(int(w, 16)) for w in text.split())
    assert [int(w) for w in noise.philox(words(counter), words(key))] == [int(w, 16) for w in expected.split()]


def test_a_draw_depends_on_its_seed_alone():
    seeds = torch.arange(10)
    together = noise.latents(seeds, (3, 8, 8))
    apart = torch.cat([noise.latents(seeds[i : i + 3], (3, 8, 8)) for i in range(0, 10, 3)])
    assert torch.equal(together, apart)
    assert not torch.equal(together[0], together[1])


def test_steps_purposes_and_large_seeds_give_different_draws():
    seeds = torch.tensor([5, 5 + 2**32, 5 + 2**40])
    draws = [noise.latents(seeds, (4,)), noise.churn(seeds, 0, (4,)), noise.churn(seeds, 1, (4,))]
    rows = torch.cat(draws)
    assert len({tuple(row.tolist()) for row in rows}) == 9


def test_draws_follow_their_distributions():
    """Kolmogorov and Smirnov over 100,000 draws of 100 seeds; seeded, so it cannot fail by chance."""
    seeds = torch.arange(100)
    assert stats.kstest(noise.normal(seeds, 0, (1000,)).flatten(), "norm").pvalue > 0.01
    assert stats.kstest(noise.uniform(seeds, 0, 1000).flatten(), "uniform").pvalue > 0.01
    labels = noise.class_labels(torch.arange(10_000), 10)
    assert labels.bincount(minlength=10).float().std() < 40 and labels.max() == 9


def test_rows_are_uncorrelated():
    draws = noise.normal(torch.arange(200), 0, (2000,))
    correlation = torch.corrcoef(draws) - torch.eye(200)
    assert correlation.abs().max() < 0.12  # 5 standard deviations of 1/√2000
