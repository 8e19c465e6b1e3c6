"""The ODE upwards: exact densities, orders of convergence, the trace's estimator, inversion."""

import itertools
import math

import pytest
import torch

import edm
from edm.design import draws
from edm.errors import UserError
from edm.models import building
from edm.sampling.likelihood import bits_per_dimension, dequantised

SHAPE = (1, 2, 3)
GENERATOR = torch.Generator().manual_seed(0)
DIRECTION = torch.linspace(-1, 2, 6, dtype=torch.float64) / 3


def gaussian(x, sigma, class_labels=None):
    """D of data N(0, 0.5²)."""
    return x * 0.25 / (0.25 + sigma**2)


class Mixture:
    """D(x; σ) of two Gaussians in six dimensions, of mean 0 together; its Jacobian is not diagonal."""

    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    means = torch.tensor([[-0.6], [0.4]], dtype=torch.float64) * DIRECTION
    variances = torch.tensor([0.15, 0.25], dtype=torch.float64) ** 2

    def log_shares(self, x, sigma):
        variance = self.variances + sigma**2
        squares = (x.flatten(1)[:, None] - self.means).square().sum(dim=2)
        return self.weights.log() - 3 * (2 * math.pi * variance).log() - squares / (2 * variance)

    def log_density(self, x, sigma):
        return self.log_shares(x, sigma).logsumexp(dim=1)

    def __call__(self, x, sigma, class_labels=None):
        shares, flat = self.log_shares(x, sigma).softmax(dim=1)[..., None], x.flatten(1)[:, None]
        variances = self.variances[:, None]
        ideal = (self.means * sigma**2 + flat * variances) / (variances + sigma**2)
        return (shares * ideal).sum(dim=1).reshape(x.shape)


MIXTURE = Mixture()


@pytest.fixture(scope="module")
def images():
    """Eight images of the mixture at σ = 0.002."""
    which = torch.tensor([0, 1] * 4)
    noise = torch.randn(8, 6, generator=GENERATOR, dtype=torch.float64)
    points = MIXTURE.means[which] + noise * (MIXTURE.variances[which] + 0.002**2).sqrt()[:, None]
    return points.reshape(8, *SHAPE)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    config = edm.TrainingConfig(resolution=8, channels=1, classes=10, model_channels=8, channel_mult=(1, 2),
                                num_blocks=1, attn_resolutions=(4,), dropout=0.0)  # fmt: skip
    net = building.build(config).eval()
    with torch.no_grad():  # untrained networks end in zeros
        net.network.out_conv.weight.normal_(0, 0.1)
    return net.requires_grad_(False)


@pytest.mark.slow
def test_a_gaussian_has_its_density():
    """Exactly, if σ_d is that of the data. Without it, ∫ tr ∂D/∂x dσ/σ per dimension is 5.52144938693 nats."""
    images = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, *SHAPE)
    variance = 0.25 + 0.002**2
    exact = -0.5 * (images.flatten(1).square().sum(dim=1) / variance + 6 * math.log(2 * math.pi * variance))
    found = edm.log_likelihood(gaussian, images, num_steps=2, trace="exact")
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    zero = torch.zeros(1, *SHAPE)  # stays 0 on its way up
    coarse, fine = (edm.log_likelihood(gaussian, zero, num_steps=n, trace="exact", data_std=0.0) for n in (800, 1600))
    gained = (fine + (fine - coarse) / 3) / 6 + math.log(math.sqrt(2 * math.pi) * 0.002)  # extrapolated, order 2
    assert gained.item() == pytest.approx(-5.52144938693, abs=1e-7)
    other = edm.log_likelihood(gaussian, images, num_steps=200, trace="exact", data_std=0.3)
    torch.testing.assert_close(other, exact, rtol=0, atol=2e-3)


def test_a_mixture_has_its_density_at_200_heun_steps(images):
    found = edm.log_likelihood(MIXTURE, images, num_steps=200, trace="exact", data_std=0.25)
    assert (found - MIXTURE.log_density(images, 0.002)).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("euler", 1)])
def test_the_order_of_convergence_is_that_of_the_solver(images, solver, order):
    settings = {"solver": solver, "trace": "exact", "sigma_min": 0.05, "sigma_max": 5.0, "data_std": 0.25}
    reference = edm.log_likelihood(MIXTURE, images, num_steps=3200, **settings | {"solver": "heun"})
    errors = [(edm.log_likelihood(MIXTURE, images, num_steps=steps, **settings) - reference).abs().mean()
              for steps in (50, 100, 200, 400)]  # fmt: skip
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.1)


