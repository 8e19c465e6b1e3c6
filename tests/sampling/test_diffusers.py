"""Samples equal to those of diffusers' schedulers, on the mixture with a known denoiser, in float64.

Without diffusers, the tests compare with its samples in a fixture, which ``python tests/sampling/test_diffusers.py``
writes anew where diffusers is installed. Both sides get the same noise levels and the same denoiser; diffusers' own
levels come from 1,000 trained steps in float32 and cannot be the same.
"""

import importlib
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import edm
from edm.analysis.orders import Mixture, Z
from edm.config import SamplerConfig
from edm.design.timesteps import noise_levels
from edm.sampling.multistep import stepper

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden" / "diffusers.json"
STEPS, SIGMA_MIN, SIGMA_MAX = 10, 0.002, 80.0
DPM, UNIPC, DEIS = (f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS"))
FULL = {"lower_order_final": False}
PP, NOISE = {**FULL, "algorithm_type": "dpmsolver++"}, {**FULL, "algorithm_type": "dpmsolver"}
HEUN, BH2 = {"solver_order": 2, "solver_type": "heun"}, {**FULL, "solver_type": "bh2"}
ALONE = {**BH2, "disable_corrector": list(range(STEPS))}


def choices(predicts, over, order, corrector=False):
    return {"solver": "multistep", "predicts": predicts, "over": over, "order": order, "corrector": corrector}


HERE = ("sigma_min", "zero")
#: Name → scheduler, its settings, ours, where both end.
EQUAL = {
    "Euler": ("EulerDiscreteScheduler", {}, {"solver": "euler"}, HERE),
    "Heun": ("HeunDiscreteScheduler", {}, {"solver": "heun"}, ("zero",)),
    "LMS": ("LMSDiscreteScheduler", {}, {"solver": "lms"}, ("sigma_min",)),
    "DPM-Solver++(1)": (DPM, {**PP, "solver_order": 1}, {"solver": "euler"}, HERE),
    "DPM-Solver++(2M), midpoint": (DPM, {**PP, "solver_order": 2}, {"solver": "dpmpp-2m"}, HERE),
    "DPM-Solver++(2M), heun": (DPM, {**PP, **HEUN}, choices("data", "lambda", 2), HERE),
    "DPM-Solver++(3M)": (DPM, {**PP, "solver_order": 3}, {"solver": "dpmpp-3m-shipped"}, HERE),
    "DPM-Solver(2M), heun": (DPM, {**NOISE, **HEUN}, choices("noise", "lambda", 2), ("sigma_min",)),
    "DEIS-2": (DEIS, {**FULL, "solver_order": 2}, choices("noise", "lambda", 2), ("sigma_min",)),
    "DEIS-3": (DEIS, {**FULL, "solver_order": 3}, choices("noise", "lambda", 3), ("sigma_min",)),
    "UniP-1": (UNIPC, {**ALONE, "solver_order": 1}, {"solver": "euler"}, ("sigma_min",)),
    "UniP-2": (UNIPC, {**ALONE, "solver_order": 2}, {"solver": "dpmpp-2m"}, ("sigma_min",)),
}
#: The same from the fourth step on: of the first three, UniPC-3 takes two with weights of their own.
EQUAL_LATER = {
    "UniP-3": (UNIPC, {**ALONE, "solver_order": 3}, choices("data", "lambda", 3)),
    "UniPC-3": (UNIPC, {**BH2, "solver_order": 3}, choices("data", "lambda", 3, True)),
}
#: Schedulers that are no choice of ours, and the choice that their name suggests.
DIFFERENT = {
    "UniPC-1": (UNIPC, {**BH2, "solver_order": 1}, choices("data", "lambda", 1, True)),
    "UniPC-2": (UNIPC, {**BH2, "solver_order": 2}, choices("data", "lambda", 2, True)),
    "DPM-Solver(2M), midpoint": (DPM, {**NOISE, "solver_order": 2}, choices("noise", "lambda", 2)),
    "DPM-Solver(3M)": (DPM, {**NOISE, "solver_order": 3}, choices("noise", "lambda", 3)),
    "DPM-Solver++(3M)": (DPM, {**PP, "solver_order": 3}, choices("data", "lambda", 3)),
}
EXACT = 3  # steps that begin with exact x, in EQUAL_LATER


def levels(final):
    found = noise_levels("edm", STEPS + (final == "sigma_min"), SIGMA_MIN, SIGMA_MAX)
    return found if final == "sigma_min" else torch.cat((found, torch.zeros(1, dtype=torch.float64)))


def ours(settings, final):
    z = torch.tensor(Z, dtype=torch.float64).reshape(8, 1, 1, 1)
    return edm.sample(Mixture(), z, num_steps=STEPS, final=final, discretization="edm", **settings).flatten()


def ours_after(exact, settings):
    """Ours to sigma_min with ``exact`` x at the first levels."""
    config = SamplerConfig.from_dict({**settings, "num_steps": STEPS, "final": "sigma_min", "discretization": "edm"})
    solver, net, x = stepper(config, SIGMA_MIN, SIGMA_MAX), Mixture(), exact[0]
    for i, (now, after) in enumerate(pairwise(levels("sigma_min").tolist())):
        if i < len(exact):
            x, solver.before = exact[i], None
        x = solver.step(x, now, after, net(x, now))
    return x


class Doubled:
    """torch, with float64 in the place of float32: some schedulers round their state to it."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def theirs(scheduler, settings, final, monkeypatch, exact=()):
    """The sample of a scheduler of diffusers, float64 [8]. Of a variance-preserving one, x/√(1 + σ²) is the state.

    exact: x at the first levels, [8] each, in place of what the scheduler found.
    """
    import diffusers

    sigma, z, net = levels(final), torch.tensor(Z, dtype=torch.float64), Mixture()
    kind = getattr(diffusers, scheduler)
    monkeypatch.setattr(importlib.import_module(kind.__module__), "torch", Doubled())
    preserving = scheduler in (DPM, UNIPC, DEIS)
    ending = {"final_sigmas_type": final} if scheduler == DPM else {}
    solver = kind(prediction_type="sample", **settings, **ending)
    solver.set_timesteps(STEPS)
    twice = scheduler == "HeunDiscreteScheduler"  # its list has each level but the first and the last two times
    solver.sigmas = torch.cat((sigma[:1], sigma[1:-1].repeat_interleave(2), sigma[-1:])) if twice else sigma
    solver.timesteps = torch.arange(len(solver.sigmas) - 1, dtype=torch.float64)
    solver.set_begin_index(0)
    solver.is_scale_input_called = True
    x = (SIGMA_MAX * z).reshape(8, 1, 1)
    for i, t in enumerate(solver.timesteps):
        now = solver.sigmas[i]
        if i < len(exact):
            x, solver.last_sample = exact[i].reshape(8, 1, 1), None
        s, s_next = ((1 + level**2).rsqrt() if preserving else 1.0 for level in (now, solver.sigmas[i + 1]))
        x = solver.step(net(x, now), t, s * x).prev_sample / s_next
    return x.flatten()


def start():
    """x of the exact flow at the first levels, float64 [EXACT, 8]."""
    sigma = levels("sigma_min")
    return Mixture().flow(sigma[0] * torch.tensor(Z, dtype=torch.float64), SIGMA_MAX, sigma[:EXACT])


def of_diffusers(monkeypatch):
    """{group: {name: {end: sample}}} of all cases."""
    equal = {name: {final: theirs(*case, final, monkeypatch).tolist() for final in ends}
             for name, (*case, _, ends) in EQUAL.items()}  # fmt: skip
    later = {name: {"sigma_min": theirs(*case, "sigma_min", monkeypatch, start()).tolist()}
             for name, (*case, _) in EQUAL_LATER.items()}  # fmt: skip
    others = {**DIFFERENT, "UniPC-3": EQUAL_LATER["UniPC-3"]}
    whole = {name: {"sigma_min": theirs(*case, "sigma_min", monkeypatch).tolist()}
             for name, (*case, _) in others.items()}  # fmt: skip
    return {"equal": equal, "equal later": later, "whole": whole}


def stored(group, name, final="sigma_min"):
    return torch.tensor(json.loads(FIXTURE.read_text())[group][name][final], dtype=torch.float64)


@pytest.mark.parametrize(("name", "final"), [(name, final) for name, case in EQUAL.items() for final in case[-1]])
def test_our_sample_is_that_of_the_scheduler(name, final):
    assert (ours(EQUAL[name][2], final) - stored("equal", name, final)).abs().max() < 1e-12


@pytest.mark.parametrize("name", EQUAL_LATER)
def test_our_sample_is_that_of_the_scheduler_after_an_exact_start(name):
    assert (ours_after(start(), EQUAL_LATER[name][2]) - stored("equal later", name)).abs().max() < 1e-12


def test_the_start_of_unipc_3_changes_samples_by_less_than_1e_6():
    found = (ours(EQUAL_LATER["UniPC-3"][2], "sigma_min") - stored("whole", "UniPC-3")).abs().max()
    assert 1e-7 < found < 1e-6


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_scheduler_that_is_no_choice_of_ours_differs_from_the_one_that_its_name_suggests(name):
    assert (ours(DIFFERENT[name][2], "sigma_min") - stored("whole", name)).abs().max() > 1e-3


def test_the_page_on_samplers_shows_the_comparison():
    page = (Path(__file__).parents[2] / "docs" / "sampler.md").read_text(encoding="utf-8")
    made = json.loads(FIXTURE.read_text())["made with"]
    assert f"diffusers {made['diffusers']}" in page
    for name in (*EQUAL, *EQUAL_LATER, *DIFFERENT):
        assert f"| {name}" in page or f", {name}" in page, name


@pytest.mark.filterwarnings("ignore")
def test_the_samples_in_the_fixture_are_those_of_the_installed_diffusers(monkeypatch):
    pytest.importorskip("diffusers")
    for group, cases in of_diffusers(monkeypatch).items():
        for name, samples in cases.items():
            for final, sample in samples.items():
                found = torch.tensor(sample, dtype=torch.float64)
                assert (found - stored(group, name, final)).abs().max() < 1e-9, (group, name, final)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        made = {name: importlib.import_module(name).__version__ for name in ("diffusers", "torch", "numpy")}
        how = "python tests/sampling/test_diffusers.py"
        FIXTURE.write_text(json.dumps({"made by": how, "made with": made, **of_diffusers(patch)}, indent=1) + "\n")
