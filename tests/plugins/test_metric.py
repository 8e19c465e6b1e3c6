"""Metrics of plugins are measured beside the distance, from the features of single images."""

import numpy as np
import pytest
import torch

from edm.errors import UserError
from edm.metrics import METRICS, lower_is_better, need_reference_features, stated_settings
from edm.metrics.extractors import load_features
from edm.metrics.frechet import load_statistics
from edm.metrics.measure import Measuring
from edm.metrics.reference import reference_statistics, save_reference

METRIC = """
    import torch
    import edm

    @edm.register("metric", "lab-median", higher=False, fewest=3, meaning="median distance to the nearest image")
    def median(features, reference, *, quantile: float = 0.5):
        return torch.cdist(features, reference).min(dim=1).values.quantile(quantile).item()
    """


@pytest.fixture
def reference(digits, tmp_path):
    extractor = load_features("pixels")
    statistics, kept = reference_statistics(extractor, [digits.images[:500]], 500)
    save_reference(tmp_path / "digits.npz", extractor, statistics, digits.sha256, kept)
    return extractor, load_statistics(tmp_path / "digits.npz")


def test_a_metric_of_a_plugin_is_measured_with_its_settings(plugin, reference, digits):
    plugin(METRIC)
    extractor, statistics = reference
    images = np.roll(digits.images[:40], 1, axis=-1)
    found = []
    for quantile in (0.5, 0.9):
        measuring = Measuring(extractor, statistics, ["lab-median"], settings={"lab-median": {"quantile": quantile}})
        measuring.append(images)
        found.append(measuring.results()["lab-median"])
    features = extractor(images), extractor(digits.images[:500])
    expected = torch.cdist(*features).min(dim=1).values.quantile(torch.tensor([0.5, 0.9]))
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_what_is_known_of_a_metric_of_a_plugin(plugin):
    plugin(METRIC)
    assert METRICS["lab-median"].fewest == 3 and "median distance" in METRICS["lab-median"].meaning
    assert lower_is_better("lab-median") and need_reference_features(["lab-median"])
    assert not stated_settings(["lab-median"]), "the experiment states its settings"
    assert list(METRICS)[-1] == "lab-median" and "lab-mean" not in METRICS


@pytest.mark.parametrize(
    "body, message",
    [
        ("return features", "metric lab: returned Tensor; expected one number"),
        ("return float('nan')", "metric lab: returned nan; expected a finite number"),
        ("return features @ reference", r"plugin\.py:5: metric lab: RuntimeError: "),
    ],
)
def test_a_metric_that_fails_says_where(plugin, reference, digits, body, message):
    plugin(f"import edm\n\n@edm.register('metric', 'lab')\ndef f(features, reference):\n    {body}\n")
    measuring = Measuring(*reference, ["lab"])
    measuring.append(digits.images[:10])
    with pytest.raises(UserError, match=message) as caught:
        measuring.results()
    assert "\n" not in str(caught.value)
