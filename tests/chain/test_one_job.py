"""A job of a workflow pays for its own step: it resolves no other point, model or study of params.yaml."""

import shutil
from pathlib import Path

import pytest
import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, made, raw_labels, start
from edm.config import SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.params import reading

ROOT = Path(__file__).parents[2]
POINTS = {"num_steps": list(range(1, 26)), "S_churn": [0.01 * i for i in range(40)]}


@pytest.fixture
def stated(tmp_path, monkeypatch):
    """Writes params.yaml with a change, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load((ROOT / "params.yaml").read_text())

    def write(change=lambda experiments: None):
        change(whole["experiments"])
        Path("params.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))

    return write


def thousand(experiments):
    """A thousand evaluations of two models, a job each; an experiment that shares the steps of one of them."""
    experiments["digits"]["sampling"]["one_job_per"] = "point"
    experiments["digits"]["grids"]["many"] = {"models": ["vp-A", "vp-B"], "seeds": "first", **POINTS}
    experiments["mine"] = {"extends": "digits", "title": "Mine", "ladder": {"B": {"learning_rate": 0.004}}}


def pieces(experiments):
    """Repeats and shards of every evaluation."""
    for experiment in experiments.values():
        if "sampling" in experiment:
            experiment["sampling"] |= {"one_job_per": "point", "repeats": 2, "shards": 2}


@pytest.fixture
def resolved(monkeypatch):
    """How many settings and configurations are resolved from here on."""
    counts = {SamplerConfig: 0, TrainingConfig: 0}
    for kind in counts:

        def counting(self, kind=kind, check=kind.__post_init__):
            counts[kind] += 1
            check(self)

        monkeypatch.setattr(kind, "__post_init__", counting)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda experiments: None, thousand, pieces])
def test_a_single_job_is_the_same_as_among_all_others(stated, change):
    """Its files, its inputs, who makes them, and its specification, byte by byte."""
    stated(change)
    chain, single = (Chain(params.load("params.yaml", planned=planned)) for planned in (False, True))
    there, alone = Provenance(chain), Provenance(single)
    for job in list(chain.jobs())[:: max(1, len(chain.by_name) // 500)]:
        found = single.job(job.name)
        assert found == job and dict(found.inputs) == dict(job.inputs) and found.parts == job.parts
        assert made(single, found) == made(chain, job) and raw_labels(single, found) == raw_labels(chain, job)
        if job.rule not in ("about", "metrics"):  # they show everything
            assert alone.specification(found) == there.specification(job), job.name
    assert all(single.maker(path) == job for path, job in list(chain.makers.items())[::9])
    for name in ("evaluate digits/vp-A/none", "train digits/vp-Z", "train none/vp-A", "none digits", "evaluate digits"):
        assert single.job(name) is None
    assert single.maker("results/digits/distances/vp-A/none.json") is None


@pytest.mark.parametrize("name, most", [
    ("evaluate digits/vp-A/many/num_steps=7,S_churn=0.03", (8, 3)), ("train digits/vp-A", (0, 1)),
    ("sample digits/vp-F/samples", (3, 3)), ("prepare digits", (0, 0)), ("train mine/vp-B", (0, 2)),
    ("evaluate mine/vp-B/many/num_steps=7,S_churn=0.03", (8, 4)),
])  # fmt: skip
def test_a_job_resolves_no_other_points_and_models(stated, resolved, name, most):
    """Of thousands a handful: its own, and those of the steps before it and of the extended experiment."""
    stated(thousand)
    chain = Chain(params.load("params.yaml", planned=True))
    job = chain.job(name)
    assert job is not None and chain.specification(job) is not None
    assert made(chain, job) or not job.inputs
    assert resolved[SamplerConfig] <= most[0] and resolved[TrainingConfig] <= most[1]


def test_a_step_that_changed_since_the_plan_is_refused_and_another_one_starts(stated, digits_archive):
    """As without the plan's help: the digest of the step decides, whatever else changed in the file."""
    stated()
    chain = Chain(params.load("params.yaml", whole=True))
    Path("data").mkdir()
    shutil.copy(digits_archive, "data/digits.zip")
    before = {name: Provenance(chain).digest(chain.by_name[name]) for name in ("prepare digits", "train digits/vp-A")}
    stated(lambda experiments: experiments["digits"].update(override={"learning_rate": 0.5}))
    edited = Chain(params.load("params.yaml", planned=True))
    assert start(edited, "prepare digits", before["prepare digits"]).digest == before["prepare digits"]
    start(edited, "prepare digits", before["prepare digits"]).finish()
    with pytest.raises(UserError, match="changed after the plan; run snakemake again"):
        start(edited, "train digits/vp-A", before["train digits/vp-A"])
    with pytest.raises(UserError, match="no longer has this step"):
        start(edited, "train digits/vp-Z")


@pytest.mark.slow
def test_the_page_of_settings_looks_at_the_points_of_a_grid_once(stated, monkeypatch):
    """Not once for each job of that grid: a report would cost the square of a grid's points."""

    def shown(experiments):
        thousand(experiments)
        experiments["digits"]["figures"]["many"] = {"kind": "curve", "over": "nfe", "lines": {"A": "vp-A:many"}}

    stated(shown)
    chain = Chain(params.load("params.yaml"))
    looked, of = [], SamplerConfig.__hash__
    monkeypatch.setattr(SamplerConfig, "__hash__", lambda self: looked.append(1) or of(self))
    sections = chain.specification(chain.by_name["about digits"])["choices"]
    assert any(row[0] == "grid many" for section in sections for row in section["rows"])
    assert 1000 <= len(looked) < 10_000


def test_a_job_checks_no_schema_again_unless_the_file_has_changed_since_the_plan(stated, monkeypatch):
    stated()
    monkeypatch.setenv(reading.VALID, "")
    params.state_valid(params.load("params.yaml", whole=True))
    text = Path("params.yaml").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(reading, "validate", lambda *_: pytest.fail("the schema took time"))
        assert params.load("params.yaml", planned=True).raw["run"] == ["digits"]
    for edited in (text.replace("run:\n- digits", "run:\n- 3"), f"{text}\nfoo: 1\n"):
        Path("params.yaml").write_text(edited)
        with pytest.raises(UserError, match=r"params.yaml: (run.0|the file): "):
            params.load("params.yaml", planned=True)
