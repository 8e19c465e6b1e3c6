"""Advice for a dataset: exact where the data have a formula, and bounded above and below where they do not."""

import json
import math

import numpy as np
import pytest
import torch
import yaml

from edm.analysis import advice
from edm.analysis.advice import FREQUENCIES, ROUNDING, WHOLE, advice_of, advise, ideal_errors, linear_error, moments
from edm.analysis.advice import spectrum as spectrum_of
from edm.cli import main
from edm.data.archive import write_archive
from edm.data.pixels import to_float
from edm.errors import UserError
from edm.models.ideal import IdealDenoiser
from edm.training.curves import write_curves


def gaussian_images(count, variances, mean=0.2, seed=0):
    """Images [count, 1, 8, 8] whose sample covariance has exactly these eigenvalues [64]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 64, dtype=torch.float64, generator=generator)
    x -= x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / count)).T
    axes, _ = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=generator))
    return (mean + white * torch.as_tensor(variances).sqrt() @ axes).reshape(count, 1, 8, 8)


def in_chunks(images, size=37):
    return images.split(size)


def levels_of(path, sigma, mean):
    curve = {"sigma": sigma, "mean": mean, "std": [0.0] * len(sigma), "samples": 10}
    write_curves(path, curve, curve, {"images": [1], "loss": [1.0]})
    return path


# Gaussian data: formulas ----------------------------------------------------------------------------------------------


def test_white_gaussian_data_have_the_deviation_and_the_range_of_their_formulas():
    """c²σ²/(c² + σ²) is the rounding of 8 bits at σ_min; c²/(c² + σ²) = 1 % at σ_max = c √99."""
    c = 0.5
    found = advice_of(spectrum_of(in_chunks(gaussian_images(500, torch.full((64,), c**2, dtype=torch.float64)))))
    assert found.sigma_data == pytest.approx(c, rel=1e-10)
    assert found.mean == pytest.approx(0.2, rel=1e-10)
    assert found.sigma_max == pytest.approx(c * math.sqrt(99), rel=1e-9)
    assert found.sigma_min == pytest.approx(c * math.sqrt(ROUNDING / (c**2 - ROUNDING)), rel=1e-9)
    sigma = torch.tensor(found.curves["sigma"], dtype=torch.float64)
    expected = c**2 * sigma**2 / (c**2 + sigma**2)
    assert torch.allclose(torch.tensor(found.curves["e0"], dtype=torch.float64), expected, rtol=1e-9)


def test_the_variances_of_any_gaussian_are_found_in_chunks_of_any_size():
    variances = torch.logspace(-4, 1, 64, dtype=torch.float64)
    images = gaussian_images(300, variances)
    for size in (1, 37, 300):
        assert torch.allclose(spectrum_of(in_chunks(images, size)).variances, variances, rtol=1e-9)
    exact = torch.stack([0.3**2 * v / (0.3**2 + v) for v in variances]).mean()
    assert float(linear_error(variances, 0.3)) == pytest.approx(float(exact), rel=1e-12)


def test_of_gaussian_data_nothing_is_won_over_linear_prediction(tmp_path):
    """The linear denoiser is ideal: a network with exactly its error leaves no distribution of ln σ."""
    spectrum = spectrum_of(in_chunks(gaussian_images(300, torch.logspace(-4, 1, 64, dtype=torch.float64))))
    sigma = torch.logspace(-2.6, 2, 24, dtype=torch.float64)
    found = advice_of(spectrum, network=(sigma.tolist(), linear_error(spectrum.variances, sigma).tolist()))
    assert found.P_mean is None and found.P_std is None


def test_the_ideal_denoiser_of_many_gaussian_numbers_is_the_linear_one():
    """Images of one brightness, so that the subset fills the only dimension: both bounds meet e₀."""
    brightness = torch.randn(1500, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.5
    images = brightness.expand(-1, 1, 8, 8)
    sigma = torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64)
    expected = linear_error(spectrum_of([images]).variances, sigma)
    for errors in ideal_errors(images, sigma):
        assert torch.allclose(errors, expected, rtol=0.06)


# Data with more than a covariance -------------------------------------------------------------------------------------


def two_brightnesses(a=0.5, pixels=64):
    """e₁(σ) of images of brightness ±a by quadrature: a² E[1 − tanh²(r² + r z)], r = a √pixels/σ, and P_mean, P_std."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()

    def e1(sigma):
        r = a * math.sqrt(pixels) / sigma
        return a**2 * float(np.sum(weights * (1 - np.tanh(r**2 + r * nodes)) ** 2))

    return e1


