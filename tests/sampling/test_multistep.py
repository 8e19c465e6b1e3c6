"""Multistep solvers: golden values, closed forms, counted evaluations. Their orders: tests/analysis/test_orders.py."""

import itertools
import math

import pytest
import torch

import edm
from edm.analysis import orders
from edm.analysis.orders import Mixture
from edm.config import LIMITS, MEMBERS, OVER, PREDICTS, SHIPPED, SamplerConfig
from edm.errors import UserError
from edm.sampling.drawing import draw_images
from edm.sampling.multistep import step_weights, variable

Z = torch.tensor(orders.Z, dtype=torch.float64)
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
FAMILY = list(itertools.product(PREDICTS, OVER))


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


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize(("predicts", "over"), FAMILY)
@pytest.mark.first(15)
def test_a_scaling_changes_no_image(predicts, over, corrector, order):
    """Every choice is exact in s(t); Euler and Heun are not so: their steps are straight in s(t) x."""
    choices = {"predicts": predicts, "over": over, "corrector": corrector, "order": order}
    for discretization, final in (("edm", "zero"), ("lambda", "sigma_min"), ("vp-sqrt", "zero")):
        steps = choices | {"discretization": discretization, "final": final}
        plain, scaled = sampled(**steps), sampled(**steps, schedule="vp", scaling="vp")
        assert (plain - scaled).abs().max() < 1e-12


@pytest.mark.parametrize("solver", [*MEMBERS, *SHIPPED])
def test_a_scaling_changes_no_image_of_a_named_solver(solver):
    assert (sampled(solver) - sampled(solver, schedule="vp", scaling="vp")).abs().max() < 1e-12


@pytest.mark.parametrize("solver", ["euler", "heun", "unipc-3"])
def test_images_that_end_above_0_are_not_scaled(solver):
    """The mixture is narrow beside sigma = 3, so a scaled image would be a third of it."""
    ended = {"sigma_min": 3.0, "num_steps": 200, "final": "sigma_min"}
    assert (sampled(solver, **ended) - sampled(solver, scaling="vp", **ended)).abs().max() < 0.1


def test_a_scaling_changes_the_images_of_heun():
    assert (sampled("heun") - sampled("heun", scaling="vp")).abs().max() > 1e-3


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


SOLVERS = LIMITS["solver"]["enum"]


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_denoiser_counts_the_evaluations_that_the_settings_state(solver, final):
    settings = {"solver": solver} | ({} if solver == "rk45" else {"num_steps": 10})
    config = SamplerConfig.from_dict(settings)
    if final == "sigma_min":
        try:
            config = SamplerConfig.from_dict(settings | {"final": final})
        except UserError as error:  # adaptive, and solvers as published, which end where their authors end
            assert "has no final" in str(error) and config.solver not in ("euler", "heun", "multistep", *SHIPPED)
            return
    net = Mixture()
    net.variance = lambda x, sigma, labels: torch.zeros_like(x)  # iddpm asks for the learned one
    _, nfe = draw_images(net, Z.reshape(8, 1, 1, 1), None, config, lambda i, x: torch.zeros_like(x))
    if solver == "rk45":  # it chooses the number, per image: the slowest one's evaluations are the network's
        assert config.nfe is None and int(nfe.max()) == net.calls
    else:
        assert net.calls == config.nfe and set(nfe.tolist()) == {net.calls}


@pytest.mark.parametrize(("solver", "zero", "sigma_min"), [("euler", 10, 10), ("heun", 19, 20), ("unipc-3", 10, 10)])
def test_a_corrector_costs_no_evaluation_and_heun_twice_as_many(solver, zero, sigma_min):
    for final, calls in (("zero", zero), ("sigma_min", sigma_min)):
        net = Mixture()
        sampled(solver, net, final=final)
        assert net.calls == calls


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
