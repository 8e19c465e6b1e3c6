"""Rates of GPUs: the published anchor, measurements that replace it, and the file that keeps them."""

import dataclasses
import json
from itertools import count

import pytest
import torch

import edm
from edm.chain import throughput
from edm.chain.throughput import ANCHOR, ANCHOR_LABEL, Measurement, Throughput, measure, network_digest, record
from edm.commands.reports import GPUS
from edm.config import NetworkConfig, TrainingConfig
from edm.models import building
from edm.networks.flops import flops

FFHQ = TrainingConfig(resolution=64, channels=3, channel_mult=(1, 2, 2, 2), augment=0.15, conditional=False)


def measurement(network=None, **changes):
    network = network or ANCHOR.network()
    fields = {"device": "NVIDIA H100", "kind": "cuda", "precision": "fp32", "batch": 64, "training": 1000.0,
              "evaluations": 7000.0, "time": "2030-01-01T00:00:00+00:00", "about": "made up"}  # fmt: skip
    return Measurement(network_digest(network), flops(network), **{**fields, **changes})


def test_without_measurements_the_papers_own_network_has_the_papers_rates():
    """200 Mimg in two days on eight V100s, and 26 images per second of 35 evaluations each."""
    rate = Throughput().training(ANCHOR)
    assert rate.per_second == 145 and rate.source == ANCHOR_LABEL and not rate.measured
    assert 200e6 / (8 * rate.per_second) / 86400 == pytest.approx(2, abs=0.01)
    assert Throughput().evaluations(ANCHOR.network()).per_second == 26 * 35


def test_without_measurements_other_networks_do_the_same_flops_per_second():
    training, evaluations = Throughput().training(FFHQ), Throughput().evaluations(FFHQ.network())
    assert training.per_second * flops(FFHQ) == pytest.approx(145 * flops(ANCHOR))
    assert evaluations.per_second * flops(FFHQ) == pytest.approx(910 * flops(ANCHOR))
    assert training.source == evaluations.source == "estimate: V100 anchor of the paper scaled by FLOPs"


def test_a_named_gpu_is_scaled_by_the_data_sheets_of_its_precision():
    assert set(GPUS) == set(throughput.PEAKS)
    rate = lambda precision, gpu: Throughput(gpu=gpu).training(dataclasses.replace(ANCHOR, precision=precision))
    assert rate("fp32", "h100").per_second == pytest.approx(145 * 67 / 15.7)
    for precision in ("tf32", "fp16", "bf16"):
        assert rate(precision, "a100").per_second == pytest.approx(145 * 312 / 125)
    assert rate("fp16", "h100").source == (
        f"{ANCHOR_LABEL}, times 7.91 for the H100; data sheets: 989 and 125 dense fp16 TFLOPS; not measured"
    )
    assert rate("fp32", "v100") == throughput.Rate(145, f"{ANCHOR_LABEL}; not measured", False)


def test_a_measured_network_has_its_own_rate_and_others_are_scaled_from_it():
    table = Throughput([measurement()])
    assert table.training(ANCHOR) == throughput.Rate(1000, "measured: NVIDIA H100, fp32", True)
    assert table.evaluations(ANCHOR.network()).per_second == 7000
    other = table.training(FFHQ)
    assert other.per_second * flops(FFHQ) == pytest.approx(1000 * flops(ANCHOR)) and not other.measured
    assert other.source == "estimate: measured on NVIDIA H100 in fp32, scaled by FLOPs"


def test_an_estimate_starts_from_the_same_precision_and_then_from_the_nearest_network():
    small = NetworkConfig.of("ddpmpp", resolution=8, model_channels=16)
    table = Throughput([measurement(), measurement(small, training=1e6), measurement(precision="fp16", training=3000)])
    assert table.training(FFHQ).per_second == pytest.approx(1000 * flops(ANCHOR) / flops(FFHQ))
    half = table.training(dataclasses.replace(FFHQ, precision="fp16"))
    assert half.per_second == pytest.approx(3000 * flops(ANCHOR) / flops(FFHQ))
    fast = table.evaluations(small, precision="bf16")
    assert fast.per_second == 7000 and not fast.measured


def test_a_plan_is_of_one_gpu_and_never_of_a_cpu_unless_it_is_named():
    cpu = measurement(device="CPU x86_64, 2 threads", kind="cpu", training=0.5, time="2031-01-01")
    assert Throughput([cpu]).training(ANCHOR).source == ANCHOR_LABEL
    assert Throughput([cpu]).training(ANCHOR, device="cpu").per_second == 0.5
    old = measurement(device="NVIDIA A100", training=500.0, time="2029-01-01")
    table = Throughput([measurement(FFHQ.network(), training=400.0), old, cpu])
    assert table.training(ANCHOR).per_second == pytest.approx(400 * flops(FFHQ) / flops(ANCHOR)), "not the A100's own"
    assert table.training(ANCHOR, device="a100").per_second == 500
    with pytest.raises(edm.UserError, match=r"on 'V100' \(measured: .*NVIDIA A100, NVIDIA H100\)"):
        table.training(ANCHOR, device="V100")


