"""From a cell back to the raw data: what was recorded is told, what was not is said to be unknown."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from edm import params
from edm.chain import provenance
from edm.chain.jobs import Chain
from edm.chain.paths import archive, search_file
from edm.chain.provenance import adopt, start
from edm.cli import main
from edm.files.hashes import digest, sha256_file
from edm.report import lineage
from edm.report.lineage import trace
from edm.report.lineage_text import as_text

ROOT = Path(__file__).parents[2]

TINY = """
run: [tiny]
tracking: {uri: "sqlite:///mlruns/none.db"}
pretrained: {old: {path: downloads/old.pkl, resolution: 8}}
datasets:
  made: {source: folder, path: pictures, resolution: 8, channels: 1, classes: 0}
experiments:
  tiny:
    dataset: made
    features: pixels
    base: {conditional: false, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1, 2], snapshot_every: 5.0e-4}
    columns: {vp: {architecture: ddpmpp}}
    ladder: {A: {duration: 1.0e-3, batch_size: 250}, B: {learning_rate: 2.0e-3}}
    models: {old: {pretrained: old}}
    sampling: {images: 20, block: 10, first_seed: 100, repeats: 2, gpus: 0}
    choose: {grid: ladder, images: 10, confirm: 1}
    searches: {best: {models: [vp-B], images: 10, num_steps: 4, over: {S_churn: [0, 4], S_noise: [1.0, 1.007]}}}
    grids:
      ladder: {models: [vp-A, vp-B, old], num_steps: 3}
      churn: {models: [vp-B], settings_from: best, num_steps: [4, 8]}
    tables:
      table2: {kind: configurations, title: T, grid: ladder}
      table4: {kind: samplers, title: T, nfe: of the best, columns: [vp-B, old], rows: {Algorithm 1: ladder, Algorithm 2: {vp-B: churn}}}
      table5: {kind: settings, title: T, columns: {ours: "vp-B:best"}}
      table7: {kind: hyperparameters, title: T, columns: [vp-B]}
"""  # noqa: E501
CHURN = "results/tiny/distances/vp-B/churn.json"
BEST = "models/tiny/vp-B/best.safetensors"
METRIC = {"label": "FD (pixels)", "description": "pixels"}


def written(chain, job):
    """What a step would write: its name, or such JSON as it writes."""
    if job.rule not in ("evaluate", "search", "choose"):
        return dict.fromkeys(job.outputs, f"made by {job.name}")
    found = {"format": {"evaluate": "edm-distances/2", "search": "edm-search/1", "choose": "edm-choice/1"}[job.rule],
             "metric": METRIC | {"reference_sha256": sha256_file(job.files[1]), "reference_images": 60},
             "commit": "c" * 40, "dirty": "false"}  # fmt: skip
    if job.rule == "choose":
        found |= {"best": "000000000500.safetensors", "value": 1.5, "confirm_images": 20,
                  "cheap": {"000000000500.safetensors": 1.6, "000000001000.safetensors": 1.7}}  # fmt: skip
        return dict(zip(job.outputs, ("the best", json.dumps(found)), strict=True))
    published = {"source": "a file", "licence": "MIT", "source_sha256": "e" * 64}
    about = published if job.key[1] == "old" else {"images": 500}
    found |= {"model": job.key[1], "checkpoint": {"sha256": sha256_file(job.files[0]), **about}}
    if job.rule == "search":
        found |= {"settings": {"S_churn": 4, "S_noise": 1.007}, "value": 2.5, "evaluations": 4, "converged": True,
                  "method": "coordinate", "images": 10, "run": "tiny/vp-B/search/best"}  # fmt: skip
        return {job.outputs[0]: json.dumps(found)}
    evaluation = chain.experiments["tiny"].evaluation(*job.key[1:])
    found |= {"grid": evaluation.grid, "evaluation": evaluation.name}
    found["points"] = [
        {"id": point.id, "repeat": repeat, "first_seed": 100 + 20 * repeat, "images": 20, "nfe": 5,
         "sampler": point.sampler.to_dict(), "run": f"tiny/{job.key[1]}/{evaluation.grid}/{point.id}@{repeat}",
         "distance": 3.25 - repeat + number / 8}
        for number, (point, repeat) in enumerate(evaluation.draws)]  # fmt: skip
    return {job.outputs[0]: json.dumps(found)}


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A chain whose steps were all run, at one commit."""
    monkeypatch.chdir(tmp_path)
    tags = {"commit": "c" * 40, "dirty": "false", "host": "a-node", "slurm_job": "17", "image": "edm.sif sha256:d00d"}
    monkeypatch.setattr(provenance, "environment_tags", lambda: tags)
    monkeypatch.setattr(provenance, "origin", lambda: tags)  # whatever the state of this working tree
    Path("params.yaml").write_text(TINY)
    for path in ("pictures/1.png", "downloads/old.pkl"):
        Path(path).parent.mkdir()
        Path(path).write_text(path)
    found = Chain(params.load("params.yaml"))
    for job in found.needed(found.targets("tiny")):
        step = start(found, job.name)
        for path, text in written(found, job).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)
        for path in set(job.outputs) - set(written(found, job)):
            Path(path).write_text("")
        step.finish()
    return found


