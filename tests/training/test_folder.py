"""A finished training is not begun again, no other one takes its place unasked, and other code goes on with nothing."""

import json
import re
from dataclasses import replace

import pytest
import torch

from edm.chain.rules import RULES
from edm.cli import main
from edm.cluster.processes import ALONE
from edm.commands.common import MADE_FROM
from edm.errors import UserError
from edm.files.hashes import digest
from edm.training.folder import TrainingFolder
from edm.training.loop import train
from edm.training.state import IRRELEVANT, LATER, TrainingState, states


class Killed(Exception):
    pass


@pytest.fixture
def short(tiny):
    """Six steps; snapshots after two, four and six of them."""

    def make(**changes):
        fields = {"duration": 192e-6, "snapshot_every": 64e-6, "channel_mult": (1,), "attn_resolutions": (),
                  "level_samples": 2}  # fmt: skip
        return tiny(**{**fields, **changes})

    return make


@pytest.fixture
def killed(digits, monkeypatch):
    """Trains, saves a state after three steps, and is killed then."""

    def run(config, folder, **words):
        save = TrainingState.save

        def save_then_die(self, images, seconds):
            save(self, images, seconds)
            if images == 96:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(TrainingState, "save", save_then_die)
            with pytest.raises(Killed):
                train(config, digits, folder, state_every=0, **words)

    return run


@pytest.fixture
def command(tmp_path, digits_archive, short):
    """`edm train` of a configuration in the folder run; its status."""

    def run(*words, **changes):
        (tmp_path / "config.json").write_text(json.dumps(short(**changes).to_dict()))
        files = ["--config", tmp_path / "config.json", "--data", digits_archive, "--out", tmp_path / "run"]
        return main(["train", *map(str, files), "--device", "cpu", *words])

    return run


