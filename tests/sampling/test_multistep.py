"""Multistep solvers: golden values, measured orders, closed forms."""

import itertools
import math

import pytest
import torch

import edm
from edm.config import MEMBERS, OVER, PREDICTS, SamplerConfig
from edm.errors import UserError
from edm.sampling.multistep import DPMSolverPP, Multistep, step_weights, variable

MEANS, DEVIATIONS, WEIGHTS = (torch.tensor(x, dtype=torch.float64) for x in ((-0.6, 0.5), (0.15, 0.25), (0.4, 0.6)))
Z = torch.tensor([-1.3, -0.4, 0.1, 0.25, 0.3, 0.35, 0.8, 1.7], dtype=torch.float64)
GOLDEN = {  # 10 evaluations from 80 to 0.002, from another program
    "ipndm": "-0.7274533890 -0.4286699289 0.3432457911 0.4303441703 0.4531616256 0.4739354636 0.6215597268 "
    "0.8824921672",
    "dpmpp-2m": "-0.7637980549 -0.4210203114 0.3173526229 0.4090864312 0.4358568533 0.4609840511 0.6389862909 "
    "0.9100808912",
    "dpmpp-3m-shipped": "-0.7173177135 -0.4410199341 0.3212723421 0.4092259912 0.4345234886 0.4581365443 0.6245437208 "
    "0.8879309358",
    "dpmpp-3m": "-0.6890593926 -0.4280092340 0.3137752712 0.3985319320 0.4228986161 0.4456477691 0.6066966483 "
    "0.8648946371",
    "deis-tab": "-0.6951647672 -0.4351301953 0.3201776937 0.3930763135 0.4141885921 0.4342252206 0.5880502306 "
    "0.8420176576",
    "order 2": "-0.8014373945 -0.4613209189 0.3368148567 0.4336865681 0.4617969589 0.4881153518 0.6733363107 "
    "0.9562035747",
}
SETTINGS = {
    "dpmpp-2m": {"solver": "dpmpp-2m", "discretization": "lambda"},
    "dpmpp-3m-shipped": {"solver": "dpmpp-3m-shipped", "discretization": "lambda"},
    "order 2": {"solver": "dpmpp-3m", "order": 2},
}
SMOOTH = torch.tensor([0.4, 0.6], dtype=torch.float64)  # deviations for which few steps show the order
FAMILY = list(itertools.product(PREDICTS, OVER))


class Mixture:
    """D(x; σ) of a one-dimensional mixture of two Gaussians; counts its evaluations."""

    def __init__(self, deviations=DEVIATIONS):
        self.calls, self.deviations = 0, deviations

    def __call__(self, x, sigma, class_labels=None):
        self.calls += 1
        variance, x = self.deviations**2 + sigma**2, x[..., None]
        shares = (WEIGHTS.log() - variance.log() / 2 - (x - MEANS) ** 2 / variance / 2).softmax(-1)
        return (shares * (MEANS * sigma**2 + x * self.deviations**2) / variance).sum(-1)


def sampled(solver="multistep", net=None, **settings):
    settings = {"num_steps": 10, "sigma_min": 0.002, "sigma_max": 80} | settings
    return edm.sample(net or Mixture(), Z.reshape(8, 1, 1, 1), solver=solver, **settings).flatten()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    settings = SETTINGS.get(name, {"solver": name})
    expected = torch.tensor([float(value) for value in GOLDEN[name].split()], dtype=torch.float64)
    net = Mixture()
    assert (sampled(net=net, final="sigma_min", **settings) - expected).abs().max() < 1e-8
    assert net.calls == 10


@pytest.mark.parametrize(("predicts", "over"), FAMILY)
def test_order_1_is_euler_to_the_bit(predicts, over):
    for final in ("zero", "sigma_min"):
        one = sampled(predicts=predicts, over=over, order=1, final=final)
        assert torch.equal(one, sampled("euler", final=final))


