"""Choosing among averages of snapshots, with and without the snapshots, on the command line and in the chain."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_choosing import chain, loaded, train

import edm
from edm import params
from edm.chain.jobs import Chain
from edm.chain.plan import make_plan
from edm.chain.provenance import Provenance
from edm.cli import main
from edm.files.tensors import load_tensors, save_tensors
from edm.files.writing import write_json
from edm.models import checkpoint
from edm.report.results import Results
from edm.report.tables import build_table

WIDTHS = [0.1, 0.2]
SNAPSHOTS = ["000000000064.safetensors", "000000000128.safetensors"]
AVERAGES = ["ema-0.1.safetensors", "ema-0.2.safetensors"]
OF = ["--experiment", "tiny", "--model", "vp-A"]
FINAL = "models/tiny/vp-A"


def choosing(**changes):
    raw = chain(seed=0)
    tiny = raw["experiments"]["tiny"]
    tiny["base"] |= {"lr_rampup": 0, "learning_rate": 0.02}
    tiny["choose"] |= {"ema": WIDTHS} | changes
    tiny["tables"] = {"best": {"kind": "samplers", "title": "Best", "nfe": "of the best", "rows": {"Ours": "ladder"}}}
    return raw


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_archive):
    """A training run with two snapshots in the folders of the chain, two averages of them, and the reference."""
    folder = tmp_path_factory.mktemp("widths")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(choosing(), digits_archive)
        assert main(["average", "runs/tiny/vp-A", "--width", "0.1", "0.2", "--out", FINAL, *OF]) == 0
    return folder


@pytest.fixture
def inside(trained, tmp_path, monkeypatch):
    """A copy of it, since tests change it."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def choose(averages=AVERAGES, output="best.safetensors", more=()):
    files = [f"{FINAL}/{name}" for name in averages]
    words = [*OF, "--ref", "ref.npz", "--device", "cpu", *(["--averages", *files] if files else []), *more]
    return main(["choose", "runs/tiny/vp-A/snapshots", f"{FINAL}/{output}", *words])


def path_of(name):
    return Path(FINAL, name) if name in AVERAGES else Path("runs/tiny/vp-A/snapshots", name)


def spoil(name):
    """Makes the images of a candidate far worse: white."""
    tensors, header = load_tensors(path_of(name), checkpoint.FORMAT)
    (bias,) = (key for key in tensors if key.endswith("out_conv.bias"))
    save_tensors(path_of(name), tensors | {bias: tensors[bias] + 30}, header)


@pytest.mark.parametrize("winner", [SNAPSHOTS[0], *AVERAGES])
@pytest.mark.first(1)
def test_the_best_is_taken_whether_it_is_a_snapshot_or_an_average(inside, winner):
    loaded(choosing(confirm=2))
    for name in {*SNAPSHOTS, *AVERAGES} - {winner}:
        spoil(name)
    assert choose() == 0
    record = json.loads(Path(FINAL, "choice.json").read_text())
    assert record["best"] == winner and record["cheap"].keys() == {*SNAPSHOTS, *AVERAGES} and len(record["full"]) == 2
    assert record["value"] == min(record["full"].values()) and record["ema"] == WIDTHS
    assert Path(FINAL, "best.safetensors").read_bytes() == path_of(winner).read_bytes()


def test_widths_alone_compete_without_snapshots(inside):
    loaded(choosing(snapshots=False, confirm="all"))
    assert choose() == 0
    record = json.loads(Path(FINAL, "choice.json").read_text())
    assert record["full"].keys() == set(AVERAGES) and record["snapshots"] is False
    assert record["best"] == min(record["full"], key=record["full"].get)
    # Measured by the other commands, from the images of the same seeds:
    best = f"{FINAL}/best.safetensors"
    sampled = ["--seeds", f"{record['first_seed']}-{record['first_seed'] + 23}", "--steps", "2", "--block", "12"]
    assert main(["sample", best, "samples.safetensors", *sampled, "--device", "cpu"]) == 0
    assert main(["fid", "samples.safetensors", "--ref", "ref.npz", "--output", "fid.json", "--device", "cpu"]) == 0
    (point,) = json.loads(Path("fid.json").read_text())["points"]
    assert point["distance"] == pytest.approx(record["value"], rel=1e-6)


