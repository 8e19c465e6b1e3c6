"""The command line: the chain by hand, help that a person can follow, and one clear line for every mistake."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import edm
from edm.cli import main, parser
from edm.commands.common import counted
from edm.data.archive import write_archive
from edm.files.tensors import load_tensors, save_tensors
from edm.metrics import CLASSIFIER, DINOV2, INCEPTION, PIXELS, metric_error
from edm.metrics.error_bars import Groups
from edm.metrics.frechet import load_statistics, save_statistics
from edm.models import building, checkpoint
from edm.tracking.counting import Counting

ROOT = Path(__file__).parent.parent
COMMANDS = ("prepare", "download", "made-up", "features", "train", "import", "export", "sample", "merge",
            "fid", "fid-ref", "likelihood", "orders", "evaluate", "choose", "search", "sheet", "analyse", "tables",
            "figures", "metrics", "about", "launch", "adopt", "clean", "advise", "digests", "trace", "compare", "plan",
            "bench", "track", "check", "average")  # fmt: skip


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


@pytest.mark.slow
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
    pictures, folder = str(tmp_path / "pictures.zip"), str(tmp_path / "folder")
    assert main(["sample", f"{out}/model.safetensors", pictures, "--seeds", "0-99", "--steps", "4"]) == 0
    zipfile.ZipFile(pictures).extractall(folder)
    for place in (pictures, folder):  # the same images give the same distance
        capsys.readouterr()
        assert main(["fid", place, "--ref", reference, "--output", result, *extractor]) == 0
        again = json.loads((tmp_path / "fid.json").read_text())
        assert again["points"] == [
            {"id": "only", "images": 100, "distance": pytest.approx(point["distance"], rel=1e-9)}
        ]
        assert again["pictures"] == place
        assert "(100 images; no error bar: the order of pictures is not that of seeds)" in capsys.readouterr().err


def test_the_distance_of_sampled_images_has_an_error_bar(tmp_path, capsys):
    """Of 64 features 832 images are enough; metrics have the errors that they allow."""
    images = lambda count, seed: np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), np.uint8)
    data, reference, samples, result = (str(tmp_path / name) for name in ("d.zip", "r.npz", "s.safetensors", "f.json"))
    write_archive(data, images(900, 0), None)
    pixels = ["--features", "pixels", "--device", "cpu"]
    assert main(["fid-ref", data, reference, "--keep-features", "900", *pixels]) == 0
    for count in (832, 831):
        sampled = torch.from_numpy(images(count, 1))
        tensors = {"images/only": sampled, "seeds": torch.arange(count)}
        header = {"format": "edm-samples/1", "points": {"only": {"nfe": 3}}, "checkpoint": {}}
        save_tensors(samples, tensors, header)
        metrics = ["--metrics", "precision", "memorisation", "recall"]
        capsys.readouterr()
        assert main(["fid", samples, "--ref", reference, "--output", result, *pixels, *metrics]) == 0
        (point,) = json.loads((tmp_path / "f.json").read_text())["points"]
        said = capsys.readouterr().err
        if count == 831:
            assert point["bar"] == {"features": 64}
            assert "(NFE 3, 831 images; no error bar: fewer than 13 images per feature)" in said
            continue
        groups = Groups(count)
        groups.append(sampled.flatten(1).double() / 255)
        groups_of = [point["bar"]["without"], groups.bar(load_statistics(reference))["without"]]
        assert groups_of[0] == pytest.approx(groups_of[1], rel=1e-6)
        s = metric_error("precision", point, count)
        assert s == pytest.approx(np.sqrt(point["precision"] * (1 - point["precision"]) / 832))
        assert (
            f"± {point['bar']['s']:.2g} (NFE 3, 832 images); precision {point['precision']:.4g} ± {s:.2g}; recall"
            in said
        )
        assert "; memorisation " in said and len(point["pairs"]) == 64


@pytest.mark.slow
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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.first(1)
def test_a_locale_without_utf_8_shows_a_question_mark_for_what_it_cannot_write(encoding):
    """The plan of the digits has en dashes."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-m", "edm", "plan", "digits", "--all"], cwd=ROOT, env=environment,
                          capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert b"total" in done.stdout and b" ? " in done.stdout


