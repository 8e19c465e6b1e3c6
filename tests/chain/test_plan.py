"""`edm plan`: the cost of a target, counted from the same jobs that the workflow runs."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import edm
from edm import params
from edm.analysis.studies import study
from edm.chain.costs import NOTHING, Cost
from edm.chain.jobs import Chain
from edm.chain.paths import table_files
from edm.chain.plan import RK45_NFE, as_text, make_plan
from edm.chain.provenance import adopt
from edm.chain.throughput import Measurement, network_digest, record
from edm.commands.reports import GPUS
from edm.design.preconditioning import EDMPreconditioning
from edm.evaluation.search import SearchHistory, search
from edm.files.writing import write_json
from edm.networks.unet import UNet

ROOT = Path(__file__).parents[2]

#: Small enough to be counted by hand. Batches of 300 round the 1,000 images of a training up to four batches.
TINY = """
run: [tiny]
datasets:
  made: {source: folder, path: pictures, resolution: 8, channels: 1, classes: 0}
pretrained:
  found: {path: found.pth, like: tiny/ve-A}
experiments:
  tiny:
    dataset: made
    features: pixels
    base: {conditional: false, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1, 2]}
    columns: {vp: {architecture: ddpmpp}, ve: {architecture: ncsnpp, model_channels: 16}}
    ladder: {A: {duration: 1.0e-3, batch_size: 300, snapshot_every: 3.0e-4, seed: 3}}
    models: {old: {pretrained: found}}
    sampling: {images: 20, repeats: 2, block: 10, one_job_per: point}
    choose: {grid: ladder, images: 6, confirm: 2}
    grids:
      ladder: {models: [vp-A], num_steps: 3}
      euler: {models: [vp-A, old], solver: euler, num_steps: [4, 8]}
      rk45: {models: [old], solver: rk45, tolerance: [1.0e-2, 1.0e-3]}
    searches:
      walk: {models: [vp-A], num_steps: 2, images: 7, max_sweeps: 2, over: {S_churn: [0, 1, 2], S_noise: [1, 1.01]}}
      all: {models: [vp-A], num_steps: 2, images: 7, method: exhaustive, over: {S_churn: [0, 1, 2], S_noise: [1, 1.01]}}
    sheets:
      look: {models: [vp-A, old], num_steps: 5, images: 9}
    analyses:
      steps: {kind: truncation, models: [vp-A], num_steps: 4, rhos: [1, 7], substeps: 3, samples: 5}
      churn:
        {kind: degradation, models: [vp-A], sigmas: [1, 0.1], S_noise: [1.0, 1.01], repetitions: [0, 3], images: 64}
      leak: {kind: leakage, models: [vp-A], images: 11}
    tables:
      table2: {kind: configurations, title: T, grid: ladder}
      table3:
        {kind: samplers, title: T, nfe: of the best, columns: [vp-A, old], rows: {Euler: euler, RK45: {old: rk45}}}
      table5: {kind: settings, title: T, columns: {A: "vp-A:walk", B: "vp-A:all"}}
    figures:
      looks: {kind: sheets, panels: {A: "vp-A:look", B: "old:look"}}
      steps: {kind: truncation, of: ["vp-A:steps"]}
      churn: {kind: degradation, of: ["vp-A:churn"]}
      leak: {kind: leakage, of: ["vp-A:leak"]}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TINY)
    return params.load("params.yaml")


@pytest.fixture(scope="module")
def whole():
    return params.load(ROOT / "params.yaml")


def weights(config):
    return sum(parameter.numel() for parameter in UNet(config.network()).parameters())


def both(number):
    return (number, number)


# Counts ---------------------------------------------------------------------------------------------------------------


