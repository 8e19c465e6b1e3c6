"""Captions, and pages on how a report was made, without a run."""

import json
from pathlib import Path

import pytest
import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.chain.rules import RULES
from edm.chain.sidecars import sidecar_file
from edm.chain.throughput import Throughput
from edm.report.about import configuration, duration, environment, runtime
from edm.report.captions import Captions
from edm.report.done import Done, done_jobs, told_by
from edm.report.spending import spending

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chain():
    return Chain(params.load(ROOT / "params.yaml", whole=True))


def test_every_table_and_figure_has_a_title_and_a_caption(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing is measured yet
    captions = Captions(chain)
    for report in chain.reports.values():
        texts = [captions.table(report.name, name) for name in report.tables]
        texts += [captions.figure(report.name, name) for name in report.figures]
        assert all(len(text) > 100 and "{" not in text for text in texts)
        titles = [captions.title(report.name, name) for name in (*report.tables, *report.figures)]
        assert all(": " in title for title in titles)
    assert "Table 3 of the paper, with the paper's numbers for comparison" in captions.table("paper", "table3")
    assert "Figure 5a of the paper" in captions.figure("digits", "figure5a")
    assert "The data are synthetic" in captions.table("rehearsal", "table2")
    assert "Nothing here is measured" in captions.table("paper", "table8")


def test_an_empty_title_of_a_report_is_none(tmp_path, monkeypatch):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["reports"]["paper"]["title"] = ""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    chain = Chain(params.load("params.yaml", whole=True))
    assert Captions(chain).front(["results/paper/tables/table2.md"]).startswith("Paper\n=====")


def test_a_caption_names_a_file_that_is_no_result(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("results/digits/distances/vp-A/ladder.json")
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    told = "not a file of distances (its format is nothing, expected edm-distances/2); delete it"
    assert told in Captions(chain).table("digits", "table2")


def test_configurations_of_the_paper_are_told_in_full(chain):
    page = configuration(chain, chain.reports["paper"])
    for experiment in chain.reports["paper"].experiments.values():
        assert f"Experiment {experiment.name}<" in page
    assert "adm-imagenet-64x64-cond" in page and "grid stochastic-all" in page and "search table5" in page


def test_gpu_hours_are_wall_time_times_gpus(chain):
    jobs = [Done("train", ("digits", "vp-A"), 1800.0, processes=8, gpu="H100"),
            Done("train", ("digits", "vp-F"), 5400.0, processes=4, gpu="H100"),
            Done("table", ("digits", "table2"), 1.0)]  # fmt: skip
    page = runtime(chain.reports["digits"], jobs)
    assert "<td>2</td><td>2 h 00 min</td><td>1 h 00 min</td><td>1 h 30 min</td><td>10.00</td>" in page
    assert "GPU-hours" not in runtime(chain.reports["digits"], jobs[2:])
    assert [duration(s) for s in (0.04, 59.94, 60, 3599.6)] == ["0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min"]


def test_planned_and_used_hours_of_a_cell_are_those_of_its_steps(chain, tmp_path, monkeypatch):
    """Two GPUs for half an hour, and the time before an interruption; an evaluation in two shards on CPUs."""
    monkeypatch.chdir(tmp_path)
    report = chain.reports["cluster"]
    training = chain.by_name["train cluster/vp-A"]
    config = chain.experiments["cluster"].models["vp-A"]
    part = {"job": "1-of-2.safetensors", "seconds": 360.0}
    points = [job for job in chain.by_name.values() if job.name.startswith("evaluate cluster/vp-A/ladder/")]
    for job, more in [
        (training, {"seconds": 1800.0, "processes": 2, "gpu": "H100"}),
        *((job, {"seconds": 720.0, "parts": [part, part]}) for job in points),
    ]:
        nothing = {"specification": {"settings": None, "inputs": {}}, "inputs": {}, "outputs": {}}
        place = Path(sidecar_file(job))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"format": "edm-step/1", "digest": "0", **nothing, **more}))
    rates = Throughput()
    found = spending(chain, report, rates)
    of_a = [one for (_, _, columns), one in found.items() if columns == "vp-A"]
    jobs = [training, *points, *(chain.makers[part] for job in points for part in job.parts)]
    planned = sum(RULES[job.rule].cost(chain, job, rates).hours[0] for job in jobs)
    assert of_a and planned > 0 and all(one.planned == pytest.approx((planned, planned)) for one in of_a)
    assert [(one.on_gpus, one.on_cpus) for one in of_a] == [(1.0, pytest.approx(len(points) * 0.4))] * len(of_a)
    assert found["all", "", ""].recorded == 1 + len(points) < found["all", "", ""].steps
    page = runtime(report, done_jobs(chain, report), found)
    assert "Planned and used GPU-hours" in page and "They cannot be compared with the plan." in page
    log = Path("runs/cluster/vp-A/log.jsonl")
    row = {"images": config.steps * config.batch_size, "loss": 1.0, "images_per_second": 9.0, "seconds": 3600.0}
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({**row, "images": 5}) + "\n")
    assert spending(chain, report, rates) == found  # of another training run: not the whole one
    log.write_text(json.dumps(row) + "\n")
    assert {one.on_gpus for cell, one in spending(chain, report, rates).items() if cell[2] == "vp-A"} == {2.0}


def test_the_shards_of_an_evaluation_are_jobs_of_their_own(chain, tmp_path, monkeypatch):
    """Their sidecars go when they are merged; that of the merged evaluation keeps what they took."""
    monkeypatch.chdir(tmp_path)
    job = chain.by_name["evaluate cluster/vp-A/ladder/num_steps=4"]
    sidecar = tmp_path / "steps/evaluate/cluster/evaluate/vp-A/ladder/num_steps=4.json"
    sidecar.parent.mkdir(parents=True)
    part = {"job": "1-of-2.safetensors", "seconds": 7.5, "processes": 2, "gpu": "H100"}
    nothing = {"specification": {"settings": None, "inputs": {}}, "inputs": {}, "outputs": {}}
    rest = {"format": "edm-step/1", "digest": "0", **nothing}
    sidecar.write_text(json.dumps({**rest, "seconds": 0.5, "parts": [part]}))
    shard, merged = told_by(job)
    assert (shard.name, shard.seconds) == ("shard cluster/vp-A/ladder/num_steps=4/1-of-2", 7.5)
    assert shard.gpu_hours == 15 / 3600 and (merged.seconds, merged.gpu_hours) == (0.5, 0)


def test_of_adopted_files_the_pages_say_that_nothing_is_known(chain, tmp_path, monkeypatch):
    """What `edm adopt` writes of files that it has never seen."""
    monkeypatch.chdir(tmp_path)
    sidecar = tmp_path / "steps/data/digits/prepare.json"
    sidecar.parent.mkdir(parents=True)
    specification = {"settings": None, "inputs": {}}
    hashes = {"specification": specification, "inputs": {}, "outputs": {"data/digits.zip": "f" * 64}}
    sidecar.write_text(json.dumps({"format": "edm-step/1", "digest": "0", "adopted": "2026-01-01", **hashes}))
    report = chain.reports["digits"]
    done = done_jobs(chain, report)
    assert [(one.name, one.seconds, one.commit) for one in done] == [("prepare digits", None, None)]
    assert "Not counted, since their files were adopted: prepare digits." in runtime(report, done)
    page = environment(chain, report, done)
    assert "unknown" in page and "f" * 64 in page
    assert "f" * 16 in Captions(chain).front(["results/digits/tables/table2.html"])
