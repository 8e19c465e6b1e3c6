"""Sidecars: what a step is made from, what makes it stale, and what does not."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import edm
from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, adopt, start
from edm.chain.rules import RULES
from edm.chain.sidecars import FORMAT, read_sidecar, sidecar_file
from edm.cli import main
from edm.files import hashes
from edm.files.hashes import Hashes
from edm.foreign.asked import NAMES

TINY = """
run: [tiny]
datasets:
  made: {source: folder, path: pictures, resolution: 8, channels: 1, classes: 0}
experiments:
  tiny:
    dataset: made
    features: pixels
    base: {conditional: false, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1, 2]}
    columns: {vp: {architecture: ddpmpp}}
    ladder: {A: {duration: 1.0e-3, batch_size: 300}, B: {learning_rate: 2.0e-3}}
    sampling: {images: 20, block: 10, shards: 2}
    grids: {ladder: {models: all, num_steps: 3}}
    tables: {table2: {kind: configurations, title: T, grid: ladder}}
"""
MODEL = {name: f"models/tiny/vp-{name}/model.safetensors" for name in "AB"}
RESULT = "results/tiny/distances/vp-B/ladder.json"


def chain():
    return Chain(params.load("params.yaml"))


def stale():
    """The steps of the report that are stale or not yet made, by name."""
    found = chain()
    return {job.name for job in Provenance(found).to_run(found.targets("tiny"))}


def edit(change):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    change(raw)
    Path("params.yaml").write_text(yaml.safe_dump(raw))


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A chain whose steps were all run, each writing its own name into its files."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TINY)
    Path("pictures").mkdir()
    Path("pictures/1.png").write_bytes(b"one")
    found = chain()
    for job in found.needed(found.targets("tiny")):
        step = start(found, job.name, Provenance(found).digest(job))
        for path in job.outputs:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(f"{job.name} made {path}")
        step.finish()
    for path in Path("runs").rglob("*.shards/*"):
        path.unlink()
    return found


OF_B = {"train tiny/vp-B", "shard tiny/vp-B/ladder/1-of-2", "shard tiny/vp-B/ladder/2-of-2",
        "evaluate tiny/vp-B/ladder", "table tiny/table2", "metrics tiny", "about tiny", "track tiny"}  # fmt: skip


def test_after_a_run_nothing_is_stale_whatever_the_times(finished):
    assert stale() == set()
    for number, path in enumerate(sorted(Path().rglob("*.*"), reverse=True)):
        os.utime(path, (number * 10**6, number * 10**6))
    assert stale() == set()


def test_a_setting_concerns_what_follows_from_it_and_undone_nothing(finished):
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=1.0e-3))
    assert stale() == OF_B
    found = chain()
    assert Provenance(found).why_stale(found.by_name["train tiny/vp-B"]) == "changed: learning_rate"
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=2.0e-3))
    assert stale() == set()


def test_what_is_stated_of_a_published_file_decides_its_import():
    """Every name that `edm import` takes is part of the specification, from which the digest is made."""
    raw = yaml.safe_load(TINY)
    raw["experiments"]["tiny"]["models"] = {"old": {"pretrained": "found"}}

    def digest(**stated):
        raw["pretrained"] = {"found": {"path": "found.pt", "like": "tiny/vp-A", **stated}}
        found = Chain(params.Params("params.yaml", raw))
        return Provenance(found).digest(found.by_name["published tiny/old"])

    values = dict.fromkeys(NAMES, 16) | {"attention_order": "old", "noise_schedule": "linear", "sde": "vp"}
    values |= dict.fromkeys(("fir", "skip_rescale", "scale_by_sigma"), True)
    digests = [digest(), *(digest(**{name: value}) for name, value in values.items())]
    assert len(set(digests)) == len(digests) == len(NAMES) + 1


def test_raw_data_are_known_by_their_content(finished):
    Path("pictures/1.png").write_bytes(b"two")  # of equal size, and older
    os.utime("pictures/1.png", (1, 1))
    assert stale() == {job.name for job in finished.needed(finished.targets("tiny"))}
    Path("pictures/1.png").write_bytes(b"one")
    assert stale() == set()
    Path("pictures/1.png").rename("pictures/2.png")
    assert "prepare made" in stale()
    Path("pictures/2.png").unlink()
    Path("pictures").rmdir()  # a clone need not have them
    assert stale() == set()


def test_where_raw_data_lie_decides_nothing_but_their_order_does(finished):
    Path("elsewhere").mkdir()
    Path("pictures").rename("elsewhere/photographs")
    edit(lambda raw: raw["datasets"]["made"].update(path="elsewhere/photographs"))
    assert stale() == set()
    Path("elsewhere/photographs/1.png").write_bytes(b"two")
    assert "prepare made" in stale()
    for name in "ab":
        Path(f"{name}.zip").write_text(name)
    seen = set()
    for order in (["a.zip", "b.zip"], ["b.zip", "a.zip"]):
        edit(lambda raw, order=order: raw["datasets"]["made"].update(path=order))
        found = chain()
        seen.add(Provenance(found).digest(found.by_name["prepare made"]))
    assert len(seen) == 2


@pytest.mark.parametrize("change", [{"microbatch": 50}, {"level_samples": 7}])
def test_what_changes_no_weight_trains_nothing_again(finished, change):
    edit(lambda raw: raw["experiments"]["tiny"]["base"].update(change))
    assert stale() == {"about tiny"}  # the page that shows every setting


def test_where_published_statistics_lie_decides_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = []
    for path in ("theirs.npz", "moved/theirs.npz"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("statistics")
        Path("params.yaml").write_text(TINY)
        edit(lambda raw, path=path: raw["experiments"]["tiny"]["grids"]["ladder"].update(reference=path))
        found = chain()
        digests.append(Provenance(found).digest(found.by_name["evaluate tiny/vp-B/ladder"]))
    Path(path).write_text("others")
    digests.append(Provenance(found := chain()).digest(found.by_name["evaluate tiny/vp-B/ladder"]))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_what_only_the_plan_reads_and_where_a_published_file_lies_decide_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = []
    raw = yaml.safe_load((Path(edm.__file__).parents[1] / "params.yaml").read_text())
    for path, like in (("one.pth", "rehearsal-cond/vp-A"), ("moved/two.pth", "rehearsal-cond/vp-B")):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("weights")
        raw["pretrained"]["rehearsal-vp"] |= {"path": path, "like": like}
        Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        found = chain()
        known = Provenance(found)
        digests.append({name: known.digest(job) for name, job in found.by_name.items() if "rehearsal-uncond" in name})
    assert len(digests[0]) > 50 and digests[0] == digests[1]


def test_code_is_told_by_its_number(finished, monkeypatch):
    monkeypatch.setitem(RULES, "evaluate", replace(RULES["evaluate"], code=RULES["evaluate"].code + 1))
    assert {name.split()[0] for name in stale()} == {"shard", "evaluate", "table", "metrics", "about", "track"}


@pytest.mark.parametrize("shards, gpus", [(1, 1), (3, 8)])
def test_what_a_step_is_run_on_decides_nothing(finished, shards, gpus):
    edit(lambda raw: raw["experiments"]["tiny"]["sampling"].update(shards=shards, gpus=gpus))
    edit(lambda raw: raw["experiments"]["tiny"].update(training={"gpus": gpus, "state_every": 7}))
    assert stale() == set()


def test_a_file_that_is_not_what_its_step_made_is_made_again(finished):
    result = Path(RESULT)
    result.write_text(result.read_text().replace("evaluate", "Evaluate"))
    assert stale() == {name for name in OF_B if name != "train tiny/vp-B"}


def test_results_of_another_model_than_the_one_there_are_stale(finished):
    """The same specification, trained again to other weights, as on GPUs."""
    step = start(finished, "train tiny/vp-B")
    Path(MODEL["B"]).write_text("other weights")
    step.finish()
    assert stale() == OF_B - {"train tiny/vp-B"}


def test_a_part_of_a_clone_is_enough(finished):
    """With results alone nothing runs; a model that is needed again takes its results with it."""
    for folder in ("models", "steps/train", "data", "steps/data"):
        for path in Path(folder).rglob("*.*"):
            path.unlink()
    assert stale() == set()
    Path(RESULT).unlink()
    assert stale() == set()  # the table is there
    Path("results/tiny/tables/table2.md").unlink()
    assert stale() >= {"prepare made", "train tiny/vp-B", "evaluate tiny/vp-B/ladder", "table tiny/table2"}


def test_a_step_is_sealed_with_what_it_was_started_with(finished):
    """params.yaml may be edited while a training runs; so may another Snakemake have begun."""
    found = chain()
    planned = Provenance(found).digest(found.by_name["train tiny/vp-B"])
    step = start(found, "train tiny/vp-B", planned)
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=1.0e-3))
    step.finish()
    sidecar = json.loads(Path("steps/train/tiny/train/vp-B.json").read_text())
    assert sidecar["digest"] == planned and sidecar["specification"]["settings"]["learning_rate"] == 2.0e-3
    assert stale() == OF_B
    with pytest.raises(edm.UserError, match="changed after the plan"):
        start(chain(), "train tiny/vp-B", planned)


def test_the_content_of_a_fetched_file_is_no_part_of_the_plan_and_all_else_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = "downloads/pictures.zip"
    Path("params.yaml").write_text(TINY.replace("path: pictures", f"path: {file}"))
    edit(lambda raw: raw.update(downloads={file: {"url": "http://127.0.0.1/pictures.zip"}}))
    found = chain()
    planned = Provenance(found).planned([file])
    digests = {name: planned(found.by_name[name]) for name in ("prepare made", "train tiny/vp-B")}
    Path("downloads").mkdir()
    Path(file).write_text("fetched")
    with pytest.raises(edm.UserError, match="changed after the plan"):
        start(chain(), "prepare made", digests["prepare made"])
    step = start(chain(), "prepare made", digests["prepare made"], [file])
    Path("data").mkdir()
    Path("data/made.zip").write_text("prepared")
    step.finish()
    assert read_sidecar(step.path)["specification"]["inputs"] == {"raw data 1": Hashes(None).of(file)}
    assert start(chain(), "train tiny/vp-B", digests["train tiny/vp-B"], [file]).digest == Provenance(chain()).digest(
        chain().by_name["train tiny/vp-B"])  # fmt: skip
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=1.0e-3))
    with pytest.raises(edm.UserError, match="changed after the plan"):
        start(chain(), "train tiny/vp-B", digests["train tiny/vp-B"], [file])


def test_a_dataset_that_was_prepared_otherwise_than_planned_stops_what_follows(finished):
    """With a file that is fetched, too, where the sidecars of the steps before are what the plan is held to."""
    planned = Provenance(finished).planned(["elsewhere"])(finished.by_name["train tiny/vp-B"])
    assert start(chain(), "train tiny/vp-B", planned, ["elsewhere"])
    edit(lambda raw: raw["datasets"]["made"].update(images=1))
    step = start(chain(), "prepare made")
    step.finish()
    with pytest.raises(edm.UserError, match="changed after the plan"):
        start(chain(), "train tiny/vp-B", planned, ["elsewhere"])


def test_what_a_step_remakes_takes_all_that_follows_with_it(finished):
    """Its file may come out as another one, which is not known beforehand: not only what lacks it runs."""
    Path("models/tiny/vp-B/levels.json").unlink()
    found = chain()
    remade = {job.name for job in Provenance(found).to_run(["models/tiny/vp-B/levels.json", *found.targets("tiny")])}
    assert stale() < remade and remade == OF_B
    forced = Provenance(found).to_run(found.targets("tiny"), [MODEL["B"]])
    assert {job.name for job in forced} == OF_B


def test_a_lost_sidecar_takes_all_that_follows_with_it(finished):
    Path("steps/train/tiny/train/vp-B.json").unlink()
    assert stale() == OF_B


def test_a_sidecar_tells_where_a_result_comes_from(finished):
    job = finished.by_name["evaluate tiny/vp-B/ladder"]
    record = json.loads(Path(sidecar_file(job)).read_text())
    assert record["format"] == FORMAT and (record["rule"], record["key"]) == ("evaluate", ["tiny", "vp-B", "ladder"])
    assert record["outputs"] == {RESULT: Hashes(None).of(RESULT)}
    model = json.loads(Path("steps/train/tiny/train/vp-B.json").read_text())
    assert record["inputs"][MODEL["B"]] == model["outputs"][MODEL["B"]]
    assert record["specification"]["inputs"][MODEL["B"]] == model["digest"]
    prepared = json.loads(Path("steps/data/made/prepare.json").read_text())
    assert prepared["inputs"] == {"pictures": Hashes(None).of("pictures")}
    of_git = {"commit", "dirty"} if (Path(__file__).parents[2] / ".git").exists() else set()
    assert {*of_git, "created", "seconds", "host", "versions"} <= record.keys()


def test_what_nothing_tells_of_is_made_again_or_adopted(finished):
    Path("steps/train/tiny/train/vp-B.json").unlink()
    assert "train tiny/vp-B" in stale()
    with pytest.raises(edm.UserError, match="no record of how it was made"):
        start(finished, "evaluate tiny/vp-B/ladder")
    assert [job.name for job in adopt(finished, [MODEL["B"]])] == ["train tiny/vp-B"]
    assert stale() == set()
    assert "adopted" in json.loads(Path("steps/train/tiny/train/vp-B.json").read_text())


def test_a_change_without_consequence_can_be_adopted(finished, capsys):
    before = Path(MODEL["A"]).read_text()
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["A"].update(duration=2.0e-3))
    assert main(["adopt", "tiny"]) == 0
    assert "adopted: train tiny/vp-A" in capsys.readouterr().err
    assert stale() == set() and Path(MODEL["A"]).read_text() == before


def test_damaged_sidecars_count_as_none(finished):
    Path("steps/train/tiny/train/vp-B.json").write_text('{"format": "edm-step/1", ')
    assert "train tiny/vp-B" in stale()
    Path("steps/train/tiny/train/vp-B.json").write_text("[]")
    assert "train tiny/vp-B" in stale()


@pytest.mark.parametrize(
    "change",
    [{"outputs": {"a": 3}}, {"inputs": [1]}, {"seconds": "long"}, {"seconds": -1}, {"created": "yesterday"},
     {"parts": [{"seconds": 3}]}, {"versions": {"torch": 2}}, {"specification": {"settings": 1}}, {"digest": None}],
)  # fmt: skip
def test_a_sidecar_with_a_damaged_value_counts_as_none(finished, change):
    path = Path("steps/train/tiny/train/vp-B.json")
    assert read_sidecar(path) is not None
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_sidecar(path) is None and "train tiny/vp-B" in stale()


def test_a_sidecar_of_a_later_version_or_one_that_cannot_be_read_does_not_make_its_step_run(finished):
    path = Path("steps/train/tiny/train/vp-B.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "edm-step/2"}))
    with pytest.raises(edm.UserError, match=r"vp-B\.json: is edm-step/2, of a later version of this program"):
        stale()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(edm.UserError, match=r"vp-B\.json: is a pipe; expected the record of a step"):
        stale()


def test_a_folder_behind_a_link_is_hashed_and_a_link_to_nothing_hides_no_data(tmp_path):
    """As `edm prepare` reads it: a class folder may be a link to another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "rose").symlink_to(tmp_path / "disk")
    (tmp_path / "pictures" / ".#lock").symlink_to("nowhere")
    (tmp_path / "disk" / "1.png").write_text("one")
    before = Hashes(None).of(str(tmp_path / "pictures"))
    (tmp_path / "disk" / "1.png").write_text("two")
    assert before is not None and Hashes(None).of(str(tmp_path / "pictures")) not in (None, before)
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "pictures")
    with pytest.raises(edm.UserError, match="a link to a folder that contains it"):
        Hashes(None).of(str(tmp_path / "pictures"))


