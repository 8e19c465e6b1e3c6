"""Checkpoints: saving and loading are bit-exact, and other files are refused."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import edm
from edm import registry
from edm.files.tensors import save_tensors
from edm.models import building, checkpoint


@pytest.fixture
def saved(tiny, tmp_path):
    torch.manual_seed(3)
    config = tiny(preconditioning="iddpm", loss="iddpm")
    net = building.build(config)
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, net, config, {"images": 7})
    return path, net, config


def test_a_round_trip_is_exact(saved):
    path, net, config = saved
    loaded = checkpoint.load(path)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert checkpoint.describe(path) == {
        "format": "edm-checkpoint/1", "config": config.to_dict(), "about": {"images": 7},
    }  # fmt: skip
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 3.0])
    assert torch.equal(net.eval()(x, sigma, torch.tensor([1, 2])), loaded(x, sigma, torch.tensor([1, 2])))


def test_equal_weights_give_equal_bytes(saved, tmp_path):
    path, net, config = saved
    checkpoint.save(tmp_path / "again.safetensors", net, config, {"images": 7})
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(edm.UserError, match="not a file of this program"):
        checkpoint.load(path)
    torch.save({"a": Trap()}, path)
    with pytest.raises(edm.UserError, match=r"a file of torch\.save; convert it first: edm import "):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def test_a_plugin_that_a_header_names_is_not_run(saved, tmp_path):
    """Only what the user names runs; then this file does, so the trap is a real one."""
    path, net, _ = saved
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    header = {**checkpoint.describe(path), "plugins": [
        {"kind": "architecture", "name": "trap", "file": str(trap), "sha256": "0" * 64}]}  # fmt: skip
    save_tensors(path, net.state_dict(), header)
    with pytest.raises(edm.UserError, match=r"needs architecture trap of the plugin .*trap\.py"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(edm.UserError, match="registers no part"):
        registry.load([str(trap)])
    assert (tmp_path / "executed").exists()


def test_truncated_files_are_refused_at_any_length(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    for length in (0, 4, 8, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(edm.UserError, match=r"not a (file of this program|whole safetensors file)"):
            checkpoint.load(path)


def test_a_header_that_claims_too_much_is_refused(saved):
    path, _, _ = saved
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    with pytest.raises(edm.UserError, match="longer than the file"):
        checkpoint.load(path)


def test_tensors_that_do_not_fit_the_configuration_are_named(saved):
    path, _, config = saved
    header = {"edm": json.dumps({"format": "edm-checkpoint/1", "config": config.to_dict(), "about": {}})}
    tensors = load_file(path)
    name = "network.out_conv.bias"
    save_file({key: t for key, t in tensors.items() if key != name}, path, header)
    with pytest.raises(edm.UserError, match=f"tensor '{name}' is missing"):
        checkpoint.load(path)
    save_file({**tensors, name: torch.zeros(5)}, path, header)
    with pytest.raises(edm.UserError, match=rf"'{name}' has shape \[5\], expected \[1\]"):
        checkpoint.load(path)


def test_a_file_of_another_kind_is_named(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"format": "edm-samples/1"})
    with pytest.raises(edm.UserError, match="is 'edm-samples/1', expected 'edm-checkpoint/1'"):
        checkpoint.load(tmp_path / "x.safetensors")
