"""Averages of weights after the fact: formulas, published-precision residuals, and a path averaged directly."""

import math

import numpy as np
import pytest

from edm.design.averages import HalfLife, PowerFunction, inner, recombine
from edm.errors import UserError

WIDTHS = {0.05: 16.972199, 0.10: 6.937204, 0.15: 3.557869, 0.20: 1.826214, 0.25: 0.719824}
TRACKS = (PowerFunction(0.05), PowerFunction(0.10))
#: Relative residual by the number of pairs of snapshots, for the widths below, as printed by another program.
TARGETS = (0.03, 0.075, 0.15, 0.20, 0.25)
RESIDUALS = {8: ("0.101", "0.0125", "0.033", "0.078", "0.18"), 20: ("0.026", "0.0023", "0.0058", "0.0155", "0.061"),
             80: ("0.0019", "0.0001", "0.0004", "0.0011", "0.011")}  # fmt: skip


def pairs(count):
    return [(track, (k + 1) / count) for k in range(count) for track in TRACKS]


@pytest.mark.parametrize(("width", "gamma"), WIDTHS.items())
def test_the_exponent_of_a_width(width, gamma):
    power = PowerFunction(width).gamma
    assert power == pytest.approx(gamma, abs=1e-6)
    assert math.sqrt((power + 1) / ((power + 2) ** 2 * (power + 3))) == pytest.approx(width, rel=1e-12)


@pytest.mark.parametrize("count", [8, 20, pytest.param(80, marks=pytest.mark.slow)])
def test_residuals_to_the_printed_digits(count):
    for target, printed in zip(TARGETS, RESIDUALS[count], strict=True):
        found = recombine((PowerFunction(target), 1.0), pairs(count))
        digit = 10.0 ** -len(printed.partition(".")[2])
        assert found.residual == pytest.approx(float(printed), abs=0.51 * digit)  # 0.0605 is printed as 0.061
        assert sum(found.weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_widths_far_off_need_weights_that_cancel():
    assert recombine((PowerFunction(0.02), 1.0), pairs(80)).total == pytest.approx(39, abs=0.5)
    assert recombine((PowerFunction(0.075), 1.0), pairs(80)).total < 2


def test_a_snapshot_is_itself():
    found = recombine((PowerFunction(0.1), 0.5), pairs(8))
    assert found.residual < 1e-6 and found.weights[7] == pytest.approx(1, abs=1e-6)


def test_quadrature_agrees_with_the_formulas():
    """A power function as a half-life that only ramps up, and two exponentials."""
    ramp = math.log(2) / (PowerFunction(0.1).gamma + 1)
    power, ramping = PowerFunction(0.1), HalfLife(1e9, ramp)
    for a, b in ((0.3, 0.7), (0.7, 0.3), (1.0, 1.0)):
        assert inner((ramping, a), (power, b)) == pytest.approx(inner((power, a), (power, b)), rel=1e-9)
    plain, rate = HalfLife(0.02, None), math.log(2) / 0.02
    assert inner((plain, 0.9), (plain, 1.0)) == pytest.approx(rate / 2 * math.exp(-rate * 0.1), rel=1e-9)


def test_the_profile_of_a_half_life_with_ramp_up_is_one():
    """Its integral is 1, and at the bend both parts meet."""
    profile = HalfLife(0.02, 0.05)
    edges = np.linspace(0, 1, 2_000_001)
    middles = (edges[1:] + edges[:-1]) / 2
    assert profile.density(middles, 1.0).mean() == pytest.approx(1, abs=1e-6)
    below, above = profile.density(np.array([0.4 - 1e-9, 0.4 + 1e-9]), 1.0)
    assert below == pytest.approx(above, rel=1e-6)


def path(steps):
    """Two weights on a path: one relaxes, one turns."""
    k = np.arange(1, steps + 1) / steps
    return np.stack([np.exp(-3 * k), np.sin(5 * k)], axis=1)


def averaged(values, decay):
    """All averages on the way; ``decay`` of each step, counted from 1."""
    found, average = [], np.array([7.0, 7.0])  # the initial weights
    for step, value in enumerate(values, 1):
        beta = decay(step)
        average = beta * average + (1 - beta) * value
        found.append(average)
    return np.array(found)


@pytest.mark.parametrize(("target", "at"), [(0.03, 20), (0.075, 20), (0.13, 20), (0.20, 15)])
@pytest.mark.first(1)
def test_two_tracks_give_the_average_that_training_would_have_made(target, at):
    steps, count = 20_000, 20
    values = path(steps)
    kept = {track: averaged(values, track.decay) for track in TRACKS}
    snapshots = [(track, steps * k // count) for k in range(1, count + 1) for track in TRACKS]
    moment = steps * at // count
    direct = averaged(values, PowerFunction(target).decay)[moment - 1]
    found = recombine((PowerFunction(target), moment), snapshots)
    result = sum(w * kept[track][t - 1] for w, (track, t) in zip(found.weights, snapshots, strict=True))
    nearest = min(np.abs(kept[track][moment - 1] - direct).max() for track in TRACKS)
    error = np.abs(result - direct).max()
    assert error < 2e-3 and error < nearest / 5


@pytest.mark.parametrize("target", [0.05, 0.10, 0.15])
@pytest.mark.slow
def test_so_do_snapshots_of_a_half_life_that_exist(target):
    steps, count, halflife, ramp = 20_000, 40, 600, 0.05
    values = path(steps)
    kept = averaged(values, lambda step: 0.5 ** (1 / min(halflife, ramp * (step - 1))) if step > 1 else 0.0)
    snapshots = [(HalfLife(halflife, ramp), steps * k // count) for k in range(1, count + 1)]
    found = recombine((PowerFunction(target), steps), snapshots)
    result = sum(w * kept[t - 1] for w, (_, t) in zip(found.weights, snapshots, strict=True))
    direct = averaged(values, PowerFunction(target).decay)[-1]
    assert np.abs(result - direct).max() < 5e-3
    assert np.abs(result - direct).max() < np.abs(kept[-1] - direct).max() / 3


@pytest.mark.parametrize("width", [0.0, 0.3, 1.0])
def test_widths_that_no_average_has_are_refused(width):
    with pytest.raises(UserError, match="EMA width"):
        PowerFunction(width)


def test_an_average_after_the_last_snapshot_is_refused():
    with pytest.raises(UserError, match="the snapshots end at 1"):
        recombine((PowerFunction(0.1), 2.0), pairs(4))
