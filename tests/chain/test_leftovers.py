"""`edm clean` names what steps left that params.yaml no longer has, and removes that and nothing else."""

from pathlib import Path

import miniature
import pytest
import yaml

from edm import params
from edm.chain import provenance
from edm.chain.jobs import Chain
from edm.chain.provenance import start
from edm.chain.sidecars import changes_file, sidecar_file
from edm.cli import main

PARAMS = miniature.smallest(
    ladder={"A": {"duration": 1e-3, "batch_size": 100}, "B": {"batch_size": 50}},
    sampling={"images": 12, "one_job_per": "point", "gpus": 0},
)
TRACES = ("train.log", "snapshots/000000000100.safetensors", "state-0.safetensors", "training.json")


def everything():
    return {str(path) for path in Path().rglob("*") if path.is_file() and path.parts[0] != ".edm"}


def write(raw):
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return Chain(params.load("params.yaml", whole=True))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder in which every step has run, as far as its files tell; its chain."""
    monkeypatch.chdir(tmp_path)
    chain = write(PARAMS)
    for job in chain.needed(chain.targets("tiny")):
        started = start(chain, job.name)
        for path in job.outputs:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(f"{path} of {job.name}")
        if job.rule == "train":
            for name in TRACES:
                (Path("runs") / "/".join(job.key) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path("runs") / "/".join(job.key) / name).write_text(name)
        started.finish()
    for mine in ("models/tiny/notes.txt", "runs/tiny/vp-B-notes.txt", "results/mine.csv"):
        Path(mine).parent.mkdir(parents=True, exist_ok=True)
        Path(mine).write_text("the user's")
    return chain


def files_of(chain, *names):
    """Outputs, records and traces of some steps."""
    found = set()
    for name in names:
        job = chain.by_name[name]
        found |= {*job.outputs, sidecar_file(job)}
        if job.rule == "train":
            found |= {f"runs/{'/'.join(job.key)}/{trace}" for trace in TRACES}
    return found


WITHOUT_B = {**PARAMS["experiments"]["tiny"], "ladder": {"A": PARAMS["experiments"]["tiny"]["ladder"]["A"]}}
WITH_FEWER = {**PARAMS["experiments"]["tiny"], "grids": {"ladder": {"models": "all", "num_steps": [2]}}}


@pytest.mark.parametrize(
    ("tiny", "gone"),
    [(WITHOUT_B, ["train tiny/vp-B", "evaluate tiny/vp-B/ladder/num_steps=2", "evaluate tiny/vp-B/ladder/num_steps=3"]),
     (WITH_FEWER, [f"evaluate tiny/vp-{rung}/ladder/num_steps=3" for rung in "AB"])],
    ids=["a configuration", "points of grids"],
)  # fmt: skip
def test_what_params_yaml_no_longer_names_goes_and_nothing_else(made, capsys, tiny, gone):
    before = everything()
    write({**PARAMS, "experiments": {"tiny": tiny}})
    assert main(["clean"]) == 0
    printed = capsys.readouterr()
    assert sorted(line.partition(":")[0] for line in printed.out.splitlines()) == sorted(gone)
    assert everything() == before and "nothing was removed: `edm clean --remove` removes them" in printed.err
    assert main(["clean", "--remove"]) == 0
    assert before - everything() == files_of(made, *gone) and everything() <= before
    capsys.readouterr()
    assert main(["clean"]) == 0
    assert capsys.readouterr() == ("", "nothing to remove: params.yaml names every step that left files\n")


def test_uncommitted_changes_go_with_the_last_record_that_names_them(made, monkeypatch):
    shared, own = b"# of all\n", b"# of vp-B alone\n"
    for name, content in (("train tiny/vp-A", shared), ("train tiny/vp-B", shared), ("train tiny/vp-B", own)):
        monkeypatch.setattr(provenance, "origin", lambda: {"dirty": "true"})
        monkeypatch.setattr(provenance, "uncommitted", lambda content=content: content)
        start(made, name).finish()
    write({**PARAMS, "experiments": {"tiny": WITHOUT_B}})
    assert main(["clean", "--remove"]) == 0
    train = made.by_name["train tiny/vp-A"]
    assert Path(changes_file(train, shared)).exists() and not Path(changes_file(train, own)).exists()


def test_a_file_that_the_user_changed_stays_with_its_record(made, capsys):
    model = "models/tiny/vp-B/model.safetensors"
    Path(model).write_text("better")
    write({**PARAMS, "experiments": {"tiny": WITHOUT_B}})
    assert main(["clean", "--remove"]) == 0
    assert f"kept: {model} was changed after the step made it" in capsys.readouterr().out
    assert Path(model).read_text() == "better" and Path(sidecar_file(made.by_name["train tiny/vp-B"])).exists()


def test_a_file_that_another_step_makes_now_stays(made, capsys):
    """A rung that becomes a model of the same name: the step has the same name, too, and is stale, not gone."""
    before = everything()
    tiny = {**WITHOUT_B, "models": {"vp-B": {"from": "vp-A", "batch_size": 25}}}
    write({**PARAMS, "experiments": {"tiny": tiny}})
    assert main(["clean", "--remove"]) == 0
    assert everything() == before


def test_nothing_is_removed_while_snakemake_runs(made, capsys):
    Path(".snakemake/locks").mkdir(parents=True)
    Path(".snakemake/locks/0.input.lock").write_text("")
    before = everything()
    write({**PARAMS, "experiments": {"tiny": WITHOUT_B}})
    assert main(["clean"]) == 0
    assert main(["clean", "--remove"]) == 1
    assert "error: Snakemake runs in this folder" in capsys.readouterr().err and everything() == before
