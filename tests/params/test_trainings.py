"""`seeds` of an experiment, a rung or a model: training runs of their own, which all evaluations cover."""

import copy

import miniature
import pytest
import yaml

import edm
from edm import params
from edm.chain.jobs import Chain

RAW = miniature.raw()
RAW["experiments"] = {"digits": RAW["experiments"]["digits"]}
RAW["pretrained"], RAW["reports"] = {}, {}
DEMO = copy.deepcopy(RAW)
for entry in (*RAW["experiments"]["digits"]["grids"].values(), *RAW["experiments"]["digits"]["models"].values()):
    entry.pop("seeds", None)


def loaded(folder, change=lambda digits: None, whole=True):
    raw = copy.deepcopy(RAW)
    change(raw["experiments"]["digits"])
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(folder / "params.yaml", whole=whole)


def specifications(chain):
    return {job.name: (chain.specification(job), job.inputs) for job in chain.jobs()}


def test_what_exists_stays_as_it_is_when_seeds_are_added(tmp_path):
    before = specifications(Chain(loaded(tmp_path)))
    chain = Chain(loaded(tmp_path, lambda digits: digits.update(seeds=[0, 1, 2])))
    after = specifications(chain)
    assert not before.keys() - after.keys()
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed <= {"table digits", "figure digits", "metrics digits", "about digits"}
    added = after.keys() - before.keys()
    assert "train digits/vp-F@2" in added and "evaluate digits/vp-A@1/ladder" in added
    assert {name.split()[0] for name in added} == {"train", "evaluate"}  # no sheets, no studies
    assert after["train digits/vp-F@2"][0] == before["train digits/vp-F"][0] | {"seed": 2}
    train = chain.by_name["train digits/vp-F@2"]
    assert train.outputs[0] == "models/digits/vp-F@2/model.safetensors"


def test_of_the_demo_seeds_add_training_runs_to_table_2_alone(tmp_path):
    """The demo has a budget: each seed costs a training run and an evaluation per rung."""
    raw = copy.deepcopy(DEMO)
    raw["experiments"]["digits"]["seeds"] = [0, 1, 2]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    chain = Chain(params.load(tmp_path / "params.yaml"))
    added = sorted(name for name in chain.by_name if "@" in name)
    models = [f"vp-{rung}@{seed}" for rung in "ABCDEF" for seed in (1, 2)]
    assert added == [*(f"evaluate digits/{m}/ladder" for m in models), *(f"train digits/{m}" for m in models)]


def test_the_tables_of_a_model_need_all_its_training_runs(tmp_path):
    chain = Chain(loaded(tmp_path, lambda digits: digits.update(seeds=[0, 1])))
    assert {file for file in chain.by_name["table digits/table2"].inputs["results"] if "vp-E" in file} == {
        "results/digits/distances/vp-E/ladder.json", "results/digits/distances/vp-E@1/ladder.json"}  # fmt: skip


@pytest.mark.parametrize(
    "change, several",
    [
        (lambda digits: digits["ladder"]["E"].update(seeds=[0, 4]), {"vp-E", "vp-F", "leak"}),  # F states E's changes
        (lambda digits: digits["models"]["leak"].update(seeds=[0, 4]), {"leak"}),
        (lambda digits: digits.update(seeds=[0, 4], override={"seeds": [0]}), set()),
        (lambda digits: digits.update(seeds=[0, 4], models={"leak": {"from": "vp-F", "seeds": [0]}}),
         {f"vp-{rung}" for rung in "ABCDEF"}),
    ],
    ids=["a rung", "a model", "override", "a model without"],
)  # fmt: skip
def test_seeds_stand_where_settings_of_a_model_stand(tmp_path, change, several):
    digits = loaded(tmp_path, change).experiment("digits")
    assert digits.training_runs == {model: (model, f"{model}@4") for model in several}
    assert all(digits.models[f"{model}@4"].seed == 4 for model in several)


def test_a_grid_may_take_the_first_training_run_or_name_a_single_one(tmp_path):
    def change(digits):
        digits.update(seeds=[0, 1, 2])
        digits["grids"]["ours"]["seeds"] = "first"
        digits["grids"]["heun"]["models"] = ["vp-A@2"]

    grids = loaded(tmp_path, change, whole=False).experiment("digits").grids
    assert grids["ours"].models == ("vp-A",) and grids["heun"].models == ("vp-A@2",)
    assert grids["churn-all"].models == ("vp-A", "vp-A@1", "vp-A@2", "vp-F", "vp-F@1", "vp-F@2")


