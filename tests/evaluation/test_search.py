"""The grid search of Table 5 and the choice of a snapshot: results, cost, history."""

import itertools
import json
import math
import random

import pytest

import edm
from edm.evaluation.history import SearchHistory
from edm.evaluation.search import candidates, choice_cost, choose, cost, makes_sense, search

TABLE_5 = {
    "S_churn": [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
    "S_min": [0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10],
    "S_max": [0.2, 0.5, 1, 2, 5, 10, 20, 50, 80],
    "S_noise": [1 + i / 1000 for i in range(11)],
}
START = {"S_churn": 20, "S_min": 0, "S_max": 80, "S_noise": 1.0}
OPTIMUM = {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}


class Measured:
    """An objective that records its calls, and interrupts a search at a given evaluation."""

    def __init__(self, value, stop_at=None):
        self.value, self.stop_at, self.asked = value, stop_at, []

    def __call__(self, settings):
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(settings)
        return self.value(settings)


@pytest.fixture
def find(tmp_path):
    """Searches with a new history; returns the result and the calls of the objective."""
    numbers = itertools.count()

    def run(value, over, start, method="coordinate", **options):
        objective = Measured(value)
        history = SearchHistory(tmp_path / f"{next(numbers)}.jsonl", "spec")
        return search(objective, over, start, method, history, **options), objective.asked

    return run


def separable(settings):
    """Minimum at OPTIMUM; increases with the distance in positions of each list."""
    return sum(abs(TABLE_5[name].index(value) - TABLE_5[name].index(OPTIMUM[name])) for name, value in settings.items())


def coupled(settings):
    """Like separable, with an interaction of churn and noise: the slope of one parameter depends on the others."""
    steps = [TABLE_5[name].index(settings[name]) - TABLE_5[name].index(OPTIMUM[name]) for name in TABLE_5]
    return sum(step**2 for step in steps) - 0.8 * steps[0] * steps[3] + 0.3 * steps[1] * steps[2]


# Results --------------------------------------------------------------------------------------------------------------


def test_a_separable_optimum_is_found_in_one_sweep_and_confirmed_in_a_second(find):
    found, asked = find(separable, TABLE_5, START)
    assert found.settings == OPTIMUM and found.value == 0 and found.converged
    assert max(row["sweep"] for row in found.history) == 2
    assert found.evaluations == len(asked) == len(found.history)


def test_a_coupled_optimum_is_found_in_more_sweeps(find):
    found, asked = find(coupled, TABLE_5, {**START, "S_churn": 100, "S_noise": 1.01})
    assert found.settings == OPTIMUM and found.converged
    assert max(row["sweep"] for row in found.history) > 2
    assert len(asked) < len(candidates(TABLE_5)) / 50


LOCAL = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 2.0, (1, 1): 0.0}


def test_coordinate_descent_may_stop_at_a_local_optimum_where_exhaustive_search_does_not(find):
    value, over, start = lambda s: LOCAL[s["a"], s["b"]], {"a": [0, 1], "b": [0, 1]}, {"a": 0, "b": 0}
    local, _ = find(value, over, start)
    assert local.settings == start and local.converged
    assert find(value, over, start, "exhaustive")[0].settings == {"a": 1, "b": 1}


@pytest.mark.parametrize("method", ["coordinate", "exhaustive"])
def test_ties_keep_the_present_settings(find, method):
    over = {"a": [0, 1, 2], "b": [None, 5]}
    start = {"a": 1, "b": 5}
    assert find(lambda s: 3.0, over, start, method)[0].settings == start
    among_others = find(lambda s: float(s["a"] == 1), over, start, method)[0]
    assert among_others.settings["a"] == 0, "the value listed first"


def test_a_coordinate_search_ends_where_no_listed_value_of_one_parameter_is_better(find):
    for seed in range(50):
        over, start, value = random_search(seed)
        found, _ = find(value, over, start, max_sweeps=100)
        beside = [{**found.settings, name: v} for name, values in over.items() for v in values]
        assert found.converged and found.value == min(value(settings) for settings in beside)


def test_what_is_not_finite_is_never_the_best(find):
    over, start = {"a": [0, 1, 2]}, {"a": 0}
    found, _ = find(lambda s: (math.nan, 5.0, -math.inf)[s["a"]], over, start)
    assert found.settings == {"a": 1} and [row["value"] for row in found.history] == [None, 5.0, None]
    with pytest.raises(edm.UserError, match="no settings gave a finite value"):
        find(lambda s: math.nan, over, start)


