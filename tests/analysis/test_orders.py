"""Orders of solvers, measured on a mixture of Gaussians whose flow is known."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from edm.analysis.orders import NAMED, SIGMA_FIRST, SIGMA_LAST, Mixture, Z, levels, measure_order
from edm.cli import main
from edm.config import OVER, PREDICTS, SamplerConfig
from edm.errors import UserError

z = torch.tensor(Z, dtype=torch.float64)
#: The flow from x = 80 z at sigma = 80 to 0.002, from another program.
EXACT = (-0.705139094800, -0.437510894526, 0.317374184458, 0.390494049116, 0.412187023322, 0.432928493059,
         0.593998790479, 0.860956569312)  # fmt: skip
#: Errors with 64, 128, 256 and 512 steps, from another program.
PRINTED = {"dpmpp-3m-shipped": "2.7e-05 6.6e-06 1.65e-06 4.1e-07", "dpmpp-3m": "3.5e-05 4.1e-06 5.0e-07 6.2e-08"}


def named(solver, **changes):
    return SamplerConfig.from_dict({"solver": solver, **NAMED.get(solver, {}), **changes})


def family(predicts, over, order, corrector, discretization="lambda"):
    return SamplerConfig(solver="multistep", predicts=predicts, over=over, order=order, corrector=corrector,
                         discretization=discretization)  # fmt: skip


def test_the_exact_flow_is_that_of_another_program():
    expected = torch.tensor(EXACT, dtype=torch.float64)
    (found,) = Mixture().flow(80 * z, 80.0, torch.tensor([0.002], dtype=torch.float64))
    assert (found - expected).abs().max() < 1e-11


def test_the_flow_of_a_single_gaussian_is_the_closed_form():
    """x(sigma) = mu + (x0 - mu) sqrt((c^2 + sigma^2)/(c^2 + sigma0^2)), upwards and downwards."""
    net, sigma = Mixture([0.3], [0.5], [1.0]), torch.tensor([20.0, 5.0, 0.1, 0.0], dtype=torch.float64)
    expected = 0.3 + (5 * z - 0.3) * ((0.25 + sigma**2) / (0.25 + 25)).sqrt()[:, None]
    assert (net.flow(5 * z, 5.0, sigma) - expected).abs().max() < 1e-12
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.allclose(net(x, 2.0), (0.3 * 4 + x * 0.25) / 4.25, rtol=0, atol=1e-15)
    assert net.calls == 1


def test_the_flow_solves_the_ode_of_the_denoiser():
    """dx/dsigma = (x - D(x; sigma))/sigma, by a central difference."""
    net, h = Mixture(), 1e-4
    for sigma in (0.05, 0.3, 1.0, 10.0):
        low, x, high = net.flow(5 * z, 5.0, torch.tensor([sigma - h, sigma, sigma + h], dtype=torch.float64))
        assert torch.allclose((high - low) / (2 * h), (x - net(x, sigma)) / sigma, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("predicts", "over"), list(itertools.product(PREDICTS, OVER)))
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.first(8)
def test_the_measured_order_of_every_choice_is_the_claimed_one(predicts, over, order, corrector):
    """One more with a corrector, although the last step has none: its local error has that order."""
    found = measure_order(family(predicts, over, order, corrector), steps=(256, 512))
    assert found.claimed == order + corrector
    assert abs(found.measured - found.claimed) < 0.2, found


@pytest.mark.parametrize("solver", NAMED)
@pytest.mark.first(3)
def test_the_measured_order_of_a_named_solver_on_its_own_steps(solver):
    """Two are of lower order than their authors claim: iPNDM on any steps, and DPM-Solver++(3M) as shipped."""
    found = measure_order(named(solver))
    claimed = {"euler": 1, "heun": 2, "lms": 4, "ipndm_v": 4, "deis-tab": 3, "dpmpp-3m": 3, "unipc-3": 4, "ipndm": 4,
               "dpmpp-2m": 2, "dpmpp-3m-shipped": 3}[solver]  # fmt: skip
    assert found.claimed == claimed
    assert abs(found.measured - {"ipndm": 2, "dpmpp-3m-shipped": 2}.get(solver, claimed)) < 0.2, found
    assert found.nfe == (1024 if solver == "heun" else 512)
    assert found.error == min(found.errors.values())


@pytest.mark.parametrize("solver", PRINTED)
def test_dpm_solver_3m_as_shipped_and_the_member_have_the_errors_of_another_program(solver):
    errors = measure_order(named(solver)).errors
    assert list(errors) == [64, 128, 256, 512]
    for found, printed in zip(errors.values(), PRINTED[solver].split(), strict=True):
        digits = len(printed.partition("e")[0].replace(".", "")) - 1
        assert f"{found:.{digits}e}" == printed


@pytest.mark.slow
def test_ipndm_has_order_4_on_equal_steps_in_sigma():
    """Its fixed coefficients are those of equal steps: rho = 1."""
    assert abs(measure_order(named("ipndm", rho=1.0), steps=(1024, 2048)).measured - 4) < 0.2
    assert abs(measure_order(named("ipndm", rho=7.0)).measured - 2) < 0.1


@pytest.mark.parametrize(("discretization", "equal"), [
    ("edm", lambda sigma: sigma ** (1 / 7)), ("lambda", lambda sigma: sigma.log()), ("ve", lambda sigma: sigma.log()),
])  # fmt: skip
def test_levels_are_equal_steps_of_the_discretisation_and_more_before(discretization, equal):
    found = levels(SamplerConfig(discretization=discretization), 10, before=4)
    assert len(found) == 15 and found[4].item() == pytest.approx(SIGMA_FIRST)
    assert found[-1].item() == pytest.approx(SIGMA_LAST)
    steps = equal(found).diff()
    assert torch.allclose(steps, steps[0].expand(14), rtol=1e-9)


def test_the_command_prints_orders_and_errors(capsys):
    assert main(["orders", "dpmpp-3m-shipped", "dpmpp-3m", "heun"]) == 0
    head, shipped, member, heun = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert head == "solver steps claimed measured error, 64 error, 128 error, 256 error, 512 NFE"
    assert shipped == "dpmpp-3m-shipped lambda 3 2.00 2.71e-05 6.59e-06 1.65e-06 4.12e-07 512"
    assert member == "dpmpp-3m lambda 3 3.02 3.50e-05 4.13e-06 5.01e-07 6.16e-08 512"
    assert heun.endswith(" 1,024")


@pytest.mark.slow
def test_the_page_on_samplers_shows_what_the_command_prints(capsys):
    assert main(["orders"]) == 0
    page = (Path(__file__).parents[2] / "docs" / "sampler.md").read_text(encoding="utf-8")
    assert f"```text\n{capsys.readouterr().out}```" in page


def test_the_command_takes_the_choices_of_the_family(capsys):
    assert main(["orders", "multistep", "--predicts", "noise", "--over", "rho", "--order", "2", "--corrector",
                 "--steps", "64", "128"]) == 0  # fmt: skip
    found = measure_order(family("noise", "rho", 2, True, "edm"), steps=(64, 128))
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["3", f"{found.measured:.2f}"]


@pytest.mark.parametrize(("words", "message"), [
    ("rk45", "solver rk45 has no order to measure"),
    ("ve-pc", "solver ve-pc has no order to measure"),
    ("heun --discretization iddpm", "discretization iddpm: has no equal steps"),
    ("heun --steps 8", "steps are 8; an order needs two numbers"),
    ("heun --steps 0 8", "num_steps is 0; it must be at least 1"),
    ("heun --steps 4 1000000", "num_steps is 1000000; it must be at least 1 and at most 100000"),
    ("unipc --steps 4 8", "solver 'unipc' is unknown"),
])  # fmt: skip
def test_what_has_no_order_is_refused_in_one_line(words, message, capsys):
    assert main(["orders", *words.split()]) == 1
    out, told = capsys.readouterr()
    assert message in told and told.count("\n") == 1 and not out


def test_churn_and_listed_levels_have_no_order():
    with pytest.raises(UserError, match="with churn has no order"):
        measure_order(SamplerConfig(S_churn=1.0))
    with pytest.raises(UserError, match="sigmas: has no equal steps"):
        levels(SamplerConfig(sigmas=(2.0, 1.0)), 4)
    assert not math.isnan(measure_order(named("euler"), steps=(1, 2)).measured)
