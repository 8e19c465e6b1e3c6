"""The workflow: a tiny experiment through the real rules, in a folder of its own."""

import base64
import copy
import html
import json
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
from pathlib import Path

import forking
import miniature
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
RAW = miniature.raw()


def snakemake(folder, *words, **environment):
    """Runs plain snakemake in a folder, with the commands of this environment."""
    command = ["snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--cores", "2", *words]
    return forking.run(command, folder, environment)


def write_params(folder, change=lambda tiny: None, uri=None):
    digits = copy.deepcopy(RAW["experiments"]["digits"])
    digits["ladder"]["A"] |= {"lr_rampup": 0.004, "ema_halflife": 0.005}
    tiny = {
        **digits,
        "base": {
            "model_channels": 8,
            "num_blocks": 1,
            "attn_resolutions": [4],
            "duration": 0.00128,
            "level_samples": 16,
        },
        "ladder": {rung: digits["ladder"][rung] for rung in ("A", "F")},
        "sampling": {"images": 80, "block": 40},
        "models": {},
        "grids": {"ladder": {"models": "all", "num_steps": 2}, "steps": {"models": ["vp-A"], "num_steps": [1, 3]}},
        "sheets": {"samples": {"models": "all", "num_steps": 2, "images": 20}},
        "analyses": {},
        "tables": {
            "table2": {"kind": "configurations", "title": "Ladder {A}", "grid": "ladder"},
            "table3": {"kind": "samplers", "title": "Steps", "nfe": "within 3 %", "rows": {"ours": "steps"}},
        },
        "figures": {
            "nfe": {"kind": "curve", "over": "nfe", "table": "table3", "column": "vp-A"},
            "levels": {"kind": "levels"},
            "samples": {"kind": "sheets", "dataset": "digits", "panels": ["vp-A:samples", "vp-F:samples"]},
        },
    }
    change(tiny)
    raw = {"run": ["tiny"], "datasets": RAW["datasets"], "experiments": {"tiny": tiny}}
    if uri:
        raw["tracking"] = {"uri": uri}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def planned(folder):
    """What a dry run says it would do, job by job."""
    done = snakemake(folder, "-n")
    assert done.returncode == 0, done.stderr + done.stdout
    return sorted(re.findall(r"^would run: (.*)$", done.stdout + done.stderr, flags=re.M))


@pytest.mark.slow
def test_an_experiment_that_shares_training_runs_chooses_among_their_snapshots_for_itself(tmp_path):
    write_params(tmp_path, lambda tiny: tiny["base"].update(snapshot_every=0.00064))
    raw = yaml.safe_load((tmp_path / "params.yaml").read_text())
    raw["experiments"]["mine"] = {"extends": "tiny", "choose": {"grid": "ladder", "images": 40, "confirm": 1}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"run": ["mine"]}))
    found = [line for line in planned(tmp_path) if line.startswith(("Train tiny", "Train mine", "Choose"))]
    assert found == [
        *(f"Choose the best snapshot of mine/vp-{rung}" for rung in "AF"), *(f"Train tiny/vp-{rung}" for rung in "AF"),
    ]  # fmt: skip


