"""docs/deviations.md: what it says of numbers and of our side holds in the code."""

import math
import re
from pathlib import Path

import pytest
import torch

from edm import params
from edm.config import TrainingConfig
from edm.design import draws
from edm.design.losses import EDMLoss
from edm.training import step
from edm.training.step import TrainingStep, clean, ema_decay_at, learning_rate_at

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs" / "deviations.md").read_text().split())
CIFAR10 = TrainingConfig(resolution=32, channels=3, classes=10)


def row(start):
    return re.search(rf"\| {re.escape(start)}.*?\|(.*?)\|(.*?)\|(.*?)\|(.*?)\|", PAGE).groups()


def test_the_learning_rate_of_the_first_steps():
    rates = [learning_rate_at(CIFAR10, images) for images in (0, 512, 1024, 1536)]
    assert rates == pytest.approx([0, 5.12e-8, 1.024e-7, 1.536e-7])
    assert "the first four steps have 0, 5.12e-8, 1.024e-7 and 1.536e-7" in PAGE


def test_the_first_average_is_the_first_network(tiny, digits):
    assert ema_decay_at(CIFAR10, 0) == 0
    training = TrainingStep(tiny(lr_rampup=0), digits)
    training(0, torch.zeros(3, dtype=torch.float64))
    assert all(map(torch.equal, training.net.parameters(), training.ema.parameters()))


def test_the_largest_draws(monkeypatch):
    """From the words that give the smallest uniform."""
    monkeypatch.setattr(draws, "_words", lambda seeds, *_: torch.zeros(len(seeds), 4, 1, dtype=torch.int64))
    seeds = torch.arange(1)
    largest = float(draws.normal(seeds, 0, (1,)))
    loss = EDMLoss()
    furthest = (loss.P_mean - float(loss.sigma(draws.uniform(seeds, 0, 1)).log())) / loss.P_std
    assert f"at most {largest:.2f} in size, ln σ at most {furthest:.2f} standard deviations" in row("tails")[1]
    assert math.erfc(min(largest, furthest) / math.sqrt(2)) < 3e-10


def test_gradients_are_unscaled_cleaned_and_clipped():
    gradients = torch.tensor([100.0, math.nan, math.inf, -math.inf])
    half = TrainingConfig(resolution=32, channels=3, classes=10, precision="fp16", loss_scale=100.0)
    assert int(clean(gradients, half)) == 3
    assert gradients.tolist() == [1, 0, 1e5, -1e5]
    kept = torch.tensor([1.0, math.nan, math.inf])
    assert clean(kept, CIFAR10) is None and kept.isnan()[1] and kept.isinf()[2]
    assert f"theirs acts as {1e-8 / 100:.0e}" in row("loss scale")[3]
    assert f"at 32×32×3 this gradient is {32 * 32 * 3:,} times" in row("gradient clipping")[3]


def test_the_gradient_is_that_of_the_loss_summed_over_pixels(tiny, digits, monkeypatch):
    """What is clipped: seen as ``clean`` gets it, and compared with the mean's over pixels."""
    config, seen = tiny(dropout=0.0), []
    monkeypatch.setattr(step, "clean", lambda gradients, config: seen.append(gradients.clone()))
    training = TrainingStep(config, digits)
    training(0, torch.zeros(3, dtype=torch.float64))
    batch = training._batches.draw(0, config.batch_size)
    training.net.load_state_dict(TrainingStep(config, digits).net.state_dict())
    error = training._error(training.net, training.loss, batch.images, batch.sigma, batch.noise, batch.labels,
                            batch.augment_labels)  # fmt: skip
    error.mean().backward()
    torch.testing.assert_close(seen[0], training._gradients * 8 * 8, rtol=1e-3, atol=1e-4)


def test_the_bias_of_the_keys_stays_and_changes_nothing(tiny, digits):
    training = TrainingStep(tiny(lr_rampup=0, batch_size=64), digits)
    attention = next(module for module in training.net.modules() if type(module).__name__ == "Attention")
    with torch.no_grad():
        attention.qkv.bias.normal_()
        attention.proj.weight.normal_()
    before = attention.qkv.bias.detach().clone().chunk(3)
    training(0, torch.zeros(3, dtype=torch.float64))
    after = attention.qkv.bias.detach().chunk(3)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [False, True, False]
    x = torch.randn(2, len(before[0]), 4, 4)
    with torch.no_grad():
        expected = attention(x)
        attention.qkv.bias.chunk(3)[1].add_(3.0)
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-4)


def test_the_masks_of_dropout_depend_on_step_and_process():
    seeds = {step._step_seed(0, images, rank) for images in (0, 512) for rank in (0, 1)}
    assert len(seeds) == 4


def test_snapshots_repeats_and_half_lives_are_those_of_params():
    loaded = params.load(ROOT / "params.yaml")
    experiment = loaded.experiment("cifar10-cond")
    choice, sampling = experiment.choice, experiment.sampling
    ours = row("which snapshot")[1]
    assert f"with {choice.images:,} images, the best {choice.confirm} again with {sampling.images:,}" in ours
    snapshots = len(experiment.models["vp-F"].snapshots)
    share = (snapshots * choice.images + choice.confirm * sampling.images) / (snapshots * sampling.images)
    assert "a sixth of the cost for 80 snapshots" in row("which snapshot")[2]
    assert snapshots == 80 and share == pytest.approx(1 / 6, abs=0.01)
    assert sampling.seeds(sampling.repeats - 1)[-1] == 149_999 and "with the seeds 0 to 149,999" in PAGE
    assert f"{experiment.models['ve-A'].ema_halflife} Mimg" in row("EMA half-life of VE")[1]