def test_a_range_of_churn_that_is_empty_is_never_measured(find):
    """S_min > S_max; infinity is None."""
    over = {"S_min": [0, 1, 10], "S_max": [0.5, 1, None]}
    for method in ("coordinate", "exhaustive"):
        _, asked = find(lambda s: -s["S_min"], over, {"S_min": 0, "S_max": 1}, method)
        assert all(makes_sense(settings) for settings in asked)
    assert {tuple(settings.values()) for settings in asked} == {
        (0, 0.5), (0, 1), (0, None), (1, 1), (1, None), (10, None)
    }  # fmt: skip


def test_the_result_is_plain_data(find):
    found, _ = find(separable, TABLE_5, START)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    assert found.history[0] == {"settings": {**START, "S_churn": 0}, "value": found.history[0]["value"],
                                "seconds": found.history[0]["seconds"], "sweep": 1, "parameter": "S_churn"}  # fmt: skip


# Cost -----------------------------------------------------------------------------------------------------------------


def random_search(seed):
    """Lists of one to four parameters with one to five values, a start, and a random objective."""
    draw = random.Random(seed)
    over = {name: list(range(draw.randint(1, 5))) for name in "abcd"[: draw.randint(1, 4)]}
    start = {name: draw.choice(values) for name, values in over.items()}
    return over, start, lambda s: random.Random(f"{seed} {sorted(s.items())}").random()


def no_check(settings):
    return True


def off_diagonal(settings):
    """Like S_min and S_max: only half of the grid is valid, and its lines differ in length."""
    values = list(settings.values())
    return len(values) < 2 or values[0] <= values[1]


@pytest.mark.slow
def test_every_search_costs_what_was_foretold(find):
    for seed in range(200):
        over, start, value = random_search(seed)
        valid = (no_check, off_diagonal)[seed % 2]
        sweeps = 1 + seed % 3
        if not valid(start):
            continue
        for method in ("coordinate", "exhaustive"):
            found, asked = find(value, over, start, method, max_sweeps=sweeps, valid=valid)
            least, greatest = cost(over, method, sweeps, valid, start)
            assert least <= len(asked) <= greatest, (seed, method)
            assert cost(over, method, sweeps, valid)[0] <= least
            assert found.evaluations == len(asked) == len({tuple(s.values()) for s in asked}), "nothing twice"


def test_the_least_cost_is_that_of_a_start_which_is_the_optimum(find):
    valid = no_check
    _, asked = find(separable, TABLE_5, OPTIMUM, valid=valid)
    assert len(asked) == cost(TABLE_5, "coordinate", valid=valid)[0] == 1 + 10 + 11 + 8 + 10
    _, asked = find(separable, TABLE_5, START)
    assert len(asked) > cost(TABLE_5, "coordinate", start=START)[0] > cost(TABLE_5, "coordinate")[0]


def test_the_greatest_cost_is_reached_where_every_step_opens_new_lines(find):
    over = {name: [0, 1, 2, 3] for name in "abc"}
    way = [(1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)]
    found, asked = find(lambda s: -1.0 - way.index(t) if (t := tuple(s.values())) in way else 0.0, over,
                        dict.fromkeys("abc", 0), max_sweeps=2)  # fmt: skip
    assert len(asked) == cost(over, "coordinate", max_sweeps=2)[1] == 1 + 2 * 9
    assert found.settings == dict.fromkeys("abc", 2) and not found.converged


def test_the_greatest_cost_is_no_more_than_all_combinations(find):
    over = {"a": [0, 1], "b": [0, 1]}
    value = lambda s: {(0, 0): 3.0, (1, 0): 2.0, (1, 1): 1.0, (0, 1): 0.0}[s["a"], s["b"]]
    _, asked = find(value, over, {"a": 0, "b": 0})
    assert len(asked) == cost(over, "coordinate")[1] == cost(over, "exhaustive")[0] == 4


def test_the_grid_of_table_5():
    """A sweep takes up to 39 evaluations, fewer if S_min, at most 10, permits few S_max; 13,068 in total."""
    assert cost(TABLE_5, "coordinate", start=START) == (1 + 10 + 11 + 3 + 10, 1 + 10 * 39)
    everything = cost(TABLE_5, "exhaustive", valid=no_check)
    assert everything == (11 * 12 * 9 * 11,) * 2
    upside_down = sum(low > high for low in TABLE_5["S_min"] for high in TABLE_5["S_max"])
    assert cost(TABLE_5, "exhaustive")[0] == everything[0] - 11 * 11 * upside_down