@pytest.mark.slow
def test_two_brightnesses_have_the_distribution_that_quadrature_gives():
    """e₀ = σ² a²/(σ² + 64 a²) per pixel: one direction has all the variance."""
    a, e1 = 0.5, two_brightnesses()
    images = torch.tensor([a, -a], dtype=torch.float64).repeat(500)[:, None, None, None].expand(-1, 1, 8, 8)
    found = advice_of(spectrum_of(in_chunks(images)), images)
    sigma = torch.tensor(found.curves["sigma"], dtype=torch.float64)
    e0 = sigma**2 * a**2 / (sigma**2 + 64 * a**2)
    assert torch.allclose(torch.tensor(found.curves["e0"], dtype=torch.float64), e0, rtol=1e-9)
    exact = torch.tensor([e1(float(level)) for level in sigma], dtype=torch.float64)
    assert torch.allclose(torch.tensor(found.curves["e1"], dtype=torch.float64), exact, atol=0.06 * a**2)
    mean, deviation = moments(sigma, e0, exact)
    assert found.P_mean == pytest.approx(mean, abs=0.03) and found.P_std == pytest.approx(deviation, abs=0.03)
    # Of each image there are 500 copies: the denoiser of the others is the same.
    assert found.P_mean_new == pytest.approx(mean, abs=0.05)


def test_the_moments_are_those_of_the_density():
    sigma = torch.linspace(-8, 5, 200, dtype=torch.float64).exp()
    density = (-((sigma.log() + 1.2) ** 2) / (2 * 1.2**2)).exp()
    mean, deviation = moments(sigma, sigma**2 * density, torch.zeros_like(sigma))
    assert mean == pytest.approx(-1.2, abs=1e-6) and deviation == pytest.approx(1.2, abs=1e-5)


@pytest.mark.slow
def test_digits_lie_between_what_is_memorised_and_what_few_images_show(digits, digits_archive):
    """At σ_max the output of the ideal denoiser has 1 % of the data's variance; errors are bounds of one another."""
    found = advise(digits_archive)
    pixels = digits.images / 127.5 - 1
    assert found.sigma_data == pytest.approx(pixels.std(), rel=1e-6)
    assert found.images == found.subset == 1797 and found.spectrum == WHOLE
    images = to_float(torch.from_numpy(digits.images)).double()
    noisy = images + found.sigma_max * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    output = IdealDenoiser(images)(noisy, found.sigma_max)
    part = float(output.var(0, correction=0).mean() / images.var(0, correction=0).mean())
    assert part == pytest.approx(0.01, rel=0.15)
    e0, e1, new = (np.array(found.curves[name]) for name in ("e0", "e1", "e1_new"))
    assert (e1 <= new).all() and (e1 <= 1.01 * e0).all() and (new[:10] > e0[:10]).all()
    assert found.P_mean < -1.2 < found.P_mean_new  # the paper's for images is between the two


# Images that are too large, or too few, for their covariance ----------------------------------------------------------


def test_frequencies_bound_the_linear_error_from_above(digits):
    images = to_float(torch.from_numpy(digits.images)).double()
    whole, single = (spectrum_of(in_chunks(images, 500), kind) for kind in (WHOLE, FREQUENCIES))
    assert float(single.variances.sum()) == pytest.approx(float(whole.variances.sum()), rel=1e-9)
    sigma = torch.logspace(-2, 1, 7, dtype=torch.float64)
    e0, bound = linear_error(whole.variances, sigma), linear_error(single.variances, sigma)
    assert (e0 < bound).all() and (bound < 1.6 * e0).all()


