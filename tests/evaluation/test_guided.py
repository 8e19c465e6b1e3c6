"""Guided grids on the command line, with networks of a few thousand weights: guides, cost, shards, inputs."""

import json
from pathlib import Path

import pytest
import yaml
from test_choosing import chain

from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.cli import main
from edm.models import checkpoint
from edm.networks.flops import flops

GUIDES = {"null": "null", "other": "vp-B", "snapshot": {"model": "vp-A", "at": 64e-6},
          "average": {"model": "vp-A", "ema": 0.2}, "early": {"model": "vp-A", "at": 64e-6, "ema": 0.2}}  # fmt: skip
NAMED = {"other": "vp-B", "snapshot": "vp-A at 6.4e-05", "average": "vp-A@ema-0.2",
         "early": "vp-A@ema-0.2-at-6.4e-05"}  # fmt: skip
GUIDED = {"models": ["vp-A"], "num_steps": 2, "guidance": [1, 2]}


def guided_chain(**grids):
    raw = chain(seed=0)
    tiny = raw["experiments"]["tiny"]
    tiny["base"] |= {"conditional": True, "lr_rampup": 0, "learning_rate": 0.02, "snapshot_every": 32e-6}
    tiny["ladder"]["B"] = {"model_channels": 16}
    tiny["grids"] |= {name: {**GUIDED, "guide": guide} for name, guide in GUIDES.items()} | grids
    tiny["sheets"] = {"guided": {"models": ["vp-A"], "images": 4, "num_steps": 2, "guide": "vp-B", "guidance": 2}}
    over = {"guidance": [1, 2], "guidance_max": [10, None]}
    tiny["searches"] = {"weight": {"models": ["vp-A"], "guide": "vp-B", "num_steps": 2, "over": over, "images": 8}}
    tiny["sampling"] |= {"shards": 2}
    return raw