@pytest.mark.parametrize("solver", [*MEMBERS, "ipndm", "dpmpp-2m", "dpmpp-3m-shipped"])
def test_a_scaling_changes_no_image(solver):
    """Euler and Heun are not so: their steps are straight in s(t) x."""
    plain, scaled = sampled(solver), sampled(solver, schedule="vp", scaling="vp")
    assert (plain - scaled).abs().max() < 1e-12
    assert (sampled("heun") - sampled("heun", scaling="vp")).abs().max() > 1e-3


def exact(sigmas, x):
    """The exact flow of the mixture through levels: in one dimension it keeps the distribution function."""

    def share(x):
        spread = (SMOOTH**2 + sigmas[:, None, None] ** 2).sqrt()
        return (WEIGHTS * torch.special.ndtr((x[..., None] - MEANS) / spread)).sum(-1)

    low, high = (torch.full((len(sigmas), len(x)), end, dtype=torch.float64) for end in (-30.0, 30.0))
    wanted = share(x.expand_as(low))[0]
    for _ in range(70):
        middle = (low + high) / 2
        above = share(middle) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def error(solver, steps, history=4):
    """Largest error at σ = 0.2 of equal steps in ln σ from σ = 5, with exact values at the levels before."""
    length = math.log(5 / 0.2) / steps
    sigmas = [5 * math.exp(length * (history - i)) for i in range(history + steps + 1)]
    levels = torch.tensor(sigmas, dtype=torch.float64)
    path, net = exact(levels, torch.linspace(-6, 6, 9, dtype=torch.float64)), Mixture(SMOOTH)
    x = path[0]
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        if i <= history:
            x, solver._before = path[i], None  # exact: nothing to correct
        x = solver.step(x, sigma, sigma_next, net(x, torch.tensor(sigma, dtype=torch.float64)))
    return float((x - path[-1]).abs().max())


def measured_order(make):
    return math.log2(error(make(), 160) / error(make(), 320))


@pytest.mark.parametrize(("predicts", "over"), FAMILY)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [False, True])
def test_the_measured_order_is_the_claimed_one(predicts, over, order, corrector):
    """One more with a corrector, although the last step has none: its local error has that order."""
    order_found = measured_order(lambda: Multistep(variable(over, 0.002, 80.0), predicts, order, corrector))
    assert abs(order_found - (order + corrector)) < 0.2, order_found


def test_dpm_solver_3m_as_shipped_is_of_order_2():
    """Its expansion asks for twice the last term; the member of the family with data, λ, 3 has it."""
    assert abs(measured_order(lambda: DPMSolverPP(3)) - 2) < 0.1
    assert abs(measured_order(lambda: DPMSolverPP(2)) - 2) < 0.1
    found = [error(DPMSolverPP(3), steps) for steps in (64, 128)]
    member = [error(Multistep(variable("lambda", 0.002, 80.0), "data", 3, False), steps) for steps in (64, 128)]
    assert found[1] > 2 * member[1] and found[0] / found[1] < 4.5 < 7 < member[0] / member[1]


@pytest.mark.parametrize(("predicts", "over"), FAMILY)
def test_gaussian_data_follow_the_closed_form(predicts, over):
    """x(σ) = μ + (x₀ − μ) √((c² + σ²)/(c² + σ₀²)) for data of mean μ and deviation c."""
    mean, c = 0.3, 0.5
    net = lambda x, sigma, labels=None: (mean * sigma**2 + x * c**2) / (c**2 + sigma**2)
    found = sampled(net=net, predicts=predicts, over=over, order=4, num_steps=400, final="sigma_min")
    expected = mean + (80 * Z - mean) * math.sqrt((c**2 + 0.002**2) / (c**2 + 80**2))
    assert (found - expected).abs().max() < 1e-4


