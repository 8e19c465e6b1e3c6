"""The hash of a plugin is in the specification of the steps that use it, and of no other step."""

import pytest
from lab import PAGE, write_lab, write_params

from edm import params, registry
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.errors import UserError


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lab(tmp_path)
    return tmp_path


def specified():
    """The specification of every step, and its digest, which those of the steps before it decide, too."""
    chain = Chain(params.load("params.yaml", whole=True))
    provenance = Provenance(chain)
    return {name: (provenance.specification(job), provenance.digest(job)) for name, job in chain.by_name.items()}


def changed(before, after):
    """The steps whose own specification names another plugin, and all steps that become stale."""
    own = {name for name in after if before[name][0].get("plugins") != after[name][0].get("plugins")}
    return own, {name for name in after if before[name][1] != after[name][1]}


EVALUATED = {f"evaluate tiny/{model}/{grid}" for model in ("vp-A", "my-A") for grid in ("ours", "mine")}
SHOWN = {"table tiny/mine", "metrics tiny", "about tiny", "track tiny"}


@pytest.mark.parametrize(
    "kind, own, follow",
    [
        ("solver", {"evaluate tiny/vp-A/mine", "evaluate tiny/my-A/mine"}, SHOWN),
        ("metric", EVALUATED, SHOWN),
        ("loss", {"train tiny/my-A"}, SHOWN | {"evaluate tiny/my-A/ours", "evaluate tiny/my-A/mine"}),
        ("network", {"train tiny/my-A"}, SHOWN | {"evaluate tiny/my-A/ours", "evaluate tiny/my-A/mine"}),
    ],
)
def test_an_edited_plugin_makes_stale_what_used_it_and_nothing_else(lab, kind, own, follow):
    before = specified()
    path = lab / "my_lab" / f"{kind}.py"
    path.write_text(path.read_text() + "\n# edited\n")
    assert changed(before, specified()) == (own, own | follow)


def test_shards_are_specified_as_their_evaluation(lab):
    write_params(lab, lambda raw: raw["experiments"]["tiny"]["sampling"].update(shards=2))
    found = specified()
    shard, whole = (found[name][0]["plugins"] for name in ("shard tiny/my-A/mine/1-of-2", "evaluate tiny/my-A/mine"))
    assert shard == whole and list(whole) == ["metric my-nearest", "solver my-midpoint"]


def test_a_plugin_that_no_step_uses_makes_nothing_stale(lab):
    before = specified()
    (lab / "my_lab" / "other.py").write_text(PAGE["solver"].replace("my-midpoint", "other"))
    write_params(lab, lambda raw: raw["plugins"].append("my_lab/other.py"))
    assert changed(before, specified()) == (set(), set())
    (lab / "my_lab" / "other.py").write_text(PAGE["solver"].replace("my-midpoint", "another"))
    assert changed(before, specified()) == (set(), set())


def test_a_moved_file_is_the_same_plugin(lab):
    before = specified()
    (lab / "my_lab" / "solver.py").rename(lab / "elsewhere.py")
    write_params(lab, lambda raw: raw["plugins"].__setitem__(0, "elsewhere.py"))
    registry._forget(registry.find("solver", "my-midpoint").source)  # as in a new process
    assert changed(before, specified()) == (set(), set())


def test_without_plugins_a_specification_is_what_it_was(lab):
    assert "plugins" not in specified()["prepare digits"][0]
    assert "plugins" not in specified()["train tiny/vp-A"][0]


def test_a_removed_file_is_said_in_one_line(lab):
    (lab / "my_lab" / "solver.py").unlink()
    with pytest.raises(UserError, match=r"params\.yaml: plugins: my_lab/solver\.py: no such plugin file; correct"):
        params.load("params.yaml")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("solver", "'my-midpoint' is not one of euler, .*iddpm; a plugin's file stands under `plugins`"),
        ("loss", r"unknown key 'loss\.width': no plugin has that setting; name its file under `plugins`"),
        ("network", r"unknown key 'architecture\.width': no plugin has that setting; name its file under `plugins`"),
        ("metric", "'my-nearest' is not one of inception_score, .*; a plugin's file stands under `plugins`"),
    ],
)
def test_a_plugin_that_is_no_longer_listed_is_said_in_one_line(lab, kind, message):
    write_params(lab, lambda raw: raw["plugins"].remove(f"my_lab/{kind}.py"))
    with pytest.raises(UserError, match=message) as caught:
        params.load("params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tiny: tiny["grids"]["mine"].update({"solver.plase": 1}), r"did you mean 'solver\.place'\?"),
        (lambda tiny: tiny["grids"]["mine"].update({"solver.place": "half"}), r"solver\.place: 'half' is not of type"),
        (lambda tiny: tiny["grids"]["mine"].update(solver="my-midpont"), r"did you mean 'my-midpoint'\?"),
        (lambda tiny: tiny["columns"]["my"].update({"loss.width": "wide"}), r"loss\.width: 'wide' is not of type"),
        (lambda tiny: tiny["columns"]["my"].update({"loss.widht": 1}), r"did you mean 'loss\.width'\?"),
        (lambda tiny: tiny["grids"]["ours"].update({"solver.place": 0.5}), r"solver\.place: solver heun is edm's own"),
        (lambda tiny: tiny["grids"]["mine"].update(S_churn=4), "solver my-midpoint has no S_churn; it takes"),
        (lambda tiny: tiny["metric_settings"]["my-nearest"].update(q=1), r"no setting metric\.q"),
        (lambda tiny: tiny["metric_settings"].update({"my-nearst": {}}), r"did you mean 'my-nearest'\?"),
    ],
)
def test_a_wrong_setting_of_a_plugin_names_its_place(lab, change, message):
    write_params(lab, lambda raw: change(raw["experiments"]["tiny"]))
    with pytest.raises(UserError, match=message) as caught:
        params.load("params.yaml", whole=True)
    assert str(caught.value).startswith("params.yaml: experiments.tiny.") and "\n" not in str(caught.value)


def test_a_value_for_plugins_that_is_no_list_of_paths(lab):
    for value in ("my_lab/solver.py", [1], {"a": "b"}):
        write_params(lab, lambda raw, value=value: raw.update(plugins=value))
        with pytest.raises(UserError, match=r"params\.yaml: plugins"):
            params.load("params.yaml")
