"""Library calls with arguments of the wrong kind: each is a UserError, a ValueError, that says what to pass."""

import math

import numpy as np
import pytest
import torch

import edm
from edm.models import checkpoint
from edm.models.building import build

X, LABELS = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])


@pytest.fixture
def net(tiny):
    torch.manual_seed(0)
    return build(tiny()).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0, 1]), "class_labels is of type ndarray; expected a tensor"),
        ([0, 1], "class_labels is of type list; expected a tensor"),
        (3, "class_labels is of type int"),
        (torch.tensor(3), "class_labels of shape"),
        (torch.tensor([0, 1, 2]), "expected 2 indices or one-hot rows"),
        (torch.tensor([0.0, 1.0]), "indices must be integers"),
        (torch.tensor([True, False]), "indices must be integers"),
        (torch.tensor([0, 10]), "must lie in 0 to 9"),
        (torch.eye(4)[:2], "has 4 columns; the model has 10 classes"),
    ],
)
def test_labels(net, labels, says):
    for call in (lambda: edm.sample(net, X, labels, num_steps=1), lambda: net(X, 1.0, labels)):
        with pytest.raises(edm.UserError, match=says):
            call()


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (X.numpy(), "is of type ndarray; expected a tensor"),
        (X.long(), r"is torch.int64 \[2, 1, 8, 8\]; expected floats \[B, C, H, W\]"),
        (X.to(torch.complex64), "is torch.complex64"),
        (X[0], r"\[1, 8, 8\]; expected floats \[B, C, H, W\]"),
        (torch.zeros(2, 3, 8, 8), "the model takes 1 channels"),
        (torch.zeros(2, 1, 9, 8), "sides that are multiples of 2"),
    ],
)
def test_images(net, x, says):
    for call in (lambda: edm.sample(net, x, LABELS, num_steps=1), lambda: net(x, 1.0, LABELS)):
        with pytest.raises(edm.UserError, match=says):
            call()


def test_noise_levels(net):
    with pytest.raises(edm.UserError, match="sigma has 3 levels; expected one, or one for each of 2 images"):
        net(X, torch.ones(3), LABELS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_steps", 2.5), ("num_steps", "2"), ("rho", math.inf), ("S_churn", math.nan), ("S_max", math.nan),
     ("S_churn", torch.tensor(1.0)), ("solver", None), ("sigma_min", -1)],
)  # fmt: skip
def test_settings(net, name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        edm.sample(net, X, LABELS, **{name: value})


def test_loading(net, tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, net, tiny(), {})
    assert edm.load(path).sigma_max == net.sigma_max
    for wrong, device, says in (
        (path, "gpu", "device 'gpu' is unknown"), (path, 1.5, "device 1.5 is unknown"),
        (tmp_path, "cpu", "is a folder"), (None, "cpu", "cannot be read"), ("/dev/zero", "cpu", "is a device"),
    ):  # fmt: skip
        with pytest.raises(edm.UserError, match=says):
            edm.load(wrong, device)


@pytest.mark.parametrize(
    ("solver", "value"),
    [("euler", math.nan), ("heun", math.inf), ("multistep", math.nan), ("ddim", math.nan)],  # ddim clips infinity
)
def test_images_that_are_not_finite_are_refused(solver, value):
    broken = torch.tensor([0.0, value]).reshape(2, 1, 1, 1)
    with pytest.raises(edm.UserError, match="NaN or infinity in 1 of 2 images, the first of them image 1"):
        edm.sample(lambda x, sigma, labels: x / (1 + sigma**2) + broken, X, num_steps=3, solver=solver)