def test_a_small_experiment_is_counted_as_by_hand(tiny):
    plan = make_plan(tiny, "tiny")
    models = tiny.experiment("tiny").models
    size, old = 4 * weights(models["vp-A"]), 4 * weights(models["ve-A"])
    work = {rule: (cost.jobs, cost.trained, cost.drawn, cost.evaluations, cost.disk)
            for rule, cost in plan.by_rule.items()}  # fmt: skip
    nothing = (0, both(0), both(0), 0)
    assert work == {
        "prepare": (1, *nothing),
        "advise": (1, *nothing),
        "reference": (1, *nothing),
        # ve-A stands in no table that measures: it is not trained. Four batches; snapshots at 300, 600 and 900, and
        # at 1,200, of which the last is the model again.
        "train": (1, 1200, both(0), both(0), size * (1 + 4)),
        "published": (1, 0, both(0), both(0), old),
        # Four snapshots of 6 images, the two best again with 20; NFE 2·3 − 1.
        "choose": (1, 0, both(4 * 6 + 2 * 20), both((4 * 6 + 2 * 20) * 5), size),
        # (1 + 2 + 2) settings, twice each: the ladder of one, Euler of two models, RK45; 20 images.
        "evaluate": (2 * 7, 0, both(2 * 7 * 20), both(2 * 20 * (5 + 2 * (4 + 8) + 2 * RK45_NFE)), 0),
        # From the start 2 + 1 further settings; of a second sweep no more than there are: 6. Exhaustively all 6.
        "search": (2, 0, (7 * (4 + 6), 7 * (6 + 6)), (7 * 3 * (4 + 6), 7 * 3 * (6 + 6)), 0),
        "sample": (2, 0, both(2 * 9), both(2 * 9 * 9), 2 * 9 * 8 * 8),
        # Per ρ three steps, the truth of 3 and 1 + 2 to compare; per σ and S_noise 3 times there and back, seen twice.
        "analyse": (3, 0, both(5 + 64 + 11),
                    both(5 * 2 * 3 * (3 + 3) + 64 * (35 + 2 * 2 * (3 * 2 + 2)) + 11 * 35), 0),
        "table": (3, *nothing),
        "figure": (4, *nothing),
        "metrics": (1, *nothing),
        "about": (1, *nothing),
        "track": (1, *nothing),
    }  # fmt: skip
    assert plan.total.jobs == sum(cost.jobs for cost in plan.by_rule.values()) == 37
    assert plan.total.trained == 1200


def test_a_part_costs_what_it_needs(tiny):
    plan = make_plan(tiny, "tiny/table5")
    assert set(plan.by_rule) == {"prepare", "reference", "train", "choose", "search", "table"}
    assert make_plan(tiny, "tiny/looks").by_rule["sample"].drawn == both(18)
    evaluated = make_plan(tiny, "results/tiny/distances/old/euler/num_steps=8@1.json")
    assert {rule: cost.jobs for rule, cost in evaluated.by_rule.items()} == {
        "prepare": 1, "reference": 1, "published": 1, "evaluate": 1,
    }  # fmt: skip
    assert evaluated.total.evaluations == both(20 * 8)


def test_a_target_that_nothing_makes_is_refused(tiny):
    with pytest.raises(edm.UserError, match="tiny/table9: no job makes it"):
        make_plan(tiny, "tiny/table9")


def test_a_published_model_that_is_like_nothing_is_asked_about(tiny):
    tiny.raw["pretrained"]["found"]["like"] = "tiny/vp-Z"
    with pytest.raises(edm.UserError, match=r"pretrained\.found: state `like: EXPERIMENT/MODEL`"):
        make_plan(tiny, "tiny")


def test_analyses_evaluate_the_network_as_often_as_planned(tiny):
    """Counted at the network itself, image by image."""
    experiment = tiny.experiment("tiny")
    denoiser = (
        edm.Denoiser(UNet(experiment.models["vp-A"].network()), EDMPreconditioning()).eval().requires_grad_(False)
    )
    counted = []
    denoiser.network.register_forward_hook(lambda network, inputs, output: counted.append(len(output)))
    total = 0
    for name, analysis in experiment.analyses.items():
        if analysis.kind != "leakage":  # an evaluation like any other
            study(analysis.kind, denoiser, **analysis.settings)
            total += make_plan(tiny, f"tiny/{name}").by_rule["analyse"].evaluations[1]
    assert sum(counted) == total > 0