def test_the_journal_keeps_widths_apart_although_all_have_seen_the_same_images(inside):
    loaded(choosing())
    assert choose() == 0
    lines = Path("runs/tiny/vp-A/choice.journal.jsonl").read_text().splitlines()
    values = [entry["values"] for entry in map(json.loads, lines) if entry["event"] == "metrics"]
    assert {"FD_of_12", "FD_of_12_ema_0.1", "FD_of_12_ema_0.2"} <= {name for row in values for name in row}


def test_history_and_journal_are_where_the_command_names_them(inside, capfd):
    loaded(choosing())
    named = ["--journal", "mine/choice.journal.jsonl", "--history", "mine/choice.history.jsonl"]
    assert choose(more=named) == 0 and capfd.readouterr().err.count("of 12 images") == 4
    assert all(Path(path).stat().st_size for path in named[1::2])
    assert not list(Path("runs/tiny/vp-A").glob("choice.*"))
    assert choose(more=named) == 0 and "of 12 images" not in capfd.readouterr().err


def test_an_average_that_competes_is_not_overwritten(inside, capsys):
    loaded(choosing())
    before = path_of(AVERAGES[0]).read_bytes()
    assert choose(output=AVERAGES[0]) == 1
    assert "is read by this command and would be replaced" in capsys.readouterr().err
    assert path_of(AVERAGES[0]).read_bytes() == before


def test_other_averages_than_those_of_params_are_refused(inside, capsys):
    loaded(choosing())
    assert choose(AVERAGES[:1]) == 1
    assert "the choice of vp-A is among ema-0.1.safetensors, ema-0.2.safetensors" in capsys.readouterr().err


def test_averages_are_inputs_of_the_choice_and_a_changed_list_makes_it_stale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = Chain(loaded(choosing()))
    job = built.by_name["choose tiny/vp-A"]
    assert job.inputs["averages"] == tuple(f"{FINAL}/{name}" for name in AVERAGES)
    assert [built.makers[path].name for path in job.inputs["averages"]] == [
        "average tiny/vp-A/0.1", "average tiny/vp-A/0.2"]  # fmt: skip
    assert built.specification(job)["ema"] == WIDTHS
    plan = make_plan(built.params, "tiny/best", everything=True).by_rule
    assert plan["average"].jobs == 2 and plan["choose"].drawn == (4 * 12 + 24, 4 * 12 + 24)
    before = Provenance(built)
    for changes in ({"ema": [0.1, 0.2, 0.25]}, {"snapshots": False}):
        after = Provenance(Chain(loaded(choosing(**changes), "changed.yaml")))
        other = after.chain.by_name["choose tiny/vp-A"]
        assert before.digest(job) != after.digest(other)
        evaluate = "evaluate tiny/vp-A/ladder"
        assert before.digest(built.by_name[evaluate]) != after.digest(after.chain.by_name[evaluate])
    plain = chain(seed=0)
    assert "ema" not in params.load(_written(plain), whole=True).experiment("tiny").choice_spec("vp-A")


def _written(raw):
    Path("plain.yaml").write_text(yaml.safe_dump(raw))
    return "plain.yaml"


def test_each_training_run_chooses_among_averages_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = choosing()
    raw["experiments"]["tiny"]["seeds"] = [0, 1]
    raw["experiments"]["more"] = {"extends": "tiny", "choose": {"ema": [0.1, 0.2]}, "title": "More"}
    built = Chain(loaded(raw))
    assert built.by_name["choose tiny/vp-A@1"].inputs["averages"][0] == "models/tiny/vp-A@1/ema-0.1.safetensors"
    assert built.experiments["more"].owner("choose", "vp-A@1") == "tiny"
    raw["experiments"]["more"]["choose"] = {"ema": [0.1, 0.25]}
    job = Chain(loaded(raw)).by_name["choose more/vp-A"]
    assert job.inputs["averages"] == (f"{FINAL}/ema-0.1.safetensors", "models/more/vp-A/ema-0.25.safetensors")