def test_dropout_does_not_decide_a_networks_speed_and_augmentation_may():
    same = dataclasses.replace(ANCHOR, dropout=0.3)
    assert network_digest(same.network()) == network_digest(ANCHOR.network())
    assert network_digest(dataclasses.replace(ANCHOR, augment=0.0).network()) != network_digest(ANCHOR.network())


def test_a_file_keeps_one_measurement_per_network_precision_and_device(tmp_path):
    path = tmp_path / "deep" / "throughput.json"
    assert Throughput.load(path).measurements == [] == Throughput.load(None).measurements
    others = [measurement(FFHQ.network()), measurement(precision="tf32"), measurement(device="NVIDIA A100")]
    for one in (measurement(training=1.0), *others, measurement(training=2.0)):
        record(path, one)
    kept = Throughput.load(path).measurements
    assert sorted(kept, key=repr) == sorted([*others, measurement(training=2.0)], key=repr)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "not a table of throughput"),
        ("{", "not a table of throughput"),
        ('{"format": "edm-throughput/1", "measurements": [3]}', "measurements.1 is 3; expected an object"),
        (None, "measurements.1.training is 0; expected a number"),
    ],
)
def test_any_other_file_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "throughput.json"
    if content is None:
        content = json.dumps({"format": throughput.FORMAT, "measurements": [vars(measurement(training=0))]})
    path.write_text(content)
    with pytest.raises(edm.UserError, match=message):
        Throughput.load(path)
    with pytest.raises(edm.UserError, match=message):
        record(path, measurement())
    assert path.read_text() == content


def test_a_measurement_is_the_median_of_real_steps_after_a_warm_up(tiny, monkeypatch):
    """By a clock on which a step takes 1 s, or 50 s in the warm-up and once after it."""
    config = tiny()
    slow = {0, 1, 2, 5}

    class Clock:
        def __init__(self):
            self.calls, self.now = count(), 0.0

        def perf_counter(self):
            step, ends = divmod(next(self.calls), 2)
            self.now += ends * (50 if step in slow else 1)
            return self.now

    monkeypatch.setattr(throughput, "time", Clock())
    found = measure(config, "cpu", seconds=0, batch=8)
    assert (found.training, found.evaluations) == (8.0, 8.0)
    assert (found.network, found.flops) == (network_digest(config.network()), flops(config))
    assert (found.kind, found.precision, found.batch) == ("cpu", "fp32", 8)


def test_what_is_timed_as_a_training_step_trains(tiny, monkeypatch):
    """A training step moves the weights; an evaluation moves nothing."""
    built, build = [], building.build
    monkeypatch.setattr(building, "build", lambda config: built.append(build(config)) or built[-1])
    train, evaluate = throughput._work(tiny(batch_size=4, lr_rampup=0), torch.device("cpu"), None)

    def moved_by(work):
        before = [p.detach().clone() for p in built[0].parameters()]
        work()
        return sum(not torch.equal(a, b) for a, b in zip(before, built[0].parameters(), strict=True)) / len(before)

    assert moved_by(evaluate) == 0 and moved_by(train) > 0.9


@pytest.mark.parametrize("precision, mode", [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_float32_is_measured_as_it_trains_and_left_as_it_was(tiny, monkeypatch, precision, mode):
    place, seen, pace = torch.backends.cudnn.conv, [], throughput._pace
    before = place.fp32_precision
    monkeypatch.setattr(throughput, "_pace", lambda *work: seen.append(place.fp32_precision) or pace(*work))
    measure(tiny(precision=precision, conditional=False), "cpu", seconds=0, batch=2)
    assert seen == [mode, mode] and place.fp32_precision == before


def test_a_measurement_goes_into_a_file_and_comes_back(tiny, tmp_path):
    config = tiny(precision="bf16")
    found = measure(config, "cpu", seconds=0)
    assert found.batch == 32, "no more than the configuration's minibatch"
    record(tmp_path / "t.json", found)
    rate = Throughput.load(tmp_path / "t.json").training(config, device="CPU")
    assert rate.measured and rate.per_second == found.training
    with pytest.raises(edm.UserError, match="batch is 0"):
        measure(config, "cpu", batch=0)