def content(folder):
    """Every file, but for the lock, whose holder signs it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".training"}


def losses(folder):
    return [(row["images"], row["loss"]) for row in map(json.loads, (folder / "log.jsonl").open())]


# Finished


def test_a_finished_training_says_so_and_changes_nothing(command, tmp_path, capsys):
    """As a chain of jobs of Slurm does that starts the same command until it is done, and once more."""
    assert command() == 0
    before = content(tmp_path / "run")
    assert len([path for path in before if path.parent.name == "snapshots"]) == 3
    capsys.readouterr()
    assert command() == 0
    assert capsys.readouterr().err == (
        f"{tmp_path / 'run'}: this training run is finished; nothing is changed (--overwrite trains it again)\n"
    )
    assert content(tmp_path / "run") == before


def test_a_training_killed_while_it_removed_its_states_leaves_none(command, tmp_path, monkeypatch):
    """Of the two, a kill between the removals left the second; the next start finds the training run finished."""

    def first_only(out):
        states(out)[0].unlink(missing_ok=True)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("edm.training.loop.remove_states", first_only)
        with pytest.raises(Killed):
            command("--state-every", "0.001")
    assert [path.exists() for path in states(tmp_path / "run")] == [False, True]
    before = content(tmp_path / "run")
    assert command() == 0
    left = content(tmp_path / "run")
    assert left == {path: text for path, text in before.items() if path.name != "state-1.safetensors"}


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [([], {"learning_rate": 1e-3, "duration": 256e-6}, "with another duration, learning_rate"),
     (["--final", "other"], {}, "whose files are not in other")],
)  # fmt: skip
@pytest.mark.slow
def test_another_training_in_the_folder_of_a_finished_one_has_to_be_asked_for(
    command, tmp_path, monkeypatch, capsys, words, changes, message
):
    monkeypatch.chdir(tmp_path)
    assert command() == 0
    before = content(tmp_path / "run")
    capsys.readouterr()
    assert command(*words, **changes) == 1
    refusal = f"holds a finished training run {message}; choose another --out, or replace it with --overwrite"
    assert capsys.readouterr().err == f"error: {tmp_path / 'run'}: {refusal}\n"
    assert content(tmp_path / "run") == before
    assert command("--overwrite", *words, **changes) == 0
    assert content(tmp_path / "run") != before
    assert command(*words, **changes) == 0 and "this training run is finished" in capsys.readouterr().err


def test_records_and_states_of_a_version_with_fewer_fields_count(tiny, digits, tmp_path):
    """A later field at its default is no other training: nothing is trained again, and states go on."""
    config, out = tiny(), tmp_path / "run"
    train(config, digits, out)
    record = json.loads((out / "training.json").read_text())
    for name in LATER:
        del record["config"][name]
    (out / "training.json").write_text(json.dumps(record))
    assert TrainingFolder(out, out, config, digits).is_finished()
    fields = {name: value for name, value in config.to_dict().items() if name not in IRRELEVANT | LATER}
    net = torch.nn.Linear(1, 1)
    state = lambda one: TrainingState(out, one, digits, net, net, None, ALONE, None)
    assert state(config).identity == digest([fields, digits.sha256])
    assert state(config).identity != state(tiny(label_dropout=0.1)).identity


def test_a_model_that_no_training_in_the_folder_made_is_not_written_over(command, tmp_path, capsys):
    assert command() == 0
    model = tmp_path / "run" / "model.safetensors"
    for name in ("training.json", "levels.json"):
        (tmp_path / "run" / name).unlink()
    assert command(seed=1) == 1
    assert f"error: {model}: no training run in {tmp_path / 'run'} made it; choose" in capsys.readouterr().err


@pytest.mark.slow
def test_the_chain_trains_again_what_is_stale(command, tmp_path, monkeypatch, capsys):
    """Snakemake has decided that, and `edm launch` says which step it is."""
    for step, code in (("one", 1), ("one", 1), ("other", 2)):
        monkeypatch.setenv(MADE_FROM, step)
        assert command(seed=code) == 0
    assert capsys.readouterr().err.count("this training run is finished") == 1
    (tmp_path / "run" / "model.safetensors").unlink()  # as Snakemake removes the outputs of a step that is to run
    assert command(seed=2) == 0 and (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_finished_training_of_older_code_is_not_thrown_away_unasked(command, tmp_path, monkeypatch, capsys):
    assert command() == 0
    monkeypatch.setitem(RULES, "train", replace(RULES["train"], code=RULES["train"].code + 1))
    capsys.readouterr()
    assert command() == 1
    assert "holds a finished training run with another made_from; choose" in capsys.readouterr().err
    assert command("--overwrite") == 0


# Interrupted


@pytest.mark.slow
def test_other_code_starts_again_and_keeps_the_state_aside(short, killed, digits, tmp_path, capsys):
    """Else its first steps would be those of the old code, under the new one's number."""
    train(short(), digits, tmp_path / "undisturbed", made_from="new code")
    killed(short(), tmp_path / "run", made_from="old code")
    kept = (tmp_path / "run" / "state-0.safetensors").read_bytes()
    capsys.readouterr()
    train(short(), digits, tmp_path / "run", made_from="new code")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(
        r"state-0.safetensors was made by other code, or from inputs made otherwise \(.*\): moved to "
        r"other-state-0.safetensors; .*; starting from the beginning\n$", said,
    )  # fmt: skip
    assert (tmp_path / "run" / "other-state-0.safetensors").read_bytes() == kept
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "undisturbed")]
    assert models[0] == models[1]


def test_the_same_step_continues_to_the_same_bits(short, killed, digits, tmp_path, capsys):
    train(short(), digits, tmp_path / "undisturbed", made_from="code")
    killed(short(), tmp_path / "run", made_from="code")
    capsys.readouterr()
    train(short(), digits, tmp_path / "run", made_from="code")
    assert capsys.readouterr().err == ""
    for name in ("model.safetensors", "levels.json", "training.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")


def test_a_shorter_run_does_not_end_with_the_weights_of_a_longer_one(short, killed, digits, tmp_path, capsys):
    """A state that has seen more images than the run has would be sealed as its result."""
    killed(short(), tmp_path / "run", made_from="code")
    config = short(duration=32e-6)
    train(config, digits, tmp_path / "undisturbed", made_from="code")
    capsys.readouterr()
    train(config, digits, tmp_path / "run", made_from="code")
    said = capsys.readouterr().err
    assert "this training run ends at 32: moved to other-state-1" in said and "from the beginning" in said
    model = "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "undisturbed" / model).read_bytes()


def test_an_interrupted_training_keeps_its_folder_but_may_become_longer(short, killed, digits, tmp_path):
    killed(short(), tmp_path)
    own = TrainingFolder(tmp_path, tmp_path, short(duration=256e-6, microbatch=8), digits, "newer code")
    own.require_own()
    assert not own.is_finished()
    with pytest.raises(UserError, match="holds an interrupted training run with another learning_rate; choose another"):
        TrainingFolder(tmp_path, tmp_path, short(learning_rate=1.0), digits).require_own()
    (tmp_path / "training.json").write_text("{")
    own.require_own()  # a torn record says nothing, and no model is in danger
    torch.save({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no training run in .* made it"):
        own.require_own()
