"""A plugin of every kind, each in a file of its own outside the package, through Snakemake to tables and a figure."""

import json

import pytest
from every import PARTS, write_every
from test_chain import edm, planned, snakemake
from test_plugin_specifications import changed, specified

from edm import params, registry
from edm.errors import UserError


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_every(tmp_path)
    return tmp_path


def test_the_laboratory_has_a_part_of_every_kind(lab):
    params.load("params.yaml", whole=True)
    assert PARTS.keys() == registry.KINDS.keys()
    assert {part.kind for part in registry.plugins()} == registry.KINDS.keys()


MINE, PATHS = "evaluate every/my-A/mine", "evaluate every/my-A/paths"
STUDY = {"analyse every/my-A/error"}
STUDY_SHOWN = {"table every/study", "figure every/error", "about every", "track every"}
SHOWN = {"table every/mine", "metrics every", "about every", "track every"}
TRAINED = {MINE, PATHS} | STUDY | STUDY_SHOWN | SHOWN
REFERENCE = "reference bars/lab-moments-with-features"
OWN_AND_FOLLOWING = {
    "source": ({"prepare bars"}, {"train every/my-A", REFERENCE} | TRAINED),
    **dict.fromkeys(("architecture", "preconditioning", "loss", "augmentation", "optimizer", "lr_schedule"),
                    ({"train every/my-A"}, TRAINED)),
    **dict.fromkeys(("schedule", "scaling"), ({PATHS}, SHOWN)),
    **dict.fromkeys(("discretization", "solver"), ({MINE}, SHOWN)),
    "features": ({REFERENCE, MINE, PATHS}, SHOWN),
    "metric": ({MINE, PATHS}, SHOWN),
    "study": (STUDY, STUDY_SHOWN),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_an_edited_file_makes_stale_what_used_it_and_nothing_else(lab, kind):
    before, (own, following) = specified(), OWN_AND_FOLLOWING[kind]
    path = lab / "my_lab" / f"{kind}.py"
    path.write_text(path.read_text() + "\n# edited\n")
    assert changed(before, specified()) == (own, own | following)


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_that_is_no_longer_listed_is_said_in_one_line(lab, kind):
    text = (lab / "params.yaml").read_text()
    (lab / "params.yaml").write_text(text.replace(f"- my_lab/{kind}.py\n", ""))
    with pytest.raises(UserError, match=r"`plugins`|extractor 'lab-moments' is not defined") as caught:
        params.load("params.yaml", whole=True)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("params.yaml: ")


@pytest.mark.parametrize("kind", PARTS)
def test_a_file_that_is_removed_is_said_in_one_line(lab, kind):
    (lab / "my_lab" / f"{kind}.py").unlink()
    with pytest.raises(UserError, match=rf"params\.yaml: plugins: my_lab/{kind}\.py: no such plugin file; correct"):
        params.load("params.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every")
    write_every(folder)
    snakemake(folder)
    return folder


@pytest.mark.slow
def test_all_of_them_end_in_tables_and_a_figure(finished):
    results = finished / "results" / "every"
    table = (results / "tables" / "mine.md").read_text()
    assert "| my steps" in table and "| my paths" in table and "lab-nearest (quantile = 0.9)" in table
    assert "FD (lab-moments)" in table and "mean and deviation of each row" in table
    rows = json.loads((results / "distances/my-A/mine.json").read_text())["points"]
    assert [row["sampler"]["solver.eta"] for row in rows] == [0.8, 0.9]
    assert len({row["distance"] for row in rows}) == 2
    _, _, row = (results / "tables" / "study.md").read_text().partition("| my model |")
    assert float(row.split("|")[0]) > 0
    assert (results / "figures" / "error.png").stat().st_size > 5_000
    steps = [json.loads(path.read_text()) for path in (finished / "steps").rglob("*.json")]
    used = {label.split()[0] for step in steps for label in step["specification"].get("plugins", {})}
    assert used == PARTS.keys()
    assert not planned(finished)


@pytest.mark.slow
def test_an_edited_study_runs_again_alone(finished):
    path = finished / "my_lab" / "study.py"
    text = path.read_text()
    path.write_text(text + "\n# edited\n")
    assert planned(finished) == ["Analyse every my-A: error", "Figure every error", "How every was made",
                                 "MLflow: runs of every", "Table every study"]  # fmt: skip
    path.write_text(text)
    told = " ".join(edm(finished, "trace", "every/study", "my model").split())
    assert "study my-error my_lab/study.py, sha256" in told and "analyse every/my-A/error" in told
