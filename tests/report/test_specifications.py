"""Whatever a reader sees is in the specification of its step, and nothing else is: what each change makes stale."""

import copy
import shutil
from pathlib import Path

import miniature
import pytest
import yaml

import edm
from edm import params
from edm.chain.jobs import Chain
from edm.params import paper

ROOT = Path(__file__).parents[2]
RAW = miniature.raw()
RAW["experiments"] = {name: RAW["experiments"][name] for name in (
    "digits", "cifar10-cond", "cifar10-uncond", "ffhq", "afhqv2", "imagenet")}  # fmt: skip
RAW["reports"] = {"paper": RAW["reports"]["paper"]}
RAW["pretrained"] = {}
SHOWING = ("table", "figure", "metrics", "about")


def specifications(raw, folder):
    """{step: what decides it beside its inputs} of everything that a reader sees."""
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    chain = Chain(params.load(path))
    return {job.name: chain.specification(job) for job in chain.jobs() if job.rule in SHOWING}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return specifications(RAW, tmp_path_factory.mktemp("before"))


def stale(before, change, folder):
    raw = copy.deepcopy(RAW)
    change(raw)
    after = specifications(raw, folder)
    return {name for name in before if before[name] != after.get(name)}


def digits(raw):
    return raw["experiments"]["digits"]


def report(raw):
    return raw["reports"]["paper"]


def renamed(entries, old, new):
    """The entries in their order, one under another name."""
    pairs = [(new if key == old else key, value) for key, value in entries.items()]
    entries.clear()
    entries.update(pairs)


def reversed_(entries):
    pairs = list(entries.items())[::-1]
    entries.clear()
    entries.update(pairs)


TABLE3, TABLE4 = (lambda raw, name=name: digits(raw)["tables"][name] for name in ("table3", "table4"))
CHANGES = {
    "a row's name, in its table and in the figure of it": (
        lambda raw: renamed(TABLE3(raw)["rows"], "Black-box RK45", "RK45"),
        {"table digits/table3", "figure digits/figure2"}),
    "the order of rows": (
        lambda raw: reversed_(TABLE3(raw)["rows"]), {"table digits/table3", "figure digits/figure2", "metrics digits"}),
    "a table's title, which stands in no figure": (
        lambda raw: TABLE3(raw).update(title="Samplers"), {"table digits/table3"}),
    "whose NFE is shown": (lambda raw: TABLE4(raw).update(nfe="within 3 %"), {"table digits/table4"}),
    "whose NFE one row shows": (lambda raw: TABLE4(raw).pop("nfe_of_rows"), {"table digits/table4"}),
    "a note": (lambda raw: TABLE4(raw).update(note="Read this."), {"table digits/table4"}),
    "a further metric": (lambda raw: TABLE4(raw).update(metrics=["kid"]), {"table digits/table4"}),
    "a figure's title, which only its caption has": (
        lambda raw: digits(raw)["figures"]["figure5b"].update(title="Churn"), set()),
    "what a configuration is called": (
        lambda raw: digits(raw)["names"].update(F="augmentation"),
        {"table digits/table2", *(f"figure digits/figure{n}" for n in ("5a", "5b", "9"))}),
    "a line's name": (
        lambda raw: renamed(digits(raw)["figures"]["figure5b"]["lines"], "vp-A", "First"), {"figure digits/figure5b"}),
    "the order of lines": (
        lambda raw: reversed_(digits(raw)["figures"]["figure5b"]["lines"]), {"figure digits/figure5b"}),
    "the order of panels": (
        lambda raw: reversed_(report(raw)["figures"]["figure9"]["panels"]), {"figure paper/figure9"}),
    "images shown": (lambda raw: digits(raw)["figures"]["figure9"].update(images=8), {"figure digits/figure9"}),
    "the mark of a curve": (
        lambda raw: digits(raw)["figures"]["figure4"].update(mark="within 3 %"), {"figure digits/figure4"}),
    "a row's name among sheets, with its distances": (
        lambda raw: [renamed(report(raw)["figures"]["figure12a"][part], "FFHQ", "FFHQ-64") for part in
                     ("rows", "distances")], {"figure paper/figure12a"}),
    "an experiment's title": (lambda raw: digits(raw).update(title="Digits"), {"about digits"}),
    "a report's title": (lambda raw: report(raw).update(title="EDM"), {"about paper"}),
    "a setting that Table 7 prints": (
        lambda raw: raw["experiments"]["afhqv2"]["ladder"]["B"].update(dropout=0.2),
        {"table paper/table7", "about paper"}),
    "a setting that no table prints": (
        lambda raw: raw["experiments"]["afhqv2"].update(base={"seed": 7}), {"about paper"}),
    "GPUs, which Table 7 prints": (
        lambda raw: raw["experiments"]["imagenet"]["training"].update(gpus=16), {"table paper/table7"}),
    "what a step is run on": (
        lambda raw: [digits(raw)["sampling"].update(shards=3, gpus=8), digits(raw)["training"].update(gpus=4)], set()),
    "noise levels in training, which Figure 5a draws": (
        lambda raw: digits(raw)["ladder"]["F"].update(P_mean=-0.8),
        {"figure digits/figure5a", "metrics digits", "about digits"}),
    "a comment": (lambda raw: None, set()),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.first(3)
def test_a_change_that_is_seen_makes_stale_what_shows_it_and_nothing_else(before, tmp_path, what):
    change, expected = CHANGES[what]
    assert stale(before, change, tmp_path) == expected


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A copy of the paper's numbers to edit."""
    path = tmp_path / "paper.yaml"
    shutil.copy(paper.FILE, path)
    monkeypatch.setattr(paper, "FILE", path)

    def edit(old, new):
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
        paper._tables.cache_clear()

    yield edit
    paper._tables.cache_clear()


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("2.97 (383)", "2.98 (383)", {"table paper/table4"}),
        ("2.97 (383)", "2.97 (384)", {"table paper/table4"}),
        ("25.95", "25.95°", {"table paper/table2"}),
        ("about 63", '"63"', {"table paper/table8"}),
        ("    B: [", "    # Configuration B\n    B: [", set()),
    ],
    ids=["value", "NFE", "mark", "rounding", "comment"],
)
@pytest.mark.first(2)
def test_a_published_number_makes_stale_the_table_that_prints_it(before, tmp_path, edited, old, new, expected):
    edited(old, new)
    assert stale(before, lambda raw: None, tmp_path) == expected


def test_a_row_that_the_paper_does_not_have_is_named_before_anything_runs(tmp_path):
    raw = copy.deepcopy(RAW)
    renamed(report(raw)["tables"]["table3"]["rows"], "Original sampler", "Original")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(edm.UserError, match=r"tables\.table3: paper: table3 has no row 'Original'; it has Ori"):
        params.load(tmp_path / "params.yaml", whole=True)