# History --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["coordinate", "exhaustive"])
def test_a_search_stopped_at_any_evaluation_goes_on_to_the_same_end_and_measures_nothing_twice(tmp_path, method):
    over = {"S_churn": [0, 10, 20], "S_min": [0, 0.05, 1], "S_max": [0.5, 50]}
    start = {"S_churn": 0, "S_min": 0, "S_max": 50}
    value = lambda s: coupled({**OPTIMUM, **s})

    def run(path, stop_at=None):
        objective = Measured(value, stop_at)
        try:
            found = search(objective, over, start, method, SearchHistory(path, "spec")).to_dict()
        except KeyboardInterrupt:
            return None, objective.asked
        for row in found["history"]:
            row.pop("seconds")
        return found, objective.asked

    expected, all_asked = run(tmp_path / "whole.jsonl")
    for stop_at in range(len(all_asked)):
        path = tmp_path / f"{stop_at}.jsonl"
        _, before = run(path, stop_at)
        found, after = run(path)
        assert found == expected and before + after == all_asked
        assert run(path) == (expected, []), "a search that has ended measures nothing"


def test_a_line_torn_by_a_crash_is_measured_again(tmp_path):
    path, over, start = tmp_path / "h.jsonl", {"a": [0, 1, 2]}, {"a": 0}
    expected = search(lambda s: 9 - s["a"], over, start, "coordinate", SearchHistory(path, "spec"))
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for length in range(last + 1, len(content)):
        path.write_bytes(content[:length])
        objective = Measured(lambda s: 9 - s["a"])
        found = search(objective, over, start, "coordinate", SearchHistory(path, "spec"))
        assert found.settings == expected.settings and objective.asked == [{"a": 2}]
        assert len(SearchHistory(path, "spec")) == 3


def test_the_history_of_another_search_is_moved_aside_and_comes_back(tmp_path, capsys):
    path, over, start = tmp_path / "h.jsonl", {"a": [0, 1, 2]}, {"a": 0}

    def run(spec):
        objective = Measured(lambda s: s["a"])
        search(objective, over, start, "coordinate", SearchHistory(path, spec))
        return len(objective.asked)

    assert run({"model": "A", "images": 10}) == 3
    assert run({"model": "B", "images": 10}) == 3, "nothing of A's is taken for B's"
    assert "the history of another search: moved to h-" in capsys.readouterr().err
    assert run({"images": 10, "model": "A"}) == 0 and run({"model": "B", "images": 10}) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_measured_over_other_lists_counts(tmp_path):
    history = lambda: SearchHistory(tmp_path / "h.jsonl", "spec")
    search(separable, {"S_churn": [0, 10, 20]}, {"S_churn": 0}, "coordinate", history())
    objective = Measured(separable)
    found = search(objective, {"S_churn": [20.0, 30.0]}, {"S_churn": 20.0}, "coordinate", history())
    assert objective.asked == [{"S_churn": 30.0}] and found.evaluations == 2 and len(found.history) == 2


@pytest.mark.parametrize(
    "content, message",
    [
        ("a diary\n", "not the history of a search"),
        ('{"format": "edm-search/1", "spec": "../up"}\n', "not the history of a search"),
        ("[]\n", "not the history of a search"),
        ('{"format": "edm-search/1", "spec": "abc"}', "not the history of a search"),
        ('{"settings": {"a": 0}}\n', "line 2 is damaged"),
        ('{"settings": {"a": 0}, "value": "x", "seconds": 1}\n', "line 2 is damaged"),
    ],
)
def test_any_other_file_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "h.jsonl"
    if "line 2" in message:
        SearchHistory(path, "spec")
        content = path.read_text() + content
    path.write_text(content)
    with pytest.raises(edm.UserError, match=message):
        SearchHistory(path, "spec")
    assert path.read_text() == content