def test_help_is_quick_and_names_every_command():
    """`edm --help` imports neither torch nor mlflow nor torch-fidelity."""
    code = "import sys, edm.cli; edm.cli.parser().format_help(); print([m for m in sys.modules if m in %r])"
    heavy = ("torch", "mlflow", "torch_fidelity", "numpy", "matplotlib", "snakemake", "sklearn")
    out = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


ENDING = """
import atexit, os, sys, threading, time
import edm.cli
class Kept:
    def __del__(self, write=os.write):
        write(1, b"freed\\n")
def main():
    sys.kept = Kept()
    atexit.register(lambda: print("and exit functions"))
    threading.Thread(target=lambda: (time.sleep(0.3), print("threads", end=" "))).start()
    return %s
edm.cli.main = main
edm.cli.run()
"""


@pytest.mark.parametrize("main, status, out", [
    ("0", 0, ""), ("75", 75, ""), ("1 / 0", 1, "freed\n"), ("sys.exit(2)", 2, ""),
    ("sys.exit('a message')", 1, ""), ("sys.exit()", 0, ""),
])  # fmt: skip
def test_a_command_that_has_returned_ends_after_threads_and_exit_functions_but_frees_nothing(main, status, out):
    done = subprocess.run([sys.executable, "-c", ENDING % main], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, f"threads and exit functions\n{out}")
    assert (done.stderr == "a message\n") == ("a message" in main)


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


@pytest.mark.slow
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
    "missing archive": (lambda t, m, d, c: ["fid-ref", t / "no.zip", t / "o.npz"], "no such file; expected a dataset"),
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
        "in.json: not a readable JSON file (NaN is no JSON number)",
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
    "churn that is no number": (lambda t, m, d, c: ["sample", m, t / "o.png", "--S_churn", "nan"], "S_churn is nan"),
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
    "no params file": (lambda t, m, d, c: ["check", "--params", t / "no.yaml"], "no such file"),
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
    assert done.stderr == "error: no.safetensors: no such file; expected 'edm-checkpoint/1'\n"


@pytest.mark.slow
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