@pytest.mark.parametrize("wanted", [{"S_churn": 0, "S_noise": 1}, {"S_churn": 2, "S_noise": 1.01}])
@pytest.mark.parametrize("name", ["walk", "all"])
def test_a_search_measures_between_the_least_and_the_greatest_that_were_planned(tiny, name, wanted):
    """Of an optimum at the start, and of one at the far end."""
    found = tiny.experiment("tiny").searches[name]
    plan = make_plan(tiny, f"results/tiny/searches/vp-A/{name}.json").by_rule["search"]
    distance = lambda settings: math.dist(settings.values(), wanted.values())
    over = {key: list(values) for key, values in found.over.items()}
    outcome = search(distance, over, {"S_churn": 0, "S_noise": 1}, found.method,
                     SearchHistory(Path("history.jsonl"), {}), found.max_sweeps)  # fmt: skip
    assert outcome.settings == wanted
    least, greatest = (images / found.images for images in plan.drawn)
    assert least <= outcome.evaluations <= greatest
    assert (least == greatest) == (name == "all")


# What is there already ------------------------------------------------------------------------------------------------


def make(params, *paths):
    """The files, as if their steps had made them."""
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    adopt(Chain(params), paths)


def test_a_finished_job_is_not_counted(tiny):
    before = make_plan(tiny, "tiny")
    make(tiny, "data/made.zip", "models/tiny/vp-A/model.safetensors", "models/tiny/vp-A/levels.json",
         "models/tiny/old/model.safetensors", "data/references/made/pixels.npz",
         "results/tiny/distances/old/rk45/tolerance=0.01@0.json", *table_files("tiny", "table2"))  # fmt: skip
    after = make_plan(tiny, "tiny")
    assert before.done == 0 and after.done == 5
    assert "train" not in after.by_rule and after.total.trained == 0
    assert after.by_rule["evaluate"].jobs == before.by_rule["evaluate"].jobs - 1
    assert after.by_rule["evaluate"].evaluations[0] == before.by_rule["evaluate"].evaluations[0] - 20 * RK45_NFE
    assert after.by_rule["table"].jobs == 3  # made of evaluations that are not there, it is made again with them
    assert make_plan(tiny, "tiny", everything=True).by_rule == before.by_rule


def test_a_job_that_lacks_one_of_its_files_is_counted(tiny):
    make(tiny, "models/tiny/vp-A/model.safetensors", *table_files("tiny", "table2")[:-1])
    plan = make_plan(tiny, "tiny")
    assert plan.by_rule["train"].jobs == 1 and plan.by_rule["table"].jobs == 3 and plan.done == 0


# Hours ----------------------------------------------------------------------------------------------------------------


def throughput(tiny, training, evaluations, device="Made-up GPU"):
    """A file of `edm bench` with the networks of both models on a made-up GPU; ve-A's is half as fast."""
    path = Path(f"throughput-{training:g}.json")
    for model, factor in (("vp-A", 1), ("ve-A", 0.5)):
        network = tiny.experiment("tiny").models[model].network()
        record(path, Measurement(network_digest(network), 10**6, device, "cuda", "fp32", 64, training * factor,
                                 evaluations * factor, "2030-01-01T00:00:00+00:00", "made up"))  # fmt: skip
    return str(path)


def test_gpu_hours_are_the_work_over_the_measured_rates(tiny):
    plan = make_plan(tiny, "tiny", throughput(tiny, training=10.0, evaluations=50.0))
    hours = {rule: cost.hours for rule, cost in plan.by_rule.items() if cost.hours[1]}
    assert hours["train"] == pytest.approx(both(1200 / 10 / 3600))
    assert hours["choose"] == pytest.approx(both((4 * 6 + 2 * 20) * 5 / 50 / 3600))
    vp, old = 2 * 20 * (5 + 12), 2 * 20 * (12 + 2 * RK45_NFE)  # the imported model is as slow as the one it is like
    assert hours["evaluate"] == pytest.approx(both((vp / 50 + old / 25) / 3600))
    assert hours["search"] == pytest.approx((7 * 3 * 10 / 50 / 3600, 7 * 3 * 12 / 50 / 3600))
    assert plan.longest == (pytest.approx(120 / 3600), "train tiny vp-A")  # RK45 is 96 s a job
    assert plan.total.sources == {"measured: Made-up GPU, fp32"}
    assert plan.total.hours == pytest.approx([sum(h[i] for h in hours.values()) for i in (0, 1)])


