"""Work split over jobs and processes gives the same results as one job, and a lost part can be repeated alone."""

import copy
import json
import os
import random
import shutil
import signal
from argparse import Namespace
from pathlib import Path

import forking
import pytest
import torch
import yaml
from safetensors.torch import load_file

from edm.cli import main
from edm.evaluation import shards
from edm.files.tensors import checksum, load_tensors, read_header, save_tensors
from edm.models import building, checkpoint
from edm.params import load
from edm.sampling import sample_files as samples
from edm.tracking import read_journal

RAW = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
#: 1,000 images, the last of 21 blocks incomplete, and metrics of every kind: of moments, features and logits.
SMALL = {
    "dataset": "digits",
    "features": "digits-classifier",
    "more_features": {"pixels": None},
    "metrics": ["classifier_score", "kid", "precision", "recall", "density", "coverage", "authpct", "memorisation"],
    "base": {
        "model_channels": 8,
        "num_blocks": 1,
        "attn_resolutions": [],
        "duration": 0.00128,
        "snapshot_every": 6.4e-4,
    },
    "columns": RAW["experiments"]["digits"]["columns"],
    "ladder": {"A": {"conditional": True, "batch_size": 64, "ema_halflife": 0.005}},
    "sampling": {"images": 1000, "first_seed": 7, "block": 50},
    "choose": {"grid": "churn", "images": 100, "confirm": 1, "ema": 0.2},
    "grids": {
        "steps": {"models": ["vp-A"], "num_steps": [2, 3]},
        "churn": {"models": ["vp-A"], "num_steps": 2, "S_churn": 1},
        "guided": {"models": ["vp-A"], "num_steps": 2, "guide": "null", "guidance": 2, "guidance_max": 10},
    },
    "searches": {
        "best": {"models": ["vp-A"], "num_steps": 2, "images": 100, "over": {"S_churn": [0, 1], "S_noise": [1.0, 1.5]}}
    },
    "analyses": {"worst": {"kind": "memorisation", "models": ["vp-A"], "grid": "steps", "images": 6}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits_archive, digits):
    """Paths and command arguments in a folder with a model, its snapshots, references and params.yaml."""
    from edm.metrics.classifier import train_classifier

    folder = tmp_path_factory.mktemp("shards")
    raw = {
        "datasets": {"digits": RAW["datasets"]["digits"]},
        "experiments": {"small": copy.deepcopy(SMALL)},
        "run": ["small"],
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    experiment = load(folder / "params.yaml").experiment("small")
    (folder / "snapshots").mkdir()
    for seed, images in enumerate(experiment.models["vp-A"].snapshots):
        torch.manual_seed(seed)
        denoiser = building.build(experiment.models["vp-A"])
        torch.nn.init.normal_(denoiser.network.out_conv.weight, std=0.1)  # instead of its zero initialisation
        path = folder / "snapshots" / f"{images:012d}.safetensors"
        checkpoint.save(path, denoiser, experiment.models["vp-A"], {"images": images, "dataset_sha256": "0" * 64})
    shutil.copy(path, folder / "model.safetensors")
    assert main(["average", str(folder), "--width", "0.2"]) == 0
    classifier = folder / "classifier.safetensors"
    train_classifier(digits.images, digits.labels, classifier, epochs=1)
    extractor = ["--features", "digits-classifier", "--weights", str(classifier)]
    fid_ref = ["fid-ref", str(digits_archive), str(folder / "classes.npz"), *extractor, "--keep-features", "500"]
    assert main(fid_ref) == 0
    assert main(["fid-ref", str(digits_archive), str(folder / "pixels.npz"), "--features", "pixels"]) == 0
    of = ["--experiment", "small", "--model", "vp-A", "--params", str(folder / "params.yaml"), "--weights",
          str(classifier), "--ref", str(folder / "classes.npz"), str(folder / "pixels.npz")]  # fmt: skip
    model = str(folder / "model.safetensors")
    return Namespace(folder=folder, of=of, model=model, fid_ref=fid_ref, archive=str(digits_archive))


def evaluate(place, output, *words, evaluation="steps"):
    return main(["evaluate", place.model, str(output), "--evaluation", evaluation, *place.of, *map(str, words)])


def measured(path):
    """The points of a results file, without the keys of their runs."""
    return json.loads(Path(path).read_text())["points"]


def flat(bar):
    """The numbers of an error bar in one list."""
    return [*(bar[key] for key in ("s", "corrected", "limit")), *bar["without"], *(d for _, d in bar["prefixes"])]


def assert_equal_measures(points, others):
    """Metrics of features in the same order are equal; distances differ by the order of their sums."""
    assert len(points) == len(others) > 0
    for point, other in zip(copy.deepcopy(points), copy.deepcopy(others), strict=True):
        assert point.pop("distance") == pytest.approx(other.pop("distance"), rel=1e-9)
        assert point.pop("more") == pytest.approx(other.pop("more"), rel=1e-9)
        assert point["bar"]["features"] == 64 and point["more_bars"]["pixels"].keys() == point["bar"].keys()
        assert flat(point.pop("bar")) == pytest.approx(flat(other.pop("bar")), rel=1e-8)
        assert flat(point.pop("more_bars")["pixels"]) == pytest.approx(flat(other.pop("more_bars")["pixels"]), rel=1e-6)
        assert point == other and {*SMALL["metrics"], "pairs"} <= point.keys()


@pytest.fixture(scope="module")
def whole(place):
    """The evaluation in one job and one process."""
    assert evaluate(place, place.folder / "whole.json") == 0
    return measured(place.folder / "whole.json")


@pytest.fixture(scope="module")
def parts(place):
    """The shard files of an evaluation in a given number of parts; creates each once."""

    def make(count):
        files = [place.folder / f"part-{index}-of-{count}.safetensors" for index in range(1, count + 1)]
        for index, file in enumerate(files, 1):
            if not file.exists():
                assert evaluate(place, file, "--shard", f"{index}/{count}") == 0
        return files

    return make


# Jobs


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.slow
def test_the_parts_of_an_evaluation_give_its_results_in_whatever_order_they_are_named(place, whole, parts, count):
    files, output = parts(count), place.folder / f"merged-{count}.json"
    random.Random(0).shuffle(files)
    assert evaluate(place, output, "--parts", *files) == 0
    assert_equal_measures(measured(output), whole)
    record, other = (json.loads((place.folder / name).read_text()) for name in (output, "whole.json"))
    assert {**record, "points": None} == {**other, "points": None}
    journal = output.with_name(output.name + ".journal.jsonl")
    assert journal.exists() and not list(place.folder.glob("part-*.jsonl"))


@pytest.mark.slow
def test_what_compare_says_of_rounding_of_seeds_and_of_a_solver(place, whole, tmp_path, capsys):
    """Two threads round otherwise than one: not told apart. Other seeds: as independent. More steps: paired."""
    threads, seeds, one = tmp_path / "threads.json", tmp_path / "seeds.json", place.folder / "whole.json"
    before = torch.get_num_threads()
    assert evaluate(place, threads, "--threads", "2") == 0
    torch.set_num_threads(before)
    moved = yaml.safe_load((place.folder / "params.yaml").read_text())
    moved["experiments"]["small"]["sampling"]["first_seed"] = 5000
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(moved, sort_keys=False))
    assert evaluate(place, seeds, "--params", str(tmp_path / "params.yaml")) == 0
    where = ["--params", str(place.folder / "params.yaml")]
    capsys.readouterr()

    def said(first, second):
        assert main(["compare", str(first), str(second), "--json", *where]) == 0
        return json.loads(capsys.readouterr().out)

    for pair in said(one, threads):
        assert pair["paired"] and not pair["told_apart"] and abs(pair["difference"]) < 0.01 * pair["first"]
    for pair in said(one, seeds):
        assert not pair["paired"] and abs(pair["z"]) < 4
    (solver,) = said(f"{one}:num_steps=2", f"{one}:num_steps=3")
    assert solver["paired"] and solver["s"] < 0.1 * pair["s"]  # what two solvers share with the seeds drops out


@pytest.mark.slow
def test_a_lost_part_measured_again_alone_is_the_same_file(place, parts):
    lost = parts(3)[1]
    before = lost.read_bytes()
    lost.unlink()
    assert evaluate(place, place.folder / "lost.json", "--parts", *parts(3)[:1], lost) == 1
    assert not (place.folder / "lost.json").exists()
    assert parts(3)[1].read_bytes() == before


@pytest.mark.slow
def test_more_parts_than_blocks_leave_some_empty(place, whole, tmp_path):
    """21 blocks in 24 parts: empty parts merge like the others."""
    files = [tmp_path / f"{index}.safetensors" for index in range(1, 25)]
    for index, file in enumerate(files, 1):
        assert evaluate(place, file, "--shard", f"{index}/24", evaluation="churn") == 0
    seen = [read_header(file, shards.FORMAT)["seen"][0]["images"] for file in files]
    assert sum(seen) == 1000 and seen.count(0) == 3 and set(seen) == {0, 7, 43, 50}
    assert evaluate(place, tmp_path / "whole.json", evaluation="churn") == 0
    assert evaluate(place, tmp_path / "merged.json", "--parts", *files, evaluation="churn") == 0
    assert_equal_measures(measured(tmp_path / "merged.json"), measured(tmp_path / "whole.json"))


def rewritten(file, target, change, sign=True):
    """A copy of a shard file with another header."""
    tensors, header = load_tensors(file, shards.FORMAT)
    change(header, tensors)
    if sign:
        header.pop("checksum")
        header["checksum"] = checksum(tensors, header)
    save_tensors(target, tensors, header)


def flipped(file, target):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 4
    target.write_bytes(content)


UNFIT = {
    "cut": (lambda file, target: target.write_bytes(file.read_bytes()[:-100]), "not a whole shard file"),
    "a flipped bit": (flipped, "damaged (its checksum differs)"),
    "empty": (lambda file, target: target.write_bytes(b""), "not a file of this program"),
    "a model": (lambda file, target: shutil.copy(file.parent / "model.safetensors", target), "is 'edm-ch"),
    "another part": (
        lambda file, target: rewritten(file, target, lambda header, _: header.update(part="2")), "not a whole shard",
    ),
    "another checkpoint": (
        lambda file, target: rewritten(file, target, lambda header, _: header["of"].update(checkpoint="0" * 64)),
        "a part of another evaluation (its checkpoint differs)",
    ),
    "another spec": (
        lambda file, target: rewritten(file, target, lambda header, _: header["of"].update(spec="0" * 12)),
        "a part of another evaluation (its spec differs)",
    ),
    "another metric": (
        lambda file, target: rewritten(file, target, lambda header, _: header["of"]["metric"][0].update(features="x")),
        "a part of another evaluation (its metric differs)",
    ),
    "an image too few": (
        lambda file, target: rewritten(file, target, lambda _, tensors: tensors["0/1/12/count"].sub_(1)),
        "not a state of",
    ),
    "no measurement": (
        lambda file, target: rewritten(file, target, lambda _, tensors: tensors.pop("0/0/12/scatter")),
        "not a state of",
    ),
    "no logits": (
        lambda file, target: rewritten(file, target, lambda _, tensors: tensors.pop("1/0/logits")), "logits of all",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.slow
def test_a_file_that_is_no_part_of_the_evaluation_is_named_with_what_to_do(place, parts, tmp_path, capsys, kind):
    change, message = UNFIT[kind]
    first, second = parts(2)
    unfit = tmp_path / "unfit.safetensors"
    change(second, unfit)
    capsys.readouterr()
    assert evaluate(place, tmp_path / "out.json", "--parts", first, unfit) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {unfit}: ") and error.endswith("; delete it and run again") and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["unfit.safetensors"]


@pytest.mark.slow
def test_parts_that_do_not_make_a_whole_are_refused(place, parts, tmp_path, capsys):
    twos, threes = parts(2), parts(3)
    for files, message in (
        (twos[:1], "part 2 of 2 is missing"),
        ([twos[0], *twos], "part 1 of 2, as"),
        ([twos[0], *threes[1:]], "is one of 2 parts, but"),
        ([*twos, tmp_path / "no.safetensors"], "no.safetensors: no such file; measure this part"),
    ):
        capsys.readouterr()
        assert evaluate(place, tmp_path / "out.json", "--parts", *files) == 1
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert message in error
    assert evaluate(place, tmp_path / "out.json", "--parts", *twos, evaluation="churn") == 1
    assert "a part of another evaluation (its evaluation differs)" in capsys.readouterr().err
    assert evaluate(place, tmp_path / "part.json", "--shard", "1/2") == 1
    assert "goes into a .safetensors file" in capsys.readouterr().err
    for text in ("0/2", "3/2", "1", "a/b", "-1/2"):
        with pytest.raises(SystemExit) as ended:
            evaluate(place, tmp_path / "part.safetensors", f"--shard={text}")
        assert ended.value.code == 2 and "is not a part such as 3/8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(place, tmp_path / "part.safetensors", "--shard", "1/2", "--parts", *twos)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["--shard", "1/2"]])
def test_a_signal_ends_an_evaluation_with_status_75_and_no_file(place, tmp_path, monkeypatch, capsys, words):
    to_uint8 = samples.to_uint8
    monkeypatch.setattr(samples, "to_uint8", lambda x: (os.kill(os.getpid(), signal.SIGTERM), to_uint8(x))[1])
    assert evaluate(place, tmp_path / "out.safetensors", *words, "--journal", tmp_path / "journal") == 75
    assert "stopped: SIGTERM; run it again\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ([] if words else ["journal"])
    assert words or read_journal(tmp_path / "journal")[0].status == "KILLED"


# Sample files


def sample(place, output, *words):
    return main(
        ["sample", place.model, str(output), "--steps", "2", "--S-churn", "1", "--block", "50", *map(str, words)]
    )


@pytest.fixture(scope="module")
def sampled(place):
    """1,000 images of one job and one process."""
    assert sample(place, place.folder / "samples.safetensors", "--seeds", "7-1006") == 0
    return place.folder / "samples.safetensors"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.first(2)
def test_parts_of_the_seeds_merge_into_the_file_of_one_job_to_the_byte(place, sampled, tmp_path, count):
    files = [str(tmp_path / f"{index}.safetensors") for index in range(1, count + 1)]
    for index, file in enumerate(files, 1):
        assert sample(place, file, "--seeds", "7-1006", "--shard", f"{index}/{count}") == 0
    random.Random(1).shuffle(files)
    assert main(["merge", str(tmp_path / "merged.safetensors"), *files]) == 0
    assert (tmp_path / "merged.safetensors").read_bytes() == sampled.read_bytes()


def test_empty_parts_and_hand_made_ones_merge_too(place, tmp_path):
    files = [str(tmp_path / f"{name}.safetensors") for name in "abcdef"]
    assert sample(place, files[0], "--seeds", "0-119") == 0
    for file, seeds in zip(files[1:3], ("60-119", "0-59"), strict=True):
        assert sample(place, file, "--seeds", seeds) == 0
    assert main(["merge", files[3], *files[1:3]]) == 0
    assert Path(files[3]).read_bytes() == Path(files[0]).read_bytes()
    for file, shard in zip(files[1:5], ("1/4", "2/4", "3/4", "4/4"), strict=True):
        assert sample(place, file, "--seeds", "0-119", "--shard", shard) == 0
    assert len(load_file(files[4])["seeds"]) == 0
    assert main(["merge", files[5], *files[1:5]]) == 0
    assert Path(files[5]).read_bytes() == Path(files[0]).read_bytes()


def test_sample_files_that_do_not_fit_together_are_refused(place, tmp_path, capsys):
    files = {}

    def made(name, *words):
        files[name] = str(tmp_path / f"{name}.safetensors")
        assert sample(place, files[name], *words) == 0

    made("first", "--seeds", "0-9")
    made("third", "--seeds", "20-29")
    made("within", "--seeds", "5-9")
    made("class", "--seeds", "10-19", "--class", "3")
    made("block", "--seeds", "10-19", "--block", "20")
    made("steps", "--seeds", "10-19", "--steps", "3")
    made("half", "--seeds", "0-99", "--shard", "1/2")
    other = str(place.folder / "snapshots" / sorted(os.listdir(place.folder / "snapshots"))[0])
    files["model"] = str(tmp_path / "model.safetensors")
    assert (
        main(["sample", other, files["model"], "--seeds", "10-19", "--steps", "2", "--S-churn", "1", "--block", "50"])
        == 0
    )
    capsys.readouterr()
    for names, message in (
        (["third", "first"], "seed 10 is missing before"),
        (["first", "within"], "seed 5 is not only in"),
        (["first", "first"], "seed 0 is not only in"),
        (["first", "class"], "its class differs"),
        (["first", "block"], "its block differs"),
        (["first", "steps"], "its sampler (only) differs"),
        (["first", "model"], "its checkpoint differs"),
        (["half"], "a part of seeds 0-99, of which some are missing"),
        (["first", "half"], "its part_of differs"),
    ):
        assert main(["merge", str(tmp_path / "out.safetensors"), *(files[name] for name in names)]) == 1
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert message in error, error
    assert main(["merge", str(tmp_path / "out.safetensors"), place.model]) == 1
    assert "expected 'edm-samples/1'" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


# Processes

#: Runs several commands in processes that start and join once, because a start takes seconds.
SCRIPT = """
import contextlib, json, os, sys
from edm.cluster import processes as distributed
from edm.cluster.leaving import leave_after
from edm.sampling import drawing as generate
from edm.cli import main

{first}
def program():
    with distributed.world("cpu") as place:
        distributed.world = lambda device: contextlib.nullcontext(place)
        for words in json.loads(sys.argv[1]):
            status = main(words)
            if status:
                sys.exit(status)

leave_after(program)  # as edm itself: Python's own end may abort among connections that the other process has broken
"""


def launched(folder, *commands, first=""):
    """Runs commands on two gloo processes."""
    (folder / "script.py").write_text(SCRIPT.format(first=first))
    launch = ["python", "-m", "edm.cluster.launch", "--standalone", "--nproc-per-node=2"]
    return forking.run([*launch, folder / "script.py", json.dumps(commands)], folder)


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(place, whole, parts, sampled, tmp_path):
    """For every command that shares its work; only rank 0 writes and prints."""
    device = ["--device", "cpu", "--threads", "1"]
    out = lambda name: str(tmp_path / name)
    job = lambda name, first, output, *words: [name, first, output, *words, *place.of, *device]
    sampling = [
        place.model,
        out("s.safetensors"),
        "--steps",
        "2",
        "--S-churn",
        "1",
        "--block",
        "50",
        "--seeds",
        "7-1006",
    ]
    snapshots = str(place.folder / "snapshots")
    commands = [
        job("evaluate", place.model, out("steps.json"), "--evaluation", "steps"),
        job("evaluate", place.model, out("part.safetensors"), "--evaluation", "steps", "--shard", "2/2"),
        job("search", place.model, out("search.json"), "--search", "best"),
        job("choose", snapshots, out("chosen.safetensors"), "--averages", str(place.folder / "ema-0.2.safetensors")),
        ["sample", *sampling, *device],
        [*place.fid_ref[:2], out("classes.npz"), *place.fid_ref[3:], *device],
        job("evaluate", place.model, out("guided.json"), "--evaluation", "guided"),
    ]
    done = launched(tmp_path, *commands)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith(("vp-A steps", out("")))]
    assert len(said) == len(set(said)) == 2 + 5

    assert_equal_measures(measured(tmp_path / "steps.json"), whole)
    merged = tmp_path / "merged.json"
    assert evaluate(place, merged, "--parts", parts(2)[0], tmp_path / "part.safetensors") == 0
    assert_equal_measures(measured(merged), whole)
    assert (tmp_path / "s.safetensors").read_bytes() == sampled.read_bytes()

    (tmp_path / "alone").mkdir()
    for words in commands[2:4]:
        words[2] = words[2].replace(str(tmp_path), str(tmp_path / "alone"))
        assert main(words) == 0
    found, alone = (json.loads((folder / "search.json").read_text()) for folder in (tmp_path, tmp_path / "alone"))
    assert found["settings"] == alone["settings"] and found["evaluations"] == alone["evaluations"] > 2
    assert found["value"] == pytest.approx(alone["value"], rel=1e-9)
    assert len((tmp_path / "search.json.history.jsonl").read_text().splitlines()) == 1 + found["evaluations"]
    assert (tmp_path / "chosen.safetensors").read_bytes() == (tmp_path / "alone" / "chosen.safetensors").read_bytes()
    choice, other = (json.loads((folder / "choice.json").read_text()) for folder in (tmp_path, tmp_path / "alone"))
    assert choice["best"] == other["best"] and choice["cheap"] == pytest.approx(other["cheap"], rel=1e-9)
    assert "ema-0.2.safetensors" in choice["cheap"]
    assert evaluate(place, tmp_path / "alone" / "guided.json", evaluation="guided") == 0
    assert_equal_measures(measured(tmp_path / "guided.json"), measured(tmp_path / "alone" / "guided.json"))

    from edm.metrics.frechet import load_reference_features, load_statistics

    two, one = (folder / "classes.npz" for folder in (tmp_path, place.folder))
    assert (load_reference_features(two) == load_reference_features(one)).all()
    two, one = load_statistics(two), load_statistics(one)
    assert (two.count, two.dataset_sha256) == (one.count, one.dataset_sha256) == (1797, one.dataset_sha256)
    assert two.sigma == pytest.approx(one.sigma, rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_the_worst_pairs_are_drawn_again_from_their_seeds_beside_their_training_images(place, whole, tmp_path, capsys):
    """The distance between the two images of each pair is the one that the evaluation found."""
    from edm.analysis.studies import read_numbers
    from edm.data.archive import read_archive
    from edm.metrics.extractors import load_features

    words = ["analyse", place.model, str(tmp_path / "worst.safetensors"), *place.of[:6], "--analysis", "worst",
             "--data", place.archive, "--evaluations", str(place.folder / "whole.json")]  # fmt: skip
    assert main(words) == 0
    numbers = read_numbers(tmp_path / "worst.safetensors", "memorisation")
    tensors = load_file(tmp_path / "worst.safetensors")
    ratios = sorted(pair["ratio"] for point in whole for pair in point["pairs"])
    assert [pair["ratio"] for pair in numbers["pairs"]] == ratios[:6]
    assert (numbers["images"], numbers["reference_features"], numbers["k"]) == (2000, 500, 50)
    assert numbers["share"] == pytest.approx(sum(point["memorisation"] for point in whole) / 2)
    dataset = read_archive(place.archive).images
    extractor = load_features("digits-classifier", place.folder / "classifier.safetensors")
    found = [extractor(images).double() for images in (tensors["generated"], tensors["training"])]
    for at, pair in enumerate(numbers["pairs"]):
        assert (tensors["training"][at].numpy() == dataset[pair["training"]]).all()
        assert 7 <= pair["seed"] < 1007
        assert (found[0][at] - found[1][at]).norm().item() == pytest.approx(pair["distance"], rel=1e-3)

    old = json.loads((place.folder / "whole.json").read_text())
    old["metric"].pop("settings")
    (tmp_path / "old.json").write_text(json.dumps(old))
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "old.json")]) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path / 'old.json'}: " in error and "settings" in error and error.endswith("run snakemake again")


@pytest.mark.slow
def test_images_that_are_not_finite_on_one_process_end_both(place, tmp_path):
    spoil = """
if os.environ["RANK"] == "1":
    draw_images = generate.draw_images
    generate.draw_images = lambda *rest: (draw_images(*rest)[0] / 0, draw_images(*rest)[1])
"""
    words = ["--evaluation", "churn", *place.of, "--device", "cpu", "--threads", "1"]
    done = launched(tmp_path, ["evaluate", place.model, str(tmp_path / "out.json"), *words], first=spoil)
    assert done.returncode == 1, done.stderr
    assert "error: sampling gave non-finite images" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out.json").exists()