# The words of the command line and the streams ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sample", "m", "o", "--stepz", "3"], "unknown: --stepz 3; did you mean --steps?"),
        (["sample", "m", "o", "--S_chrun=3"], "unknown: --S_chrun=3; did you mean --S_churn?"),
        (["fid-ref", "d", "o", "--weigths", "w"], "unknown: --weigths w; did you mean --weights?"),
        (["features", "d", "o", "more"], "unknown: more"),
        (["plan", "digits", "--gpu", "h10"], "argument --gpu: 'h10' is unknown; did you mean 'h100'?"),
        (["sample"], "the following arguments are required: checkpoint, output"),
    ],
)
def test_an_error_shows_two_lines_one_of_them_the_usage_and_the_nearest_name(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    usage, error = capsys.readouterr().err.strip().split("\n")
    assert ended.value.code == 2 and usage.startswith(f"usage: edm {words[0]} [OPTION ...]")
    assert error == f"edm {words[0]}: error: {says}"


def test_an_error_names_the_options_that_must_be_given(capsys):
    with pytest.raises(SystemExit):
        main(["fid", "samples"])
    assert capsys.readouterr().err.startswith("usage: edm fid [OPTION ...] --ref REF samples\n")


@pytest.mark.parametrize("given", ["sampel", "0815"])
def test_an_unknown_command_gets_the_nearest_name_and_only_without_one_all_names(given, capsys):
    with pytest.raises(SystemExit):
        main([given])
    error = capsys.readouterr().err.strip().rpartition("\n")[2]
    said = f"edm: error: argument COMMAND: {given!r} is unknown; "
    if given == "sampel":
        assert error == f"{said}did you mean 'sample'?"
    else:
        assert error.startswith(f"{said}known: prepare, ") and "fid-ref" in error


@pytest.mark.slow
def test_check_counts_what_is_asked_for_and_names_what_is_not_in_run(tmp_path, capsys):
    params = ["--params", str(tmp_path / "params.yaml")]
    mine = {"mine": {"extends": "cluster"}, "flowers": {"extends": "cluster"}}
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["experiments"] |= mine
    Path(params[1]).write_text(yaml.safe_dump(raw | {"run": ["cluster"]}, sort_keys=False))
    assert main(["check", *params]) == 0
    counted, others = capsys.readouterr().out.splitlines()
    rest = len(raw["experiments"]) - 3
    assert counted.startswith("cluster: ") and " training run" in counted
    assert others == f"valid, not in `run`: flowers, digits and {rest} more; `edm check NAME` counts one"
    assert main(["check", "mine", "paper", *params]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["mine", "paper"]
    assert lines[0].startswith("mine: 0 training runs (") and "of cluster)" in lines[0]
    assert main(["check", "paper", "flower", *params]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith("no experiment or report 'flower'; did you mean 'flowers'?\n")
    Path(params[1]).write_text(yaml.safe_dump(raw | {"run": list(raw["experiments"])[:-1]}, sort_keys=False))
    assert main(["check", *params]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "valid, not in `run`: flowers; `edm check NAME` counts one"


@pytest.mark.parametrize(("number", "said"), [(0, "0 images"), (1, "1 image"), (50_000, "50,000 images")])
def test_one_image_is_singular(number, said):
    assert counted(number, "image") == said


@pytest.mark.parametrize(
    ("source", "kind"),
    [("nvlabs-edm.pkl", "a pickle of the EDM authors' program"), ("score_sde-vp.pth", "a file of torch.save")],
)
@pytest.mark.parametrize("command", ["sample {} o.png", "export {} o.pt"])
def test_a_published_file_in_the_place_of_a_checkpoint_is_to_be_converted_first(
    command, source, kind, tmp_path, capsys
):
    """By its content: the name of the file says nothing."""
    file = tmp_path / "model.safetensors"
    shutil.copy(ROOT / "tests" / "fixtures" / "checkpoints" / source, file)
    output = [str(tmp_path / word) if word.startswith("o.") else word for word in command.split()]
    assert main([str(file) if word == "{}" else word for word in output]) == 1
    said = f"error: {file}: {kind}; convert it first: edm import {file} model.safetensors\n"
    assert capsys.readouterr().err == said and list(tmp_path.iterdir()) == [file]


def offline(*_args, **_kwargs):
    raise AssertionError("it asked for weights")


def test_images_and_statistics_are_checked_before_weights_are_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("edm.metrics.extractors.downloaded", offline)
    samples, reference = tmp_path / "s.safetensors", tmp_path / "r.npz"
    words = ["fid", str(samples), "--ref", str(reference)]
    assert main(words) == 1
    assert f"{samples}: no such file" in capsys.readouterr().err
    header = {"format": "edm-samples/1", "points": {"only": {"nfe": 3}}, "checkpoint": {}}
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    save_tensors(samples, {"images/only": images, "seeds": torch.arange(4)}, header)
    assert main(words) == 1
    assert f"{reference}: no such file; expected reference statistics" in capsys.readouterr().err
    reference.write_text("no statistics")
    assert main(words) == 1
    assert f"{reference}: not a complete .npz file" in capsys.readouterr().err
    save_statistics(reference, np.zeros(64), np.eye(64), {"features": "pixels"})
    assert main([*words, "--features", "dinov2-vit-s-14"]) == 1
    told = f"error: {reference}: its features are pixels, not dinov2-vit-s-14; measure both in the same features\n"
    assert capsys.readouterr().err == told
    assert main([*words, "--metrics", "inception_score"]) == 1
    assert (
        "inception_score is made of the class logits of inception-v3-compat, not of pixels" in capsys.readouterr().err
    )


def test_the_extractor_is_that_of_the_statistics_and_of_foreign_ones_inception(tmp_path, monkeypatch, capsys):
    data, reference, samples = (str(tmp_path / name) for name in ("d.zip", "r.npz", "s.zip"))
    draw = np.random.default_rng(0)
    write_archive(data, draw.integers(0, 256, (40, 1, 8, 8), np.uint8), None)
    write_archive(samples, draw.integers(0, 256, (30, 1, 8, 8), np.uint8), None)
    assert main(["fid-ref", data, reference, "--features", "pixels", "--device", "cpu"]) == 0
    assert main(["fid", samples, "--ref", reference, "--device", "cpu"]) == 0
    assert f"{samples}: FD (pixels) " in capsys.readouterr().err
    monkeypatch.setattr("edm.metrics.extractors.downloaded", offline)
    with pytest.raises(AssertionError, match="it asked for weights"):
        main(["fid", samples, "--ref", published(tmp_path / "in.npz"), "--device", "cpu"])


@pytest.mark.parametrize("command", ["fid", "fid-ref"])
def test_the_help_lists_all_extractors_and_says_which_are_downloaded(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{INCEPTION} (for FID), {', '.join(DINOV2)}, whose weights are downloaded once;" in text
    assert f"{CLASSIFIER}, whose weights `edm features` makes; {PIXELS}, without weights" in text


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [([(8, 8), (9, 9)], "is 9x9 with 1 channels, unlike those before it (1, 8, 8)"),
     ([(8, 10)], "is 10x8; images must be square, of at least 8 pixels"),
     ([(8, 8)] * 256 + [(16, 16)], "is 16x16 with 1 channels, unlike those before it (1, 8, 8)")],
)  # fmt: skip
def test_pictures_of_several_sizes_are_to_be_made_alike_first(sizes, problem, tmp_path, capsys):
    """Also where the odd one is in a later batch."""
    folder, reference = tmp_path / "pictures", tmp_path / "r.npz"
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(np.zeros(size, np.uint8)).save(folder / f"{i:03d}.png")
    save_statistics(reference, np.zeros(64), np.eye(64), {"features": "pixels"})
    assert main(["fid", str(folder), "--ref", str(reference), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    remedy = f"edm prepare pictures.zip --source folder --input {folder} --resolution N"
    assert problem in error and error.endswith(f"; make an archive of them: {remedy}\n")
    words = [str(tmp_path / "pictures.zip") if word == "pictures.zip" else word for word in shlex.split(remedy)[1:]]
    assert main([*words[:-1], "8", "--channels", "1"]) == 0
    assert zipfile.is_zipfile(tmp_path / "pictures.zip")


def test_sampling_and_measuring_without_a_terminal_tell_how_far_they_are(model, tmp_path, monkeypatch, capsys):
    """In a block, too: the first one may take long."""
    monkeypatch.setattr("edm.tracking.counting.EVERY", -1)
    samples, reference = str(tmp_path / "s.safetensors"), str(tmp_path / "r.npz")
    assert main(["sample", model, samples, "--seeds", "0-299", "--steps", "4", "--block", "256"]) == 0
    *lines, last = capsys.readouterr().err.splitlines()
    assert last == f"{samples}: 300 images"
    far = [line.partition(" images (")[0] for line in lines]  # the second block has 44 of its 256 images
    assert far == [f"{samples}: {count} of 300" for count in (64, 128, 192, 256, 256, 267, 278, 289)]
    assert lines[0].partition(" images ")[2].startswith("(21 %), about ") and lines[0].endswith(" left")
    save_statistics(reference, np.zeros(64), np.eye(64), {"features": "pixels"})
    assert main(["fid", samples, "--ref", reference, "--device", "cpu"]) == 0
    line, last = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{samples}: 256 of 300 images (85 %), about ") and "FD (pixels)" in last


def test_a_terminal_gets_a_bar_in_place_of_lines(monkeypatch, capsys):
    monkeypatch.setattr("edm.tracking.counting.EVERY", -1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Counting("s.png", 10) as counting:
        counting.advance(2.5)
        counting.advance(20)
    shown = capsys.readouterr().err
    assert "s.png: 100%" in shown and "about" not in shown


def test_an_automatic_block_on_a_cpu_is_small_and_its_images_are_those_of_large_ones(model, tmp_path):
    sampled = {}
    for block in ("auto", "1024"):
        path = tmp_path / f"{block}.safetensors"
        words = ["sample", model, str(path), "--seeds", "0-99", "--steps", "2", "--device", "cpu", "--block", block]
        assert main(words) == 0
        tensors, header = load_tensors(path, "edm-samples/1")
        sampled[block] = tensors["images/only"].int()
        assert header["block"] == (64 if block == "auto" else 1024)
    assert (sampled["auto"] - sampled["1024"]).abs().max() <= 1  # up to rounding to 8 bits


def test_settings_of_a_sampler_are_spelt_as_in_params_yaml_and_as_options():
    samplers = [["--S_churn", "2", "--sigma_min", "0.1", "--num_steps", "5"],
                ["--S-churn", "2", "--sigma-min", "0.1", "--steps", "5"]]  # fmt: skip
    for words in samplers:
        args = parser().parse_args(["sample", "m", "o", *words])
        assert (args.S_churn, args.sigma_min, args.num_steps) == (2, 0.1, 5)


@pytest.mark.parametrize("number", ["-1", "1.5", "9" * 10, "9" * 5000, "٣", "1_0", ""])
@pytest.mark.parametrize(
    "words",
    [["prepare", "o", "--workers"], ["prepare", "o", "--images"], ["features", "d", "o", "--seed"],
     ["fid-ref", "d", "o", "--keep-features"], ["sample", "m", "o", "--steps"], ["sample", "m", "o", "--class"]],
)  # fmt: skip
def test_whole_numbers_have_bounds(words, number, capsys):
    with pytest.raises(SystemExit):
        main([*words, number])
    error = capsys.readouterr().err.strip().rpartition("\n")[2]
    assert f"argument {words[-1]}" in error and "is not a whole number from " in error and len(error) < 1000


def test_more_seeds_than_fit_in_memory_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "m", "o", "--seeds", "0-99999999999"])
    assert "has more than 10,000,000 seeds; sample them in several files" in capsys.readouterr().err


def test_a_message_is_one_printable_line_of_bounded_length(tmp_path, capsys):
    for name in ("a\nb", "\udcff", "\x1b[31m", "n" * 3000, "a/" * 3000):
        assert main(["check", "--params", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert error.endswith("\n") and error[:-1].isprintable() and len(error) < 1000, error
        assert "no such file" in error or "File name too long" in error


def test_the_internal_name_of_the_only_sampler_is_in_no_message(tmp_path, model, capsys):
    assert main(["sample", model, str(tmp_path / "o.png"), "--class", "12"]) == 1
    assert capsys.readouterr().err.startswith("error: class 12 is not one")


def edm_in(folder, words, **streams):
    command = [sys.executable, "-m", "edm", *words]
    return subprocess.run(command, cwd=folder, timeout=100, env={**os.environ, "PYTHONPATH": str(ROOT)}, **streams)


def test_an_output_that_cannot_be_printed_is_one_line_and_a_closed_pipe_none():
    with open("/dev/full", "w") as full:
        done = edm_in(ROOT, ["check"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: a file or the standard output: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = edm_in(ROOT, ["check"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""
    with open("/dev/full", "w") as full:
        assert edm_in(ROOT, ["check", "--params", "none"], stdout=subprocess.PIPE, stderr=full).returncode == 1


@pytest.mark.parametrize(
    "command",
    [
        "export {model} o.pt",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("export {model} o.safetensors", "features {data} o.safetensors")
        ),
    ],
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_older_file(command, tmp_path, model, digits_archive):
    """A limit on the size of files stands for a disk that is full."""
    words = command.format(model=model, data=digits_archive).split()
    (tmp_path / words[-1]).write_text("older")
    limit = lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9)))
    done = edm_in(tmp_path, words, preexec_fn=limit, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {words[-1]}: cannot be written"), done.stderr
    assert done.stderr.count("\n") == 1 and [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_a_training_run_without_a_terminal_tells_its_progress_and_where_the_model_is(
    tmp_path, digits_archive, tiny, monkeypatch, capsys
):
    (tmp_path / "c.json").write_text(json.dumps(tiny(snapshot_every=160e-6).to_dict()))
    monkeypatch.setattr("edm.training.progress.EVERY", 0)
    out = tmp_path / "run"
    words = ["train", "--config", str(tmp_path / "c.json"), "--data", str(digits_archive), "--out", str(out)]
    assert main([*words, "--device", "cpu"]) == 0
    first, *lines, last = capsys.readouterr().err.strip().splitlines()
    assert first == f"{out}: training run of 320 images on 1 x cpu"
    assert last == f"{out}/model.safetensors: trained with 320 images"
    assert any("160 of 320 images (50 %), loss " in line and line.endswith("snapshot") for line in lines), lines
    assert any("images/s, about 0 min left" in line for line in lines)


@pytest.mark.parametrize("home", ["unset HOME", "export HOME=/dev/null/x"])
@pytest.mark.first(1)
def test_odd_places_to_work_in(home, tmp_path, model):
    """A sample needs neither a home nor a folder for temporary files."""
    out = str(tmp_path / "o.safetensors")
    words = shlex.join([sys.executable, "-m", "edm", "sample", model, out, "--seeds", "0-1", "--steps", "1"])
    line = f"{home}; export TMPDIR=/no/such; exec {words}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, text=True, timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 0 and done.stderr.endswith(f"{out}: 2 images\n"), done.stderr


def test_a_working_directory_that_was_deleted_is_one_line(tmp_path, model, monkeypatch, capsys):
    """Intel's library in torch would end the process."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert main(["sample", model, str(tmp_path / "o.png")]) == 1
    assert capsys.readouterr().err.startswith("error: the folder in which this command runs was deleted; change")


def test_memory_that_ends_is_one_line_and_other_errors_of_the_program_keep_their_traceback(model, tmp_path, monkeypatch,
                                                                                            capsys):  # fmt: skip
    def generate(*_args, **_kwargs):
        if not errors:
            torch.empty(1 << 60, dtype=torch.uint8)  # torch's own error
        raise errors.pop()

    monkeypatch.setattr("edm.commands.images.sample", generate)
    errors = [RuntimeError("something else"), torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError()]
    for expected in ("(MemoryError)", "(CUDA out of memory. Tried)"):
        assert main(["sample", model, str(tmp_path / "out.zip"), "--seeds", "0"]) == 1
        assert capsys.readouterr().err == f"error: out of memory {expected}; give it more, or smaller batches\n"
    with pytest.raises(RuntimeError, match="something else"):
        main(["sample", model, str(tmp_path / "out.zip"), "--seeds", "0"])
    assert main(["sample", model, str(tmp_path / "out.zip"), "--seeds", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory (")


def test_a_file_that_cannot_be_opened_is_one_line(model, tmp_path, monkeypatch, capsys):
    def refuse(_args):
        raise PermissionError(13, "Permission denied", "models/a.safetensors")

    monkeypatch.setattr("edm.commands.images.sample", refuse)  # by hand: the super-user may open all files
    assert main(["sample", model, str(tmp_path / "out.zip"), "--seeds", "0"]) == 1
    told = "error: models/a.safetensors: Permission denied; check the path, its permissions and the disk\n"
    assert capsys.readouterr().err == told


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
