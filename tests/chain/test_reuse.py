"""`one_job_per` changes which job measures a point, never the number: what one layout has measured the other takes."""

import json
from dataclasses import replace
from pathlib import Path

import miniature
import pytest
import torch
import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import start
from edm.chain.rules import RULES
from edm.cli import main
from edm.errors import UserError
from edm.evaluation import jobs as evaluation
from edm.models import building, checkpoint
from edm.networks.pace import evaluations_per_second

PARAMS = miniature.smallest(
    sampling={"images": 12, "block": 4, "repeats": 2, "gpus": 0},
    tables={"table2": {"kind": "samplers", "title": "T", "nfe": "of the best", "columns": ["vp-A"],
                       "rows": {"A": "ladder"}}},
)  # fmt: skip
FOLDER = Path("results/tiny/distances/vp-A")


def step(name, *command):
    """A step of the chain, as the workflow starts it."""
    started = start(Chain(params.load("params.yaml")), name)
    assert main([*command]) == 0
    started.finish()


def measure(name):
    """An evaluation of the chain: its file."""
    path = f"{FOLDER}/{name}.json"
    step(f"evaluate tiny/vp-A/{name}", "evaluate", "models/tiny/vp-A/model.safetensors", path, "--experiment", "tiny",
         "--model", "vp-A", "--evaluation", name, "--ref", "data/references/digits/pixels.npz", "--device", "cpu",
         "--journal", f"runs/{name}.journal.jsonl")  # fmt: skip
    return json.loads(Path(path).read_text())["points"]


def edit(**sampling):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["experiments"]["tiny"]["sampling"] |= sampling
    Path("params.yaml").write_text(yaml.safe_dump(raw))


def train(seed):
    config = params.load("params.yaml").experiment("tiny").models["vp-A"]
    started = start(Chain(params.load("params.yaml")), "train tiny/vp-A")
    torch.manual_seed(seed)
    checkpoint.save("models/tiny/vp-A/model.safetensors", building.build(config), config, {"images": 0})
    Path("models/tiny/vp-A/levels.json").write_text("{}")
    started.finish()


@pytest.fixture
def drawn(tmp_path, monkeypatch, digits_archive):
    """The names of the draws that were measured, on a chain whose grid has been."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    names, real = [], evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *rest, **options: names.append(rest[5]) or real(*rest, **options)
    )
    step("prepare digits", "prepare", "data/digits.zip", "--dataset", "digits")
    step("reference digits/pixels", "fid-ref", "data/digits.zip", "data/references/digits/pixels.npz", "--features",
         "pixels", "--device", "cpu")  # fmt: skip
    train(0)
    return names


def by_draw(rows):
    return {(row["id"], row["repeat"]): (row["distance"], row["nfe"], row["first_seed"], row["run"]) for row in rows}


def test_points_are_taken_from_the_file_of_the_grid_and_back(drawn, capsys):
    grid = measure("ladder")
    assert len(drawn) == len(grid) == 4
    edit(one_job_per="point")
    names = [f"ladder/num_steps={steps}@{repeat}" for steps in (2, 3) for repeat in (0, 1)]
    points = [row for name in names for row in measure(name)]
    assert len(drawn) == 4 and by_draw(points) == by_draw(grid)
    assert {row["from"] for row in points} == {f"{FOLDER}/ladder.json"}
    assert f"takes points from {FOLDER}/ladder.json" in capsys.readouterr().err
    edit(one_job_per="grid")
    (FOLDER / "ladder.json").unlink()
    assert by_draw(measure("ladder")) == by_draw(grid) and len(drawn) == 4


def minutes(nfe):
    """The minutes in which a V100 evaluates the network so often on each of 12 images, by the published speeds."""
    network = params.load("params.yaml").experiment("tiny").models["vp-A"].network()
    return {"minutes": 12 * nfe / evaluations_per_second(network) / 60}


def names():
    """The evaluations of the grid and their draws."""
    found = params.load("params.yaml").experiment("tiny").evaluations_of("vp-A", "ladder")
    return {one.name: [f"{point.id}@{repeat}" for point, repeat in one.draws] for one in found}


def test_jobs_hold_as_many_points_as_their_minutes_do(drawn):
    """Heun's method evaluates 3 times for two steps, 5 times for three: 3, 3, 5, 5 per image."""
    draws = [f"num_steps={steps}@{repeat}" for steps in (2, 3) for repeat in (0, 1)]
    by_minutes = {3: [1, 1, 1, 1], 6.1: [2, 1, 1], 8.1: [2, 1, 1], 10.1: [2, 2], 11.1: [3, 1], 16.1: [4], 0.1: [1] * 4}
    for nfe, sizes in by_minutes.items():
        edit(one_job_per=minutes(nfe))
        found = list(names().values())
        assert [len(one) for one in found] == sizes and [draw for one in found for draw in one] == draws
    edit(one_job_per={**minutes(16.1 / 67 * 15.7), "gpu": "h100"})  # 67 TFLOPS instead of 15.7
    assert [len(one) for one in names().values()] == [4]
    edit(one_job_per={**minutes(16 / 67 * 15.7), "gpu": "v100"})
    assert len(names()) == 4


