"""The chain of jobs: what is made from what, each file by one job, and each job once."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

import edm
from edm import params
from edm.chain import paths
from edm.chain.jobs import Chain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole():
    return params.load(ROOT / "params.yaml")


@pytest.fixture
def chain(whole, tmp_path, monkeypatch):
    """The chain where nothing is there yet."""
    monkeypatch.chdir(tmp_path)
    return Chain(whole)


def needed(chain, *names):
    return chain.needed([path for name in names for path in chain.targets(name)])


def of_rule(jobs, rule):
    return {job.key: job for job in jobs if job.rule == rule}


# The whole ------------------------------------------------------------------------------------------------------------


def test_what_no_job_makes_comes_from_outside(chain):
    """Where nothing is there, every input is made by a job: one that only a person can fetch, by one that says so."""
    outside = {path for job in chain.jobs() for path in job.files if path not in chain.makers}
    assert outside == set()


def test_in_the_project_what_no_job_makes_is_a_raw_source_a_download_or_a_published_file(whole, monkeypatch):
    monkeypatch.chdir(ROOT)
    chain = Chain(whole)
    outside = {path for job in chain.jobs() for path in job.files if path not in chain.makers}
    raw = {whole.dataset(name)["path"] for name in whole.raw["datasets"]}
    published = {file["path"] for file in whole.pretrained.values()}
    assert outside <= raw | published | set(whole.downloads)
    assert {path for path in published if path.startswith("tests/fixtures")} <= outside  # made-up ones are there
    assert all(Path(path).exists() for path in outside)


def test_the_downloads_of_a_target_are_those_that_its_steps_need(chain):
    for reports in (*([report] for report in chain.reports), ["paper", "solvers"]):
        jobs = chain.needed(path for report in reports for path in chain.targets(report))
        downloads = sorted(path for job in jobs if job.rule == "download" for path in job.outputs)
        assert sorted(chain.downloads_for(reports)) == downloads
    assert len(downloads) > len(chain.downloads_for(["paper"])) > 5


def test_every_file_has_one_maker_and_every_job_one_name(chain):
    jobs = list(chain.jobs())
    made = Counter(path for job in jobs for path in job.outputs)
    assert [path for path, count in made.items() if count > 1] == []
    named = Counter((job.rule, *job.key) for job in jobs)
    assert [name for name, count in named.items() if count > 1] == []


@pytest.mark.parametrize(
    "name",
    [
        "paper",
        "rehearsal",
        "solvers",
        "digits",
        "digits-full",
        "digits-metrics",
        "digits-solvers",
        "digits-beyond",
        "cifar10-beyond",
        "rehearsal-beyond",
    ],
)
@pytest.mark.first(4)
def test_makers_come_before_users_and_nothing_twice(chain, name):
    jobs = needed(chain, name)
    there = set()
    for job in jobs:
        assert {path for path in job.files if path in chain.makers} <= there, job.key
        assert there.isdisjoint(job.outputs)
        there.update(job.outputs)
    assert set(chain.targets(name)) <= there
    used = {path for job in jobs for path in job.files}
    assert all(set(job.outputs) & (used | set(chain.targets(name))) for job in jobs)  # and nothing that nobody needs


def test_a_part_needs_no_more_than_the_whole(chain):
    everything = set(needed(chain, "paper"))
    report = chain.reports["paper"]
    for part in [*report.tables, *report.figures]:
        jobs = set(needed(chain, f"paper/{part}"))
        assert jobs < everything, part
    parts = set().union(*(needed(chain, f"paper/{part}") for part in [*report.tables, *report.figures]))
    assert {job.rule for job in everything - parts} == {"metrics", "about", "track"}


def test_the_paper_and_its_rehearsal_are_the_same_jobs(chain):
    """One training, import, search, sheet, analysis, table and figure of the rehearsal for each of the paper."""
    paper, rehearsal = (Counter(job.rule for job in needed(chain, name)) for name in ("paper", "rehearsal"))
    assert paper["train"] == 46 + 1 + 1 and paper["published"] == 3  # Table 2, ADM, the leakage check
    for rule in ("train", "published", "search", "sample", "analyse", "table", "figure", "reference", "prepare"):
        assert rehearsal[rule] == paper[rule], rule
    draws = Counter()
    for name in ("paper", "rehearsal"):
        for experiment, model, evaluation in of_rule(needed(chain, name), "evaluate"):
            draws[name] += len(chain.experiments[experiment].evaluation(model, evaluation).draws)
    assert paper["evaluate"] == draws["paper"]  # on a cluster one evaluation is one job
    assert rehearsal["evaluate"] < draws["rehearsal"]  # on two cores a grid is


def test_what_goes_beyond_the_paper_is_rehearsed(chain):
    """Averages alone are fewer: at two widths instead of eight; and only one training is not the paper's."""
    jobs, rehearsal = (needed(chain, name) for name in ("cifar10-beyond", "rehearsal-beyond"))
    for rule in ("train", "search", "likelihood", "table", "figure", "reference", "prepare"):
        assert len(of_rule(jobs, rule)) == len(of_rule(rehearsal, rule)), rule
    assert {key[0] for key in of_rule(jobs, "train")} == {"cifar10-cond", "cifar10-beyond"}
    assert [key for key in of_rule(jobs, "train") if key[0] == "cifar10-beyond"] == [("cifar10-beyond", "guided")]
    assert len(of_rule(jobs, "average")) == 12 * 8 + 1 and len(of_rule(rehearsal, "average")) == 12 * 2 + 1


