"""Training: repeatable, independent of how it is split, resumable, and safe against numbers that run away."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import edm
from edm.cluster.processes import ALONE
from edm.data.archive import Dataset
from edm.files.tensors import load_tensors
from edm.models import building, checkpoint
from edm.networks.precision import float32_as
from edm.training import loop as training
from edm.training import step
from edm.training.batches import Batches
from edm.training.loop import train
from edm.training.loss_levels import error_per_level
from edm.training.overflows import Overflows
from edm.training.step import ema_decay_at, learning_rate_at


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest_difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_one_seed_gives_identical_weights_and_another_seed_others(tiny, digits, tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        train(tiny(seed=seed), digits, tmp_path / name)
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert not same(weights(tmp_path / "first"), weights(tmp_path / "other"))


def test_label_dropout_sets_the_label_of_a_sample_by_its_own_seed(tiny, digits):
    """A tenth of the samples have no label, the same ones however the batches are cut; all else stays."""
    config = tiny(label_dropout=0.1)
    loss = building.loss_of(config)
    plain, dropping = (Batches(digits, one, loss, torch.device("cpu")) for one in (tiny(), config))
    whole, labelled = dropping.draw(0, 1000), plain.draw(0, 1000)
    parts = torch.cat([dropping.draw(start, 100).labels for start in range(0, 1000, 100)])
    assert torch.equal(whole.labels, parts) and torch.equal(whole.images, labelled.images)
    kept = whole.labels.sum(1)
    assert set(kept.tolist()) == {0.0, 1.0} and 0.06 < 1 - float(kept.mean()) < 0.14
    assert torch.equal(whole.labels[kept > 0].argmax(1), labelled.labels[kept > 0])


def test_images_are_augmented_in_full_float32_whatever_the_precision_of_the_network(tiny, digits, monkeypatch):
    batches = Batches(digits, config := tiny(precision="tf32"), building.loss_of(config), torch.device("cpu"))
    found, augment = [], batches._augment
    seen = lambda *what: (found.append(torch.backends.cuda.matmul.fp32_precision), augment(*what))[1]
    monkeypatch.setattr(batches, "_augment", seen)
    with float32_as("tf32"):
        batches.draw(0, 8)
        assert found == ["ieee"] and torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.slow
def test_no_label_dropout_is_the_training_of_before(tiny, digits, tmp_path):
    for name, config in (("plain", tiny()), ("none", tiny(label_dropout=0.0)), ("some", tiny(label_dropout=0.5))):
        train(config, digits, tmp_path / name)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "none"))
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "some"))


@pytest.mark.parametrize("microbatch", [8, 20])
@pytest.mark.slow
def test_gradient_accumulation_changes_nothing_but_rounding(tiny, digits, tmp_path, microbatch):
    train(tiny(dropout=0.0), digits, tmp_path / "whole")
    train(tiny(dropout=0.0, microbatch=microbatch), digits, tmp_path / "parts")
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) < 1e-5


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.slow
def test_several_processes_match_one(tiny, digits_archive, digits, tmp_path, processes):
    """Gloo processes that share a batch, evenly or not: the same weights to 1e-5 after 10 steps of a rising rate."""
    config = tiny(dropout=0.0)
    assert config.steps == 10
    train(config, digits, tmp_path / "one")
    # They also accumulate: 16 or 10 and 11 images each in rounds of 5, gradients joined in the last round alone.
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "microbatch": 5}))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "edm",
         "train", "--config", tmp_path / "config.json", "--data", digits_archive, "--out", tmp_path / "several",
         "--device", "cpu", "--threads", "1"],
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, capture_output=True,
    )  # fmt: skip
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "several")) < 1e-5


class Killed(Exception):
    pass


def test_an_interrupted_run_continues_to_the_same_weights_and_log(tiny, digits, tmp_path, monkeypatch):
    config = tiny(duration=640e-6)  # 20 steps
    train(config, digits, tmp_path / "undisturbed")

    save = training.TrainingState.save

    def save_then_die(self, images, seconds):
        save(self, images, seconds)
        if images == 8 * 32:
            raise Killed

    monkeypatch.setattr(training.TrainingState, "save", save_then_die)
    with pytest.raises(Killed):
        train(config, digits, tmp_path / "killed", state_every=0)
    monkeypatch.undo()
    with open(tmp_path / "killed" / "log.jsonl", "a") as log:
        log.write('{"images": 288, "loss": 9')  # a row beyond the state, torn by the kill
    train(config, digits, tmp_path / "killed")

    assert same(weights(tmp_path / "undisturbed"), weights(tmp_path / "killed"))
    rows = [
        [(row["images"], row["loss"]) for row in map(json.loads, (tmp_path / name / "log.jsonl").open())]
        for name in ("undisturbed", "killed")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 20
    assert (tmp_path / "undisturbed" / "levels.json").read_text() == (tmp_path / "killed" / "levels.json").read_text()


@pytest.mark.slow
def test_a_state_of_another_configuration_is_not_continued_but_kept(tiny, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "remove_states", lambda out: None)
    train(tiny(), digits, tmp_path / "run", state_every=0)
    assert (tmp_path / "run" / "state-0.safetensors").exists()
    changed = tiny(learning_rate=1e-3)
    train(changed, digits, tmp_path / "run")
    assert "belongs to another configuration or dataset: moved to other-state-0.safetensors" in capsys.readouterr().err
    assert (tmp_path / "run" / "other-state-1.safetensors").exists()
    train(changed, digits, tmp_path / "fresh")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "fresh"))


@pytest.mark.slow
def test_training_learns(tiny, digits, tmp_path):
    """600 steps bring the error at every noise level from that of an untrained network well below it."""
    train(tiny(duration=0.0192, lr_rampup=0.001, level_samples=256), digits, tmp_path)
    levels = json.loads((tmp_path / "levels.json").read_text())
    before, after = (dict(zip(levels[k]["sigma"], levels[k]["mean"], strict=True)) for k in ("before", "after"))
    middle = [sigma for sigma in before if 0.1 < sigma < 2]
    assert all(after[sigma] < 0.6 * before[sigma] for sigma in middle), (before, after)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tiny, digits, tmp_path, monkeypatch):
    error = step.weighted_error

    def explode(denoiser, loss, images, *rest):
        pixels = error(denoiser, loss, images, *rest)
        explode.calls += 1
        return pixels * float("nan") if explode.calls == 6 else pixels

    explode.calls = 0
    monkeypatch.setattr(step, "weighted_error", explode)
    with pytest.raises(
        edm.UserError, match=r"the loss became nan after 192 images; the last good state \(160 images\)"
    ):
        train(tiny(), digits, tmp_path, state_every=0)
    _, header = load_tensors(tmp_path / "state-0.safetensors", "edm-training-state/2")
    assert header["images"] == 160
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_never_become_the_last_good_state(tiny, digits, tmp_path, monkeypatch):
    """A gradient may blow up the weights after the loss of the same step was still fine."""
    step = torch.optim.Adam.step

    def poison(self, *args):
        step(self, *args)
        poison.steps += 1
        if poison.steps == 5:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")

    poison.steps = 0
    monkeypatch.setattr(torch.optim.Adam, "step", poison)
    with pytest.raises(
        edm.UserError, match=r"weights are not finite after 160 images; the last good state \(128 images\)"
    ):
        train(tiny(), digits, tmp_path, state_every=0)
    tensors, header = load_tensors(tmp_path / "state-1.safetensors", "edm-training-state/2")
    assert header["images"] == 128 and all(t.isfinite().all() for t in tensors.values())


@pytest.mark.slow
def test_what_leaves_the_weights_alone_does_not_cost_an_interrupted_run_its_state(tiny, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "remove_states", lambda out: None)
    train(tiny(), digits, tmp_path / "run", state_every=0)
    longer = tiny(duration=640e-6, level_samples=8)
    train(longer, digits, tmp_path / "run")
    monkeypatch.undo()
    train(longer, digits, tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_the_average_is_a_denoiser_without_history(tiny, digits, tmp_path):
    """An average that remembers its gradients grows with every step."""
    net = train(tiny(), digits, tmp_path)
    assert all(p.is_leaf and not p.requires_grad for p in net.parameters())


@pytest.mark.slow
def test_snapshots_of_an_earlier_run_do_not_stay(tiny, digits, tmp_path):
    train(tiny(snapshot_every=96e-6), digits, tmp_path)
    train(tiny(snapshot_every=160e-6), digits, tmp_path)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == ["000000000160.safetensors", "000000000320.safetensors"]


def test_non_finite_gradients_are_replaced_and_counted_in_half_precision(tiny, digits, tmp_path, monkeypatch):
    backward = torch.Tensor.backward

    def poisoned(self, *args, **kwargs):
        backward(self, *args, **kwargs)
        poisoned.parameter.grad.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])

    build = building.build

    def remember(config):
        net = build(config)
        poisoned.parameter = next(p for p in net.parameters() if p.numel() > 3)
        return net

    monkeypatch.setattr(building, "build", remember)
    monkeypatch.setattr(torch.Tensor, "backward", poisoned)
    train(tiny(precision="bf16", duration=32e-6), digits, tmp_path)
    (row,) = map(json.loads, (tmp_path / "log.jsonl").open())
    assert row["nonfinite_gradients"] == 3
    assert all(t.isfinite().all() for t in weights(tmp_path).values())


@pytest.mark.slow
def test_the_loss_scale_does_not_change_the_training(tiny, digits, tmp_path):
    train(tiny(dropout=0.0, clip_norm=1.0), digits, tmp_path / "plain")
    train(tiny(dropout=0.0, clip_norm=1.0, loss_scale=128.0), digits, tmp_path / "scaled")
    assert largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "scaled")) < 1e-5


def test_clipping_bounds_the_gradient_norm(tiny):
    gradients = torch.full((10,), 3.0)
    step.clean(gradients, tiny(clip_norm=1.0))
    assert float(gradients.norm()) == pytest.approx(1, rel=1e-4)
    step.clean(gradients, tiny(clip_norm=2.0))
    assert float(gradients.norm()) == pytest.approx(1, rel=1e-4)


def test_gradients_are_views_of_one_vector_in_the_layout_of_their_parameters(tiny):
    parameters = list(building.build(tiny()).to(memory_format=torch.channels_last).parameters())
    vector = step.one_vector_of_gradients(parameters)
    for number, parameter in enumerate(parameters, 1):
        assert parameter.grad.stride() == parameter.stride()
        parameter.grad.fill_(number)
    assert all((p.grad == number).all() for number, p in enumerate(parameters, 1))  # none overlaps another
    assert vector.sum() == sum(number * p.numel() for number, p in enumerate(parameters, 1))


def test_snapshots_come_as_often_as_asked(tiny, digits, tmp_path):
    train(tiny(snapshot_every=96e-6), digits, tmp_path)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == ["000000000096.safetensors", "000000000192.safetensors", "000000000288.safetensors"]
    assert checkpoint.describe(tmp_path / "snapshots" / names[0])["about"]["images"] == 96


def test_learning_rate_ramps_and_ema_halves_as_table_7_says(tiny):
    config = tiny(lr_rampup=0.001, learning_rate=1e-3, batch_size=100, ema_halflife=0.001, ema_rampup=0.05)
    rates = [learning_rate_at(config, images) for images in (0, 100, 200, 300, 900, 1000, 5000)]
    assert rates == pytest.approx([0, 1e-4, 2e-4, 3e-4, 9e-4, 1e-3, 1e-3])
    assert learning_rate_at(tiny(lr_rampup=0, learning_rate=1e-3), 0) == 1e-3
    assert ema_decay_at(config, 0) == 0
    assert ema_decay_at(config, 2000) == pytest.approx(0.5)  # half-life capped at 0.05 × 2000 = one batch
    assert ema_decay_at(config, 10**6) == pytest.approx(0.5**0.1)


def test_every_epoch_shows_every_image_once_in_a_new_order(tiny, digits):
    config = tiny()
    batches = Batches(digits, config, building.loss_of(config), torch.device("cpu"))
    total = len(digits.images)
    first, second = batches._rows(0, total), batches._rows(total, total)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(total))
    assert first.tolist() != second.tolist()
    assert torch.equal(
        torch.cat([batches._rows(0, 1000), batches._rows(1000, total)]), torch.cat([first, second])[: 1000 + total]
    )


def test_dataset_flips_mirror_half_of_the_images(tiny):
    """An image that is dark on its left and bright on its right tells whether it was flipped."""
    pixels = np.zeros((64, 1, 8, 8), dtype=np.uint8)
    pixels[..., 4:] = 255
    dataset = Dataset(pixels, np.zeros(64, dtype=np.int64), "", "half.zip")
    config = tiny(x_flip=True, augment=0.0)
    batch = Batches(dataset, config, building.loss_of(config), torch.device("cpu")).draw(0, 1000)
    flipped = float((batch.images[:, 0, 0, 0] > 0).float().mean())
    assert flipped == pytest.approx(0.5, abs=0.05)


def test_errors_per_level_leave_out_what_the_model_never_saw(tiny, digits):
    """Configuration D of the VE column: EDM preconditioning, trained on σ in [0.02, 100] alone."""
    net = building.build(tiny(preconditioning="edm", loss="ve"))
    assert (net.sigma_min, net.sigma_max) == (0.02, 100.0)
    levels = error_per_level(net, digits, True, 8, ALONE)
    assert min(levels["sigma"]) >= 0.02 and len(levels["sigma"]) == len(levels["mean"]) == len(levels["std"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(tiny, digits, tmp_path, precision):
    train(tiny(precision=precision, loss_scale=100.0, duration=0.0016), digits, tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").open()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 3}, "images are 8x8 with 1 channels; the configuration expects 8x8 with 3"),
        ({"resolution": 16}, "the configuration expects 16x16"),
        ({"classes": 5}, r"has 10 classes \(labels to 9\); the configuration is conditional on 5"),
        ({"classes": 11}, r"has 10 classes \(labels to 9\); the configuration is conditional on 11"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(tiny, digits, tmp_path, changes, message):
    with pytest.raises(edm.UserError, match=message):
        train(tiny(**changes), digits, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Overflows in half precision


def test_a_training_whose_gradients_all_overflow_ends_with_one_line(tiny, digits, tmp_path):
    """Ten steps at a loss scale that fp16 cannot hold: every entry is replaced, in every step."""
    config = tiny(channel_mult=(1,), attn_resolutions=(), level_samples=2, precision="fp16", loss_scale=1e8)
    message = (r"most gradients overflowed in fp16 in each of the last 10 steps, up to 320 images: nothing is learned; "
               r"lower loss_scale \(it is 1e\+08\) or set precision: bf16 or fp32$")  # fmt: skip
    with pytest.raises(edm.UserError, match=message):
        train(config, digits, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_overflows_are_told_once_when_they_begin_to_matter_and_end_what_cannot_learn(tiny, tmp_path, capsys):
    """195 steps in a row of the log and 1000 parameters: rows (overflows, entries) and what is said of them."""
    watch = Overflows(tmp_path, tiny(duration=1.0, precision="fp16", loss_scale=64.0), 1000, 0, active=True)
    for number, (overflows, entries, said) in enumerate(
        [(0, 0, 0), (9, 9, 0), (19, 10**5, 0), (20, 20, 1), (195, 195 * 499, 0), (195, 195 * 500, 0), (194, 194000, 0),
         (195, 195000, 0), (195, 195000, 0)], 1
    ):  # fmt: skip
        watch.look(overflows, entries, 195, number)
        assert capsys.readouterr().err.count("\n") == said, (overflows, entries)
    with pytest.raises(edm.UserError, match="each of the last 585 steps"):
        watch.look(195, 195000, 195, 10)
    later = Overflows(tmp_path, tiny(duration=1.0), 1000, watch.in_a_row - 195, active=False)  # from a state
    with pytest.raises(edm.UserError, match="each of the last 585 steps"):
        later.look(195, 195000, 195, 10)
    assert capsys.readouterr().err == ""
