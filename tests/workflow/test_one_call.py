"""One call of snakemake makes its target, and runs what `edm plan` counted: in states that nobody thought of, too."""

import os
import random
import shutil
from pathlib import Path

import pytest
from pretended import FAILING, dry_run, edit, planned, run, snakemake

from edm import params
from edm.chain.jobs import Chain

pytestmark = pytest.mark.slow

ASIDE = Path("runs/set-aside")
#: What an edit of params.yaml may be.
EDITS = (
    lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=1.0e-3),
    lambda raw: raw["experiments"]["tiny"]["grids"]["ladder"].update(num_steps=4),
    lambda raw: raw["experiments"]["tiny"]["searches"]["walk"].update(num_steps=3),
    lambda raw: raw["experiments"]["tiny"]["sheets"]["look"].update(images=5),
    lambda raw: raw["experiments"]["tiny"]["sampling"].update(shards=3),
    lambda raw: raw["datasets"]["made"].update(images=2),
    lambda raw: raw["experiments"]["tiny"]["tables"]["table3"].update(nfe="within 3 %"),
)
TARGETS = ("tiny", "results/tiny/tables/table3.md", "results/tiny/figures/looks.png", "results/tiny/metrics.json",
           "results/tiny/distances/vp-B/ladder.json")  # fmt: skip


