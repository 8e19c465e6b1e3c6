"""Augmentation, optimiser and learning-rate schedule of plugins: a run resumes from its state to the same weights."""

import textwrap

import pytest
import torch
from lab import PAGE

import edm
from edm.cluster.processes import ALONE
from edm.config import TrainingConfig
from edm.errors import UserError
from edm.files.background import Background
from edm.models import building
from edm.training.loop import check
from edm.training.state import TrainingState
from edm.training.step import TrainingStep, learning_rate_at

TEXT = textwrap.dedent("""
    import math

    import torch

    import edm
    from edm.design import draws


    @edm.register("augmentation", "lab-shift", width=1)
    def shift(images, seeds, probability, *, pixels: int = 2):
        on = draws.uniform(seeds, 0, 1, draws.AUGMENT)[:, :1] < probability
        moved = torch.where(on[:, :, None, None], images.roll(pixels, dims=3), images)
        return moved, on.to(images.dtype)


    @edm.register("optimizer", "lab-sgd")
    def sgd(parameters, *, momentum: float = 0.9):
        return torch.optim.SGD(parameters, lr=0.0, momentum=momentum)


    @edm.register("optimizer", "lab-adamw")
    def adamw(parameters, *, decay: float = 0.1):
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=decay)


    @edm.register("lr_schedule", "lab-cosine")
    def cosine(learning_rate, seen, total, *, floor: float = 0.1):
        return learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * seen / total)))
    """).lstrip()
CHOSEN = {"augmentation": "lab-shift", "lr_schedule": "lab-cosine", "augment": 0.5, "dropout": 0.0}


def state_of(step, config, digits, folder, background):
    return TrainingState(folder, config, digits, step.net, step.ema, step.optimizer, ALONE, background)


@pytest.mark.parametrize("optimizer", ["lab-sgd", "lab-adamw"])
def test_a_run_with_an_optimiser_of_a_plugin_resumes_to_the_same_weights(plugin, tiny, digits, tmp_path, optimizer):
    plugin(TEXT)
    config = TrainingConfig.from_dict({**tiny().to_dict(), **CHOSEN, "optimizer": optimizer})
    check(config, digits, ALONE)
    whole, sums = TrainingStep(config, digits), torch.zeros(4, dtype=torch.float64)
    with Background() as background:
        kept = state_of(whole, config, digits, tmp_path, background)
        for seen in (0, 32, 64, 96, 128):
            if seen == 96:
                kept.before = {"mean": [], "samples": 1, "sigma": [], "std": []}
                kept.save(96, 1.0)
                background.wait()
            whole(seen, sums)
        resumed = TrainingStep(config, digits)
        assert state_of(resumed, config, digits, tmp_path, background).restore() == 96
    for seen in (96, 128):
        resumed(seen, sums)
    for ours, theirs in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_learning_rate_and_the_augmentation_are_those_of_the_plugin(plugin, tiny, digits, tmp_path):
    plugin(TEXT)
    config = TrainingConfig.from_dict(
        {**tiny().to_dict(), **CHOSEN, "optimizer": "lab-sgd", "lr_schedule.floor": 0.5, "augmentation.pixels": 1}
    )
    assert config.network().augment_dim == 1
    total = config.steps * config.batch_size
    rates = [learning_rate_at(config, seen) / config.learning_rate for seen in (0, total // 2, total)]
    assert rates == pytest.approx([1, 0.75, 0.5])
    images = torch.rand(40, 1, 8, 8)
    moved, labels = building.augmentation_of(config)(images, torch.arange(40), 0.5)
    on = labels[:, 0] == 1
    assert 8 < on.sum() < 32 and torch.equal(moved[on], images[on].roll(1, dims=3))
    assert torch.equal(moved[~on], images[~on])
    net = edm.train(config, digits, tmp_path / "run")
    assert net(torch.zeros(2, 1, 8, 8), 1.0, torch.arange(2), torch.ones(2, 1)).isfinite().all()


def test_a_network_of_a_plugin_gets_zeros_for_images_that_are_not_augmented(plugin, tiny):
    plugin(TEXT)
    plugin(PAGE["network"], "network.py")
    config = TrainingConfig.from_dict({**tiny().to_dict(), **CHOSEN, "architecture": "my-convolutions"})
    net, x, classes = building.build(config).eval(), torch.zeros(2, 1, 8, 8), torch.arange(2)
    assert torch.equal(net(x, 1.0, classes), net(x, 1.0, classes, torch.zeros(2, 1)))
    assert not torch.equal(net(x, 1.0, classes), net(x, 1.0, classes, torch.ones(2, 1)))


def test_ours_are_the_defaults_and_not_in_files(tiny):
    assert not {"augmentation", "optimizer", "lr_schedule", "settings"} & tiny().to_dict().keys()
    assert tiny(optimizer="adam") == tiny()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("return moved, on.to(images.dtype)", "return moved", r"augmentation lab-shift: returned vectors NoneType"),
        ("return moved, on", "return moved[:, :, :1], on", r"augmentation lab-shift: returned \[\d+, 1, 1, 8\] for"),
        (
            "return torch.optim.SGD(parameters",
            "return list(parameters) or torch.optim.SGD(parameters",
            "optimizer lab-sgd: returned list",
        ),
        ("return learning_rate *", "return -learning_rate *", "lr_schedule lab-cosine: returned -0.00"),
        ("math.cos(", "math.sqrt(-1 - ", r"plugin\.py:\d+: lr_schedule lab-cosine: ValueError"),
    ],
)
def test_a_part_of_training_that_fails_says_where(plugin, tiny, digits, tmp_path, old, new, message):
    plugin(TEXT.replace(old, new))
    config = TrainingConfig.from_dict({**tiny().to_dict(), **CHOSEN, "optimizer": "lab-sgd"})
    with pytest.raises(UserError, match=message) as caught:
        edm.train(config, digits, tmp_path / "run")
    assert "\n" not in str(caught.value)