def test_hutchinsons_estimate_is_unbiased_and_its_spread_falls_with_the_probes(images):
    exact = edm.log_likelihood(MIXTURE, images[:1], num_steps=30, trace="exact")
    spreads = {}
    for probes in (1, 16):
        found = edm.log_likelihood(MIXTURE, images[:1].expand(400, *SHAPE), num_steps=30, probes=probes)
        spreads[probes] = found.std()
        assert abs(found.mean() - exact) < 3 * found.std() / 20
    assert (spreads[1] / spreads[16]).item() == pytest.approx(4, rel=0.2)
    many = images[:1].expand(400, *SHAPE)
    _, told = edm.log_likelihood(MIXTURE, many, num_steps=30, probes=16, spread=True)
    assert told.square().mean().sqrt().item() == pytest.approx(spreads[16].item(), rel=0.2)
    assert edm.log_likelihood(MIXTURE, images, num_steps=3, spread=True)[1].isnan().all()
    assert edm.log_likelihood(MIXTURE, images, num_steps=3, trace="exact", spread=True)[1].eq(0).all()


def test_probes_are_signs_of_the_seed_alone():
    seeds = torch.tensor([3, 5, 3])
    vectors = draws.probes(seeds, 4, SHAPE)
    assert vectors.shape == (4, 3, *SHAPE) and vectors.abs().eq(1).all()
    assert torch.equal(vectors[:, 0], vectors[:, 2]) and not torch.equal(vectors[:, 0], vectors[:, 1])
    assert torch.equal(draws.probes(seeds[1:2], 2, SHAPE)[:, 0], vectors[:2, 1])
    many = draws.probes(torch.arange(2000), 1, SHAPE)[0]
    assert abs(many.mean()) < 0.03 and (many.flatten(1).T @ many.flatten(1) / 2000 - torch.eye(6)).abs().max() < 0.1


def test_an_image_does_not_depend_on_its_batch(images, net):
    seeds = torch.arange(7, 15)
    whole = edm.log_likelihood(MIXTURE, images, num_steps=10, probes=2, seeds=seeds)
    parts = [edm.log_likelihood(MIXTURE, images[i : i + 1], num_steps=10, probes=2, seeds=seeds[i : i + 1])
             for i in (5, 0)]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole[[5, 0]])
    faces, labels = torch.rand(3, 1, 8, 8, generator=GENERATOR) * 2 - 1, torch.tensor([1, 2, 3])
    together = edm.log_likelihood(net, faces, labels, num_steps=4, seeds=seeds[:3])
    alone = edm.log_likelihood(net, faces[2:], labels[2:], num_steps=4, seeds=seeds[2:3])
    torch.testing.assert_close(alone, together[2:], rtol=1e-6, atol=0)


def test_the_traces_of_a_network_agree_and_are_those_of_its_jacobian(net):
    """Exact against torch's Jacobian at one level, by a single Euler step; the estimate within its error."""
    image, label = torch.rand(1, 1, 8, 8, generator=GENERATOR, dtype=torch.float64) * 2 - 1, torch.tensor([4])
    settings = {"num_steps": 1, "solver": "euler", "sigma_min": 0.5, "sigma_max": 0.6}
    found = edm.log_likelihood(net, image, label, trace="exact", **settings)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, 0.5, label), image.float()).reshape(64, 64)
    scale = math.sqrt(0.5**2 + 0.5**2)  # of y = x/√(σ² + σ_d²); a Gaussian has half of x as D, and a trace of 32
    y = image / scale + 0.1 * (image / 2 - net(image, 0.5, label)) / (0.5 * scale)
    expected = -0.5 * y.square().sum() - 64 * math.log(math.sqrt(2 * math.pi) * scale)
    expected += 0.1 * (32 - jacobian.trace()) / 0.5
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    estimate, spread = edm.log_likelihood(net, image, label, probes=200, spread=True, **settings)
    assert abs(estimate - found) < 4 * spread


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("euler", 1)])
def test_an_image_comes_back_from_its_latent_with_an_error_of_the_solvers_order(images, solver, order):
    settings = {"solver": solver, "sigma_min": 0.05, "sigma_max": 5.0}
    errors = []
    for steps in (50, 100, 200, 400):
        latents = edm.invert(MIXTURE, images, num_steps=steps, **settings)
        back = edm.sample(MIXTURE, latents, num_steps=steps, final="sigma_min", **settings)
        errors.append((back - images).square().mean().sqrt())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    # Upwards and downwards share levels: of Heun the leading errors cancel, so that it may return with order 3.
    assert orders[-1] >= order - 0.1 and errors[-1] < (1e-4 if order == 2 else 1e-2)


