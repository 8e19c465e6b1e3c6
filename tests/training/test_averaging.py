"""Averages after the fact from the files of a training run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from edm.cli import main
from edm.design.averages import HalfLife, PowerFunction, recombine
from edm.errors import UserError
from edm.models import checkpoint
from edm.training import averaging
from edm.training.averaging import average, snapshots_of
from edm.training.loop import train
from edm.training.state import TrainingState
from edm.training.step import TrainingStep


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """Ten steps with five snapshots of an average with ramp-up."""
    from edm.config import TrainingConfig

    folder = tmp_path_factory.mktemp("run")
    config = TrainingConfig(
        resolution=8, channels=1, classes=10, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(),
        batch_size=32, duration=320e-6, lr_rampup=0, learning_rate=2e-3, ema_halflife=1e-4, ema_rampup=0.3,
        snapshot_every=64e-6, level_samples=2,
    )  # fmt: skip
    train(config, digits, folder)
    return folder


def test_the_result_is_the_weighted_sum_of_the_snapshots_that_exist(run, tmp_path):
    paths = snapshots_of(run)
    assert len(paths) == 5
    (made,) = average(paths, [0.12], tmp_path)
    seen = [int(path.stem) for path in paths]
    expected = recombine((PowerFunction(0.12), seen[-1]), [(HalfLife(100.0, 0.3), images) for images in seen])
    assert made.found == expected and made.snapshots == 5
    files, result = [load_file(path) for path in paths], load_file(made.path)
    for name, tensor in result.items():
        total = sum(w * file[name].double() for w, file in zip(expected.weights, files, strict=True))
        assert torch.allclose(tensor, total.float(), atol=1e-7) and tensor.dtype == files[0][name].dtype
    about = checkpoint.describe(made.path)["about"]
    assert about["images"] == 320 and about["ema"]["width"] == 0.12 and about["ema"]["residual"] == expected.residual
    assert checkpoint.load(made.path).sigma_max == checkpoint.load(paths[0]).sigma_max


def test_each_file_is_read_once_for_all_widths_and_the_order_does_not_matter(run, tmp_path, monkeypatch):
    read, load = [], averaging.load_tensors
    monkeypatch.setattr(averaging, "load_tensors", lambda path, kind: (read.append(path), load(path, kind))[1])
    average(snapshots_of(run), [0.1, 0.15, 0.2], tmp_path / "one")
    assert sorted(read) == snapshots_of(run)
    average(snapshots_of(run)[::-1], [0.15], tmp_path / "other")
    one, other = (load_file(tmp_path / name / "ema-0.15.safetensors") for name in ("one", "other"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_command_says_how_well_the_profile_fits(run, tmp_path, capsys):
    assert main(["average", str(run), "--width", "0.03", "0.15", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'ema-0.15.safetensors'}: from 5 snapshots, residual" in said
    assert f"warning: {tmp_path / 'ema-0.03.safetensors'}: another profile (residual" in said
    assert main(["average", str(run), "--width", "0.15", "--at", "1", "--out", str(tmp_path)]) == 1
    assert "the snapshots end at 320" in capsys.readouterr().err
    assert main(["average", str(tmp_path), "--width", "0.15"]) == 1
    assert "has no snapshots; state snapshot_every" in capsys.readouterr().err


def test_snapshots_of_several_runs_and_averages_of_averages_are_refused(run, tmp_path, digits):
    header = checkpoint.describe(snapshots_of(run)[0])
    header["about"]["dataset_sha256"] = "0" * 64
    from edm.files.tensors import save_tensors

    save_tensors(tmp_path / "other.safetensors", load_file(snapshots_of(run)[0]), json.loads(json.dumps(header)))
    with pytest.raises(UserError, match="is of another training run than"):
        average([*snapshots_of(run), tmp_path / "other.safetensors"], [0.1], tmp_path)
    (made,) = average(snapshots_of(run), [0.1], tmp_path)
    with pytest.raises(UserError, match="is itself made of snapshots"):
        average([made.path], [0.1], tmp_path)


# Power-function averages in training ----------------------------------------------------------------------------------

WIDTHS = (0.05, 0.10)


@pytest.fixture
def kept(tiny):
    """Ten steps with two tracks and five snapshots."""

    def make(**changes):
        fields = {"channel_mult": (1,), "attn_resolutions": (), "lr_rampup": 0, "snapshot_every": 64e-6,
                  "level_samples": 2, "ema_widths": WIDTHS}  # fmt: skip
        return tiny(**{**fields, **changes})

    return make


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_a_track_is_the_power_function_average_of_all_weights(kept, digits):
    step = TrainingStep(kept(), digits)
    sums, steps = torch.zeros(4, dtype=torch.float64), 12
    history = []
    for k in range(steps):
        step(k * 32, sums)
        history.append(torch.cat([p.detach().flatten().double() for p in step.net.parameters()]))
    for width, track in step.tracks.items():
        average = history[0]
        for k in range(2, steps + 1):
            beta = (1 - 1 / k) ** (PowerFunction(width).gamma + 1)
            average = beta * average + (1 - beta) * history[k - 1]
        found = torch.cat([p.flatten().double() for p in track.parameters()])
        assert torch.allclose(found, average, atol=1e-6)


@pytest.mark.slow
def test_tracks_change_nothing_else_and_snapshots_keep_both(kept, digits, tmp_path):
    train(kept(ema_widths=()), digits, tmp_path / "plain")
    train(kept(), digits, tmp_path / "tracked")
    plain, tracked = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "tracked"))
    assert all(torch.equal(plain[name], tracked[name]) for name in plain)
    names = [path.name for path in sorted((tmp_path / "tracked" / "snapshots").iterdir())]
    for width in WIDTHS:
        assert [path.name for path in sorted((tmp_path / "tracked" / f"averages/{width:g}").iterdir())] == names
    assert not (tmp_path / "plain" / "averages").exists()


@pytest.mark.slow
def test_an_interrupted_run_with_tracks_ends_with_the_same_files(kept, digits, tmp_path, monkeypatch):
    train(kept(), digits, tmp_path / "undisturbed")
    save = TrainingState.save

    def stop(state, seen, seconds):
        save(state, seen, seconds)
        state.background.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(kept(), digits, tmp_path / "resumed", state_every=0.0)
    monkeypatch.setattr(TrainingState, "save", save)
    assert list((tmp_path / "resumed").glob("state-?.safetensors"))
    train(kept(), digits, tmp_path / "resumed")
    assert files(tmp_path / "resumed") == files(tmp_path / "undisturbed")
    assert len(files(tmp_path / "resumed")) == 1 + 3 * 5


def test_an_average_of_the_width_of_a_track_is_the_track(kept, digits, tmp_path):
    train(kept(), digits, tmp_path / "run")
    paths = snapshots_of(tmp_path / "run")
    assert len(paths) == 10 and {path.parent.name for path in paths} == {"0.05", "0.1"}
    (made,) = average(paths, [0.1], tmp_path)
    one, other = load_file(made.path), load_file(tmp_path / "run" / "averages" / "0.1" / f"{320:012d}.safetensors")
    assert made.found.residual < 1e-5
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"snapshot_every": None}, "ema_widths has no effect without snapshots"),
        ({"ema_widths": (0.1, 0.1)}, "has a width twice"),
        ({"ema_widths": (0.5,)}, "ema_widths is 0.5; it must be at least 0.001 and at most 0.2886"),
    ],
)
def test_widths_that_cannot_be_kept_are_refused(kept, changes, says):
    with pytest.raises(UserError, match=says):
        kept(**changes)
