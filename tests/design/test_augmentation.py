"""Non-leaky augmentation (Table 6): comparison with the authors' images, and its documented properties."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edm
from edm.design.augmentation import LABELS, Transforms, apply, augment, random_transforms

FIXTURES = Path(__file__).parents[1] / "fixtures" / "golden"
GOLDEN = load_file(FIXTURES / "augment.safetensors")
DRAWS = load_file(FIXTURES / "augment-draws.safetensors")
COLUMNS = {
    "flips": [0, 1],
    "scale": [2],
    "rotate": [3, 4],
    "aniso": [5, 6],
    "translate": [7, 8],
    "all": list(range(9)),
}


@pytest.mark.parametrize("transform", COLUMNS)
def test_every_transform_agrees_with_the_authors(transform):
    labels = torch.zeros(8, 9)
    labels[:, COLUMNS[transform]] = GOLDEN[f"{transform}/labels"]
    expected = GOLDEN[f"{transform}/out"]
    error = (edm.augment_with(GOLDEN["images"], labels) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


def test_given_draws_become_the_authors_images_and_vectors():
    """Both signs of the anisotropic scale, which have the same vector for a rotated direction."""
    d = DRAWS
    drawn = Transforms(
        d["flip_x"] > 0.5, d["flip_y"] > 0.5, *(d[name].double() for name in ("w_scale", "angle", "w_aniso")),
        d["aniso_direction"].double(), d["w_shift"].double(),
    )  # fmt: skip
    assert (d["w_aniso"] < 0).sum() > 10 and (d["w_aniso"] > 0).sum() > 10
    torch.testing.assert_close(drawn.labels(), d["labels"], rtol=0, atol=1e-6)
    difference = (apply(d["images"], drawn) - d["out"]).abs().max()
    assert difference / d["out"].abs().max() < 1e-4


def test_the_vector_of_an_unrotated_draw_gives_its_image():
    """Given only the vector, aniso_y = 0 exactly means that the direction was 0: w is signed (Table 6)."""
    unrotated = DRAWS["aniso_direction"] == 0
    assert (DRAWS["w_aniso"][unrotated] < 0).sum() > 10
    images, labels, expected = (DRAWS[name][unrotated] for name in ("images", "labels", "out"))
    assert (edm.augment_with(images, labels) - expected).abs().max() / expected.abs().max() < 1e-4


def test_as_many_draws_are_wider_as_are_higher():
    """Measured on transformed round spots: anisotropy widens half of them, and the mean of log2(w/h) is 0."""
    x = torch.arange(16) - 7.5
    spot = torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / 8)[None, None].expand(4000, -1, -1, -1)
    seeds = torch.arange(len(spot))
    drawn = random_transforms(seeds, 0.12)
    alone = drawn.w_aniso != 0
    for other in (drawn.w_scale, drawn.angle, drawn.shift.abs().sum(dim=1), drawn.direction):
        alone &= other == 0
    images, _ = augment(spot[alone], seeds[alone], 0.12)
    across, along = images.sum(dim=(1, 2)), images.sum(dim=(1, 3))  # sums of columns, of rows
    spread = lambda profile: ((profile * x**2).sum(dim=1) / profile.sum(dim=1)).sqrt()
    ratio = (spread(across) / spread(along)).log2()
    assert len(ratio) > 100
    assert float((ratio > 0).double().mean()) == pytest.approx(0.5, abs=0.12)
    assert float(ratio.mean()) == pytest.approx(0, abs=0.1)  # 0.32 if it widened all of them
    assert torch.equal(ratio > 0, drawn.w_aniso[alone] > 0)


def test_the_signs_of_all_draws_are_even():
    drawn = random_transforms(torch.arange(200_000), 0.12)
    for name in ("w_scale", "angle", "w_aniso", "direction"):
        values = getattr(drawn, name)
        values = values[values != 0]
        assert float((values > 0).double().mean()) == pytest.approx(0.5, abs=0.01), name
        assert abs(float(values.mean() / values.std())) < 0.02, name


def test_a_vector_of_zeros_changes_nothing():
    assert torch.equal(edm.augment_with(GOLDEN["images"], torch.zeros(8, 9)), GOLDEN["images"])


def test_an_image_is_transformed_alike_whatever_else_is_in_its_batch():
    images, seeds = GOLDEN["images"], torch.arange(8)
    together, labels = augment(images, seeds, 0.5)
    for i in range(8):
        alone, label = augment(images[i : i + 1], seeds[i : i + 1], 0.5)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)
        assert torch.equal(label[0], labels[i])


def test_transforms_are_enabled_as_often_as_asked():
    """x-flip for half the images; y-flip half of A_prob; every other transform A_prob (Table 6)."""
    labels = random_transforms(torch.arange(40_000), 0.12).labels()
    used = {name: float((labels[:, i] != 0).float().mean()) for i, name in enumerate(LABELS)}
    assert used["flip_x"] == pytest.approx(0.5, abs=0.01)
    assert used["flip_y"] == pytest.approx(0.06, abs=0.005)
    for name in ("w_scale", "sin_theta", "aniso_x", "shift_x", "shift_y"):
        assert used[name] == pytest.approx(0.12, abs=0.006), name
    assert float(labels[labels[:, 2] != 0, 2].std()) == pytest.approx(1, abs=0.03)
    zero_direction = (labels[:, 5] != 0) & (labels[:, 6] == 0)
    assert float(zero_direction.sum() / (labels[:, 5] != 0).sum()) == pytest.approx(0.5, abs=0.02)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(edm.UserError, match=r"expected \[8, 9\]"):
        edm.augment_with(GOLDEN["images"], torch.zeros(8, 3))
    with pytest.raises(edm.UserError, match="not square"):
        edm.augment_with(torch.zeros(1, 1, 8, 16), torch.zeros(1, 9))