def test_tables_say_what_was_chosen_and_from_how_many(inside):
    report = loaded(choosing(confirm=2)).report("tiny")
    for name in (*SNAPSHOTS, AVERAGES[0]):
        spoil(name)
    assert choose() == 0
    words = [*OF, "--evaluation", "ladder", "--ref", "ref.npz", "--device", "cpu"]
    assert main(["evaluate", f"{FINAL}/best.safetensors", "results/tiny/distances/vp-A/ladder.json", *words]) == 0
    notes = " ".join(build_table(report, "best", Results(Path("results"), Path("runs"))).notes)
    assert "Chosen: vp-A, EMA width 0.2." in notes
    assert ("best of 2 snapshots and 2 EMA widths (ranked with 12 images, the best 2 again with 24), measured again on "
            "fresh seeds") in notes  # fmt: skip


def test_tables_of_two_experiments_say_of_each_what_was_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = choosing()
    raw["experiments"]["more"] = {"extends": "tiny", "choose": {"ema": [0.1, 0.25]}, "title": "More"}
    both = {"kind": "samplers", "title": "Both", "nfe": "of the best", "rows": {"Ours": "ladder"},
            "columns": {"tiny": "t/vp-A", "more": "m/vp-A"}}  # fmt: skip
    raw["reports"] = {"both": {"title": "Both", "experiments": {"t": "tiny", "m": "more"}, "tables": {"best": both}}}
    report = loaded(raw).report("both")
    for one, width in (("tiny", 0.1), ("more", 0.25)):
        path = Path(f"results/{one}/distances/vp-A/ladder.json")
        (evaluation,) = params.load("params.yaml").experiment(one).evaluations_of("vp-A", "ladder")
        ((point, _),) = evaluation.draws
        row = {"id": point.id, "repeat": 0, "first_seed": 0, "run": "r", "sampler": point.sampler.to_dict(),
               "images": 24, "nfe": 3, "distance": 5.0}  # fmt: skip
        ema = {"width": width, "residual": 0.0, "total": 1.0}
        about = {"path": "best.safetensors", "sha256": "c" * 64, "dataset_sha256": "d" * 64, "ema": ema}
        record = {"format": "edm-distances/2", "experiment": one, "model": "vp-A", "grid": "ladder", "more": [],
                  "evaluation": "ladder", "settings": None, "metric": {"label": "FD", "description": "a test"},
                  "points": [row], "checkpoint": about, "commit": "c0ffee", "dirty": "false"}  # fmt: skip
        write_json(path, record)
    notes = build_table(report, "best", Results(Path("results"), Path("runs"))).notes
    assert "Chosen: tiny/vp-A, EMA width 0.1; more/vp-A, EMA width 0.25." in notes


@pytest.mark.parametrize(("changes", "says"), [
    ({"ema": 0.5}, "choose.ema: 0.5 is greater than the maximum"),
    ({"ema": [0.1, 0.1]}, "choose.ema: [0.1, 0.1] has an entry twice"),
    ({"snapshot": False}, "'snapshot'"),
    ({"ema": [], "snapshots": False}, "choose.ema"),
])  # fmt: skip
def test_a_choice_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, changes, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(edm.UserError) as caught:
        loaded(choosing(**changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_without_snapshots_and_without_widths_nothing_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = choosing(snapshots=False)
    del raw["experiments"]["tiny"]["choose"]["ema"]
    with pytest.raises(edm.UserError, match="without snapshots there is nothing to choose from; list EMA widths"):
        loaded(raw)
    raw = choosing()
    raw["experiments"]["tiny"]["base"] |= {"ema_halflife": 0}
    with pytest.raises(edm.UserError, match=r"choose: ema 0\.1: snapshots of vp-A average nothing"):
        loaded(raw)