def test_tables_of_configurations_need_nothing(chain):
    assert [job.rule for job in needed(chain, "paper/table7", "paper/table8")] == ["table", "table"]


# Its links ------------------------------------------------------------------------------------------------------------


def test_distances_are_of_the_chosen_snapshot_where_there_is_a_choice(chain):
    evaluations = of_rule(chain.jobs(), "evaluate")
    chosen = evaluations["cifar10-cond", "vp-F", "ladder/only@0"]
    assert chosen.files[0] == "models/cifar10-cond/vp-F/best.safetensors"
    choice = chain.makers[chosen.files[0]]
    assert choice.rule == "choose" and choice.files[0] == "models/cifar10-cond/vp-F/model.safetensors"
    assert evaluations["digits", "vp-F", "ladder"].files[0] == "models/digits/vp-F/model.safetensors"
    pretrained = evaluations["cifar10-uncond", "vp-A", "original/num_steps=16@0"]
    assert chain.makers[pretrained.files[0]].rule == "published"
    assert (
        of_rule(chain.jobs(), "analyse")["cifar10-uncond", "leak", "leakage"]
        .files[0]
        .endswith("leak/model.safetensors")
    )


def test_a_grid_that_takes_settings_from_a_search_waits_for_that_of_its_model(chain):
    evaluations = of_rule(chain.jobs(), "evaluate")
    searches = {(job.key[0], job.key[1]): [path for path in job.files if "/searches/" in path]
                for key, job in evaluations.items() if key[2].startswith("stochastic-range/")}  # fmt: skip
    for (experiment, model), found in searches.items():
        assert found == [f"results/{experiment}/searches/{model}/range.json"]
    assert {model for _, model in searches} == {"vp-A", "ve-A", "adm-published"}
    optimal = evaluations["cifar10-uncond", "vp-A", "stochastic-all/num_steps=16@0"]  # Table 5 is stated there
    assert not any("/searches/" in path for path in optimal.files)


def test_one_reference_serves_every_experiment_of_a_dataset(chain):
    references = {path for job in needed(chain, "paper") for path in job.files if path.endswith(".npz")}
    computed = {path for path in references if path.startswith("data/references/")}
    assert len(computed) == 4  # CIFAR-10 conditional and unconditional share theirs
    assert references - computed == {"downloads/VIRTUAL_imagenet64_labeled.npz"}
    for path in computed:
        assert chain.makers[path].files[1] == "downloads/weights-inception-2015-12-05-6726825d.pth"


