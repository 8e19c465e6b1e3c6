"""Studies of plugins: called with what they ask for, their numbers checked, shown in tables and figures."""

import re

import numpy as np
import pytest
import torch
from every import write_every

from edm import params, registry
from edm.analysis.studies import read_numbers, save_study, study
from edm.chain.jobs import Chain
from edm.chain.plan import make_plan
from edm.errors import UserError
from edm.params.studies import STUDIES
from edm.report.figures import Places, write_figure
from edm.report.results import Results
from edm.report.tables import build_table

STUDY = """
import torch
import edm


@edm.register("study", "lab", dataset=True)
def lab(denoiser, dataset, features, *, width: int = 2):
    assert features is None
    return {"shown": torch.from_numpy(dataset[:width])}, {"level": [0.1, 1.0], "size": float(width)}
"""
IMAGES = np.zeros((4, 1, 8, 8), dtype=np.uint8)


def test_a_study_gives_images_and_numbers(plugin, tmp_path):
    plugin(STUDY)
    images, numbers = study("lab", None, IMAGES, None, width=3)
    assert images["shown"].shape == (3, 1, 8, 8) and numbers == {"level": [0.1, 1.0], "size": 3.0}
    save_study(tmp_path / "lab.safetensors", images, numbers, {})
    assert read_numbers(tmp_path / "lab.safetensors", "lab") == numbers


def test_numbers_of_numpy_and_torch_are_numbers(plugin):
    plugin(STUDY.replace("[0.1, 1.0]", "torch.tensor([0.5, 1.0])").replace("float(width)", "dataset.mean()"))
    assert study("lab", None, IMAGES)[1] == {"level": [0.5, 1.0], "size": 0.0}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('return {"shown": torch.from_numpy(dataset[:width])}, ', "return ", r"returned dict; expected two dictionar"),
        ("dataset[:width]", "dataset[0]", r"returned images 'shown' torch.uint8 \[1, 8, 8\]; expected uint8 \[n, C"),
        ("torch.from_numpy(dataset[:width])", "dataset", "returned images 'shown' ndarray; expected"),
        ("float(width)", "float('nan')", "returned 'size' nan; expected a finite number, or a list of them"),
        ("[0.1, 1.0]", "['a']", r"returned 'level' \['a'\]; expected a finite number"),
        ("dataset[:width]", "dataset.images", r"plugin\.py:8: study lab: AttributeError"),
    ],
)
def test_a_study_that_fails_says_where(plugin, old, new, message):
    plugin(STUDY.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        study("lab", None, IMAGES)
    assert "\n" not in str(caught.value)


def test_our_studies_are_registered_and_plugins_stand_beside_them(plugin):
    assert list(STUDIES) == ["truncation", "degradation", "leakage", "memorisation"]
    assert all(registry.find("study", name).own for name in STUDIES)
    plugin(STUDY)
    assert list(STUDIES)[-1] == "lab" and STUDIES["lab"].dataset and not STUDIES["lab"].features


@pytest.fixture
def every(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_every(tmp_path)
    return tmp_path


def change(folder, old, new):
    text = (folder / "params.yaml").read_text()
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "kind: my-error",
            "kind: my-eror",
            r"analyses\.error\.kind: 'my-eror' is not one .*mean 'my-error'",
        ),
        ("study.levels", "study.level", r"analyses\.error: unknown key 'study\.level'; did you mean 'study\.levels'"),
        ("      - 5.0", "      - high", r"analyses\.error\.study\.levels.*'high' is not of type number"),
        ("kind: my-error", "kind: truncation", r"analyses\.error: truncation has no study\.levels; it ta"),
        (
            "        study.levels:",
            "        num_steps: 4\n        study.levels:",
            "my-error has no num_steps; it ta",
        ),
        ("- my-A:error", "- my-A:eror", "figures.error: analysis 'eror' is not defined; every has error"),
        ("        - largest", "        - 3", "columns.*3"),
    ],
)
def test_a_wrong_entry_of_a_study_is_one_line(every, old, new, message):
    change(every, old, new)
    with pytest.raises(UserError, match=message) as caught:
        params.load("params.yaml", whole=True)
    assert str(caught.value).startswith("params.yaml: ") and "\n" not in str(caught.value)


def test_a_setting_that_is_the_default_is_not_in_the_specification(every):
    spec = lambda: params.load("params.yaml").experiment("every").analysis_spec("my-A", "error")
    assert spec() == {"kind": "my-error", "study.levels": [0.2, 1.0, 5.0]}
    text = (every / "params.yaml").read_text()
    (every / "params.yaml").write_text(re.sub(r"study\.levels:(\s+- [\d.]+)+", "study.images: 16", text))
    assert spec() == {"kind": "my-error"}


@pytest.fixture
def measured(every):
    """A study's file, as if the chain had run."""
    report = Chain(params.load("params.yaml", whole=True)).reports["every"]
    file = every / "runs/every/my-A/analyses/error.safetensors"
    write = lambda **numbers: save_study(file, {"x": torch.zeros(1)}, numbers, {})
    places = Places(*(every / name for name in ("results", "runs", "data", "models")))
    return report, write, places


def test_a_table_and_a_figure_show_its_numbers(measured):
    report, write, places = measured
    table = lambda: build_table(report, "study", Results(places.results, places.runs))
    assert table().rows["my model"][0].missing == "not run"
    with pytest.raises(UserError, match="none of its studies is there yet; run snakemake"):
        write_figure(report, "error", places)
    write(sigma=[0.2, 1.0], error=[0.5, 0.25], largest=0.5)
    assert (table().rows["my model"][0].text, table().rows["my model"][0].value) == ("0.5", 0.5)
    assert [path.suffix for path in write_figure(report, "error", places)] == [".png", ".svg"]


def test_numbers_that_a_study_does_not_give_are_named(measured):
    report, write, places = measured
    write(sigma=[0.2, 1.0], error=[0.5], larges=0.5)
    with pytest.raises(UserError, match="my model: error gives no number 'largest'; did you mean 'larges'"):
        build_table(report, "study", Results(places.results, places.runs))
    with pytest.raises(UserError, match="error gives 2 numbers 'sigma' and 1 'error'"):
        write_figure(report, "error", places)
    write(sigma=[0.2, 1.0], eror=[0.5])
    with pytest.raises(UserError, match="error gives no list of numbers 'error'; did you mean 'eror'"):
        write_figure(report, "error", places)


def test_the_plan_counts_no_evaluations_of_it(every):
    found = make_plan(params.load("params.yaml", whole=True), "every/study").by_rule["analyse"]
    assert (found.jobs, found.evaluations, found.drawn) == (1, (0, 0), (0, 0))
