"""Captions, and pages on how a report was made, without a run."""

import json
from pathlib import Path

import pytest
import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.report.about import Done, configuration, done_jobs, duration, environment, runtime, told_by
from edm.report.captions import Captions

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
