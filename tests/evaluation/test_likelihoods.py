"""Likelihoods of params.yaml: shards with the same numbers, the table, the figure, and where a number comes from."""

import copy
import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from test_choosing import chain

import edm
from edm import params
from edm.analysis.bits import read_bits
from edm.chain.jobs import Chain
from edm.chain.plan import make_plan
from edm.chain.provenance import Provenance
from edm.cli import main
from edm.report.captions import Captions
from edm.report.figures import Places, write_figure
from edm.report.lineage import trace
from edm.report.results import Results
from edm.report.tables import build_table
from edm.report.writers import as_csv
from edm.tracking import read_journal
from edm.training.curves import write_curves

NAMES = ["--experiment", "tiny", "--likelihood", "held-out", "--device", "cpu"]


def raw(shards=2, **stated):
    found = chain(seed=0)
    tiny = found["experiments"]["tiny"]
    del tiny["choose"]
    tiny["base"] |= {"snapshot_every": None, "lr_rampup": 0, "learning_rate": 0.02, "conditional": True}
    tiny["ladder"]["B"] = {"model_channels": 16}
    tiny["sampling"] |= {"shards": shards}
    tiny["likelihoods"] = {"held-out": {"models": "ladder", "dataset": "other", "images": 30, "num_steps": 3,
                                        "probes": 2, **stated}}  # fmt: skip
    tiny["tables"] = {"L1": {"kind": "likelihood", "title": "Bits per dimension", "likelihood": "held-out"}}
    tiny["figures"] = {"L1": {"kind": "likelihood", "likelihood": "held-out"}}
    digits = found["datasets"]["digits"]
    found["datasets"] |= {"digits": {**digits, "held_out": 0.1}, "other": {**digits, "held_out": 0.1, "split": "test"}}
    return found


