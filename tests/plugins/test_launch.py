"""Every process of a step loads the plugins of params.yaml: on this machine, and on the nodes of a Slurm job."""

import pytest
from lab import KINDS, write_lab

from edm.cli import main
from edm.commands import launching
from edm.params import load
from edm.params.descriptions import HYPERPARAMETERS, NETWORKS
from edm.params.experiment import Training


@pytest.mark.parametrize("more", [[], ["--processes", "2"], ["--processes", "2", "--nodes", "2"]])
def test_the_command_of_a_step_names_the_plugins(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    write_lab(tmp_path)
    seen = []
    monkeypatch.setattr(launching, "_run", lambda command, *_: (seen.append(command), (1, set(), False))[1])
    monkeypatch.setattr(launching.slurm, "on_each_node", lambda command, *_: command)
    assert main(["launch", *more, "--step", "prepare digits", "--", "prepare", "data/digits.zip"]) == 1
    plugins = [word for kind in KINDS for word in ("--plugins", f"my_lab/{kind}.py")]
    (command,) = seen
    assert command[command.index("edm") :] == ["edm", *plugins, "prepare", "data/digits.zip"]


def test_plugins_are_relative_to_their_params_file(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    write_lab(tmp_path / "inside")
    monkeypatch.chdir(tmp_path)
    assert load("inside/params.yaml").plugin_paths == [f"inside/my_lab/{kind}.py" for kind in KINDS]


def test_tables_of_settings_name_the_network_of_a_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lab(tmp_path)
    config = load("params.yaml").experiment("tiny").models["my-A"]
    assert NETWORKS["attention heads"](config, Training()) == "my-convolutions"
    assert HYPERPARAMETERS["channels"](config, Training()) == "my-convolutions"
    assert float(NETWORKS["parameters (M)"](config, Training())) == 0.0  # about 900