def test_twice_the_rate_is_half_the_hours(tiny):
    slow = make_plan(tiny, "tiny", throughput(tiny, training=10.0, evaluations=50.0))
    fast = make_plan(tiny, "tiny", throughput(tiny, training=20.0, evaluations=100.0))
    assert fast.total.hours == pytest.approx([hours / 2 for hours in slow.total.hours])
    assert [(rule, c.jobs, c.drawn, c.disk) for rule, c in fast.by_rule.items()] == [
        (rule, c.jobs, c.drawn, c.disk) for rule, c in slow.by_rule.items()
    ]


def test_without_a_measurement_hours_are_labelled_an_estimate(tiny):
    plan = make_plan(tiny, "tiny", "throughput-nowhere.json")
    assert plan.total.hours[0] > 0
    assert len(plan.total.sources) == 1 and next(iter(plan.total.sources)).startswith(
        "estimate: V100 anchor of the paper"
    )


def test_a_named_gpu_costs_what_its_data_sheet_promises_and_the_text_says_that_nothing_was_measured(tiny):
    hours = {gpu: make_plan(tiny, "tiny", gpu=gpu).total.hours[0] for gpu in (None, *GPUS)}
    assert hours["v100"] == hours[None]  # fp32: 19.5 and 67 TFLOPS, where the V100 has 15.7
    assert [hours["v100"] / hours[gpu] for gpu in ("a100", "h100")] == pytest.approx([19.5 / 15.7, 67 / 15.7])
    text = as_text(make_plan(tiny, "tiny", gpu="a100"), gpus=1)
    assert (
        "estimate: V100 anchor of the paper scaled by FLOPs, times 1.24 for the A100; data sheets: 19.5 and 15.7"
        in text
    )
    assert "dense fp32 TFLOPS; not measured." in text
    measured = make_plan(
        tiny, "tiny", throughput(tiny, training=10.0, evaluations=50.0, device="NVIDIA A100"), gpu="a100"
    )
    assert measured.total.sources == {"measured: NVIDIA A100, fp32"}


def test_a_foreign_throughput_file_is_named(tiny):
    write_json("throughput.json", {"format": "something else"})
    with pytest.raises(edm.UserError, match=r"throughput\.json: not a table of throughput"):
        make_plan(tiny, "tiny", "throughput.json")


# The text -------------------------------------------------------------------------------------------------------------


def columns(text):
    """{rule: its numbers} of the table, whose columns two spaces part."""
    table = text.split("\n\n")[0].splitlines()
    rows = [[part.strip() for part in line.split("  ") if part.strip()] for line in table if not line.startswith("-")]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}


def test_the_text_says_the_numbers_the_wall_time_and_where_the_rates_are_from(tiny):
    plan = make_plan(tiny, "tiny", throughput(tiny, training=0.01, evaluations=50.0))
    text = as_text(plan, gpus=4)
    table = columns(text)
    assert table["train"]["images trained"] == "1200" and table["train"]["GPU-hours"] == "33.3"
    assert table["search"]["images drawn"] == "70 to 84" and table["search"]["network evaluations"] == "210 to 252"
    assert table["total"]["jobs"] == "37"
    assert "tiny: 37 jobs; 0 more are up to date." in text
    low, high = (f"{hours / 4:.3g}" for hours in plan.total.hours)
    assert f"Wall time: {low if low == high else f'{low} to {high}'} hours if 4 GPUs share it evenly" in text
    assert "at least that of the longest job: 33.3 GPU-hours (train tiny vp-A)" in text
    assert "GPU-hours: measured: Made-up GPU, fp32." in text
    assert f"assumes {RK45_NFE} per image" in text