def disturb(chance):
    """Something happens to the files of a chain."""
    files = sorted(path for place in ("data", "models", "results", "runs", "steps") for path in Path(place).rglob("*.*")
                   if path.is_file())  # fmt: skip
    for path in chance.sample(files, chance.choice((0, 1, 1, 2, 5, len(files) // 2))):
        what = chance.choice(("delete", "delete", "edit", "by hand"))
        if what == "delete":
            path.unlink(missing_ok=True)
        elif what == "edit":
            path.write_text(f"{path} and more")
        else:  # where its sidecar was, nothing that tells
            for other in Path("steps").rglob("*.json"):
                if str(path) in other.read_text():
                    other.unlink()
            path.write_text("by hand")
    if chance.random() < 0.2:
        shutil.rmtree(chance.choice(("data", "models", "results", "steps/train", "steps/data")), ignore_errors=True)
    if chance.random() < 0.4:
        edit(chance.choice(EDITS))
    if chance.random() < 0.2:
        Path("pictures/1.png").write_bytes(b"two")
    for path in (path for path in Path().rglob("*.*") if path.is_file() and "bin" not in path.parts):
        time = 1_500_000_000 + chance.randrange(10**9)  # up to years from now
        os.utime(path, (time, time))


@pytest.mark.parametrize("seed", range(15))
def test_the_plan_counts_what_a_dry_run_of_any_state_lists(folder, seed):
    chance = random.Random(seed)
    disturb(chance)
    target = chance.choice(TARGETS[:1] + TARGETS)
    assert dry_run(folder, target) == planned(target)


@pytest.mark.parametrize("seed", range(100, 104))
def test_one_call_runs_what_was_planned_and_leaves_nothing_to_do(folder, seed):
    chance = random.Random(seed)
    disturb(chance)
    expected = planned()
    assert run(folder) == expected
    assert planned() == [] == dry_run(folder)


def everything():
    chain = Chain(params.load("params.yaml"))
    return sorted(job.name for job in chain.needed(chain.targets("tiny")))


def test_an_archive_made_by_hand_beforehand_stops_nothing(folder):
    """As README has it: `edm prepare`, then `snakemake`. Whose the file is nobody can tell: it is kept."""
    for place in ("data", "models", "results", "runs", "steps"):
        shutil.rmtree(place)
    Path("data").mkdir()
    Path("data/made.zip").write_text("prepared by hand")
    assert dry_run(folder) == planned() == everything() == run(folder)
    assert (ASIDE / "data/made.zip").read_text() == "prepared by hand"
    assert planned() == []


def test_a_lost_sidecar_and_a_changed_setting_reach_the_table_at_once(folder):
    Path("steps/data/made/prepare.json").unlink()
    edit(EDITS[0])
    assert dry_run(folder) == planned() == everything() == run(folder)
    assert planned() == []


@pytest.mark.parametrize(("words", "rule"), [(("-R", "train"), "train"), (("-R", "evaluate"), "evaluate"),
                                             (("-F",), "prepare")])  # fmt: skip
def test_what_is_forced_takes_all_that_follows_with_it(folder, words, rule):
    chain = Chain(params.load("params.yaml"))
    forced = [path for job in chain.by_name.values() if job.rule == rule for path in job.outputs]
    assert dry_run(folder, *words) == planned(forced=forced)
    assert f"{rule} {'made' if rule == 'prepare' else 'tiny/vp-B'}"[:14] in " ".join(planned(forced=forced))
    assert "table tiny/table2" in planned(forced=forced)


def test_forced_training_runs_are_evaluated_in_the_same_call(folder):
    assert [name.split()[0] for name in run(folder, "-R", "train")].count("evaluate") == 3
    assert planned() == [] == dry_run(folder)


def test_a_step_that_fails_leaves_the_rest_to_the_next_call(folder, monkeypatch):
    edit(EDITS[0])
    monkeypatch.setenv(FAILING, "evaluate tiny/vp-B/ladder")
    assert snakemake(folder).returncode != 0 and not Path("results/tiny/distances/vp-B/ladder.json").exists()
    monkeypatch.delenv(FAILING)
    left = planned()
    assert "train tiny/vp-B" not in left and "evaluate tiny/vp-B/ladder" in left
    assert dry_run(folder) == left == run(folder)
    assert planned() == []


def test_a_file_that_the_chain_did_not_make_is_kept_though_a_step_makes_it_again(folder):
    """Put in the place of a file that a sidecar tells of, and in that of one that none does."""
    Path("data/made.zip").write_text("my own archive")
    Path("models/tiny/vp-B/model.safetensors").write_text("my own model")
    Path("steps/train/tiny/train/vp-B.json").unlink()
    done = snakemake(folder)
    assert done.returncode == 0 and "data/made.zip: not as a step of this chain made it; it is kept as" in done.stderr
    assert (ASIDE / "data/made.zip").read_text() == "my own archive"
    assert (ASIDE / "models/tiny/vp-B/model.safetensors").read_text() == "my own model"
    assert sorted(str(path.relative_to(ASIDE)) for path in ASIDE.rglob("*.*")) == [
        "data/made.zip", "models/tiny/vp-B/levels.json", "models/tiny/vp-B/model.safetensors"]  # fmt: skip


def test_a_dry_run_and_a_refusal_move_nothing(folder):
    """A stale step whose raw data are gone would lose its files to Snakemake, and could not make them again."""
    Path("data/made.zip").write_text("my own archive")
    dry_run(folder)
    shutil.rmtree("pictures")
    done = snakemake(folder)
    assert done.returncode != 0 and "pictures: missing, and prepare made has to run again" in done.stderr
    assert Path("data/made.zip").read_text() == "my own archive" and not ASIDE.exists()


def made_up(raw):
    raw["datasets"]["made"].update(made_up=5, path="runs/made-up/made")


def test_pictures_in_the_place_of_made_up_ones_are_kept(folder):
    edit(made_up)
    Path("runs/made-up/made").mkdir(parents=True)
    Path("runs/made-up/made/mine.png").write_bytes(b"mine")
    assert "made_up made" in run(folder)
    assert (ASIDE / "runs/made-up/made/mine.png").read_bytes() == b"mine"
    assert [path.name for path in Path("runs/made-up/made").glob("*.png")] == ["1.png"] and planned() == []


def test_made_up_pictures_have_no_place_among_the_users(folder):
    edit(lambda raw: raw["datasets"]["made"].update(made_up=5))
    done = snakemake(folder)
    assert done.returncode != 0 and "datasets.made.path: synthetic data must be below runs/made-up/" in done.stderr
    assert Path("pictures/1.png").read_bytes() == b"one"