@pytest.fixture(scope="module")
def project(tmp_path_factory, digits_archive):
    """Two trained models in the folders of the chain, and the reference."""
    folder = tmp_path_factory.mktemp("guided")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("params.yaml").write_text(yaml.safe_dump(guided_chain()))
        for model in ("vp-A", "vp-B"):
            names = ["--experiment", "tiny", "--model", model, "--device", "cpu"]
            folders = ["--out", f"runs/tiny/{model}", "--final", f"models/tiny/{model}"]
            assert main(["train", *names, "--data", str(digits_archive), *folders]) == 0
        words = ["--width", "0.2", "--out", "models/tiny/vp-A", "--experiment", "tiny", "--model", "vp-A"]
        assert main(["average", "runs/tiny/vp-A", *words]) == 0
        assert main(["average", "runs/tiny/vp-A", *words, "--at", "6.4e-05"]) == 0
        final = "models/tiny/vp-A"  # the model that evaluations use: a snapshot
        Path(final, "best.safetensors").write_bytes(Path(final, "model.safetensors").read_bytes())
        assert main(["fid-ref", str(digits_archive), "ref.npz", "--features", "pixels", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def evaluate(grid, output, *options):
    names = ["--experiment", "tiny", "--model", "vp-A", "--evaluation", grid, "--ref", "ref.npz", "--device", "cpu"]
    return main(["evaluate", "models/tiny/vp-A/best.safetensors", output, *names, *options])


def results(path):
    record = json.loads(Path(path).read_text())
    return record, {row["id"]: row for row in record["points"]}


@pytest.mark.parametrize("grid", GUIDES)
@pytest.mark.first(2)
def test_a_guided_grid_differs_from_the_same_without_guidance_only_above_1(inside, grid):
    assert evaluate(grid, f"{grid}.json") == evaluate("ladder", "ladder.json") == 0
    record, rows = results(f"{grid}.json")
    _, plain = results("ladder.json")
    one, two = rows["guidance=1"], rows["guidance=2"]
    assert one["distance"] == plain["only"]["distance"] != two["distance"]
    assert (one["nfe"], two["nfe"]) == (3, 6) and "gflops" not in one
    nets = {name: params.load("params.yaml").experiment("tiny").models[name].network() for name in ("vp-A", "vp-B")}
    other = nets["vp-B"] if grid == "other" else nets["vp-A"]
    assert two["gflops"] == pytest.approx(3 * (flops(nets["vp-A"]) + flops(other)) / 1e9)
    assert list(record.get("guides", {})) == ([NAMED[grid]] if grid in NAMED else [])


def test_a_snapshot_at_an_ema_width_guides_otherwise_than_the_snapshot_and_than_the_last_average(inside):
    found = {}
    for grid in ("snapshot", "average", "early"):
        assert evaluate(grid, f"{grid}.json") == 0
        found[grid] = results(f"{grid}.json")[1]["guidance=2"]["distance"]
    assert len(set(found.values())) == 3
    early = checkpoint.describe("models/tiny/vp-A/ema-0.2-at-6.4e-05.safetensors")["about"]
    last = checkpoint.describe("models/tiny/vp-A/ema-0.2.safetensors")["about"]
    assert (early["images"], last["images"]) == (64, 128) and early["ema"]["width"] == last["ema"]["width"] == 0.2


def test_parts_of_a_guided_grid_merge_into_the_whole(inside):
    assert evaluate("snapshot", "whole.json") == 0
    parts = [f"{i}-of-2.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert evaluate("snapshot", part, "--shard", f"{i}/2") == 0
    assert evaluate("snapshot", "merged.json", "--parts", *parts) == 0
    (_, whole), (_, merged) = results("whole.json"), results("merged.json")
    for name, row in whole.items():
        assert merged[name]["nfe"] == row["nfe"] and merged[name].get("gflops") == row.get("gflops")
        assert merged[name]["distance"] == pytest.approx(row["distance"], rel=1e-9)


def test_a_missing_guide_is_named(inside, tmp_path, capsys):
    snapshot = next(Path("runs/tiny/vp-A/snapshots").glob("*64.safetensors"))
    kept = snapshot.rename(tmp_path / "kept")
    try:
        assert evaluate("snapshot", "none.json") == 1
        assert "000000000064.safetensors: not there; guide 'vp-A at 6.4e-05' is a snapshot" in capsys.readouterr().err
    finally:
        kept.rename(snapshot)


def test_sheets_and_searches_are_guided(inside):
    names = ["--experiment", "tiny", "--model", "vp-A", "--device", "cpu"]
    best = "models/tiny/vp-A/best.safetensors"
    assert main(["sheet", best, "sheet.safetensors", *names, "--sheet", "guided"]) == 0
    assert main(["search", best, "search.json", *names, "--search", "weight", "--ref", "ref.npz"]) == 0
    found = json.loads(Path("search.json").read_text())
    assert found["settings"].keys() == {"guidance", "guidance_max"} and "vp-B" in found["guides"]


def test_a_guide_is_an_input_of_the_steps_that_use_it(inside):
    """Its checkpoint is made before, and another training of it makes them stale; others stay."""
    loaded = params.load("params.yaml", whole=True)
    chain = Chain(loaded)
    guided = {name: job for name, job in chain.by_name.items() if "guides" in job.inputs}
    models = {name: (f"models/tiny/{path}.safetensors",) for name, path in (
        ("vp-A", "vp-A/model"), ("vp-B", "vp-B/model"), ("average", "vp-A/ema-0.2"),
        ("early", "vp-A/ema-0.2-at-6.4e-05"))}  # fmt: skip
    shards = {
        f"shard tiny/vp-A/{grid}/{part}-of-2": models[model]
        for grid, model in (("other", "vp-B"), ("snapshot", "vp-A"), ("average", "average"), ("early", "early"))
        for part in (1, 2)
    }
    assert {name: job.inputs["guides"] for name, job in guided.items()} == {
        "evaluate tiny/vp-A/other": models["vp-B"], "evaluate tiny/vp-A/snapshot": models["vp-A"],
        "evaluate tiny/vp-A/average": models["average"], "evaluate tiny/vp-A/early": models["early"],
        "sample tiny/vp-A/guided": models["vp-B"], "search tiny/vp-A/weight": models["vp-B"], **shards,
    }  # fmt: skip
    maker = chain.makers[models["early"][0]]
    assert maker.name == "average tiny/vp-A/0.2-at-6.4e-05" and maker.files == models["vp-A"]
    assert chain.specification(maker) == {"width": 0.2, "images": 64}
    raw = guided_chain()
    raw["experiments"]["tiny"]["ladder"]["B"]["learning_rate"] = 2e-3
    Path("changed.yaml").write_text(yaml.safe_dump(raw))
    before, after = Provenance(chain), Provenance(Chain(params.load("changed.yaml", whole=True)))
    changed = {name for name, job in chain.by_name.items() if job.rule in ("evaluate", "sample", "search")
               and before.digest(job) != after.digest(after.chain.by_name[name])}  # fmt: skip
    assert changed == {"evaluate tiny/vp-A/other", "sample tiny/vp-A/guided", "search tiny/vp-A/weight"}


def test_the_command_sample_is_guided_by_a_file_or_by_the_null_label(inside, capsys):
    net = "models/tiny/vp-A/model.safetensors"
    for guide in ("models/tiny/vp-B/model.safetensors", "null"):
        assert main(["sample", net, "s.safetensors", "--seeds", "0-3", "--steps", "2", "--device", "cpu",
                     "--guide", guide, "--guidance", "2", "--guidance-max", "10"]) == 0  # fmt: skip
    assert main(["sample", net, "s.safetensors", "--guidance", "2", "--device", "cpu"]) == 1
    assert "guidance has no effect without a guide" in capsys.readouterr().err
