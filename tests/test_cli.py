"""The command line: the chain by hand, help that a person can follow, and one clear line for every mistake."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import edm
from edm.cli import main
from edm.models import building, checkpoint

ROOT = Path(__file__).parent.parent
COMMANDS = ("prepare", "download", "made-up", "features", "train", "import", "export", "sample", "merge", "fid",
            "fid-ref", "evaluate", "choose", "search", "sheet", "analyse", "tables", "figures", "metrics", "about",
            "launch", "adopt", "digests", "trace", "plan", "bench", "track", "check")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of an untrained network: enough for a command line."""
    from edm.config import TrainingConfig

    torch.manual_seed(0)
    config = TrainingConfig(
        resolution=8, channels=1, classes=10, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=()
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    checkpoint.save(path, building.build(config), config, {"images": 0, "dataset_sha256": "0" * 64})
    return str(path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, digits):
    from edm.metrics.classifier import train_classifier

    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    train_classifier(digits.images, digits.labels, path, epochs=1)
    return str(path)


def test_the_chain_by_hand(tmp_path, classifier, capsys):
    """prepare → train → sample → distance, typed one after the other."""
    data, out = str(tmp_path / "digits.zip"), str(tmp_path / "run")
    config = tmp_path / "config.json"
    assert main(["prepare", data, "--source", "digits"]) == 0
    assert main(["train", "--experiment", "digits", "--model", "vp-F", "--dry-run"]) == 0
    fields = json.loads(capsys.readouterr().out) | {"duration": 0.00064, "batch_size": 64, "model_channels": 8}
    config.write_text(json.dumps(fields))
    assert main(["train", "--config", str(config), "--data", data, "--out", out, "--device", "cpu"]) == 0
    samples, reference, result = (str(tmp_path / name) for name in ("s.safetensors", "ref.npz", "fid.json"))
    assert main(["sample", f"{out}/model.safetensors", samples, "--seeds", "0-99", "--steps", "4"]) == 0
    for picture in ("sheet.png", "images.zip"):
        assert main(["sample", f"{out}/model.safetensors", str(tmp_path / picture), "--seeds", "0-3"]) == 0
        assert (tmp_path / picture).stat().st_size > 100
    extractor = ["--features", "digits-classifier", "--weights", classifier]
    assert main(["fid-ref", data, reference, *extractor]) == 0
    assert main(["fid", samples, "--ref", reference, "--output", result, *extractor]) == 0
    record = json.loads((tmp_path / "fid.json").read_text())
    (point,) = record["points"]
    assert point["images"] == 100 and point["nfe"] == 7 and point["distance"] > 1
    assert record["metric"]["label"] == "FD (digits-classifier)"  # never FID


def test_equal_weights_of_two_commits_are_equal_files(tmp_path, digits_archive, tiny, monkeypatch):
    """What follows from a model is not made again for a commit: the sidecar names it, not the checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps(tiny(snapshot_every=160e-6).to_dict()))
    for commit in "ab":
        tags = lambda commit=commit: {"commit": commit * 40, "dirty": "false"}
        monkeypatch.setattr("edm.tracking.environment._git_tags", tags)
        monkeypatch.setattr("edm.commands.models.environment_tags", tags)
        assert main(["train", "--config", str(tmp_path / "config.json"), "--data", str(digits_archive), "--out",
                     str(tmp_path / commit), "--device", "cpu"]) == 0  # fmt: skip
    made = [{path.name: path.read_bytes() for path in (tmp_path / commit).rglob("*.safetensors")} for commit in "ab"]
    assert len(made[0]) == 3 and made[0] == made[1]


def test_help_is_quick_and_names_every_command():
    """`edm --help` imports neither torch nor mlflow nor torch-fidelity."""
    code = "import sys, edm.cli; edm.cli.parser().format_help(); print([m for m in sys.modules if m in %r])"
    heavy = ("torch", "mlflow", "torch_fidelity", "numpy", "matplotlib", "snakemake", "sklearn")
    out = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: edm {command}" in text and len(text.splitlines()) > 5


def text_file(path, text="hello"):
    path.write_text(text)
    return str(path)


def truncated(path, source):
    path.write_bytes(Path(source).read_bytes()[:-100])
    return str(path)


def archive_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no images")
    return str(path)


def ours(path, header):
    save_file({"a": torch.zeros(1)}, path, {"edm": json.dumps(header)})
    return str(path)


def config(path, **values):
    path.write_text(json.dumps({"resolution": 8, "channels": 1, "classes": 10, **values}))
    return str(path)


def history(path):
    path.write_text('{"format": "edm-search/1", "spec": "abc"}\n')
    return str(path)


def published(path):
    np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    return str(path)


def test_distances_from_a_reference_of_another_classifier_are_refused(
    tmp_path, model, digits_archive, classifier, capsys
):
    """Two classifiers have two sets of features: a number between them means nothing."""
    other = str(tmp_path / "other.safetensors")
    assert main(["features", str(digits_archive), other, "--seed", "5"]) == 0
    reference, samples = str(tmp_path / "ref.npz"), str(tmp_path / "s.safetensors")
    assert main(["fid-ref", str(digits_archive), reference, "--features", "digits-classifier", "--weights", other]) == 0
    assert main(["sample", model, samples, "--seeds", "0-9", "--steps", "1"]) == 0
    capsys.readouterr()
    assert main(["fid", samples, "--ref", reference, "--features", "digits-classifier", "--weights", classifier]) == 1
    assert "measure both in the same features" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--threads", "-1"], ["--seeds", "9-3"], ["--seeds", "9" * 30], ["--block", "0"]])
def test_options_out_of_range_are_refused_by_name(option, model, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sample", model, str(tmp_path / "o.png"), *option])
    assert ended.value.code == 2 and f"argument {option[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_states_are_some_seconds_apart(seconds, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--out", str(tmp_path / "run"), "--state-every", seconds])
    assert ended.value.code == 2 and "is not a number of seconds above 0" in capsys.readouterr().err


#: What a user types, given a folder, a checkpoint, an archive and a classifier; and what the one line must say.
BAD_INPUT = {
    "unknown source": (lambda t, m, d, c: ["prepare", t / "o.zip", "--source", "cats"], "'cats' is unknown"),
    "no source": (lambda t, m, d, c: ["prepare", t / "o.zip"], "name a source"),
    "unknown dataset": (lambda t, m, d, c: ["prepare", t / "o.zip", "--dataset", "digit"], "did you mean 'digits'"),
    "missing archive": (lambda t, m, d, c: ["fid-ref", t / "no.zip", t / "o.npz"], "no such dataset"),
    "truncated archive": (
        lambda t, m, d, c: ["fid-ref", truncated(t / "in.zip", d), t / "o.npz"],
        "not a readable zip archive",
    ),
    "archive without images": (
        lambda t, m, d, c: ["fid-ref", archive_of_text(t / "in.zip"), t / "o.npz"],
        "holds no images",
    ),
    "not an archive": (lambda t, m, d, c: ["fid-ref", text_file(t / "in.zip"), t / "o.npz"], "not a readable zip"),
    "wrong image size": (
        lambda t, m, d, c: [
            "train", "--data", d, "--out", t / "run", "--config",
            text_file(t / "in.json", '{"resolution": 16, "channels": 1, "classes": 10}'),
        ],
        "images are 8x8 with 1 channels; the configuration expects 16x16",
    ),
    "unknown field": (
        lambda t, m, d, c: ["train", "--dry-run", "--config", text_file(t / "in.json", '{"learning_rat": 1}')],
        "'learning_rat' is unknown",
    ),
    "missing field": (
        lambda t, m, d, c: ["train", "--dry-run", "--config", text_file(t / "in.json", "{}")],
        "resolution",
    ),
    "configuration that is no JSON": (
        lambda t, m, d, c: ["train", "--dry-run", "--config", text_file(t / "in.json", "{a")],
        "not a readable JSON file",
    ),
    "configuration that is a list": (
        lambda t, m, d, c: ["train", "--dry-run", "--config", text_file(t / "in.json", "[1]")],
        "expected a JSON object",
    ),
    "text for a number": (
        lambda t, m, d, c: [
            "train", "--dry-run", "--config",
            text_file(t / "in.json", '{"resolution": 8, "channels": 1, "batch_size": "64"}'),
        ],
        "batch_size is '64', which is not a whole number",
    ),
    "number for a list": (
        lambda t, m, d, c: [
            "train", "--dry-run", "--config",
            text_file(t / "in.json", '{"resolution": 8, "channels": 1, "channel_mult": 2}'),
        ],
        "channel_mult is 2, which is not a list of whole numbers",
    ),
    "number that is none": (
        lambda t, m, d, c: [
            "train", "--dry-run", "--config",
            text_file(t / "in.json", '{"resolution": 8, "channels": 1, "P_mean": NaN}'),
        ],
        "P_mean is nan, which is not a finite number",
    ),
    "checkpoint without configuration": (
        lambda t, m, d, c: ["sample", ours(t / "in.safetensors", {"format": "edm-checkpoint/1"}), t / "o.png"],
        "its header has no configuration",
    ),
    "header that is a list": (
        lambda t, m, d, c: ["sample", ours(t / "in.safetensors", [1]), t / "o.png"],
        "expected 'edm-checkpoint/1'",
    ),
    "samples without images": (
        lambda t, m, d, c: [
            "fid", ours(t / "in.safetensors", {"format": "edm-samples/1", "points": {"only": {}}}),
            "--ref", published(t / "in.npz"), "--features", "digits-classifier", "--weights", c,
        ],
        "not a whole sample file",
    ),
    "nothing to train": (lambda t, m, d, c: ["train"], "name what to train"),
    "unknown model": (
        lambda t, m, d, c: ["train", "--experiment", "digits", "--model", "vp-Z", "--dry-run"],
        "no model 'vp-Z' to train; it has vp-A",
    ),
    "params that changed meanwhile": (
        lambda t, m, d, c: ["train", "--experiment", "digits", "--model", "vp-F", "--expect", "abc", "--dry-run"],
        "params.yaml was changed after this job was planned",
    ),
    "missing checkpoint": (lambda t, m, d, c: ["sample", t / "no.safetensors", t / "o.png"], "no such file"),
    "corrupt checkpoint": (
        lambda t, m, d, c: ["sample", truncated(t / "in.safetensors", m), t / "o.png"],
        "not a whole safetensors file",
    ),
    "checkpoint of another kind": (
        lambda t, m, d, c: ["sample", text_file(t / "in.pkl"), t / "o.png"],
        "not a file of this program",
    ),
    "zero steps": (
        lambda t, m, d, c: ["sample", m, t / "o.png", "--steps", "0"],
        "num_steps is 0; it must be at least 1",
    ),
    "a fixed loss scale below zero": (
        lambda t, m, d, c: ["train", "--config", config(t / "in.json", loss_scale=-1), "--data", d, "--out", t / "o"],
        "in.json: loss_scale is -1; it must be more than 0",
    ),
    "churn that is no number": (lambda t, m, d, c: ["sample", m, t / "o.png", "--S-churn", "nan"], "S_churn is nan"),
    "S_min above S_max": (
        lambda t, m, d, c: ["sample", m, t / "o.png", "--S-min", "2", "--S-max", "1"],
        "S_min 2 is larger than S_max 1",
    ),
    "unknown solver": (lambda t, m, d, c: ["sample", m, t / "o.png", "--solver", "rk9"], "solver 'rk9' is unknown"),
    "unknown ending": (lambda t, m, d, c: ["sample", m, t / "o.gif"], "choose an ending"),
    "rho too small": (lambda t, m, d, c: ["sample", m, t / "o.png", "--rho", "1e-5"], "rho is 1e-05"),
    "no such class": (lambda t, m, d, c: ["sample", m, t / "o.png", "--class", "12"], "class 12 is not one"),
    "no such device": (lambda t, m, d, c: ["sample", m, t / "o.png", "--device", "cuda:7"], "no usable GPU"),
    "device that makes no sense": (lambda t, m, d, c: ["sample", m, t / "o.png", "--device", "gpu"], "device 'gpu'"),
    "unwritable output": (
        lambda t, m, d, c: ["sample", m, text_file(t / "in") + "/o.png", "--steps", "1"],
        "cannot be written",
    ),
    "samples that are no samples": (
        lambda t, m, d, c: ["fid", m, "--ref", t / "no.npz"],
        "expected 'edm-samples/1'",
    ),
    "unknown features": (
        lambda t, m, d, c: ["fid-ref", d, t / "o.npz", "--features", "resnet"],
        "unknown feature extractor 'resnet'",
    ),
    "features without weights": (
        lambda t, m, d, c: ["fid-ref", d, t / "o.npz", "--features", "digits-classifier"],
        "has no weights of its own",
    ),
    "history in place of a search's outcome": (
        lambda t, m, d, c: ["evaluate", m, t / "o.json", "--experiment", "digits", "--model", "vp-A", "--evaluation",
                            "ladder", "--ref", t / "no.npz", "--settings", history(t / "in.json")],
        "in.json: not the outcome of a search",
    ),
    "no params file": (lambda t, m, d, c: ["check", "--params", t / "no.yaml"], "No such file"),
    "unknown experiment": (lambda t, m, d, c: ["tables", "digit"], "did you mean 'digits'"),
    "no journals": (lambda t, m, d, c: ["track", "sync", t / "none"], "no journal there yet"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_INPUT)
def test_bad_input_ends_in_one_clear_line_and_leaves_nothing(
    mistake, tmp_path, model, digits_archive, classifier, capsys
):
    make, message = BAD_INPUT[mistake]
    argv = [str(word) for word in make(tmp_path, model, str(digits_archive), classifier)]
    status = main(argv)
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], errors
    assert all(path.name.startswith("in") for path in tmp_path.rglob("*")), "something was left behind"


def test_a_mistake_is_a_status_and_a_line_for_the_shell_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "edm", "sample", "no.safetensors", "o.png"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: no.safetensors: no such file\n"


def test_a_published_file_is_pinned_at_its_first_import_and_another_one_in_its_place_refused(
    tmp_path, monkeypatch, capsys
):
    """The catalogue's files are known by name; where one is missing, the line says where it is to be had."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    name = "score_sde-cifar10-32x32-uncond-vp"
    kept = f"downloads/pretrained/{name}.pth"
    words = ["import", kept, "model.safetensors", "--published", name]
    assert main(words) == 1
    assert "not there; put score_sde-cifar10-32x32-uncond-vp at that path: https://" in capsys.readouterr().err
    Path(kept).parent.mkdir(parents=True)
    fixtures = ROOT / "tests" / "fixtures" / "checkpoints"
    resolution = {"resolution": 32, "like": "cifar10-cond/vp-A"}  # the fixture is tiny: it cannot tell
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace(
        f"{name}: {{like: cifar10-cond/vp-A}}", f"{name}: {json.dumps(resolution)}"))  # fmt: skip
    shutil.copy(fixtures / "score_sde-vp.pth", kept)
    assert main(words) == 0 and main(words) == 0
    assert set(json.loads(Path("downloads.lock.json").read_text())) == {kept}
    shutil.copy(fixtures / "score_sde-ve.pth", kept)
    before = Path("model.safetensors").read_bytes()
    assert main(words) == 1
    assert kept in capsys.readouterr().err and Path("model.safetensors").read_bytes() == before


def test_export_and_import_are_an_exact_round_trip(tmp_path):
    imported, exported, again = (tmp_path / name for name in ("a.safetensors", "b.pt", "c.safetensors"))
    source = ROOT / "tests" / "fixtures" / "checkpoints" / "nvlabs-edm.pkl"
    assert main(["import", str(source), str(imported)]) == 0
    assert main(["export", str(imported), str(exported)]) == 0
    assert main(["import", str(exported), str(again)]) == 0
    first, second = load_file(imported), load_file(again)
    assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"edm {edm.__version__}\n"


def test_the_shell_completes_with_all_commands(monkeypatch):
    """argcomplete is an extra: a module in its place gets the parser, when the shell asks for completion."""
    asked = []
    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=asked.append))
    for set_by_the_shell in (False, True):
        if set_by_the_shell:
            monkeypatch.setenv("_ARGCOMPLETE", "1")
        assert main(["check", "--params", str(ROOT / "params.yaml")]) == 0
        assert len(asked) == set_by_the_shell
    assert "fid-ref" in asked[0].format_help()