def traced(table="tiny/table4", row="Algorithm 2", column="vp-B"):
    """The lineage of a cell, and its steps by file."""
    found = trace(params.load("params.yaml"), table, row, column)
    return found, {step["file"]: step for step in found["steps"]}


def edit(change):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    change(raw["experiments"]["tiny"])
    Path("params.yaml").write_text(yaml.safe_dump(raw))


def error_of(capsys, *words):
    assert main(["trace", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


# What is recorded -----------------------------------------------------------------------------------------------------


def test_a_number_leads_to_its_snapshot_search_training_data_and_seeds(finished):
    found, steps = traced()
    cell = found["cell"]
    assert (cell["value"], cell["point"], cell["repeat"], cell["seeds"]) == (2.375, "num_steps=4", 1, [120, 139])
    assert cell["mlflow_key"] == "tiny/vp-B/churn/num_steps=4@1" and cell["lowest_of"] == "2 settings, 2 repeats each"
    assert {step["step"].split()[0] for step in found["steps"] if "step" in step} == {
        "evaluate", "choose", "train", "prepare", "reference", "search"}  # fmt: skip
    assert steps[BEST]["chosen"] == "000000000500.safetensors of 2 snapshots" and steps[BEST]["images_seen"] == 500
    training = steps["models/tiny/vp-B/model.safetensors"]
    assert (training["seed"], training["settings"]["learning_rate"]) == (0, 2e-3) and "images_seen" not in training
    assert steps[search_file(finished.experiments["tiny"], "vp-B", "best")]["found_settings"]["S_churn"] == 4
    assert steps["pictures"]["source"] == "outside the chain" and len(steps["pictures"]["sha256"]) == 64
    for step in found["steps"]:
        if "step" in step:
            assert step["sha256"] == sha256_file(step["file"]) and step["now"] == "fresh"
            assert (step["commit"], step["host"], step["slurm_job"]) == ("c" * 40, "a-node", "17")
    assert found["cautions"] == []


def test_a_published_model_leads_to_its_file_and_licence(finished):
    _, steps = traced("tiny/table4", "Algorithm 1", "old")
    imported = steps["models/tiny/old/model.safetensors"]
    assert (imported["licence"], imported["source_sha256"]) == ("MIT", "e" * 64)
    assert steps["downloads/old.pkl"]["sha256"] == sha256_file("downloads/old.pkl")


def test_the_commands_are_those_of_the_workflow_with_the_settings_of_then(finished):
    found, _ = traced()
    words = shlex.split(found["measure_again"][0])
    assert words[:6] == ["edm", "launch", "--", "evaluate", BEST, ".edm/again.json"]
    assert words[words.index("--ref") + 1] in finished.by_name["evaluate tiny/vp-B/churn"].files
    assert words[words.index("--settings") + 1] == "results/tiny/searches/vp-B/best.json"
    assert words[-1] == digest(finished.specification(finished.by_name["evaluate tiny/vp-B/churn"]))
    assert "['points'][1]" in found["measure_again"][1]
    assert found["make_again"] == [f"git checkout {'c' * 40} && snakemake {CHURN}"]
    Path("dvc.lock").touch()
    assert traced()[0]["make_again"][1:] == [f"git checkout {'c' * 40} && dvc pull && snakemake {CHURN}"]


def test_a_setting_leads_to_its_search(finished):
    found, steps = traced("tiny/table5", "S_noise", "ours")
    assert (found["cell"]["shown"], found["cell"]["value"]) == ("1.007", 1.007)
    first = found["steps"][0]
    assert (first["step"], first["found_evaluations"]) == ("search tiny/vp-B/best", 4) and BEST in steps
    assert "search" in shlex.split(found["measure_again"][0]) and "['S_noise']" in found["measure_again"][1]


def test_a_description_leads_to_params(finished, capsys):
    row = next(iter(lineage.build_table(finished.reports["tiny"], "table7", lineage.Results(Path("results"))).rows))
    assert main(["trace", "tiny/table7", row]) == 0
    printed = capsys.readouterr().out
    assert "params.yaml" in printed and "edm train --experiment tiny --model vp-B --dry-run" in printed


def test_the_tree_names_every_step_once_and_json_is_the_same(finished, capsys):
    assert main(["trace", "tiny/table4", "Algorithm 2", "vp-B"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny/table4, Algorithm 2, vp-B: 2.38")
    for path in traced()[1]:
        full = [line for line in printed.splitlines() if line.strip() == path]
        assert len(full) == 1, path
    assert f"{archive('made')} (as above)" in printed and "But:" not in printed
    assert main(["trace", "tiny/table4", "Algorithm 2", "vp-B", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == traced()[0]


def test_it_loads_neither_torch_nor_mlflow(finished):
    code = ("import sys; from edm.cli import main; main(['trace', 'tiny/table2', 'B']);"
            "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'numpy', 'snakemake')))")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


# What is not ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, '{"format": "edm-step/1"', '{"format": "edm-step/1", "digest": "1"}'])
def test_without_the_sidecar_of_a_training_nothing_is_said_of_it(finished, content):
    sidecar = Path("steps/train/tiny/train/vp-B.json")
    sidecar.unlink() if content is None else sidecar.write_text(content)
    found, steps = traced()
    step = steps["models/tiny/vp-B/model.safetensors"]
    assert step["unknown"].startswith("no record of how it was made: steps/train/tiny/train/vp-B.json")
    assert not {"settings", "seed", "commit", "created", "now"} & set(step)
    assert step["from"] == [{"file": "data/made.zip", "sha256": None}]
    assert any("incomplete records: models/tiny/vp-B/model" in caution for caution in found["cautions"])


def test_without_the_sidecar_of_an_evaluation_its_file_speaks_for_itself(finished):
    Path("steps/evaluate/tiny/evaluate/vp-B/churn.json").unlink()
    found, steps = traced()
    assert "those that the file itself names" in steps[CHURN]["unknown"] and "created" not in steps[CHURN]
    assert steps[CHURN]["commit"] == "c" * 40
    assert steps[CHURN]["from"][0] == {"file": BEST, "sha256": sha256_file(BEST)}
    assert found["cell"]["value"] == 2.375


def test_a_model_that_was_trained_again_is_not_the_one_that_was_measured(finished):
    step = start(finished, "choose tiny/vp-B")
    Path(BEST).write_text("another")
    step.finish()
    found, steps = traced()
    assert steps[BEST]["unknown"].startswith("what evaluate tiny/vp-B/churn used is another file, sha256 ")
    assert "images_seen" not in steps[BEST]
    assert steps[CHURN]["now"].startswith("stale: ")
    assert f"{BEST} is not the file that was used: measuring again gives another number" in found["cautions"]


def test_a_number_changed_by_hand_is_seen(finished):
    record = json.loads(Path(CHURN).read_text())
    record["points"][1]["distance"] = 0.5
    Path(CHURN).write_text(json.dumps(record))
    found, steps = traced()
    assert found["cell"]["value"] == 0.5
    assert steps[CHURN]["unknown"].startswith("the file that is here is another file, sha256 ")


def test_a_model_that_is_not_here_has_to_be_fetched_first(finished):
    Path(BEST).unlink()
    found, steps = traced()
    assert steps[BEST]["now"] == "fresh; not here"
    assert any(caution.startswith(f"{BEST} is missing") for caution in found["cautions"])


def test_changed_settings_are_named_and_the_command_keeps_to_those_of_then(finished):
    before = traced()[0]["measure_again"]
    edit(lambda tiny: tiny["sampling"].update(images=30))
    found, steps = traced()
    assert "changed: images" in steps[CHURN]["now"] and steps[CHURN]["settings"]["images"] == 20
    assert found["measure_again"] == before and any("has changed since" in text for text in found["cautions"])


def test_what_was_adopted_says_so_and_files_of_nobody_get_no_origin(finished):
    edit(lambda tiny: tiny["ladder"]["B"].update(learning_rate=3e-3))
    chain = Chain(params.load("params.yaml"))
    adopt(chain, chain.targets("tiny"))
    training = traced()[1]["models/tiny/vp-B/model.safetensors"]
    assert "adopted" in training and training["commit"] == "c" * 40 and training["settings"]["learning_rate"] == 3e-3
    Path("models/tiny/vp-B/model.safetensors").write_text("from a colleague")
    adopt(chain, chain.targets("tiny"))
    training = traced()[1]["models/tiny/vp-B/model.safetensors"]
    assert training["unknown"].startswith("it was adopted") and not {"commit", "created", "host"} & set(training)


def test_uncommitted_changes_are_named(finished, monkeypatch):
    monkeypatch.setattr(provenance, "environment_tags", lambda: {"commit": "d" * 40, "dirty": "true"})
    step = start(finished, "train tiny/vp-B")
    for path in step.job.outputs:
        Path(path).write_text("again")
    step.finish()
    found, _ = traced("tiny/table2", "B", "vp")
    assert "made with changes that were not committed: train tiny/vp-B" in found["cautions"]
    assert "its steps ran at 2 commits; the commands name that of the last step" in found["cautions"]
    assert "with changes that were not committed" in as_text(found)


def test_the_file_of_uncommitted_changes_is_kept_named_and_makes_nothing_stale(finished, monkeypatch):
    tags = {"commit": "d" * 40, "dirty": "true"}
    monkeypatch.setattr(provenance, "environment_tags", lambda: tags)
    monkeypatch.setattr(provenance, "origin", lambda: tags)
    monkeypatch.setattr(provenance, "uncommitted", lambda: b"# uncommitted changes\n")
    step = start(finished, "evaluate tiny/vp-B/ladder")
    monkeypatch.setattr(provenance, "uncommitted", lambda: b"# an edit while the step runs\n")
    step.finish()
    found, steps = traced("tiny/table2", "B", "vp")
    file = steps["results/tiny/distances/vp-B/ladder.json"]["changes"]
    assert Path(file).read_bytes() == b"# uncommitted changes\n" and file.startswith("steps/evaluate/tiny/changes/")
    assert steps["results/tiny/distances/vp-B/ladder.json"]["now"] == "fresh"
    assert f"git checkout {'d' * 40} && git apply {file} && snakemake" in found["make_again"][0]
    assert f"changes           {file}" in as_text(found)
    Path(file).unlink()
    found, steps = traced("tiny/table2", "B", "vp")
    assert f"the file of these changes is missing: {file}" in found["cautions"]
    assert steps["results/tiny/distances/vp-B/ladder.json"]["now"] == "fresh"


# As an archive keeps it ----------------------------------------------------------------------------------------------


def test_a_crate_holds_records_small_files_and_hashes_of_the_others(finished, capsys):
    os.symlink(ROOT / "workflow", "workflow")
    Path("models/tiny/vp-B/model.safetensors").unlink()  # a clone without it
    assert main(["crate", "tiny/table4", "crate", "--license", "https://spdx.org/licenses/CC-BY-4.0"]) == 0
    assert "crate: tiny/table4 with the records of" in capsys.readouterr().err
    graph = json.loads(Path("crate/ro-crate-metadata.json").read_text())["@graph"]
    by_id = {entity["@id"]: entity for entity in graph}
    assert len(by_id) == len(graph)
    for part in by_id["./"]["hasPart"]:
        kept = sha256_file(Path("crate") / unquote(part["@id"]))
        assert by_id[part["@id"]]["identifier"] == f"sha256:{kept}"
    actions = {entity["name"]: entity for entity in graph if entity["@type"] == "CreateAction"}
    assert len(by_id["./"]["mentions"]) == len(actions)
    assert by_id["#run"]["instrument"]["@id"] == by_id["./"]["mainEntity"]["@id"] == "workflow/Snakefile"
    assert [one["@id"] for one in by_id["#run"]["result"]] == finished.targets("tiny/table4")
    training = actions["train tiny/vp-B"]
    assert "commit " + "c" * 40 in training["description"] and training["startTime"] <= training["endTime"]
    model = by_id[training["result"][0]["@id"]]
    sidecar = json.loads(Path("steps/train/tiny/train/vp-B.json").read_text())
    assert model["identifier"] == f"sha256:{sidecar['outputs'][model['name']]}" and model["@type"] == "CreativeWork"
    used = [one["@id"] for action in actions.values() for key in ("object", "result") for one in action[key]]
    assert set(used) <= set(by_id)


def test_a_crate_needs_the_table_as_its_step_made_it_and_a_new_folder(finished, capsys):
    os.symlink(ROOT / "workflow", "workflow")
    assert main(["crate", "tiny/table4", "steps"]) == 1
    assert capsys.readouterr().err == "error: steps: exists; name a new folder\n"
    Path("results/tiny/tables/table4.md").write_text("better")
    assert main(["crate", "tiny/table4", "crate"]) == 1
    assert "table4.md: not there as a step made it; run `snakemake" in capsys.readouterr().err
    assert not Path("crate").exists() and not list(Path().glob(".crate*"))


def test_a_crate_has_no_login(finished):
    os.symlink(ROOT / "workflow", "workflow")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("sqlite:///mlruns/none.db", "https://me:hunter2@example.org"))
    assert main(["crate", "tiny/table4", "crate"]) == 0
    assert not any(b"hunter2" in path.read_bytes() for path in Path("crate").rglob("*") if path.is_file())


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "expected"), [
    (["tiny/table2", "C"], "tiny/table2 has no row 'C'; it has A; B"),
    (["tiny/table9", "A"], "tiny/table9: no such table; tiny has tiny/table2, tiny/table4, tiny/table5, tiny/table7"),
    (["tiny", "A"], "tiny: no such table; tiny has tiny/table2, "),
    (["tiney/table2", "A"], "report 'tiney' is not defined; did you mean 'tiny'?"),
    (["tiny/table4", "Algorithm 1"], "tiny/table4 has several columns; name one of vp-B; old"),
    (["tiny/table4", "Algorithm 1", "vp"], "tiny/table4 has no column 'vp'; it has vp-B; old"),
    (["tiny/table4", "Algorithm 2", "old"], "tiny/table4, Algorithm 2, old: the table has nothing there"),
])  # fmt: skip
def test_names_that_are_not_there_get_one_line_with_those_that_are(words, expected, finished, capsys):
    assert expected in error_of(capsys, *words)


def test_an_empty_cell_says_why_it_is_empty(finished, capsys):
    Path(CHURN).unlink()
    line = error_of(capsys, "tiny/table4", "Algorithm 2", "vp-B")
    assert line == f"error: tiny/table4, Algorithm 2, vp-B: not run; it is made by `snakemake {CHURN}`"