def test_frequencies_are_exact_where_they_are_uncorrelated():
    """Images of independent cosines, with the three channels mixed: both ways give the same variances."""
    k = torch.arange(8, dtype=torch.float64)
    cosines = (math.pi / 8 * k[:, None] * (k + 0.5)).cos() * torch.where(k[:, None] == 0, 8**-0.5, 0.5)
    count = 400
    x = torch.randn(count, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x -= x.mean(0)
    white = (x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / count)).T).reshape(count, 3, 8, 8)
    mixing = torch.tensor([[1, 0.5, 0], [0.2, 1, 0.1], [0, 0.3, 1]], dtype=torch.float64)
    falling = 1 / (1 + k[:, None] + k[None])
    images = cosines.T @ torch.einsum("cd,ndhw->nchw", mixing, white * falling) @ cosines
    both = [spectrum_of(in_chunks(images), kind).variances.sort().values for kind in (WHOLE, FREQUENCIES)]
    assert torch.allclose(*both, rtol=1e-8)


def test_large_and_few_images_are_taken_by_frequency(rgb_images, tmp_path, digits_archive, monkeypatch):
    path = tmp_path / "few.zip"
    write_archive(path, rgb_images, None)
    assert advise(path).spectrum == FREQUENCIES  # 12 images of 768 numbers
    monkeypatch.setattr(advice, "LARGEST_COVARIANCE", 63)
    monkeypatch.setattr(advice, "IN_MEMORY", 6400)  # chunks and a subset of 100 images
    found = advise(digits_archive)
    assert found.spectrum == FREQUENCIES and found.subset == 100 and found.images == 1797


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """A small subset for the ideal denoiser, whose curves these tests do not look at."""
    monkeypatch.setattr(advice, "SUBSET", 50)


def test_a_training_run_replaces_the_ideal_denoiser(tmp_path, digits_archive, capsys, few):
    """A network that wins exactly a normal distribution of ln σ gets it as advice, in the lines for params.yaml."""
    spectrum = advise(digits_archive).curves
    sigma, e0 = np.array(spectrum["sigma"]), np.array(spectrum["e0"])
    e1 = e0 - 0.2 * sigma**2 * np.exp(-((np.log(sigma) + 1.0) ** 2) / (2 * 0.6**2))
    path = levels_of(tmp_path / "levels.json", sigma.tolist(), e1.tolist())
    assert main(["advise", str(digits_archive), "--levels", str(path)]) == 0
    lines = capsys.readouterr().out.partition("params.yaml:\n")[2]
    pasted = yaml.safe_load(lines)
    assert pasted["base"] == {"sigma_data": 0.752, "P_mean": -1.0, "P_std": 0.6}
    assert pasted["grids"]["ladder"] == {"sigma_min": 0.0023, "sigma_max": 11.8}


@pytest.mark.slow
def test_text_json_and_figure(tmp_path, digits_archive, capsys, few):
    picture = tmp_path / "advice.png"
    assert main(["advise", str(digits_archive), "--figure", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sigma_data"] == pytest.approx(0.7518, abs=1e-4)
    assert {len(curve) for curve in found["curves"].values()} == {advice.LEVELS}
    assert picture.stat().st_size > 1000 and picture.with_suffix(".svg").stat().st_size > 1000
    assert main(["advise", str(digits_archive)]) == 0
    text = capsys.readouterr().out
    assert "base: {sigma_data: 0.752}" in text and "use neither" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--figure", "advice.pdf"], "choose an ending: .png or .svg"),
        (["--levels", "none.json"], "none.json: "),
    ],
)
def test_wrong_calls_give_one_line(tmp_path, digits_archive, capsys, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    assert main(["advise", str(digits_archive), *change]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1


def test_images_that_are_all_the_same_are_refused(tmp_path):
    write_archive(tmp_path / "same.zip", np.full((5, 1, 8, 8), 7, np.uint8), None)
    with pytest.raises(UserError, match="no two different images"):
        advise(tmp_path / "same.zip")


def test_levels_of_other_data_are_refused(tmp_path, digits_archive):
    with pytest.raises(UserError, match="of which data"):
        advise(digits_archive, levels_of(tmp_path / "levels.json", [1e3, 1e4], [1.0, 1.0]))
