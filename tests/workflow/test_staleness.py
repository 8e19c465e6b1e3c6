"""Staleness as a table: a change × the steps that must run. Some rows are run; what is shown then is vouched for."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from pretended import PARAMS, edit, make, planned, run

from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, made
from edm.chain.rules import RULES
from edm.chain.sidecars import read_sidecar, sidecar_file
from edm.files.hashes import Hashes

pytestmark = pytest.mark.slow

REPORT = {"table", "figure", "metrics", "about", "track"}
ADDED, SETTING = {"num_steps": [4, 5, 6]}, {"learning_rate": 1.0e-3}


def chain():
    return Chain(params.load("params.yaml"))


def following(*names):
    """Steps, and all that follow from them; an evaluation takes its shards with it."""
    found, jobs = set(), chain().needed(chain().targets("tiny"))
    for job in (job for job in jobs if job.rule != "shard"):
        before = {chain_job.name for path, chain_job in made(chain(), job)}
        if job.name in names or before & found:
            found |= {job.name, *(f"shard {'/'.join(job.key)}/{Path(path).stem}" for path in job.parts)}
    return sorted(found)


def experiment(*place, **changes):
    """An edit of a mapping within the experiment."""

    def change(raw):
        within = raw["experiments"]["tiny"]
        for key in place:
            within = within[key]
        within.update(changes)

    return lambda: edit(change)


def text(path, change):
    return lambda: Path(path).write_text(change(Path(path).read_text()))


def touch_all():
    for number, path in enumerate(sorted(Path().rglob("*.*"), reverse=True)):
        os.utime(path, (number * 10**6, number * 10**6))


def back_and_forth():
    before = Path("params.yaml").read_text()
    experiment("ladder", "B", **SETTING)()
    assert planned() != []
    Path("params.yaml").write_text(before)


def another_model():
    """The last rung is called by another name: another model, whose like nobody has trained."""

    def change(raw):
        raw["experiments"]["tiny"]["ladder"]["C"] = raw["experiments"]["tiny"]["ladder"].pop("B")
        raw["experiments"]["tiny"]["figures"]["looks"]["panels"] = {"A": "vp-A:look", "B": "vp-C:look"}

    edit(change)


def dataset(**changes):
    return lambda: edit(lambda raw: raw["datasets"]["made"].update(changes))


EVALUATIONS = ("evaluate tiny/vp-A/ladder", "evaluate tiny/vp-B/ladder", "evaluate tiny/vp-A/steps")
RESULT = "results/tiny/distances/vp-B/ladder.json"
MODEL = "models/tiny/vp-B/best.safetensors"
TRAINED = "train tiny/vp-B"
#: A change, and the steps that it makes run, with all that follow from them.
CHANGES = {
    "learning rate": (experiment("ladder", "B", **SETTING), TRAINED),
    "batch size, which B has from A": (experiment("ladder", "A", batch_size=200), "train tiny/vp-A", TRAINED),
    "images": (experiment("sampling", images=21), "choose tiny/vp-A", "choose tiny/vp-B", *EVALUATIONS),
    "images of a search": (experiment("searches", "walk", images=8), "search tiny/vp-A/walk"),
    "images of a sheet": (experiment("sheets", "look", images=5), "sample tiny/vp-A/look", "sample tiny/vp-B/look"),
    "steps of a grid": (experiment("grids", "ladder", num_steps=4), "choose tiny/vp-A", "choose tiny/vp-B",
                        *EVALUATIONS[:2]),
    "model name": (another_model, "train tiny/vp-C", "table tiny/table2"),
    "dataset": (dataset(images=2), "prepare made"),
    "content of the dataset": (lambda: Path("pictures/1.png").write_bytes(b"two"), "prepare made"),
    "added point": (experiment("grids", "steps", **ADDED), EVALUATIONS[2]),
    "removed point": (experiment("grids", "steps", num_steps=[4]), EVALUATIONS[2]),
    "shards": (experiment("sampling", shards=3),),
    "GPUs": (experiment("sampling", gpus=8),),
    "hand-edited JSON": (text(RESULT, lambda old: old + "0"), EVALUATIONS[1]),
    "hand-edited table": (text("results/tiny/tables/table2.md", lambda old: old + "0"), "table tiny/table2"),
    "deleted model": (lambda: Path(MODEL).unlink(),),
    "deleted result": (lambda: Path(RESULT).unlink(),),
    "deleted model and table": (lambda: (Path(MODEL).unlink(), Path(RESULT).unlink(),
                                         Path("results/tiny/tables/table2.md").unlink()), "choose tiny/vp-B"),
    "deleted sidecar": (lambda: Path("steps/train/tiny/train/vp-B.json").unlink(), TRAINED),
    "deleted sidecar of a table": (lambda: Path("steps/tables/tiny/table/table2.json").unlink(), "table tiny/table2"),
    "damaged sidecar": (text("steps/train/tiny/train/vp-B.json", lambda old: old[:99]), TRAINED),
    "touched files": (touch_all,),
    "checkout back and forth": (back_and_forth,),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_these_steps_run(folder, change):
    do, *steps = CHANGES[change]
    do()
    assert set(steps) <= set(chain().by_name) and planned() == following(*steps)


@pytest.mark.parametrize("rule", ["prepare", "reference", "train", "choose", "search", "evaluate", "sample", "analyse",
                                  "table", "figure", "metrics", "about", "track"])  # fmt: skip
def test_the_number_of_a_rules_code_makes_its_steps_run(folder, monkeypatch, rule):
    monkeypatch.setitem(RULES, rule, replace(RULES[rule], code=RULES[rule].code + 1))
    assert planned() == following(*(job.name for job in chain().by_name.values() if job.rule == rule))


@pytest.mark.parametrize(("change", "step"), [
    (experiment("tables", "table2", title="U"), "table tiny/table2"),
    (experiment("tables", "table3", rows={"mine": "steps"}), "table tiny/table3"),
    (experiment("figures", "looks", panels={"A": "vp-A:look", "new": "vp-B:look"}), "figure tiny/looks"),
])  # fmt: skip
def test_what_a_reader_sees_is_made_again_and_nothing_is_computed(folder, change, step):
    change()
    assert set(following(step)) <= set(planned()) and {name.split()[0] for name in planned()} <= REPORT


@pytest.mark.parametrize(("steps", "points"), [([4, 5, 6], ["num_steps=6"]), ([4], [])])
def test_a_point_that_is_a_job_of_its_own_is_all_that_runs(tmp_path, monkeypatch, steps, points):
    folder = make(tmp_path / "chain", PARAMS.replace("shards: 2", "one_job_per: point"))
    monkeypatch.chdir(folder)
    experiment("grids", "steps", num_steps=steps)()
    assert planned() == following(*(f"evaluate tiny/vp-A/steps/{point}" for point in points), "table tiny/table3",
                                  "metrics tiny")  # fmt: skip


def vouched():
    """Every file is the one that its sidecar tells of, made of what is there, as params.yaml and the code are now."""
    provenance, hashes = Provenance(chain()), Hashes(None)
    for job in chain().needed(chain().targets("tiny")):
        if job.rule == "shard":
            continue
        sidecar = read_sidecar(sidecar_file(job))
        assert sidecar["digest"] == provenance.digest(job), job.name
        assert sidecar["outputs"] == {path: hashes.of(path) for path in job.outputs}, job.name
        for path, maker in made(chain(), job):
            assert sidecar["inputs"][path] == hashes.of(path), (job.name, path)
            assert sidecar["specification"]["inputs"][path] == provenance.digest(maker), (job.name, path)


@pytest.mark.parametrize("change", ["learning rate", "added point", "hand-edited JSON", "deleted sidecar",
                                    "content of the dataset"])  # fmt: skip
def test_after_one_call_all_that_is_shown_is_vouched_for(folder, change):
    do, *steps = CHANGES[change]
    before = Path("params.yaml").read_text()
    do()
    assert run(folder) == following(*steps)
    vouched()
    edited = Path("params.yaml").read_text() != before
    Path("params.yaml").write_text(before)  # and back
    assert planned() == (following(*steps) if edited else [])