@pytest.mark.slow
def test_names_that_differ_in_a_mark_are_rules_of_their_own(tmp_path):
    write_params(tmp_path)
    raw = yaml.safe_load((tmp_path / "params.yaml").read_text())
    raw["downloads"] = {
        path: {"url": "https://example.org/"} for path in ("raw/a.b", "raw/a_b", "train", "é/" * 200 + "x")
    }
    made = {"source": "cifar10", "resolution": 8, "channels": 3, "classes": 10, "made_up": 20}
    raw["datasets"] |= {name: {**made, "path": f"runs/made-up/{name}"} for name in ("a.b", "a_b", "a-b")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    assert any("Train tiny/vp-A" in job for job in planned(tmp_path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder")  # with a space, as users have
    write_params(folder)
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_the_chain_ends_in_tables_figures_and_tracked_runs(finished):
    results = finished / "results" / "tiny"
    table = (results / "tables" / "table2.md").read_text()
    cell = re.search(r"\| F\b.*\| +\**([\d.]+)\** \|", table).group(1)
    measured = json.loads((results / "distances" / "vp-F" / "ladder.json").read_text())["points"][0]["distance"]
    assert cell == f"{measured:.2f}"
    for name in ("nfe", "levels", "samples"):
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (results / "figures" / f"{name}.svg").read_bytes()
    summary = json.loads((finished / "results" / "tiny" / "tracking.json").read_text())
    assert summary["runs_created"] == 2 + 4 + 2 + 2 + 3  # training runs, evaluations, sheets, tables, figures


def test_every_training_and_every_evaluation_is_a_run_in_mlflow(finished):
    code = (
        "import mlflow; c = mlflow.MlflowClient('sqlite:///mlruns/mlflow.db');"
        "e = c.get_experiment_by_name('tiny').experiment_id; import json;"
        "print(json.dumps([[r.data.tags['edm.key'], r.data.tags.get('mlflow.parentRunId'), r.info.run_id,"
        " r.info.status, r.data.metrics, r.data.params, r.data.tags, [f.path for d in ('', 'samples', 'figures',"
        " 'tables') for f in c.list_artifacts(r.info.run_id, d)], r.info.end_time - r.info.start_time]"
        " for r in c.search_runs([e])]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=finished, capture_output=True, text=True, check=True).stdout
    runs = {key: rest for key, *rest in json.loads(out.strip().splitlines()[-1])}
    assert set(runs) >= {"tiny/vp-A", "tiny/vp-F", "tiny/vp-A/steps/num_steps=1", "tiny/vp-A/steps/num_steps=3"}
    parent, _, status, metrics, values, tags, *_ = runs["tiny/vp-A/steps/num_steps=3"]
    assert parent == runs["tiny/vp-A"][1] and status == "FINISHED"
    assert metrics["nfe"] == 5 and metrics["FD"] > 0 and values["num_steps"] == "3"
    assert next(iter(metrics)) == "FD" and (tags["kind"], tags["grid"]) == ("evaluation", "steps")
    training = runs["tiny/vp-A"]
    assert training[3]["loss"] > 0 and training[4]["learning_rate"] == "0.001"
    assert training[3]["system/process_memory_megabytes"] > 100
    for name in ("params_sha256", "dataset_sha256", "host"):
        assert tags[name] and training[5][name]
    assert tags["dataset_sha256"] == training[5]["dataset_sha256"] and len(tags["checkpoint_sha256"]) == 64
    sheet = runs["tiny/vp-F/sheet/samples"]
    assert sheet[0] == runs["tiny/vp-F"][1] and sheet[6][-1] == "samples/samples.png"
    assert "figures/nfe.png" in runs["tiny/nfe"][6] and "tables/table2.md" in runs["tiny/table2"][6]
    makes = {
        "tiny/vp-F": "models/tiny/vp-F/model.safetensors",
        "tiny/vp-F/sheet/samples": "runs/tiny/vp-F/sheets/samples.safetensors",
        "tiny/vp-A/steps/num_steps=3": "results/tiny/distances/vp-A/steps.json",
        "tiny/table2": "results/tiny/tables/table2.md",
        "tiny/nfe": "results/tiny/figures/nfe.png",
    }
    notes = {key: runs[key][5]["mlflow.note.content"] for key in makes}
    assert [key for key, path in makes.items() if f"`snakemake --force {path}`" not in notes[key]] == []
    assert "images of vp-A, sampled with the settings `steps num_steps=3`" in notes["tiny/vp-A/steps/num_steps=3"]
    assert min(run[-1] for run in runs.values()) > 5, "a run of 0 ms is none"


@pytest.fixture(scope="module")
def page(finished):
    """The page of `snakemake --report` without network; its own text, and the data in it by the name of each."""
    dead = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
    done = snakemake(finished, "--report", "report.html", **dead, no_proxy="")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Missing metadata" not in done.stdout + done.stderr
    text = (finished / "report.html").read_text(encoding="utf-8")
    data = {name: json.loads(value) for name, value in re.findall(r"^    var (\w+) = ([{\[\"].*);$", text, re.M)}
    return text, data


def shown(page, path):
    """The file as the page holds it: its caption as plain text, and its content."""
    entry = page[1]["results"][path]
    caption = html.unescape(re.sub(r"<[^>]*>", "", entry["caption"]))
    return " ".join(caption.split()), base64.b64decode(entry["data_uri"].partition("base64,")[2])


def rows(page, name):
    """The rows of all tables of a page on how the report was made: the first cell → the others, where first so."""
    text = shown(page, f"results/tiny/about/{name}.html")[1].decode()
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text)]
    return {html.unescape(cells[0]): [html.unescape(cell) for cell in cells[1:]] for cells in reversed(found)}


def sidecars(folder):
    """Those of all steps that the report rests on."""
    found = [json.loads(path.read_text()) for path in (folder / "steps").rglob("*.json")]
    return [sidecar for sidecar in found if sidecar["rule"] not in ("about", "track")]


@pytest.mark.slow
def test_the_report_is_one_page_with_every_table_and_figure_and_their_captions(finished, page):
    text, data = page
    tables, figures = {"table2": "Ladder {A}", "table3": "Steps"}, ("nfe", "levels", "samples")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=.(https?:)?//", text)
    for name, title in tables.items():
        path = f"results/tiny/tables/{name}.html"
        caption, content = shown(page, path)
        assert content == (finished / path).read_bytes()
        assert title in data["results"][path]["labels"]["table"].replace("\u2060", "")
        assert title in caption and "80 images" in caption and "This is not FID" in caption
        assert f"It corresponds to Table {name[-1]} of the paper." in caption and "Dataset: digits." in caption
    for name in figures:
        path = f"results/tiny/figures/{name}.png"
        caption, content = shown(page, path)
        assert content == (finished / path).read_bytes() and len(caption) > 100
    assert "beside real ones: up to 20 each" in shown(page, "results/tiny/figures/samples.png")[0]
    assert "16 images per level" in shown(page, "results/tiny/figures/levels.png")[0]
    assert set(data["categories"]) == {"Tables", "Figures", "How it was made"}
    assert len(data["results"]) == len(tables) + len(figures) + 3
    front = data["workflow_desc"]
    archive = json.loads((finished / "steps/data/digits/prepare.json").read_text())["outputs"]["data/digits.zip"]
    assert "Elucidating the Design Space" in front and archive[:16] in front and "Tiny</h1>" in front
    assert all(sidecar.get("commit", "unknown")[:12] in front for sidecar in sidecars(finished))


@pytest.mark.slow
def test_the_report_tells_the_configuration_that_was_trained(finished, page):
    found = rows(page, "configuration")
    a, f = (json.loads((finished / f"steps/train/tiny/train/vp-{rung}.json").read_text())["specification"]["settings"]
            for rung in "AF")  # fmt: skip
    assert found["model"] == ["augment"] and "augment" not in a  # 0, the default
    assert found["vp-A"] == ["0"] and found["vp-F"] == [f"{f['augment']:g}"]
    for name in ("batch_size", "preconditioning", "model_channels"):
        assert found[name] == [str(a[name])] == [str(f[name])]
    assert found["duration"] == ["0.00128"] and found["sigma_data"] == ["0.5"]
    assert found["grid steps"] == ["vp-A", "num_steps = 1, 3", "1–5", "80"]
    assert found["sheet samples"] == ["vp-A, vp-F", "num_steps = 2", "3", "20"]


@pytest.mark.slow
def test_the_report_tells_versions_machines_and_times_as_the_sidecars_do(finished, page):
    environment, runtime, steps = rows(page, "environment"), rows(page, "runtime"), sidecars(finished)
    for sidecar in steps:
        for package, version in sidecar["versions"].items():
            assert environment[package] == [version, str(len(steps))]
        assert environment[sidecar["host"]][-1] == str(len(steps))
    archive = next(sidecar for sidecar in steps if sidecar["rule"] == "prepare")["outputs"]
    assert environment["data/digits.zip"] == ["made by prepare", archive["data/digits.zip"]]
    for rule in {sidecar["rule"] for sidecar in steps}:
        seconds = [sidecar["seconds"] for sidecar in steps if sidecar["rule"] == rule]
        times = (sum(seconds), statistics.median(seconds), max(seconds))
        if max(times) < 60:
            assert runtime[rule][:4] == [str(len(seconds)), *(f"{time:.1f} s" for time in times)]
    assert runtime["all"][0] == str(len(steps))


@pytest.mark.slow
def test_a_store_that_is_away_does_not_fail_the_chain_and_gets_the_runs_with_its_next_run(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    summary = folder / "results" / "tiny" / "tracking.json"
    runs = json.loads(summary.read_text())["runs"]
    write_params(folder, uri="sqlite:///away/mlflow.db")
    (folder / "away").write_text("a file where the folder should be")
    done = snakemake(folder, "--forcerun", "track")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning: sqlite:///away/mlflow.db: " in done.stdout + done.stderr
    assert json.loads(summary.read_text())["runs_pending"] == runs
    (folder / "away").unlink()
    assert snakemake(folder).returncode == 0
    delivered = json.loads(summary.read_text())
    assert (delivered["runs"], delivered["runs_pending"], delivered["runs_created"]) == (runs, 0, runs)
    assert (folder / "away" / "mlflow.db").exists()
    assert "Nothing to be done" in "".join(snakemake(folder).stderr)


def shell(folder, text):
    """What lines for a shell print, with the commands of this environment."""
    done = forking.run(["bash", "-ec", text], folder, {"PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("table", "words", "result", "model"), [
    ("table2", "A vp", "vp-A/ladder", "vp-A"), ("table2", "F", "vp-F/ladder", "vp-F"),
    ("table3", "ours vp-A", "vp-A/steps", "vp-A"),
])  # fmt: skip
@pytest.mark.slow
def test_a_number_is_traced_and_measured_again_to_the_last_digit(table, words, result, model, finished):
    results = finished / "results" / "tiny" / "distances" / f"{result}.json"
    before, lowest = results.read_bytes(), min(p["distance"] for p in json.loads(results.read_text())["points"])
    printed = shell(finished, f"edm trace tiny/{table} {words}")
    assert f"tiny/{table}, {words.split()[0]}, vp" in printed and f"{lowest:.2f}" in printed and repr(lowest) in printed
    training = json.loads((finished / "steps" / "train" / "tiny" / "train" / f"{model}.json").read_text())
    told = [training["outputs"][f"models/tiny/{model}/model.safetensors"], training["inputs"]["data/digits.zip"]]
    told += [training["commit"]] if "commit" in training else []  # a copy without git knows none
    for text in (*told, "seeds             0 to 79", "images seen       1280"):
        assert text in printed
    found = json.loads(shell(finished, f"edm trace tiny/{table} {words} --json"))
    assert found["steps"][1]["settings"] == training["specification"]["settings"]
    database = sqlite3.connect(finished / "mlruns" / "mlflow.db")
    of = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'edm.key'"))
    assert of[found["cell"]["mlflow_run"]] == found["cell"]["mlflow_key"]
    assert of[found["steps"][1]["mlflow_run"]] == f"tiny/{model}"
    again = re.search(r"^Measure it again:\n(.*?)\n\n", printed, flags=re.M | re.S).group(1)
    assert shell(finished, again).strip().splitlines()[-1] == repr(lowest)
    assert results.read_bytes() == before


@pytest.mark.slow
def test_no_cell_shows_a_number_that_its_sidecar_does_not_vouch_for(finished, tmp_path):
    """After an edit of a result by hand and a change of a grid, and one call."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    edited = folder / "results/tiny/distances/vp-A/ladder.json"
    before = edited.read_text()
    edited.write_text(re.sub(r'"distance": [\d.]+', '"distance": 1.0', before))
    write_params(folder, lambda tiny: tiny["grids"]["steps"].update(num_steps=[1, 4]))
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert '"distance": 1.0' in (folder / "runs/set-aside/results/tiny/distances/vp-A/ladder.json").read_text()
    assert json.loads(edited.read_text())["points"] == json.loads(before)["points"]
    for table, words, result in (("table2", "A vp", "vp-A/ladder"), ("table2", "F vp", "vp-F/ladder"),
                                 ("table3", "ours vp-A", "vp-A/steps")):  # fmt: skip
        found = json.loads(shell(folder, f"edm trace tiny/{table} {words} --json"))
        points = json.loads((folder / f"results/tiny/distances/{result}.json").read_text())["points"]
        assert found["cell"]["value"] == min(point["distance"] for point in points)
        assert f"{found['cell']['value']:.2f}" in (folder / f"results/tiny/tables/{table}.md").read_text()
        assert {step["now"] for step in found["steps"]} == {"fresh"}
    assert planned(folder) == []


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(finished):
    write_params(finished)
    done = snakemake(finished)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_changing_one_configuration_plans_only_what_depends_on_it(finished):
    write_params(finished, lambda tiny: tiny["ladder"]["F"].update(augment=0.5))
    jobs = [
        "Distances of tiny vp-F: ladder",
        "Figure tiny levels",
        "Figure tiny samples",
        "Headline numbers and curves of tiny",
        "How tiny was made",
        "MLflow: runs of tiny",
        "Sample tiny vp-F: samples",
        "Table tiny table2",
        "Train tiny/vp-F",
    ]
    assert planned(finished) == jobs
    write_params(finished)
    assert planned(finished) == []


@pytest.mark.slow
def test_swapping_two_values_is_a_change(finished):
    """Snakemake compares params as a set of values; one canonical text per step is what makes a swap visible."""
    write_params(finished, lambda tiny: tiny["ladder"]["A"].update(lr_rampup=0.005, ema_halflife=0.004))
    assert [job for job in planned(finished) if job.startswith("Train")] == ["Train tiny/vp-A", "Train tiny/vp-F"]
    write_params(finished)


@pytest.mark.slow
def test_changing_a_grid_evaluates_it_again_and_trains_nothing(finished):
    write_params(finished, lambda tiny: tiny["grids"]["steps"].update(num_steps=[1, 3, 4]))
    assert planned(finished) == [
        "Distances of tiny vp-A: steps",
        "Figure tiny nfe",
        "Headline numbers and curves of tiny",
        "How tiny was made",
        "MLflow: runs of tiny",
        "Table tiny table3",
    ]
    write_params(finished)


@pytest.mark.slow
def test_text_from_params_reaches_the_shell_as_text(finished):
    """A file name with spaces and a semicolon is one argument, not a command."""
    hostile = "my weights; touch pwned"
    (finished / hostile).write_text("no weights")
    change = lambda tiny: tiny.update(features="inception-v3-compat", feature_weights=hostile)
    write_params(finished, change)
    done = snakemake(finished, "-n", "-p")
    assert f"--weights '{hostile}'" in done.stdout + done.stderr
    (finished / hostile).unlink()
    write_params(finished)


@pytest.mark.slow
def test_a_mistake_in_params_stops_before_anything_runs(finished):
    write_params(finished, lambda tiny: tiny["ladder"]["F"].update(augmint=0.5))
    done = snakemake(finished)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "params.yaml: experiments.tiny.ladder.F: unknown key 'augmint'; did you mean 'augment'?" in text
    assert "Traceback" not in text
    write_params(finished)


@pytest.mark.parametrize(("mode", "own"), [("default", False), ("remote", True)])
@pytest.mark.slow
def test_only_jobs_that_snakemake_submitted_may_put_their_slurm_job_back_into_the_queue(tmp_path, mode, own):
    """Started in a job of Slurm (a terminal of Jupyter), Snakemake runs steps in a job that is not theirs."""
    write_params(tmp_path)
    done = snakemake(tmp_path, "-n", "-p", "--mode", mode, "data/digits.zip", SLURM_JOB_ID="17")
    assert done.returncode == 0 and "exec edm launch --step 'prepare digits'" in done.stdout + done.stderr
    assert (" --requeue " in done.stdout + done.stderr) == own
