"""Feature extractors of plugins: the reference and the images are measured in the same features."""

import numpy as np
import pytest
from lab import write_lab, write_params

import edm
from edm import params, registry
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.errors import UserError
from edm.metrics.extractors import load_features

FEATURES = """
import torch
import edm


@edm.register("features", "lab-moments", meaning="mean and deviation of each row")
class Moments(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()

    def forward(self, images):
        rows = images.float().flatten(1, 2) / 255
        return torch.cat((rows.mean(dim=2), rows.std(dim=2)), dim=1)
"""


def test_a_distance_in_the_features_of_a_plugin(plugin, digits):
    plugin(FEATURES)
    extractor = load_features("lab-moments")
    assert (extractor.label, extractor.description) == ("FD (lab-moments)", "mean and deviation of each row")
    assert extractor(digits.images[:5]).shape == (5, 16)
    same = edm.frechet_distance(extractor(digits.images).numpy(), extractor(digits.images).numpy())
    rolled = edm.frechet_distance(extractor(digits.images).numpy(), extractor(np.roll(digits.images, 2, 2)).numpy())
    assert same < 1e-6 < rolled


def test_an_edited_extractor_is_another_one(plugin):
    plugin(FEATURES)
    before = load_features("lab-moments").weights_sha256
    plugin(FEATURES + "\n# edited\n")
    assert load_features("lab-moments").weights_sha256 != before


def test_the_steps_that_measure_use_the_extractor(plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lab(tmp_path)
    plugin(FEATURES, "my_lab/features.py", load=False)

    def change(raw):
        raw["plugins"].append("my_lab/features.py")
        raw["experiments"]["tiny"]["features"] = "lab-moments"

    write_params(tmp_path, change)
    chain = Chain(params.load("params.yaml", whole=True))
    told = {name: Provenance(chain).specification(job).get("plugins", {}) for name, job in chain.by_name.items()}
    used = {name for name, parts in told.items() if "features lab-moments" in parts}
    evaluated = {f"evaluate tiny/{model}/{grid}" for model in ("vp-A", "my-A") for grid in ("ours", "mine")}
    assert used == {"reference digits/lab-moments-with-features", *evaluated}
    write_params(tmp_path, lambda raw: raw["experiments"]["tiny"].update(features="lab-momens"))
    with pytest.raises(UserError, match=r"extractor 'lab-momens' is not defined; did you mean 'lab-moments'\?"):
        params.load("params.yaml", whole=True)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "torch.cat((rows.mean(dim=2), rows.std(dim=2)), dim=1)",
            "rows",
            r"returned torch.float32 \[5, 8, 8\]",
        ),
        ("(torch.nn.Module)", "", "features lab-moments: Moments is no torch.nn.Module|: features lab-moments: "),
        ("self, weights", "self, weights, size: int = 3", "features of a plugin take no settings; register a name"),
        ("rows.std(dim=2)", "rows.std(dim=9)", r"plugin\.py:\d+: features lab-moments: IndexError"),
    ],
)
def test_an_extractor_that_fails_says_where(plugin, digits, old, new, message):
    with pytest.raises(UserError, match=message) as caught:
        plugin(FEATURES.replace(old, new))
        load_features("lab-moments")(digits.images[:5])
    assert "\n" not in str(caught.value)


def test_the_extractors_of_ours_are_registered():
    assert all(registry.find("features", name).own for name in registry.Names("features"))
