"""Averages of snapshots in the chain: made of what params.yaml states, evaluated like any model, shown over widths."""

from pathlib import Path

import pytest
from test_choosing import chain, loaded, train

import edm
from edm import params
from edm.chain.jobs import Chain
from edm.chain.plan import make_plan
from edm.cli import main
from edm.evaluation.records import measurement, read_results
from edm.report.captions import Captions
from edm.report.figures import Places, write_figure

OF = ["--experiment", "tiny", "--device", "cpu"]


def averaged(**changes):
    raw = chain(seed=0)
    tiny = raw["experiments"]["tiny"]
    del tiny["choose"]
    tiny["base"] |= {"ema_widths": [0.05, 0.1], "lr_rampup": 0, "learning_rate": 0.02}
    tiny["grids"] = {"widths": {"models": ["vp-A"], "ema": [0.1, 0.2, 0.03], "num_steps": 2}}
    tiny["figures"] = {"E1": {"kind": "curve", "over": "ema", "lines": {"A": "vp-A:widths"}}}
    for key, value in changes.items():
        tiny[key] = tiny.get(key, {}) | value if isinstance(value, dict) else value
    return raw


@pytest.fixture(scope="module")
def project(tmp_path_factory, digits_archive):
    """A training run with two tracks and two snapshots, and the reference."""
    folder = tmp_path_factory.mktemp("averaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(averaged(), digits_archive)
    return folder


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def average(width, *options):
    words = ["--width", width, "--out", "models/tiny/vp-A", "--experiment", "tiny", "--model", "vp-A"]
    return main(["average", "runs/tiny/vp-A", *words, *options])


def test_each_width_is_a_model_that_the_chain_makes_of_the_snapshots(inside):
    built = Chain(loaded(averaged()))
    evaluate = built.by_name["evaluate tiny/vp-A@ema-0.2/widths"]
    assert evaluate.inputs["model"] == ("models/tiny/vp-A/ema-0.2.safetensors",)
    assert evaluate.outputs == ("results/tiny/distances/vp-A@ema-0.2/widths.json",)
    maker = built.makers["models/tiny/vp-A/ema-0.2.safetensors"]
    assert maker.name == "average tiny/vp-A/0.2" and built.specification(maker) == {"width": 0.2}
    assert maker.files == ("models/tiny/vp-A/model.safetensors",)
    plan = make_plan(built.params, "tiny/E1", everything=True).by_rule
    assert (plan["average"].jobs, plan["evaluate"].jobs, plan["train"].jobs) == (3, 3, 1)


def test_jobs_of_so_many_minutes_hold_the_points_of_an_average(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = {"models": ["vp-A"], "ema": [0.1, 0.2], "num_steps": [2, 3]}
    built = Chain(loaded(averaged(sampling={"one_job_per": {"minutes": 60}}, grids={"widths": grid}, figures=None)))
    (job,) = (job for job in built.by_name.values() if job.key[:2] == ("tiny", "vp-A@ema-0.2"))
    assert len(built.experiments["tiny"].evaluation(*job.key[1:]).draws) == 2


def test_widths_are_evaluated_and_drawn_with_what_speaks_against_them(inside, capsys):
    report = loaded(averaged()).report("tiny")
    seen = {}
    for width in ("0.1", "0.2", "0.03"):
        assert average(width) == 0
        path = f"results/tiny/distances/vp-A@ema-{width}/widths.json"
        words = ["--model", f"vp-A@ema-{width}", "--evaluation", "widths", "--ref", "ref.npz"]
        assert main(["evaluate", f"models/tiny/vp-A/ema-{width}.safetensors", path, *OF, *words]) == 0
        record = read_results(path)
        seen[width] = measurement(record, record["points"][0])
    assert {width: one.ema["width"] for width, one in seen.items()} == {"0.1": 0.1, "0.2": 0.2, "0.03": 0.03}
    assert seen["0.1"].ema["residual"] < 1e-6 < 0.1 < seen["0.2"].ema["residual"]
    assert len({one.distance for one in seen.values()}) == 3
    assert "ema-0.2.safetensors: another profile" in capsys.readouterr().err
    written = write_figure(report, "E1", Places(*map(Path, ("results", "runs", "data", "models"))))
    svg = next(path for path in written if path.suffix == ".svg").read_text()
    assert "relative width of the EMA" in svg and "crossed: another profile" in svg
    caption = Captions(Chain(loaded(averaged()))).figure("tiny", "E1")
    worst = max(one.ema["residual"] for one in seen.values())
    assert f"the residual of a profile is at most {worst:.2g}" in caption and "an average of its snapshots" in caption


def test_no_average_is_made_of_other_snapshots_than_those_of_params(inside, capsys):
    loaded(averaged(base={"snapshot_every": 32e-6}))
    assert average("0.1") == 1
    assert "runs/tiny/vp-A: 4 snapshots, 8 expected; train again" in capsys.readouterr().err
    loaded(averaged())
    assert average("0.15") == 1
    assert "no average of vp-A of width 0.15; it has vp-A@ema-0.1, vp-A@ema-0.2" in capsys.readouterr().err
    assert average("0.1", "--expect", "0" * 12) == 1
    assert "params.yaml was changed after this job was planned" in capsys.readouterr().err


def test_training_runs_of_several_seeds_are_averaged_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = loaded(averaged(seeds=[0, 1])).experiment("tiny")
    assert experiment.training_runs["vp-A@ema-0.1"] == ("vp-A@ema-0.1", "vp-A@1@ema-0.1")
    built = Chain(params.load("params.yaml"))
    made = [name for name in built.by_name if name.startswith("average")]
    assert len(made) == 6 and "average tiny/vp-A@1/0.03" in made
    figure = built.by_name["figure tiny/E1"]
    assert "results/tiny/distances/vp-A@1@ema-0.2/widths.json" in figure.inputs["results"]


@pytest.mark.parametrize(("changes", "says"), [
    ({"base": {"snapshot_every": None, "ema_widths": []}},
     "grids.widths: ema 0.1: vp-A takes no snapshots; state snapshot_every"),
    ({"base": {"ema_widths": [], "ema_halflife": 0}}, "snapshots of vp-A average nothing"),
    ({"grids": {"widths": {"models": ["vp-A"], "ema": 0.5}}}, "grids.widths.ema: 0.5 is greater than the maximum"),
    ({"grids": {"widths": {"models": ["vp-A"], "ema": [0.1, 0.1]}}}, "has an entry twice"),
    ({"grids": {"guided": {"models": ["vp-A"], "guide": {"model": "vp-B", "ema": 0.1}, "guidance": 2}}},
     "grids.guided: ema 0.1: model 'vp-B' is not defined"),
    ({"grids": {"guided": {"models": ["vp-A"], "guide": "vp-A@ema-thin", "guidance": 2}}},
     "vp-A@ema-thin is no average; state {model: vp-A, ema: 0.1}"),
    *(({"grids": {"guided": {"models": ["vp-A"], "guide": f"vp-A@ema-{mark}", "guidance": 2}}},
       f"vp-A@ema-{mark} is no average") for mark in ("nan", "0", "5", "-0.1", "0.1-at-nan", "0.1-at-inf")),
    *(({"grids": {"guided": {"models": ["vp-A"], "guide": f"vp-A at {time}", "guidance": 2}}},
       f"grids.guided: guide 'vp-A at {time}' is no snapshot; state {{model: vp-A, at: 20}}, in Mimg")
      for time in ("first", "nan", "inf", "-1")),
    ({"grids": {"guided": {"models": ["vp-A"], "guide": {"model": "vp-A"}, "guidance": 2}}},
     "guide vp-A: state its snapshot (at, in Mimg), its EMA width (ema), or both"),
    ({"grids": {"guided": {"models": ["vp-A"], "guide": {"model": "vp-A", "at": 1, "ema": 0.1}, "guidance": 2}}},
     "grids.guided: guide: vp-A has no snapshot at 1 Mimg; the nearest is at 0.000128"),
    ({"grids": {"widths": {"models": ["vp-A"], "ema": [0.1], "num_steps": [2, 4]}}},
     "grid 'widths' has several points of each width; a curve takes one"),
    ({"grids": {"plain": {"models": ["vp-A"]}},
      "figures": {"E1": {"kind": "curve", "over": "ema", "lines": {"A": "vp-A:plain"}}}},
     "figures.E1: 'vp-A:plain': no grid of tiny evaluates averages of vp-A"),
    ({"figures": {"E1": {"kind": "curve", "over": "ema", "lines": {"A": "vp-A:widths"}, "mark": "lowest"}}},
     "a curve over ema takes lines, MODEL:GRID each, and no table, mark or metrics"),
])  # fmt: skip
def test_what_cannot_be_averaged_or_drawn_is_refused_in_one_line(tmp_path, monkeypatch, changes, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(edm.UserError) as caught:
        loaded(averaged(**changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_experiment_shares_the_averages_of_shared_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = averaged()
    raw["experiments"]["more"] = {"extends": "tiny", "grids": {"widths": {"ema": [0.1, 0.15]}}}
    experiment = loaded(raw).experiment("more")
    assert (
        experiment.owner("average", "vp-A", "0.1") == "tiny" and experiment.owner("average", "vp-A", "0.15") == "more"
    )
    assert experiment.owner("evaluate", "vp-A@ema-0.1", "widths") == "tiny"
    built = Chain(params.load("params.yaml"))
    job = built.by_name["average more/vp-A/0.15"]
    assert job.files == ("models/tiny/vp-A/model.safetensors",)
    assert job.outputs == ("models/more/vp-A/ema-0.15.safetensors",)