def test_levels_can_be_listed():
    sigmas = [80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002]
    net, kept = Mixture(), {"num_steps": 18, "sigma_min": None, "sigma_max": None}
    listed = sampled("ipndm", net, sigmas=sigmas, final="sigma_min", **kept)
    assert net.calls == 6 and torch.isfinite(listed).all()
    ours = edm.sample(Mixture(), Z.reshape(8, 1, 1, 1), solver="heun", num_steps=3, sigma_min=0.5, sigma_max=2, rho=1)
    same = sampled("heun", sigmas=[2, 1.25, 0.5], **kept)
    assert torch.equal(ours.flatten(), same)


@pytest.mark.parametrize(("solver", "final", "calls"), [
    ("euler", "zero", 10), ("euler", "sigma_min", 10), ("heun", "zero", 19), ("heun", "sigma_min", 20),
    ("unipc-3", "zero", 10), ("unipc-3", "sigma_min", 10), ("ipndm", "zero", 10), ("dpmpp-2m", "zero", 10),
])  # fmt: skip
def test_evaluations_are_as_configured(solver, final, calls):
    net = Mixture()
    sampled(solver, net, final=final)
    config = SamplerConfig.from_dict({"solver": solver, "final": final, "num_steps": 10})
    assert net.calls == calls == config.nfe


def test_weights_of_polynomials_are_exact():
    """ε = σ^k for k < p is integrated exactly."""
    nodes = torch.tensor([2.0, 3.0, 5.0, 9.0], dtype=torch.float64)
    weights = step_weights(variable("sigma", 0.002, 80.0), "noise", nodes, 2.0, 0.7)
    for power in range(4):
        found = sum(weight * float(node) ** power for weight, node in zip(weights, nodes, strict=True))
        assert found == pytest.approx((0.7 ** (power + 1) - 2.0 ** (power + 1)) / (power + 1), rel=1e-12)


def test_churn_begins_a_new_history_where_it_raises_the_level():
    """The raised levels of small steps are close together: a polynomial through them would explode."""
    noise = lambda i, x: torch.full_like(x, (-1.0) ** i)
    churned = {"num_steps": 200, "S_churn": 80, "noise": noise}
    assert torch.equal(sampled("unipc-3", discretization="edm", **churned), sampled("euler", **churned))
    part = sampled("unipc-3", discretization="edm", S_min=1.0, **churned)
    assert not torch.equal(part, sampled("euler", S_min=1.0, **churned)) and torch.isfinite(part).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"solver": "heun", "order": 2}, "solver heun has no order; it takes"),
    ({"solver": "dpmpp-2m", "S_churn": 1.0}, "solver dpmpp-2m has no S_churn"),
    ({"solver": "multistep", "order": 5}, "order is 5; it must be at least 1 and at most 4"),
    ({"solver": "multistep", "over": "time"}, "over 'time' is unknown; choose one of sigma, lambda, vp-time, rho"),
    ({"sigmas": [1.0, 2.0]}, "sigmas must fall from each level to the next"),
    ({"sigmas": [2.0, 1.0], "sigma_max": 3.0}, "sigmas lists the levels: sigma_max has no effect; leave it out"),
    ({"sigmas": [2.0, 1.0], "num_steps": 5}, "num_steps is 5, but sigmas takes 2 steps; leave num_steps out"),
    ({"sigmas": [2.0], "final": "sigma_min"}, "sigmas has one level and final is sigma_min: there is no step"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError) as found:
        SamplerConfig.from_dict(settings)
    assert message in str(found.value)


def test_a_member_stands_for_its_settings_and_stated_ones_replace_them():
    unipc = SamplerConfig.from_dict({"solver": "unipc-3"})
    assert unipc.changes() == {
        "solver": "multistep", "predicts": "data", "over": "lambda", "order": 3, "corrector": True,
        "discretization": "lambda",
    }  # fmt: skip
    two = SamplerConfig.from_dict({"solver": "unipc-3", "order": 2, "discretization": "edm"})
    assert (two.order, two.discretization, two.corrector) == (2, "edm", True)
    assert SamplerConfig.from_dict(unipc.to_dict()) == unipc