def test_an_experiment_shares_the_training_runs_of_the_one_that_it_extends(tmp_path):
    raw = copy.deepcopy(RAW)
    raw["experiments"]["more"] = {"extends": "digits", "title": "More", "seeds": [0, 1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    more = params.load(tmp_path / "params.yaml", whole=True).experiment("more")
    assert more.owner("train", "vp-A") == more.owner("evaluate", "vp-A", "ladder") == "digits"
    assert more.owner("train", "vp-A@1") == more.owner("evaluate", "vp-A@1", "ladder") == "more"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda digits: digits.update(seeds=[1, 2]),
         r"ladder\.A \(vp\): seeds \[1, 2\] lack the model's own; add 0, or state seed: 1"),
        (lambda digits: digits.update(seeds=[]), r"digits\.seeds: \[\] (is too short|should be non-empty)"),
        (lambda digits: digits.update(seeds=[0, 0]), r"digits\.seeds: \[0, 0\] has an entry twice"),
        (lambda digits: digits.update(seeds=[0, 2**19]), r"digits\.seeds\.1: 524288 is greater than the maximum"),
        (lambda digits: digits.update(seeds=3), r"digits\.seeds: 3 is not of type array"),
        (lambda digits: digits["grids"]["ours"].update(seeds="last"), r"grids\.ours\.seeds: 'last' is not one of all"),
        (lambda digits: digits["grids"]["ours"].update(models=["vp-A@1"]), r"model 'vp-A@1' is not defined"),
    ],
)  # fmt: skip
def test_wrong_seeds_are_named(tmp_path, change, told):
    with pytest.raises(edm.UserError, match=told):
        loaded(tmp_path, change)


# Selection ------------------------------------------------------------------------------------------------------------


def choosing(**changes):
    def change(digits):
        digits["base"]["snapshot_every"] = 0.07
        digits["sampling"]["repeats"] = 3
        digits["choose"] = {"grid": "ladder", "images": 200, "confirm": 2} | changes
        for key in [key for key, value in digits["choose"].items() if value is None]:
            del digits["choose"][key]

    return change


def test_a_choice_uses_other_seeds_than_the_evaluations_of_its_outcome(tmp_path):
    chain = Chain(loaded(tmp_path, choosing()))
    digits = chain.experiments["digits"]
    measured = {seed for repeat in range(3) for seed in digits.sampling.seeds(repeat)}
    spec = digits.choice_spec("vp-A")
    first, images = spec["first_seed"], max(spec["images"], spec["confirm_images"])
    assert images == 1000 and not measured & set(range(first, first + images))


def test_a_table_tells_of_how_many_snapshots_its_models_are_the_best(tmp_path):
    for confirm, images, told in (
        (2, 200, "ranked with 200 images, the best 2 again with 1,000"),
        ("all", None, "each measured with 1,000 images"),
    ):
        chain = Chain(loaded(tmp_path, choosing(confirm=confirm, images=images)))
        note = chain.specification(chain.by_name["table digits/table2"])["note"]
        assert note == f"Each model: best of 2 snapshots ({told}), measured again on fresh seeds."


def test_a_choice_that_ranks_needs_to_know_with_how_many_images(tmp_path):
    with pytest.raises(edm.UserError, match=r"digits\.choose: key 'images' is missing; only `confirm: all` needs no"):
        loaded(tmp_path, choosing(images=None))
    with pytest.raises(edm.UserError, match=r"choose\.confirm: 'al'"):
        loaded(tmp_path, choosing(confirm="al"))


# Test split -----------------------------------------------------------------------------------------------------------


def with_test(raw, **changes):
    data = raw["datasets"]["digits"]
    raw["datasets"]["digits-test"] = {**data, "images": 186, "split": "test", "held_out": 0.1} | changes
    raw["experiments"]["digits"]["test"] = "digits-test"


def write(folder, change):
    raw = copy.deepcopy(RAW)
    change(raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(folder / "params.yaml", whole=True)


def test_an_evaluation_also_gets_the_statistics_of_the_held_out_images(tmp_path):
    chain = Chain(write(tmp_path, with_test))
    evaluate = chain.by_name["evaluate digits/vp-A/ladder"]
    test = "data/references/digits-test/digits-classifier-of-digits.npz"
    assert evaluate.inputs["references"] == ("data/references/digits/digits-classifier.npz", test)
    assert chain.specification(evaluate)["test"] == "digits-test"
    reference = chain.makers[test]
    assert reference.inputs == {"dataset": ("data/digits-test.zip",),
                                "weights": ("data/features/digits-classifier.safetensors",)}  # fmt: skip
    assert chain.makers["data/digits-test.zip"].rule == "prepare"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda raw: raw["experiments"]["digits"].update(test="nowhere"),
         r"experiments\.digits\.test: dataset 'nowhere' is not defined"),
        (lambda raw: raw["experiments"]["digits"].update(test="digits"), r"test: 'digits' is what the models learn"),
        (lambda raw: with_test(raw, resolution=16), r"'digits-test' has resolution 16, and 'digits' has 8; make them"),
        (lambda raw: with_test(raw, held_out=None), r"held_out: None is not of type number"),
        (lambda raw: raw["datasets"]["digits"].update(split="test"),
         r"datasets\.digits\.split: digits has no test images with labels; state held_out: 0\.1"),
        (lambda raw: raw["datasets"]["digits"].update(split="valid"), r"split: 'valid' is not one of train, test"),
        (lambda raw: raw["datasets"]["digits"].update(held_out=1), r"held_out: 1 is greater than the maximum"),
    ],
)  # fmt: skip
def test_wrong_splits_are_named(tmp_path, change, told):
    with pytest.raises(edm.UserError, match=told):
        write(tmp_path, change)