def test_latents_of_a_gaussian_are_standard_normal():
    images = torch.randn(500, *SHAPE, generator=GENERATOR, dtype=torch.float64) * math.sqrt(0.25 + 0.002**2)
    latents = edm.invert(gaussian, images, num_steps=200)
    torch.testing.assert_close(latents, images * math.sqrt((0.25 + 80**2) / (0.25 + 0.002**2)) / 80, rtol=1e-3, atol=0)


def test_interpolation_stays_on_the_sphere():
    a, b = torch.randn(2, 3, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(3, 1, 1, 1)
    weights = torch.tensor([0.0, 0.25, 0.5, 1.0])
    points = edm.interpolate(a, b, weights)
    assert points.shape == (3, 4, *SHAPE)
    torch.testing.assert_close(points[:, 0], a)
    torch.testing.assert_close(points[:, 3], b)
    radius = a.flatten(1).norm(dim=1)[:, None].expand(3, 4)
    torch.testing.assert_close(points.flatten(2).norm(dim=2), radius)
    angle = lambda one, two: torch.nn.functional.cosine_similarity(one.flatten(1), two.flatten(1)).acos()
    torch.testing.assert_close(angle(a, points[:, 1]), angle(a, b) / 4)
    torch.testing.assert_close(edm.interpolate(a, 2 * a, weights)[:, 2], 1.5 * a)


def test_bits_per_dimension_of_a_uniform_density_are_eight():
    """p = (1/2)^d over [−1, 1]^d: 1 bit and log₂ 127.5 = 6.9944 bits; over the 256 levels of width 1/127.5, 8."""
    d = 12
    assert bits_per_dimension(torch.tensor(-d * math.log(256 / 127.5)), d) == pytest.approx(8)
    assert math.log2(127.5) == pytest.approx(6.9944, abs=1e-4)


def test_dequantised_images_fill_the_width_of_their_levels():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).repeat(2000, 1).reshape(2000, 1, 1, 3)
    found = dequantised(images, torch.arange(2000))
    filled = (found + 1) * 127.5 - images
    assert filled.min() >= 0 and filled.max() < 1 and abs(filled.mean() - 0.5) < 0.02
    assert torch.equal(dequantised(images[5:6], torch.tensor([5])), found[5:6])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trace": "all"}, "trace is 'all'; choose from hutchinson, exact"),
        ({"probes": 0}, "probes is 0; expected a whole number of at least 1"),
        ({"solver": "rk45"}, "solver is 'rk45'; upwards there are euler and heun"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0; it must be more than 0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min 3 is larger than sigma_max 2"),
        ({"data_std": -1.0}, "data_std is -1.0"),
        ({"num_steps": 0}, "num_steps"),
        ({"seeds": torch.arange(3)}, r"seeds are torch.int64 \[3\]; expected a whole number for each image"),
        ({"seeds": torch.ones(2)}, r"seeds are torch.float32 \[2\]"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        edm.log_likelihood(gaussian, torch.zeros(2, *SHAPE), **changes)


def test_images_and_networks_that_do_not_fit_are_refused():
    for images, message in (
        (torch.zeros(2, 3), "images is torch.float32"),
        (torch.full((1, *SHAPE), math.nan), "finite"),
    ):
        for use in (edm.log_likelihood, edm.invert):
            with pytest.raises(UserError, match=message):
                use(gaussian, images)
    with pytest.raises(UserError, match="no gradient with respect to x"):
        edm.log_likelihood(lambda x, sigma, labels: gaussian(x, sigma).detach(), torch.zeros(1, *SHAPE))
    with pytest.raises(UserError, match=r"expected \[B, C, H, W\] twice and \[W\]"):
        edm.interpolate(torch.zeros(1, *SHAPE), torch.zeros(2, *SHAPE), torch.zeros(3))
