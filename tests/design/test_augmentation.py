"""Non-leaky augmentation (Table 6) against the authors' images, and by its own claims."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edm
from edm.design.augmentation import LABELS, random_labels

GOLDEN = load_file(Path(__file__).parents[1] / "fixtures" / "golden" / "augment.safetensors")
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


def test_a_vector_of_zeros_changes_nothing():
    assert torch.equal(edm.augment_with(GOLDEN["images"], torch.zeros(8, 9)), GOLDEN["images"])


def test_an_image_is_transformed_alike_whatever_else_is_in_its_batch():
    labels = random_labels(torch.arange(8), 0.5)
    together = edm.augment_with(GOLDEN["images"], labels)
    for i in range(8):
        alone = edm.augment_with(GOLDEN["images"][i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)


def test_transforms_are_enabled_as_often_as_asked():
    """x-flip for half the images; y-flip half of A_prob; every other transform A_prob (Table 6)."""
    labels = random_labels(torch.arange(40_000), 0.12)
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