def test_points_move_between_jobs_of_so_many_minutes_without_a_new_image(drawn):
    grid = measure("ladder")
    for nfe in (11.1, 6.1, 3):
        edit(one_job_per=minutes(nfe))
        assert by_draw([row for name in names() for row in measure(name)]) == by_draw(grid)
    assert len(drawn) == 4
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["experiments"]["tiny"]["grids"]["ladder"]["num_steps"] = [1, 2, 3]  # a point before the others
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    (FOLDER / "ladder.json").unlink()
    edit(one_job_per=minutes(6.1))
    for name in names():
        if not (FOLDER / f"{name}.json").exists():  # the others are up to date
            measure(name)
    assert len(drawn) == 6


def test_a_job_of_several_points_resumes_after_the_last_of_them(drawn, monkeypatch):
    edit(one_job_per=minutes(16.1))
    (name,) = names()
    counted = evaluation.evaluate

    def stopped(*rest, **options):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return counted(*rest, **options)

    monkeypatch.setattr(evaluation, "evaluate", stopped)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        measure(name)
    monkeypatch.setattr(evaluation, "evaluate", counted)
    assert len(measure(name)) == 4
    assert drawn == [f"vp-A ladder num_steps={steps}@{repeat}" for steps in (2, 3) for repeat in (0, 1)]


def test_minutes_of_a_published_model_need_a_model_of_its_network(drawn):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["pretrained"] = {"theirs": {"path": "theirs.pkl"}}
    raw["experiments"]["tiny"]["models"] = {"old": {"pretrained": "theirs"}}
    raw["experiments"]["tiny"]["sampling"]["one_job_per"] = {"minutes": 60}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"^params.yaml: pretrained.theirs: state `like: EXPERIMENT/MODEL`, a trained"):
        params.load("params.yaml", whole=True)
    raw["pretrained"]["theirs"]["like"] = "tiny/vp-A"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert len(list(params.load("params.yaml").experiment("tiny").evaluations_of("old", "ladder"))) == 1


def test_what_is_missing_in_the_other_layout_is_measured(drawn):
    edit(one_job_per="point")
    measured = measure("ladder/num_steps=2@1")
    edit(one_job_per="grid")
    grid = measure("ladder")
    assert len(drawn) == 4 and by_draw(measured).items() < by_draw(grid).items()


@pytest.mark.parametrize("change", ["settings", "code", "model", "file", "elsewhere"])
@pytest.mark.first(2)
def test_only_what_its_sidecar_vouches_for_is_taken(drawn, monkeypatch, change):
    measure("ladder")
    edit(one_job_per="point")
    if change == "settings":
        edit(images=13)
    elif change == "code":
        monkeypatch.setitem(RULES, "evaluate", replace(RULES["evaluate"], code=RULES["evaluate"].code + 1))
    elif change == "model":  # the same settings, other weights, as on GPUs
        train(1)
    elif change == "file":
        path = FOLDER / "ladder.json"
        path.write_text(path.read_text().replace('"distance": ', '"distance": 9'))
    if change == "elsewhere":  # as `edm trace` says to measure it again
        assert main(["evaluate", "models/tiny/vp-A/model.safetensors", "again.json", "--experiment", "tiny", "--model",
                     "vp-A", "--evaluation", "ladder/num_steps=2@0", "--ref", "data/references/digits/pixels.npz",
                     "--device", "cpu"]) == 0  # fmt: skip
    else:
        measure("ladder/num_steps=2@0")
    assert len(drawn) == 5
