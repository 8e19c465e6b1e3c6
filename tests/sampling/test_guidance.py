"""Guidance: D_w = D_g + w (D − D_g) in an interval of noise levels, with every solver, at a known cost."""

import math

import pytest
import torch

import edm
from edm.config import MEMBERS, SamplerConfig
from edm.models.building import build
from edm.sampling.drawing import generate

T = 80.0  # σ_max
LATENTS = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
FINE = {"num_steps": 2000, "rho": 7.0, "sigma_min": 1e-4}


class Normal:
    """The ideal denoiser of data N(0, c²), which counts the images that it denoises."""

    def __init__(self, c):
        self.c, self.images = c, 0

    def __call__(self, x, sigma, class_labels=None):
        self.images += len(x)
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
        return self.c**2 / (self.c**2 + sigma**2) * x


class Labelled(Normal):
    """N(0, c²) with a label and N(0, 1) without one: its own guide."""

    def __call__(self, x, sigma, class_labels=None):
        self.images += len(x)
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
        square = 1.0 if class_labels is None else self.c**2
        return square / (square + sigma**2) * x


def deviation(images):
    """x is linear in the latents: their ratio, at each of them the same."""
    ratios = images[LATENTS != 0] / LATENTS[LATENTS != 0]
    assert torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-6)
    return float(ratios[0])


def exact(w, c=0.5, g=1.0, low=0.0, high=math.inf):
    """The deviation by beyond.md §4, with d ln x/d ln σ = σ²/(σ² + v) of each part of [0, T] in turn."""

    def part(v, a, b):
        return 0.5 * math.log((v + b**2) / (v + a**2))

    a, b = max(low, 0.0), min(high, T)
    slope = part(c**2, 0, a) + part(c**2, b, T) + w * part(c**2, a, b) + (1 - w) * part(g**2, a, b)
    return T * math.exp(-slope)


def around(*edges):
    """Falling levels with a short step across each edge, where the slope jumps."""
    levels = (torch.linspace(T ** (1 / 7), 1e-4 ** (1 / 7), 3000, dtype=torch.float64) ** 7).tolist()
    levels[0] = T
    return sorted({*levels, *edges, *(edge * (1 + 1e-7) for edge in edges)}, reverse=True)


@pytest.mark.parametrize(
    ("w", "golden"), [(0.0, 0.999922), (1.0, 0.499990), (1.5, 0.353557), (2.0, 0.250010), (3.0, 0.125012)]
)
@pytest.mark.first(2)
def test_guided_gaussian(w, golden):
    """Data N(0, 0.5²), guide N(0, 1), T = 80: numbers of an independent program."""
    found = deviation(edm.sample(Normal(0.5), LATENTS, guide=Normal(1.0), guidance=w, **FINE))
    assert found == pytest.approx(golden, abs=1e-4) and found == pytest.approx(exact(w), abs=1e-4)


@pytest.mark.parametrize(("w", "golden"), [(1.0, 0.499990), (2.0, 0.287613), (3.0, 0.165446)])
@pytest.mark.first(1)
def test_guided_gaussian_in_an_interval(w, golden):
    found = deviation(
        edm.sample(Normal(0.5), LATENTS, guide=Normal(1.0), guidance=w, guidance_min=0.28, guidance_max=2.9,
                   sigmas=around(0.28, 2.9))
    )  # fmt: skip
    assert found == pytest.approx(golden, abs=1e-4) and found == pytest.approx(exact(w, low=0.28, high=2.9), abs=1e-4)


@pytest.mark.parametrize("settings", [
    {"solver": "euler", "num_steps": 4000}, {"solver": "rk45", "tolerance": 1e-8},
    {"solver": "heun", "alpha": 0.5, "num_steps": 500},
    {"solver": "heun", "scaling": "vp", "schedule": "vp", "num_steps": 500},
    {"solver": "ipndm", "num_steps": 500}, {"solver": "dpmpp-2m", "num_steps": 500},
    *({"solver": name, "num_steps": 500} for name in MEMBERS),
], ids=lambda settings: "-".join(map(str, settings.values())))  # fmt: skip
@pytest.mark.first(4)
def test_every_solver_is_guided(settings):
    own = {"sigma_min": 1e-3} if settings.get("schedule") != "vp" else {}
    found = deviation(edm.sample(Normal(0.5), LATENTS, guide=Normal(1.0), guidance=2.0, **own, **settings))
    assert found == pytest.approx(exact(2.0), abs=3e-3)


