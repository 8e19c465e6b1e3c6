"""Networks whose blocks are computed again for their gradients train to the same bits, and keep less for them."""

import json

import miniature
import pytest
import torch
import yaml
from safetensors.torch import load_file

import edm
from edm import params
from edm.chain import costs
from edm.chain.jobs import Chain
from edm.chain.throughput import Throughput
from edm.cli import main
from edm.errors import UserError
from edm.training import loop
from edm.training.step import TrainingStep


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.first(1)
def test_weights_and_log_are_those_without_it(architecture, tiny, digits, tmp_path):
    config = tiny(architecture=architecture, dropout=0.2, attn_resolutions=[4], augment=0.1, duration=0.0004)
    logs = []
    for recompute in (False, True):
        out = tmp_path / str(recompute)
        loop.train(config, digits, out, recompute=recompute)
        logs.append([json.loads(row)["loss"] for row in (out / "log.jsonl").read_text().splitlines()])
    plain, again = (load_file(tmp_path / name / "model.safetensors") for name in ("False", "True"))
    assert logs[0] == logs[1] and all(torch.equal(plain[name], again[name]) for name in plain)


def test_it_keeps_less_than_a_third_for_the_gradients(tiny, digits):
    kept = []
    for recompute in (False, True):
        step, seen = TrainingStep(tiny(model_channels=32, num_blocks=3), digits, recompute=recompute), {}
        keep = lambda tensor, seen=seen: (seen.update({tensor.untyped_storage().data_ptr(): tensor.nbytes}), tensor)[1]
        weights = {weight.untyped_storage().data_ptr() for weight in step.net.parameters()}
        images = torch.randn(32, 1, 8, 8)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = step.net(images, torch.full((32,), 0.5), torch.zeros(32, dtype=torch.int64))
        kept.append(sum(size for place, size in seen.items() if place not in weights))
        assert out.requires_grad
    assert kept[1] < kept[0] / 3


def test_a_network_that_cannot_is_refused_in_a_line(tiny, digits, monkeypatch):
    config = tiny()
    monkeypatch.delattr("edm.networks.unet.UNet.recompute")
    with pytest.raises(UserError, match="architecture ddpmpp: has no attribute recompute; leave recompute out"):
        TrainingStep(config, digits, recompute=True)
    TrainingStep(config, digits)


def test_the_library_takes_a_truth_value_only(tiny, digits, tmp_path):
    with pytest.raises(UserError, match="recompute is 'yes'; expected True or False"):
        edm.train(tiny(), digits, tmp_path, recompute="yes")


@pytest.mark.parametrize("stated, words, expected", [
    (True, [], True), (None, [], False), (True, ["--no-recompute"], False), (None, ["--recompute"], True),
])  # fmt: skip
@pytest.mark.first(2)
def test_the_command_takes_it_from_the_experiment_unless_told(
    stated, words, expected, digits_archive, tmp_path, monkeypatch
):
    raw = miniature.raw()
    raw["experiments"]["digits"]["training"] |= {} if stated is None else {"recompute": stated}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    found = []
    monkeypatch.setattr(loop, "train", lambda *what, recompute, **how: found.append(recompute))
    digits = ["--experiment", "digits", "--model", "vp-A", "--data", str(digits_archive), "--out", "run"]
    assert main(["train", *digits, *words]) == 0 and found == [expected]


def test_it_is_no_part_of_the_specification_and_costs_a_third_of_the_plan(tmp_path):
    found = []
    for more in ({}, {"recompute": True}):
        raw = miniature.raw()
        raw["experiments"]["digits"]["training"] |= more
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        chain = Chain(params.load(str(tmp_path / "params.yaml")))
        job = next(job for job in chain.jobs() if job.rule == "train")
        found.append((chain.specification(job), costs.training(chain, job, Throughput()).hours[0]))
    (plain, hours), (again, longer) = found
    assert plain == again and longer == pytest.approx(hours * 4 / 3)