def test_adm_as_published_is_searched_and_measured_against_its_authors_statistics(chain):
    theirs = "downloads/VIRTUAL_imagenet64_labeled.npz"
    for rule in ("evaluate", "search"):
        jobs = of_rule(chain.jobs(), rule)
        used = {key[1]: {theirs in job.files for other, job in jobs.items() if other[:2] == key[:2]}
                for key in jobs if key[0] == "imagenet"}  # fmt: skip
        assert used == {"adm-published": {True}, "adm-E": {False}}


def test_metrics_that_compare_sets_need_a_reference_that_keeps_its_features(chain):
    experiments = chain.experiments
    assert paths.reference_file(experiments["rehearsal-ffhq"]).endswith("-with-features.npz")  # precision and recall
    assert "with-features" not in paths.reference_file(experiments["rehearsal-afhqv2"])


def test_further_features_bring_a_reference_and_weights_of_their_own(tmp_path, monkeypatch):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["experiments"] = {name: raw["experiments"][name] for name in ("digits", "digits-full")}
    raw["experiments"]["digits"]["more_features"] = {"pixels": None, "dinov2-vit-b-14": "downloads/dinov2.pth"}
    raw["experiments"]["digits-full"]["more_features"] = {"dinov2-vit-b-14": "downloads/other.pth"}
    raw["reports"], raw["pretrained"] = {}, {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    chain = Chain(params.load("params.yaml"))
    inputs = of_rule(chain.jobs(), "evaluate")["digits", "vp-F", "ladder"].files
    assert [path.split("/")[-1].split(".")[0].split("-")[0] for path in inputs[1:4]] == ["digits", "pixels", "dinov2"]
    assert len(set(inputs[1:4])) == 3 and all(chain.makers[path].rule == "reference" for path in inputs[1:4])
    assert inputs[4:] == (paths.classifier("digits"), "downloads/dinov2.pth")
    assert chain.makers[inputs[1]].files == (paths.archive("digits"), paths.classifier("digits"))
    assert chain.makers[inputs[2]].files == (paths.archive("digits"),)
    assert chain.makers[inputs[3]].files == (paths.archive("digits"), "downloads/dinov2.pth")
    others = of_rule(chain.jobs(), "evaluate")["digits-full", "vp-F", "ladder"].files  # it extends the first
    assert others[1:3] == inputs[1:3]  # the same extractor, with the same weights
    assert others[3] != inputs[3] and "downloads/other.pth" in chain.makers[others[3]].files


def test_pictures_wait_for_what_they_show(chain):
    figures = {job.key[1]: job for job in needed(chain, "paper") if job.rule == "figure"}
    assert figures["figure1"].files == ("data/cifar10.zip",)
    assert figures["figure3"].files == ()  # a closed form
    assert set(figures["figure7"].files) == {f"runs/imagenet/adm-E/sheets/{s}.safetensors" for s in ("ode", "sde")}
    assert set(figures["figure5a"].files) == {
        f"models/{experiment}/levels.json"
        for experiment in ("cifar10-cond/vp-F", "ffhq/vp-F", "afhqv2/vp-F", "imagenet/adm-E")
    }
    assert chain.makers[figures["figure5a"].files[0]].rule == "train"
    digits = {job.key[1]: job for job in needed(chain, "digits") if job.rule == "figure"}
    assert "data/digits.zip" in digits["figure9"].files  # beside the samples
    leakage = of_rule(needed(chain, "paper/leakage"), "analyse")["cifar10-uncond", "leak", "leakage"]
    assert "data/cifar10.zip" in leakage.files  # clean and augmented images are compared


def test_tracking_comes_last(chain):
    jobs = needed(chain, "digits")
    report = chain.reports["digits"]
    (track,) = (job for job in jobs if job.rule == "track")
    made = {job.key[1] for path in track.files for job in [chain.makers[path]]}
    assert made == {*report.tables, *report.figures}


# Downloads ------------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_downloaded_and_what_is_there_is_the_users_own(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tarball = "downloads/cifar-10-python.tar.gz"
    fetched = of_rule(needed(Chain(whole), "paper"), "download")
    assert {path for (path,) in fetched} == {
        tarball,
        "downloads/images1024x1024", "downloads/afhqv2", "downloads/ILSVRC2012/train",
        "downloads/weights-inception-2015-12-05-6726825d.pth", "downloads/VIRTUAL_imagenet64_labeled.npz",
        "downloads/pretrained/score_sde-cifar10-32x32-uncond-vp.pth",
        "downloads/pretrained/score_sde-cifar10-32x32-uncond-ve.pth", "downloads/pretrained/adm-imagenet-64x64-cond.pt",
    }  # fmt: skip
    Path(tarball).parent.mkdir()
    Path(tarball).write_bytes(b"a copy")
    chain = Chain(whole)
    assert of_rule(needed(chain, "paper"), "download").keys() == fetched.keys() - {(tarball,)}
    assert tarball in of_rule(chain.jobs(), "prepare")[("cifar10",)].files  # still what it is made from
    assert tarball not in chain.makers


def test_what_only_a_person_can_fetch_is_a_download_that_says_how(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = of_rule(Chain(whole).jobs(), "download")
    for path, entry in whole.downloads.items():
        assert (path,) in jobs
        assert entry["url"] or entry["note"]
    Path("downloads/images1024x1024").mkdir(parents=True)
    assert ("downloads/images1024x1024",) not in of_rule(Chain(whole).jobs(), "download")
    assert of_rule(Chain(whole).jobs(), "prepare")[("ffhq",)].files == ("downloads/images1024x1024",)


@pytest.mark.slow
def test_a_folder_of_several_downloads_is_whole_before_it_is_prepared(whole, tmp_path, monkeypatch):
    """MNIST is two files: that the folder is there with one of them does not make do without the other."""
    monkeypatch.chdir(tmp_path)
    both = tuple(f"downloads/mnist/train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    prepared = lambda: of_rule(Chain(whole).jobs(), "prepare")[("mnist",)].files
    fetched = lambda: set(both) & {path for (path,) in of_rule(Chain(whole).jobs(), "download")}
    assert prepared() == both and fetched() == set(both)
    Path("downloads/mnist").mkdir(parents=True)
    Path(both[0]).touch()
    assert prepared() == both and fetched() == {both[1]}
    Path(both[1]).touch()
    assert prepared() == both and not fetched()
    for path in both:
        Path(path).rename(path.removesuffix(".gz"))
    assert prepared() == ("downloads/mnist",)  # the user's own, unpacked


def test_made_up_data_are_made_before_they_are_prepared(chain):
    made = of_rule(needed(chain, "rehearsal"), "made_up")
    assert made.keys() == {(f"rehearsal-{name}",) for name in ("cifar10", "ffhq", "afhqv2", "imagenet")}
    for key, job in of_rule(needed(chain, "rehearsal"), "prepare").items():
        assert job.files == made[key].outputs
    assert not of_rule(needed(chain, "rehearsal"), "download")


# Targets --------------------------------------------------------------------------------------------------------------


def test_targets_are_reports_experiments_parts_and_files(chain):
    assert chain.targets("paper/table2") == [
        f"results/paper/tables/table2{s}" for s in (".md", ".csv", ".tex", ".html")
    ]
    assert chain.targets("paper/figure2a") == [f"results/paper/figures/figure2a{s}" for s in (".png", ".svg")]
    report = chain.targets("paper")
    assert {"results/paper/metrics.json", "results/paper/plots/nfe.csv", "results/paper/tracking.json"} <= {*report}
    assert len(report) == 7 * 4 + 30 * 2 + 5 + 3 + 1  # metrics with four curves, three pages, the tracking
    evaluations = chain.targets("cifar10-cond")  # an experiment without tables of its own: all that is measured
    assert all(path.startswith("results/cifar10-cond/distances/") for path in evaluations)
    assert len(evaluations) == (12 + 2 * 14) * 3
    assert chain.targets("models/cifar10-cond/vp-F/best.safetensors") == ["models/cifar10-cond/vp-F/best.safetensors"]
    jobs = chain.needed(chain.targets("models/cifar10-cond/vp-F/best.safetensors"))
    assert [job.rule for job in jobs] == ["download", "prepare", "train", "download", "reference", "choose"]


@pytest.mark.parametrize("name", ["results/nowhere.json", "", "?"])
def test_a_target_that_nothing_makes_is_named_in_one_line(chain, name):
    with pytest.raises(edm.UserError) as caught:
        chain.targets(name)
    text = str(caught.value)
    assert text.startswith(f"{name}: no job makes it; known: digits, ") and "\n" not in text
    assert "paper" in text and "cifar10-cond" in text and text.count("digits-full") == 1
    assert text.endswith(", REPORT/TABLE or a file")


@pytest.mark.parametrize(
    ("name", "near"),
    [("papers", "paper"), ("digit", "digits"), ("paper/tabel2", "paper/table2"), ("paper/figur4c", "paper/figure4c")],
)
def test_a_target_with_a_near_name_gets_that_name_alone(chain, name, near):
    with pytest.raises(edm.UserError) as caught:
        chain.targets(name)
    assert str(caught.value) == f"{name}: no job makes it; did you mean {near!r}?"


@pytest.mark.parametrize(
    ("name", "near"),
    [("data-digist", "data-digits"), ("results/paper/tables/tabel2.md", "results/paper/tables/table2.md"),
     ("models/cifar10-cond/vp-F/modl.safetensors", "models/cifar10-cond/vp-F/model.safetensors")],
)  # fmt: skip
def test_a_target_of_snakemake_may_be_a_rule_or_a_file(chain, name, near):
    assert chain.unknown(name, ["data-digits", "train-digits"]) == f"{name}: no job makes it; did you mean {near!r}?"


def test_no_file_lies_in_two_experiments_folders(chain):
    """Names of models and grids cannot lead out of their experiment, nor into another's."""
    for job in chain.jobs():
        if job.rule in ("train", "published", "choose", "search", "evaluate", "sample", "analyse"):
            assert all(path.split("/")[1] == job.key[0] and ".." not in path for path in job.outputs)


def test_the_rehearsals_published_files_are_in_the_repository(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("score_sde-vp.pth", "score_sde-ve.pth", "adm.pt"):
        path = Path("tests/fixtures/checkpoints") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, path)
    imports = of_rule(needed(Chain(whole), "rehearsal"), "published")
    assert [job.files for job in imports.values()] == [
        (f"tests/fixtures/checkpoints/{name}",) for name in ("score_sde-vp.pth", "score_sde-ve.pth", "adm.pt")
    ]


@pytest.mark.parametrize("change, message", [
    (lambda raw: raw["downloads"].update({"data/digits.zip": {"url": None}}),
     "data/digits.zip: both download data/digits.zip and prepare digits make it; name another file in"),
    (lambda raw: raw["datasets"]["digits"].update(path="data/digits.zip"),
     "data/digits.zip: prepare digits makes it and needs it; name another file in"),
    (lambda raw: raw["datasets"]["digits"].update(path="results/digits/metrics.json"), "makes it and needs it"),
])  # fmt: skip
def test_a_file_of_the_chain_named_as_raw_data_is_an_error(tmp_path, monkeypatch, change, message):
    """The same file would be made twice, or would wait for itself."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["experiments"] = {"digits": raw["experiments"]["digits"]}
    del raw["reports"]
    change(raw)
    Path("data").mkdir()
    Path("results/digits").mkdir(parents=True)
    for path in ("data/digits.zip", "results/digits/metrics.json"):
        if raw["datasets"]["digits"].get("path") == path:
            Path(path).touch()
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(edm.UserError, match=message):
        needed(Chain(params.load("params.yaml", whole=True)), "digits")