@pytest.mark.parametrize(
    "over, start, method, message",
    [
        ({"a": [0, 1]}, {"a": 0}, "random", "'random' is unknown; choose one of coordinate, exhaustive"),
        ({}, {}, "coordinate", "at least one parameter"),
        ({"a": []}, {"a": 0}, "coordinate", r"search over a: \[\] is empty"),
        ({"a": [1, 1.0]}, {"a": 1}, "coordinate", "has a value twice"),
        ({"a": [1, math.inf]}, {"a": 1}, "coordinate", "infinity is null"),
        ({"a": ["x"]}, {"a": "x"}, "coordinate", "'x' is not a finite number"),
        ({"a": [0, 1]}, {"b": 0}, "coordinate", "search from b over a"),
        ({"a": [0, 1]}, {"a": 2}, "coordinate", "search from a: 2, which is not among its values"),
        ({"S_min": [0, 2], "S_max": [1]}, {"S_min": 2, "S_max": 1}, "exhaustive", "not a valid combination"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_in_one_line(find, over, start, method, message):
    with pytest.raises(edm.UserError, match=message) as caught:
        find(lambda s: 0.0, over, start, method)
    assert "\n" not in str(caught.value)
    with pytest.raises(edm.UserError, match=message):
        cost(over, method, start=start)


# The choice of a snapshot ---------------------------------------------------------------------------------------------

CHEAP = {"s1": 9.0, "s2": 3.0, "s3": 4.0, "s4": 3.0, "s5": 2.0, "s6": math.nan}
FULL = {"s1": 0.1, "s2": 2.5, "s3": 2.5, "s4": 2.6, "s5": 2.7, "s6": 0.0}


def chosen(path, confirm, stop_at=None, full=FULL):
    """Returns the choice, the candidates measured cheaply and those measured in full."""
    asked = Measured(lambda job: (CHEAP if job[0] == "cheap" else full)[job[1]], stop_at)
    try:
        choice = choose(list(CHEAP), lambda n: asked(("cheap", n)), lambda n: asked(("full", n)), confirm,
                        SearchHistory(path, "spec"))  # fmt: skip
    except KeyboardInterrupt:
        choice = None
    return choice, asked.asked


def test_the_snapshot_chosen_is_the_best_in_full_of_those_that_are_best_cheaply(tmp_path):
    """Neither the best cheap value nor the best full value of all candidates decides; ties: the earlier."""
    choice, asked = chosen(tmp_path / "h.jsonl", 4)
    assert choice.best == "s2" and choice.value == 2.5
    assert choice.full == {name: FULL[name] for name in ("s2", "s3", "s4", "s5")}
    assert choice.cheap == {**CHEAP, "s6": None}
    assert choice_cost(6, 4) == (sum(stage == "cheap" for stage, _ in asked), len(asked) - 6) == (6, 4)
    assert json.loads(json.dumps(choice.to_dict(), allow_nan=False)) == choice.to_dict()


def test_of_equal_cheap_values_the_earlier_is_confirmed(tmp_path):
    assert set(chosen(tmp_path / "h.jsonl", 2)[0].full) == {"s2", "s5"}


def test_more_confirmations_than_candidates_confirm_all(tmp_path):
    choice, asked = chosen(tmp_path / "h.jsonl", 10)
    assert choice.best == "s6" and len(asked) == sum(choice_cost(6, 10)) == 12


def test_a_choice_stopped_anywhere_goes_on_to_the_same_end(tmp_path):
    expected, all_asked = chosen(tmp_path / "whole.jsonl", 3)
    for stop_at in range(len(all_asked)):
        path = tmp_path / f"{stop_at}.jsonl"
        _, before = chosen(path, 3, stop_at)
        choice, after = chosen(path, 3)
        assert choice == expected and before + after == all_asked


def test_a_choice_that_makes_no_sense_is_refused(tmp_path):
    history = SearchHistory(tmp_path / "h.jsonl", "spec")
    for names, confirm, message in (([], 1, "no candidates"), (["a", "a"], 1, "named twice"), (["a"], 0, "at least")):
        with pytest.raises(edm.UserError, match=message):
            choose(names, len, len, confirm, history)
    with pytest.raises(edm.UserError, match="no candidate gave a finite value"):
        chosen(tmp_path / "n.jsonl", 1, full=dict.fromkeys(FULL, math.nan))


@pytest.mark.parametrize(
    ("key", "values", "to", "start"),
    [("S_max", [1.0, 50.0, None], math.inf, None), ("S_max", [0.2, 1.0, 80.0], math.inf, 80.0),
     ("S_max", [1.0, 50.0, None], 40.0, 50.0), ("S_churn", [10.0, 20.0], 0.0, 10.0),
     ("sigma_min", [0.002, 0.1], None, 0.002)],
)  # fmt: skip
def test_a_search_starts_at_the_listed_values_nearest_to_its_sampler(key, values, to, start):
    from edm.evaluation.jobs import _nearest

    assert _nearest(key, values, to) == start