@pytest.mark.parametrize(("solver", "steps"), [("vp-ode", 1000), ("ve-ode", 1000), ("ddim", 250)])
def test_samplers_of_earlier_papers_are_guided(solver, steps):
    """Their own schedules end at another noise level, so only the effect of w is compared."""
    narrow, plain = (
        float(edm.sample(Normal(0.5), LATENTS, solver=solver, num_steps=steps, **more).std())
        for more in ({"guide": Normal(1.0), "guidance": 2.0}, {})
    )
    assert narrow / plain == pytest.approx(0.5, abs=0.03)


class Mixed(Normal):
    """D_g + w (D − D_g) of N(0, 0.5²) and a guide N(0, 1), in one denoiser, at noise levels in (low, high]."""

    def __init__(self, w, low=0.0, high=math.inf):
        super().__init__(0.5)
        self.guide, self.w, self.low, self.high = Normal(1.0), w, low, high

    def __call__(self, x, sigma, class_labels=None):
        own, other = super().__call__(x, sigma), self.guide(x, sigma)
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
        return torch.where((level > self.low) & (level <= self.high), other + self.w * (own - other), own)

    def variance(self, x, sigma, labels):
        return torch.full_like(x, -0.3)


class WithVariance(Normal):
    """iddpm asks the network for its variance, which has no guide."""

    variance = Mixed.variance


@pytest.mark.parametrize("interval", [{}, {"guidance_min": 0.3, "guidance_max": 3.0}], ids=["all", "interval"])
@pytest.mark.parametrize(("solver", "settings"), [
    ("vp-ode", {}), ("vp-sde", {}), ("ve-ode", {}), ("ve-pc", {}), ("ddim", {}), ("iddpm", {}),
    ("heun", {"S_churn": 20.0, "S_noise": 1.007}), ("euler", {"S_churn": 20.0}),
])  # fmt: skip
def test_a_sampler_with_a_guide_draws_what_it_draws_of_the_guided_denoiser(solver, settings, interval):
    """So the stochastic ones too, from the same noise: whatever a sampler does, it sees D_w in place of D."""
    latents = torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    noise = lambda i, x: torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
    more = {"solver": solver, "num_steps": 20, "noise": noise, **settings}
    net, guide = WithVariance(0.5), Normal(1.0)
    found = edm.sample(net, latents, guide=guide, guidance=2.0, **interval, **more)
    low, high = interval.get("guidance_min", 0.0), interval.get("guidance_max", math.inf)
    assert torch.allclose(found, edm.sample(Mixed(2.0, low, high), latents, **more), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, edm.sample(WithVariance(0.5), latents, **more), rtol=1e-3)
    assert (guide.images < net.images) == bool(interval) and guide.images > 0


def test_weight_1_is_no_guidance_to_the_bit_and_evaluates_no_guide():
    for solver in ("heun", "euler", "rk45", "unipc-3", "vp-ode"):
        net, guide, alone = Normal(0.5), Normal(1.0), Normal(0.5)
        guided = edm.sample(net, LATENTS, solver=solver, guide=guide, guidance=1.0)
        assert torch.equal(guided, edm.sample(alone, LATENTS, solver=solver))
        assert guide.images == 0 and net.images == alone.images
        edm.sample(net, LATENTS, solver=solver, guide=guide, guidance=2.0)
        assert guide.images > 0


def test_the_null_label_of_the_same_network():
    labels = torch.zeros(9, dtype=torch.int64)
    one = edm.sample(Labelled(0.5), LATENTS, labels, guide="null", guidance=2.0)
    other = edm.sample(Normal(0.5), LATENTS, guide=Normal(1.0), guidance=2.0)
    assert torch.equal(one, other)


def test_an_interval_with_levels_per_image(tiny):
    """rk45 gives each image its own σ: only the images inside the interval have a guide."""
    guide = Normal(1.0)
    images = edm.sample(Normal(0.5), LATENTS, solver="rk45", tolerance=1e-7, guide=guide, guidance=2.0,
                        guidance_min=0.28, guidance_max=2.9)  # fmt: skip
    assert deviation_near(images) == pytest.approx(0.287613, abs=2e-3)
    assert guide.images % 9 != 0  # not always the whole batch


def deviation_near(images):
    return float((images[LATENTS != 0] / LATENTS[LATENTS != 0]).mean())


# Cost -----------------------------------------------------------------------------------------------------------------


def drawn(config, **nets):
    class Net(Normal):
        guides = nets

    net = Net(0.5)
    (block,) = generate(net, config, range(4), (1, 2, 2), block=4)
    return net, block