def test_work_for_a_cpu_has_no_hours_of_a_gpu(whole):
    text = as_text(make_plan(whole, "digits", everything=True), gpus=8)
    assert columns(text)["total"]["GPU-hours"] == "< 0.01" and "e-0" not in text and "Wall time" not in text
    assert "`edm watch digits` shows the time left" in text


def test_large_numbers_are_shown_to_three_digits_with_their_unit(whole):
    table = columns(as_text(make_plan(whole, "paper", everything=True), gpus=64))
    assert table["train"]["images trained"] == "11.9G"  # Table 2 and the leakage check, 200 Mimg each; ImageNet's 2500
    assert table["train"]["disk"].endswith("TB")


# The paper ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["paper", "rehearsal", "digits", "paper/table2", "paper/figure7", "cifar10-cond"])
@pytest.mark.first(3)
def test_the_plan_counts_the_jobs_of_the_chain(whole, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    chain = Chain(whole)
    jobs = Counter(job.rule for job in chain.needed(chain.targets(target)))
    assert {rule: cost.jobs for rule, cost in make_plan(whole, target).by_rule.items()} == jobs


def test_the_paper_costs_what_section_6_and_table_7_say(whole, tmp_path, monkeypatch):
    """47 training runs of 200 Mimg and one of 2500; of every sampler setting 50,000 images, three times."""
    monkeypatch.chdir(tmp_path)
    plan = make_plan(whole, "paper")
    assert plan.by_rule["train"].trained == pytest.approx(47 * 200e6 + 2500e6, rel=1e-5)  # whole batches
    evaluate = plan.by_rule["evaluate"]
    assert evaluate.drawn == both(50_000 * evaluate.jobs) and evaluate.jobs % 3 == 0
    ladder = make_plan(whole, "paper/table2").by_rule["evaluate"]
    assert ladder.jobs == 48 * 3 and ladder.evaluations == both(3 * 50_000 * 24 * (35 + 79))
    assert plan.by_rule["search"].drawn[0] < plan.by_rule["search"].drawn[1]
    assert plan.by_rule["choose"].drawn[0] == plan.by_rule["choose"].drawn[1]
    assert plan.longest[1] == "train imagenet adm-E"


@pytest.mark.slow
def test_a_scale_shortens_the_plan_in_proportion(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = make_plan(whole, "paper")
    raw = {**whole.raw, "reports": {**whole.raw["reports"], "paper": {**whole.raw["reports"]["paper"], "scale": 0.1}}}
    tenth = make_plan(params.Params(whole.path, raw), "paper")
    assert {rule: cost.jobs for rule, cost in tenth.by_rule.items()} == {r: c.jobs for r, c in one.by_rule.items()}
    assert tenth.total.trained == pytest.approx(one.total.trained / 10, rel=1e-4)
    for rule in ("choose", "search", "evaluate"):
        assert tenth.by_rule[rule].evaluations == pytest.approx([n / 10 for n in one.by_rule[rule].evaluations])
    assert tenth.total.hours == pytest.approx([hours / 10 for hours in one.total.hours], rel=1e-2)


def test_costs_add_up():
    one = Cost(1, 2, (3, 4), (5, 6), (7.0, 8.0), 9, frozenset({"a"}))
    assert sum([one, one], NOTHING) == Cost(2, 4, (6, 8), (10, 12), (14.0, 16.0), 18, frozenset({"a"}))


def test_the_plan_needs_no_torch(tmp_path):
    """It is asked for on login nodes, where importing torch takes longer than the plan."""
    code = "import sys, edm.chain.plan; from edm import params\n" \
           "edm.chain.plan.make_plan(params.load(sys.argv[1]), 'paper'); sys.exit('torch' in sys.modules)"  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(ROOT / "params.yaml")], check=True, cwd=tmp_path, env=environment)