def loaded(found):
    Path("params.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    return params.load("params.yaml", whole=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded(raw())
        for dataset in ("digits", "other"):
            assert main(["prepare", f"data/{dataset}.zip", "--dataset", dataset]) == 0
        for model in ("vp-A", "vp-B"):
            names = ["--experiment", "tiny", "--model", model, "--device", "cpu", "--data", "data/digits.zip"]
            assert main(["train", *names, "--out", f"runs/tiny/{model}", "--final", f"models/tiny/{model}"]) == 0
    return folder


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    loaded(raw())
    return project


def likelihood(model, output, *options):
    checkpoint = f"models/tiny/{model}/model.safetensors"
    return main(["likelihood", checkpoint, "data/other.zip", output, *NAMES, "--model", model, *options])


@pytest.mark.first(1)
def test_shards_give_the_numbers_of_a_single_job_to_the_bit(inside, capsys):
    assert likelihood("vp-A", "whole.json") == 0
    parts = [f"{number}-of-3.json" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert likelihood("vp-A", part, "--shard", f"{number}/3") == 0
    assert likelihood("vp-A", "merged.json", "--parts", *reversed(parts)) == 0
    whole, merged = map(read_bits, ("whole.json", "merged.json"))
    assert whole["each"] == merged["each"] and len(set(whole["each"])) == whole["images"] == 30
    for name in ("bits_per_dimension", "s", "spread", "checkpoint", "dataset_sha256", "num_steps", "probes"):
        assert whole[name] == merged[name]
    assert whole["spread"] > 0 and (whole["num_steps"], whole["probes"], whole["trace"]) == (3, 2, "hutchinson")
    assert likelihood("vp-A", "few.json", "--parts", *parts[:2]) == 1
    assert "2 parts with 24 of 30 images; name all parts" in capsys.readouterr().err
    assert likelihood("vp-A", "few.json", "--parts", parts[0], parts[2]) == 1
    assert "3-of-3.json: does not follow the part before it" in capsys.readouterr().err
    assert likelihood("vp-B", "other.json", "--parts", *parts) == 1
    assert "1-of-3.json: is a part of another likelihood" in capsys.readouterr().err


def test_the_settings_are_those_of_params_or_those_of_the_command_line(inside, capsys):
    options = ["--images", "30", "--steps", "3", "--probes", "2", "--block", "12", "--device", "cpu"]
    assert main(["likelihood", "models/tiny/vp-A/model.safetensors", "data/other.zip", "by-hand.json", *options]) == 0
    assert likelihood("vp-A", "whole.json") == 0
    assert read_bits("by-hand.json")["each"] == read_bits("whole.json")["each"]
    assert likelihood("vp-A", "none.json", "--expect", "0" * 12) == 1
    assert "params.yaml was changed after this job was planned" in capsys.readouterr().err
    assert main(["likelihood", "m", "data/other.zip", "none.json", "--experiment", "tiny"]) == 1
    assert "--experiment, --model and --likelihood belong together" in capsys.readouterr().err


def test_jobs_and_their_specification(inside):
    built = Chain(params.load("params.yaml"))
    job = built.by_name["likelihood tiny/vp-A/held-out"]
    assert job.inputs == {"model": ("models/tiny/vp-A/model.safetensors",), "dataset": ("data/other.zip",)}
    assert job.outputs == ("results/tiny/likelihoods/vp-A/held-out.json",)
    assert job.parts == tuple(f"runs/tiny/vp-A/likelihoods/held-out.shards/{number}-of-2.json" for number in (1, 2))
    stated = {"images": 30, "num_steps": 3, "solver": "heun", "trace": "hutchinson", "probes": 2}
    shard = built.by_name["likelihood_shard tiny/vp-A/held-out/1-of-2"]
    assert built.specification(job) == built.specification(shard) == stated
    one = Chain(loaded(raw(shards=1)))
    assert one.by_name[job.name].parts == ()
    assert Provenance(one).digest(one.by_name[job.name]) == Provenance(built).digest(job)
    loaded(raw())
    plan = make_plan(built.params, "tiny/L1", everything=True).by_rule
    assert (plan["likelihood"].jobs, plan["likelihood_shard"].jobs) == (2, 4)
    assert plan["likelihood_shard"].evaluations == (2 * 30 * 6 * 5,) * 2 and plan["likelihood"].evaluations == (0, 0)
    assert set(built.targets("tiny")) > {"results/tiny/tables/L1.md", "results/tiny/figures/L1.png"}


@pytest.mark.slow
def test_the_table_and_the_figure_have_the_likelihood_beside_the_bound(inside):
    report = params.load("params.yaml").report("tiny")
    places = Places(*map(Path, ("results", "runs", "data", "models")))
    results = Results(places.results, places.runs)
    Path("results/tiny/likelihoods/vp-B/held-out.json").unlink(missing_ok=True)
    journal = "runs/tiny/vp-A/likelihoods/held-out.journal.jsonl"
    found = "results/tiny/likelihoods/vp-A/held-out.json"
    assert likelihood("vp-A", found, "--journal", journal) == 0
    table = build_table(report, "L1", results)
    assert table.columns == ["exact", "bound", "diffusion", "prior", "reconstruction"]
    first, other = table.rows["vp-A"], table.rows["vp-B"]
    bits = read_bits(found)
    assert first[0].value == bits["bits_per_dimension"] and first[0].s == bits["s"] and other[0].ours() == "not run"
    assert first[1].value is not None and first[1].value == pytest.approx(sum(cell.value for cell in first[2:]))
    (run,) = read_journal(journal)
    assert run.status == "FINISHED" and bits["run"] == "tiny/vp-A/likelihood/held-out"
    assert likelihood("vp-B", "results/tiny/likelihoods/vp-B/held-out.json") == 0
    table = build_table(report, "L1", results)
    lowest = min(table.rows, key=lambda row: table.rows[row][0].value)
    assert [row for row, cells in table.rows.items() if cells[0].best] == [lowest]
    assert any("30 images, 3 steps, probes: 2" in note for note in table.notes)
    svg = next(path for path in write_figure(report, "L1", places) if path.suffix == ".svg").read_text()
    assert "likelihood, by the ODE" in svg and "bound, on training images" in svg
    assert "of 30 images of other" in Captions(Chain(params.load("params.yaml"))).figure("tiny", "L1")


def test_what_cannot_be_told_from_the_lowest_is_marked_image_by_image(inside):
    """Two models whose images differ by chance alone, although the spread over images is far larger."""
    report = params.load("params.yaml").report("tiny")
    assert likelihood("vp-A", "whole.json") == 0
    record = json.loads(Path("whole.json").read_text())
    for shift, tied in ((1e-4, True), (1e-2, False)):
        for model, sign in (("vp-A", 0), ("vp-B", 1)):
            changed = copy.deepcopy(record)
            changed["each"] = [bits + sign * (shift + 1e-3 * (-1) ** i) for i, bits in enumerate(record["each"])]
            changed["bits_per_dimension"] = sum(changed["each"]) / len(changed["each"])
            path = Path(f"results/tiny/likelihoods/{model}/held-out.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(changed))
        rows = build_table(report, "L1", Results(Path("results"), Path("runs"))).rows
        assert rows["vp-A"][0].best and rows["vp-B"][0].tied == tied
    path.write_text(json.dumps({**changed, "each": changed["each"][:5]}))
    with pytest.raises(edm.UserError, match="has 5 numbers for 30 images; delete it and run snakemake again"):
        build_table(report, "L1", Results(Path("results"), Path("runs")))
    path.unlink()


def test_the_lineage_of_a_likelihood_names_its_file_and_measures_again(inside):
    assert likelihood("vp-A", "results/tiny/likelihoods/vp-A/held-out.json") == 0
    found = trace(params.load("params.yaml"), "tiny/L1", "vp-A", "exact")
    bits = read_bits("results/tiny/likelihoods/vp-A/held-out.json")
    assert found["cell"]["value"] == bits["bits_per_dimension"] and found["cell"]["likelihood"] == "held-out"
    files = [step["file"] for step in found["steps"]]
    assert files[0] == "results/tiny/likelihoods/vp-A/held-out.json" and "data/other.zip" in files
    assert "edm launch -- likelihood models/tiny/vp-A/model.safetensors data/other.zip" in found["measure_again"][0]


@pytest.mark.parametrize(("change", "says"), [
    (lambda tiny: tiny["likelihoods"]["held-out"].pop("dataset"), "likelihoods.held-out: state a dataset"),
    (lambda tiny: tiny["likelihoods"]["held-out"].update(dataset="othr"), "'othr' is not defined; did you mean"),
    (lambda tiny: tiny["likelihoods"]["held-out"].update(models=["vp-C"]), "model 'vp-C' is not defined"),
    (lambda tiny: tiny["likelihoods"]["held-out"].update(dataset="wide"), "'wide' has resolution 16"),
    (lambda tiny: tiny["likelihoods"]["held-out"].update(solver="rk45"), "'rk45' is not one of heun, euler"),
    (lambda tiny: tiny["tables"]["L1"].update(likelihood="test"), "'test' is not defined; tiny has held-out"),
    (lambda tiny: tiny["likelihoods"]["held-out"].update(models=["vp-A"]), "is not computed for model 'vp-B'"),
    (lambda tiny: tiny["figures"]["L1"].pop("likelihood"), "key 'likelihood' is missing"),
])  # fmt: skip
def test_wrong_entries_are_refused_in_one_line(tmp_path, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    found = raw()
    found["datasets"]["wide"] = {"source": "folder", "path": "wide", "resolution": 16, "channels": 1, "classes": 10}
    change(found["experiments"]["tiny"])
    with pytest.raises(edm.UserError) as caught:
        loaded(found)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_experiment_shares_the_likelihoods_of_shared_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = raw()
    found["experiments"]["more"] = {"extends": "tiny", "ladder": {"B": {"model_channels": 8, "dropout": 0.2}}}
    experiment = loaded(found).experiment("more")
    owners = {model: experiment.owner("likelihood", model, "held-out") for model in ("vp-A", "vp-B")}
    assert owners == {"vp-A": "tiny", "vp-B": "more"}


def test_tables_and_captions_say_that_the_likelihood_is_that_of_a_chosen_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def texts():
        there = loaded(found)
        notes = " ".join(build_table(there.report("tiny"), "L1", Results(Path("results"), Path("runs"))).notes)
        captions = Captions(Chain(there))
        return notes, captions.table("tiny", "L1"), captions.figure("tiny", "L1")

    found = raw()
    assert not any("snapshots" in text for text in texts())
    tiny = found["experiments"]["tiny"]
    original = chain(seed=0)["experiments"]["tiny"]
    tiny["choose"], tiny["base"]["snapshot_every"] = original["choose"], original["base"]["snapshot_every"]
    for text in texts():
        assert "best of 2 snapshots" in text and "the bound is that of the final model" in text


@pytest.mark.slow
def test_of_several_training_runs_tables_and_figures_show_mean_and_spread(inside, tmp_path, monkeypatch):
    """Numbers of the files: of three runs of vp-A and two of vp-B so far, whose images differ between runs."""
    assert likelihood("vp-A", "whole.json") == 0
    record, levels = json.loads(Path("whole.json").read_text()), Path("models/tiny/vp-A/levels.json").read_text()
    monkeypatch.chdir(tmp_path)
    found = raw()
    found["experiments"]["tiny"]["seeds"] = [0, 1, 2]
    report = loaded(found).report("tiny")
    built = Chain(params.load("params.yaml"))
    assert "likelihood tiny/vp-A@2/held-out" in built.by_name
    inputs = built.by_name["table tiny/L1"].inputs["results"]
    assert {"results/tiny/likelihoods/vp-A@1/held-out.json", "models/tiny/vp-B@2/levels.json"} <= set(inputs)
    assert set(built.by_name["figure tiny/L1"].inputs["results"]) == set(inputs)
    shifts = {"vp-A": 0.0, "vp-A@1": 0.3, "vp-A@2": 0.6, "vp-B": 0.4, "vp-B@1": 0.5}
    for model, shift in shifts.items():
        changed = record | {"each": [bits + shift for bits in record["each"]]}
        changed["bits_per_dimension"] = sum(changed["each"]) / len(changed["each"])
        path = Path(f"results/tiny/likelihoods/{model}/held-out.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(changed))
        curves = json.loads(levels)
        curves["after"]["mean"] = [error * (1 + shift) for error in curves["after"]["mean"]]
        path = Path(f"models/tiny/{model}/levels.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(curves))
    table = build_table(report, "L1", Results(Path("results"), Path("runs")))
    bits, (first, bound_of, *terms) = record["bits_per_dimension"], table.rows["vp-A"]
    assert first.value == pytest.approx(bits + 0.3) and first.spread == pytest.approx(0.3) and first.training_runs == 3
    assert first.ours() == f"{bits + 0.3:.2f} ± 0.30" and bound_of.spread > 0 and " ± " in bound_of.ours()
    assert bound_of.value == pytest.approx(sum(term.value for term in terms))
    # By means the runs cannot be told apart, although all images of vp-A's first run are more probable than vp-B's.
    assert first.best and table.rows["vp-B"][0].tied
    notes = " ".join(table.notes)
    assert "mean and standard deviation over 2 or 3 training runs of different seeds" in notes
    assert "by means over training runs" in notes and "vp-B, exact: 2 of 3 training runs so far." in notes
    places, drawn = Places(*map(Path, ("results", "runs", "data", "models"))), {}
    monkeypatch.setattr("edm.report.panels.bits_of_models", lambda shown, *rest: drawn.update(shown))
    write_figure(report, "L1", places)
    assert drawn["likelihood, by the ODE"]["vp-A"] == pytest.approx((bits + 0.3, 0.3))
    assert drawn["bound, on training images"]["vp-A"] == pytest.approx((bound_of.value, bound_of.spread))
    assert "one standard deviation over training runs" in Captions(built).figure("tiny", "L1")
    lineage = trace(params.load("params.yaml"), "tiny/L1", "vp-A", "exact")
    cell = lineage["cell"]
    assert cell["value"] == pytest.approx(bits) and "mean of 3 training runs" in cell["table_shows"]
    cells = {(row["row"], row["column"]): row for row in csv.DictReader(io.StringIO(as_csv(table)))}
    shown = cells["vp-A", "exact"]
    assert (shown["ours"], shown["training_runs"]) == (repr(first.value), "3")
    assert shown["spread_of_training_runs"] == repr(first.spread)
    assert cells["vp-A", "prior"]["ours"] == repr(terms[1].value) and cells["vp-B", "prior"]["training_runs"] == "2"


def in_files(runs):
    """Likelihoods and errors per noise level, made up: bits per dimension of each training run."""
    levels = {"sigma": [0.0025, 0.5, 100], "mean": [6e-6, 0.12, 0.25], "std": [1e-6, 0.01, 0.1], "samples": 64}
    for model, bits in runs.items():
        record = {"bits_per_dimension": bits, "s": 0.1, "images": 3, "spread": None, "num_steps": 3, "probes": 1,
                  "each": [bits - 0.1, bits, bits + 0.1], "trace": "exact", "dataset_sha256": "d" * 64,
                  "checkpoint": {"sha256": "c" * 64}}  # fmt: skip
        path = Path(f"results/tiny/likelihoods/{model}/held-out.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record | {"format": "edm-likelihood/1"}))
        path = Path(f"models/tiny/{model}/levels.json")
        path.parent.mkdir(parents=True)
        after = levels | {"mean": [error * bits / 3 for error in levels["mean"]]}
        write_curves(path, levels, after, {"images": [1], "loss": [1.0]})


def test_a_number_of_a_later_training_run_is_traced_to_that_run(tmp_path, monkeypatch):
    """The first training runs of both models failed: their files are not there."""
    monkeypatch.chdir(tmp_path)
    found = raw()
    found["experiments"]["tiny"]["seeds"] = [0, 1, 2]
    there = loaded(found)
    in_files({"vp-A@1": 3.0, "vp-A@2": 3.2, "vp-B@1": 3.5})
    for row, column in (("vp-A", "exact"), ("vp-A", "bound"), ("vp-B", "exact"), ("vp-B", "bound")):
        lineage = trace(there, "tiny/L1", row, column)
        assert lineage["cell"]["model"] == f"{row}@1"
        assert f"{row}@1" in lineage["measure_again"][0] and lineage["steps"][0]["sha256"]


def test_the_note_on_bold_says_how_each_pair_was_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = raw()
    found["experiments"]["tiny"]["ladder"]["C"] = {"model_channels": 24}
    found["experiments"]["tiny"]["seeds"] = [0, 1, 2]
    report = loaded(found).report("tiny")

    def note(runs):
        in_files(runs)
        return next(note for note in build_table(report, "L1", Results(Path("results"), Path("runs"))).notes
                    if note.startswith("Exact"))  # fmt: skip

    assert "(|z| below 2, image by image)" in note({"vp-B": 3.0, "vp-C": 3.1})
    both = note({"vp-A": 3.2, "vp-A@1": 3.4})
    assert "(|z| below 2, by means over training runs, of two single training runs image by image)" in both
    assert "(|z| below 2, by means over training runs)" in note({"vp-B@1": 3.0, "vp-C@1": 3.1})


def test_seeds_first_computes_the_likelihood_of_the_first_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = raw(seeds="first")
    found["experiments"]["tiny"]["seeds"] = [0, 1]
    built = Chain(loaded(found))
    assert [job.key[1] for job in built.jobs() if job.rule == "likelihood"] == ["vp-A", "vp-B"]
    assert built.specification(built.by_name["likelihood tiny/vp-A/held-out"]).keys() == {
        "images", "num_steps", "solver", "trace", "probes"}  # fmt: skip
