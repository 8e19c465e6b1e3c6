"""Settings are derived by default for a user's own folders of images, and the report shows them."""

import json
from pathlib import Path

import pytest
import yaml

from edm import params
from edm.chain import paths
from edm.chain.jobs import Chain
from edm.chain.sidecars import sidecar_file
from edm.cli import main
from edm.data.archive import write_archive
from edm.report.about import environment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """The digits, and the same as someone's own folder of images."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["datasets"] = {"digits": raw["datasets"]["digits"], "flowers": {
        "source": "folder", "path": "flowers", "resolution": 8, "channels": 1, "classes": 10}}  # fmt: skip
    raw["experiments"] = {"digits": raw["experiments"]["digits"],
                          "flowers": {"extends": "digits", "title": "Flowers", "dataset": "flowers"}}  # fmt: skip
    raw["run"], raw["reports"] = ["flowers"], {}
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return Chain(params.load("params.yaml", whole=True))


def test_a_folder_has_the_step_and_no_other_dataset_has(chain):
    assert [job.name for job in chain.jobs() if job.rule == "advise"] == ["advise flowers"]
    job = chain.by_name["advise flowers"]
    assert job.inputs == {"dataset": ("data/flowers.zip",)}
    assert sidecar_file(job) == "steps/data/flowers/advise.json"  # with the files of the stage that DVC keeps
    assert job.outputs[0].startswith("data/references/flowers/")


@pytest.mark.parametrize(("stated", "asked"), [({"digits": True}, ["digits", "flowers"]), ({"flowers": False}, [])])
def test_any_dataset_can_have_the_step_or_do_without_and_is_prepared_as_before(chain, stated, asked):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    for name, advise in stated.items():
        raw["datasets"][name]["advise"] = advise
    Path("advised.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    other = Chain(params.load("advised.yaml", whole=True))
    assert [job.key[0] for job in other.jobs() if job.rule == "advise"] == asked
    for name in stated:
        assert (other.by_name.get(f"advise {name}") in other.needed(other.targets(name))) is stated[name]
        prepare = f"prepare {name}"
        assert other.specification(other.by_name[prepare]) == chain.specification(chain.by_name[prepare])


def test_the_report_needs_it(chain):
    for name, needed in (("flowers", True), ("digits", False)):
        assert (chain.by_name["advise flowers"] in chain.needed(chain.targets(name))) is needed
        assert ("advice" in chain.by_name[f"about {name}"].inputs) is needed


def test_the_page_shows_what_the_command_wrote(chain, digits):
    output = paths.advice_file("flowers")
    assert "Advice for the data" not in environment(chain, chain.reports["flowers"], [])
    Path(output).parent.mkdir(parents=True)
    write_archive("data/flowers.zip", digits.images[:40], None)
    assert main(["advise", "data/flowers.zip", "--output", output]) == 0
    found = json.loads(Path(output).read_text())
    assert found["sigma_data"] == pytest.approx((digits.images[:40] / 127.5 - 1).std(), abs=1e-4)
    page = environment(chain, chain.reports["flowers"], [])
    assert "Advice for the data" in page
    assert all(f"{found[name]:.3g}" in page for name in ("sigma_data", "sigma_min", "sigma_max", "P_mean", "P_std"))
    assert "Advice for the data" not in environment(chain, chain.reports["digits"], [])