def test_hashes_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("one")
    first = Hashes(Path("cache.json"))
    one = first.of("file")
    first.save()
    assert not Path("cache.json").exists()  # so young that a change might not show in its times
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    first.of("file")
    first.save()
    computed = []
    monkeypatch.setattr(hashes, "sha256_file", lambda path: computed.append(path) or "new")
    second = Hashes(Path("cache.json"))
    assert second.of("file") == one and computed == []
    time.sleep(0.01)
    status = os.stat("file")
    Path("file").write_text("two")
    os.utime("file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert second.of("file") == "new" and second.of("nowhere") is None
    for damaged in ("{", "[]", '{"file": 7}', '{"file": [1, 2, 3]}', '{"file": [null, "z"]}', "[" * 10**6):
        Path("cache.json").write_text(damaged)
        assert Hashes(Path("cache.json")).of("file") == "new"
    os.remove("cache.json")
    os.mkfifo("cache.json")
    assert Hashes(Path("cache.json")).of("file") == "new"


@pytest.mark.parametrize("path", ["file", "folder"])
def test_what_is_there_and_cannot_be_read_is_one_line(tmp_path, monkeypatch, path):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("file", "folder/file"):
        Path(name).write_text("secret")
    monkeypatch.setattr(hashes, "sha256_file", refuse)
    with pytest.raises(edm.UserError, match=r"file: cannot be read \(Permission denied\)$"):
        Hashes(None).of(path)


def test_launch_seals_what_has_succeeded_and_nothing_else(finished):
    sidecar = Path("steps/tables/tiny/metrics.json")
    sidecar.unlink()
    command = [sys.executable, "-m", "edm", "launch", "--step", "metrics tiny", "--"]
    environment = {**os.environ, "PYTHONPATH": str(Path(edm.__file__).parent.parent)}
    Path(RESULT).write_text("no JSON")
    failed = subprocess.run([*command, "metrics", "tiny"], env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and not sidecar.exists()
    done = subprocess.run([*command, "check"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and sidecar.exists(), done.stderr
    unknown = subprocess.run([*command[:5], "train tiny/vp-Z", "--", "check"], env=environment, capture_output=True,
                             text=True)  # fmt: skip
    assert unknown.returncode == 1 and "params.yaml no longer has this step" in unknown.stderr


def test_what_continues_is_told_code_and_upstream_not_the_settings_of_the_step_itself(finished, monkeypatch):
    """An evaluation and its shards are told the same; a longer search or training goes on with what it has."""
    names = ("train tiny/vp-B", "evaluate tiny/vp-B/ladder", "shard tiny/vp-B/ladder/1-of-2")
    told = lambda: [start(chain(), name).made_from for name in names]
    before = told()
    assert before[1] == before[2] != before[0]
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(duration=2.0e-3))
    edit(lambda raw: raw["experiments"]["tiny"]["grids"]["ladder"].update(num_steps=4))
    assert told() == before
    with monkeypatch.context() as raised:
        for rule in ("evaluate", "shard"):  # one number in the table
            raised.setitem(RULES, rule, replace(RULES[rule], code=RULES[rule].code + 1))
        assert told()[0] == before[0] and told()[1] == told()[2] != before[1]
    step = start(chain(), "train tiny/vp-B")
    step.finish()  # with its other duration: what is measured of it is measured of another model
    assert told()[0] == before[0] and told()[1] == told()[2] != before[1]


def test_launch_tells_the_command_what_its_step_is_made_from(finished):
    child = "import os; print(os.environ['EDM_MADE_FROM'], flush=True); raise SystemExit(3)"
    program = (
        "import sys; from edm.cli import main; from edm.commands import launching;"
        f"launching._command_line = lambda *_: [sys.executable, '-c', {child!r}]; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(edm.__file__).parent.parent), "EDM_MADE_FROM": "left over"}
    for step in (["--step", "evaluate tiny/vp-B/ladder"], []):
        done = subprocess.run([sys.executable, "-c", program, "launch", *step, "--", "x"], env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert done.stdout.strip() == (start(finished, step[1]).made_from if step else "")


def test_every_rule_has_a_number_for_its_code(finished):
    rules = {job.rule for job in finished.jobs()} - {"download"}
    assert rules <= RULES.keys()
