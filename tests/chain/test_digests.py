"""The files that DVC's stages depend on say exactly what Snakemake goes by."""

import json
from pathlib import Path

import pytest
import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.chain.rules import RULES
from edm.cli import main

ROOT = Path(__file__).parents[2]
KEPT = ["digests", "--datasets", "digits", "--experiments", "digits"]
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())
RAW["experiments"] = {name: RAW["experiments"][name] for name in ("digits", "cluster")}  # quickly read
RAW |= {"pretrained": {}, "reports": {}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(RAW, sort_keys=False))
    assert main(KEPT) == 0
    return Path("steps/digests")


def edit(change):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    change(raw)
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def written(folder):
    assert main(KEPT) == 0
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("*.json")}


def test_every_step_of_an_experiment_stands_in_the_file_of_its_stage(folder):
    found = Chain(params.load("params.yaml"))
    known = Provenance(found)
    needed = {job for job in found.needed(found.targets("digits")) if RULES[job.rule].kept}
    needed |= {found.makers[path] for path in found.steps("data", "digits")}  # also for others on the same images
    wanted = {f"{stage}/digits.json": {} for stage in {rule.stage for rule in RULES.values()}}
    for job in needed:
        wanted[f"{RULES[job.rule].stage}/digits.json"][job.name] = known.digest(job)
    assert written(folder) == wanted


def test_files_of_names_that_are_no_longer_kept_go(folder):
    assert main(["digests", "--experiments", "cluster"]) == 0
    assert {path.stem for path in folder.rglob("*.json")} == {"cluster"}


@pytest.mark.parametrize("command", [["--experiments", "digit"], ["--datasets", "cifar"]])
def test_a_name_that_params_yaml_does_not_have_is_one_line(folder, capsys, command):
    before = written(folder)
    assert main(["digests", *command]) == 1
    assert capsys.readouterr().err.startswith(("error: digit: ", "error: cifar: params.yaml has no such dataset"))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.json")} == set(before)


@pytest.mark.parametrize(("deps", "warned"), [(["params.yaml"], True), (["downloads/mine"], False),
                                              (["downloads"], False)])  # fmt: skip
def test_raw_data_that_dvc_does_not_watch_are_named(folder, capsys, deps, warned):
    Path("downloads/mine").mkdir(parents=True)
    Path("downloads/mine/1.png").write_text("picture")
    edit(lambda raw: raw["datasets"]["digits"].update(source="folder", path="downloads/mine"))
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"digests": {"deps": deps}}}))
    before = written(folder)
    assert ("warning: downloads/mine: DVC misses changes of it" in capsys.readouterr().err) == warned
    Path("downloads/mine/1.png").write_text("another")
    assert all(before[file] != after for file, after in written(folder).items())