def test_evaluations_of_both_networks_count():
    guide = Normal(1.0)
    config = SamplerConfig(guide="other", guidance=2.0)
    net, block = drawn(config, other=guide)
    assert block.nfe.tolist() == [70] * 4 and config.nfe == config.expected_nfe == 70 and config.own_nfe == 35
    assert net.images == guide.images == 35 * 4
    assert SamplerConfig(guide="other").nfe == 35  # w = 1


def test_only_levels_in_the_interval_count():
    guide = Normal(1.0)
    config = SamplerConfig(guide="other", guidance=2.0, guidance_min=0.28, guidance_max=2.9)
    net, block = drawn(config, other=guide)
    levels = [(T ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - T ** (1 / 7))) ** 7 for i in range(18)]
    inside = sum(0.28 < level <= 2.9 for level in levels)
    assert net.images == 35 * 4 and guide.images == (2 * inside) * 4  # Heun evaluates each level but the first twice
    assert block.nfe.tolist() == [35 + 2 * inside] * 4


def test_an_interval_is_open_below_and_closed_above():
    """σ_max itself is guided by guidance_max: 80, though (80^(1/7))^7 is not 80 to the bit."""
    guide = Normal(1.0)
    levels = {"sigmas": (80.0, 10.0, 1.0), "solver": "euler", "guide": "other", "guidance": 2.0}
    drawn(SamplerConfig(**levels, guidance_min=1.0, guidance_max=10.0), other=guide)
    assert guide.images == 4  # at 10 and not at 1
    guide.images = 0
    drawn(SamplerConfig(solver="euler", num_steps=3, guide="other", guidance=2.0, guidance_min=79.0, guidance_max=80.0),
          other=guide)  # fmt: skip
    assert guide.images == 4


def test_rk45_counts_both_networks_of_each_image():
    _, block = drawn(SamplerConfig(solver="rk45", guide="other", guidance=2.0), other=Normal(1.0))
    assert (block.nfe % 2 == 0).all()
    inside = SamplerConfig(solver="rk45", guide="other", guidance=2.0, guidance_min=1.0)
    _, fewer = drawn(inside, other=Normal(1.0))
    alone = drawn(SamplerConfig(solver="rk45"))[1]
    assert (fewer.nfe > alone.nfe).all() and (fewer.nfe < 2.5 * alone.nfe).all()


# Networks and errors --------------------------------------------------------------------------------------------------


def test_a_network_is_guided_by_its_null_label_and_by_another_network(tiny):
    torch.manual_seed(0)
    net, guide = (build(tiny()).eval().requires_grad_(False) for _ in range(2))
    for one in (net, guide):  # an untrained network gives zeros
        torch.nn.init.normal_(one.network.out_conv.weight, std=0.1)
    net.guides["vp-A"] = guide
    labels = torch.arange(4) % 10
    latents = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    x, sigma = latents * 5, torch.tensor(5.0)
    for other, values in (("null", net(x, sigma, None)), ("vp-A", guide(x, sigma, labels))):
        found = edm.sample(net, latents, labels, guide=other, guidance=2.0, sigmas=[5.0], solver="euler")
        values = values.double()
        expected = values + 2.0 * (net(x, sigma, labels).double() - values)  # the step to σ = 0 ends at D
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guidance": 2.0}, "guidance has no effect without a guide"),
        ({"guidance_max": 2.0}, "guidance_max has no effect without a guide"),
        ({"guide": "vp-A", "guidance": 2.0}, "guide 'vp-A': this model has no such network beside it; it has null"),
        ({"guide": Normal(1.0), "guidance": -1.0}, "guidance is -1.0; it must be at least 0"),
        ({"guide": Normal(1.0), "guidance": 2.0, "guidance_min": 3.0, "guidance_max": 3.0}, "no noise level is guided"),
        ({"guide": "null", "guidance": 2.0}, "class_labels is None, so there is no label to leave out"),
        ({"guide": 3, "guidance": 2.0}, "guide is of type int; expected a denoiser"),
    ],
)
def test_settings_without_effect_and_missing_guides_are_refused(settings, says):
    with pytest.raises(edm.UserError, match=says):
        edm.sample(Normal(0.5), LATENTS, **settings)


def test_an_unconditional_network_has_no_null_label(tiny):
    net = build(tiny(conditional=False)).eval()
    with pytest.raises(edm.UserError, match="the model is unconditional"):
        edm.sample(net, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), guide="null", guidance=2.0)
