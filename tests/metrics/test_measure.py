"""Several metrics from one pass: torch-fidelity's numbers, shards, and errors raised at the start."""

import numpy as np
import pytest
import torch
from image_sets import smooth_images, torch_fidelitys_measures

from edm.errors import UserError
from edm.metrics import CLASSIFIER, DINOV2, INCEPTION, METRICS, PIXELS, check_metrics, measure
from edm.metrics.extractors import extract, load_features
from edm.metrics.frechet import frechet_distance, load_statistics, save_statistics
from edm.metrics.measure import Measuring
from edm.metrics.reference import reference_statistics, save_reference

OF_FEATURES = ("kid", "precision", "recall")


def reference_of(extractor, images, path, keep=None):
    """The reference statistics of ``images`` by ``extractor``, written and read again."""
    statistics, kept = reference_statistics(extractor, images.split(16), keep)
    save_reference(path, extractor, statistics, "ab" * 32, kept)
    return load_statistics(path)


def measured(extractor, reference, metrics, images, batch=16):
    measuring = Measuring(extractor, reference, metrics)
    for part in images.split(batch):
        measuring.append(part)
    return measuring


@pytest.fixture(scope="module")
def digit_sets(digits):
    """Digits as torch images, and a blurred copy of some of them to measure."""
    images = torch.from_numpy(digits[0])
    blurred = torch.nn.functional.avg_pool2d(images[:300].float(), 3, stride=1, padding=1).to(torch.uint8)
    return images[400:900], blurred


# The numbers


@pytest.mark.slow
def test_all_measures_of_one_pass_equal_torch_fidelitys(inception_weights, tmp_path, monkeypatch):
    """Subsets of 16 of so few images, on both sides; else torch-fidelity's defaults."""
    monkeypatch.setitem(measure.KID_SETTINGS, "kid_subset_size", 16)
    generated, real = smooth_images(30, seed=1, contrast=60), smooth_images(24, seed=2, contrast=45)
    extractor = load_features(INCEPTION, inception_weights)
    reference = reference_of(extractor, real, tmp_path / "ref.npz", keep=100)
    ours = measured(extractor, reference, ("inception_score", *OF_FEATURES), generated).results()
    theirs = torch_fidelitys_measures(
        generated, real, INCEPTION, inception_weights, isc=True, kid=True, prc=True, kid_subset_size=16
    )
    expected = {
        "distance": ours["distance"],  # has a test of its own, beside the extractors
        "inception_score": theirs["inception_score_mean"],
        "inception_score_std": theirs["inception_score_std"],
        "kid": theirs["kernel_inception_distance_mean"],
        "kid_std": theirs["kernel_inception_distance_std"],
        "kid_subset_size": 16,
        "precision": theirs["precision"],
        "recall": theirs["recall"],
    }
    assert ours == pytest.approx(expected, rel=1e-6)
    assert ours["inception_score"] > 1.001  # the random network does tell images apart
    assert ours["kid_std"] > 0  # the subsets differ
    assert 0 < ours["precision"] < 1
    assert 0 < ours["recall"] < 1


@pytest.mark.slow
def test_the_classifiers_measures_equal_torch_fidelitys(digit_sets, classifier, tmp_path):
    (real, generated), (weights, _) = digit_sets, classifier
    extractor = load_features(CLASSIFIER, weights)
    reference = reference_of(extractor, real, tmp_path / "ref.npz", keep=1000)
    ours = measured(extractor, reference, ("classifier_score", *OF_FEATURES), generated).results()
    theirs = torch_fidelitys_measures(
        generated, real, CLASSIFIER, weights, isc=True, kid=True, prc=True, kid_subset_size=300
    )
    assert ours["classifier_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    seen = extract(extractor, generated.split(16))
    assert ours["distance"] == frechet_distance(seen.mean, seen.covariance, reference.mu, reference.sigma)
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-7)  # theirs is a mean in float32
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-7)
    assert "inception_score" not in ours


def test_settings_are_torch_fidelitys_published_defaults():
    from torch_fidelity.defaults import DEFAULTS

    for settings in (measure.INCEPTION_SCORE_SETTINGS, measure.KID_SETTINGS):
        assert settings == {name: DEFAULTS[name] for name in settings}
    for name in ("precision", "recall"):
        assert METRICS[name].settings == {"k": DEFAULTS["prc_neighborhood"]}


def test_with_few_images_the_kernel_distance_takes_smaller_subsets_and_says_so(digit_sets, tmp_path):
    real, generated = digit_sets
    extractor = load_features(PIXELS)
    for keep, size in ((500, 300), (50, 50)):
        reference = reference_of(extractor, real, tmp_path / "ref.npz", keep)
        assert measured(extractor, reference, ["kid"], generated).results()["kid_subset_size"] == size


def test_the_images_of_the_reference_themselves_have_full_precision_and_recall(digit_sets, tmp_path):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    results = measured(extractor, reference, ["recall", "precision"], digit_sets[0]).results()
    assert results == {"distance": pytest.approx(0, abs=1e-9), "precision": 1, "recall": 1}


def test_a_copy_is_named_by_its_place_in_the_dataset_also_if_the_reference_keeps_a_sample(digit_sets, tmp_path):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=120)
    results = measured(extractor, reference, ["authpct", "memorisation"], digit_sets[0]).results()
    copies = [(pair["image"], pair["training"]) for pair in results["pairs"] if not pair["distance"]]
    assert len(copies) == 64
    assert all(image == training for image, training in copies)
    assert any(training >= 120 for _, training in copies)
    assert results["authpct"] < 80


def test_only_what_was_asked_is_given(digit_sets, tmp_path):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    assert set(measured(extractor, reference, [], digit_sets[1]).results()) == {"distance"}
    assert set(measured(extractor, reference, ["recall"], digit_sets[1]).results()) == {"distance", "recall"}


# The pass


def test_every_batch_is_seen_by_the_network_once(digit_sets, classifier, tmp_path):
    extractor = load_features(CLASSIFIER, classifier[0])
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    passes = []
    extractor.network.register_forward_hook(lambda _network, inputs, _outputs: passes.append(len(inputs[0])))
    measuring = measured(extractor, reference, ["classifier_score", *OF_FEATURES], digit_sets[1], batch=128)
    measuring.results()
    assert passes == [128, 128, 44]
    assert measuring.count == 300


def test_merged_shards_equal_one_pass(digit_sets, classifier, tmp_path):
    extractor = load_features(CLASSIFIER, classifier[0])
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    metrics = ["classifier_score", *OF_FEATURES]
    whole = measured(extractor, reference, metrics, digit_sets[1], batch=20).results()
    merged = Measuring(extractor, reference, metrics)
    shards = [measured(extractor, reference, metrics, part, batch=20) for part in digit_sets[1].split([100, 40, 160])]
    alone = shards[0].results()
    for shard in shards:
        merged.merge(shard)
    results = merged.results()
    assert results.pop("distance") == pytest.approx(whole.pop("distance"), rel=1e-9)
    assert results == whole  # of the same features in the same order
    assert shards[0].results() == alone


def test_a_measurement_goes_on_from_its_state_as_if_nothing_had_happened(digit_sets, classifier, tmp_path):
    extractor = load_features(CLASSIFIER, classifier[0])
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    metrics = ["classifier_score", *OF_FEATURES]
    whole = measured(extractor, reference, metrics, digit_sets[1]).results()
    state = measured(extractor, reference, metrics, digit_sets[1][:160]).state()
    again = measured(extractor, reference, metrics, digit_sets[1][:16])  # gives way to what is restored
    again.restore({name: tensor.clone() for name, tensor in state.items()})
    for batch in digit_sets[1][160:].split(16):
        again.append(batch)
    assert again.results() == whole
    again.restore(Measuring(extractor, reference, metrics).state())
    assert again.count == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("mean"),
        lambda state: state.pop("features"),
        lambda state: state.update(count=torch.tensor(17)),
        lambda state: state.update(count=torch.tensor([16, 16])),
        lambda state: state.update(mean=state["mean"].float()),
        lambda state: state.update(scatter=state["scatter"][1:]),
        lambda state: state["scatter"].fill_(torch.nan),
    ],
)
def test_what_is_not_the_state_of_a_measurement_is_refused(digit_sets, tmp_path, change):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    measuring = measured(extractor, reference, ["kid"], digit_sets[1][:16])
    state = {name: tensor.clone() for name, tensor in measuring.state().items()}
    change(state)
    with pytest.raises(UserError, match="not a state of"):
        Measuring(extractor, reference, ["kid"]).restore(state)


def test_measurements_of_different_kinds_are_not_merged(digit_sets, tmp_path):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz", keep=500)
    with pytest.raises(ValueError, match="cannot be merged"):
        Measuring(extractor, reference, ["kid"]).merge(Measuring(extractor, reference, []))


# Refusals


@pytest.mark.parametrize(
    ("metric", "features", "message"),
    [
        ("fid", INCEPTION, "unknown metric 'fid'; choose from inception_score"),
        *(("inception_score", features, f"not of {features}") for features in (CLASSIFIER, PIXELS, *DINOV2)),
        *(("classifier_score", features, f"not of {features}") for features in (INCEPTION, PIXELS, *DINOV2)),
    ],
)
def test_a_metric_that_an_extractor_cannot_give_is_refused_by_name_alone(metric, features, message):
    with pytest.raises(UserError, match=message):
        check_metrics([metric], features)


def test_a_metric_is_refused_before_any_image_is_seen(digit_sets, tmp_path):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "ref.npz")
    with pytest.raises(UserError, match="class logits of inception-v3-compat, not of pixels"):
        Measuring(extractor, reference, ["inception_score"])


@pytest.mark.parametrize("metric", OF_FEATURES)
def test_a_reference_without_features_is_refused_where_they_are_needed(metric, tmp_path):
    path = tmp_path / "old.npz"
    save_statistics(path, np.zeros(64), np.eye(64))
    with pytest.raises(UserError, match=f"holds no features of the reference images, which {metric} needs") as caught:
        Measuring(load_features(PIXELS), load_statistics(path), [metric])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_reference_in_other_features_is_refused(digit_sets, classifier, tmp_path):
    reference = reference_of(load_features(PIXELS), digit_sets[0], tmp_path / "ref.npz")
    extractor = load_features(CLASSIFIER, classifier[0])
    with pytest.raises(UserError, match="its features are pixels, not digits-classifier"):
        Measuring(extractor, reference)
    save_statistics(tmp_path / "foreign.npz", np.zeros(2048), np.eye(2048))
    with pytest.raises(UserError, match="its dimensions are 2048, not 64"):
        Measuring(extractor, load_statistics(tmp_path / "foreign.npz"))


def test_too_few_images_are_refused_on_either_side(digit_sets, tmp_path):
    extractor = load_features(PIXELS)
    reference = reference_of(extractor, digit_sets[0], tmp_path / "few.npz", keep=3)
    with pytest.raises(
        UserError, match=r"precision needs at least 4 images, but there are 3 reference images in .*few"
    ):
        Measuring(extractor, reference, ["precision"])
    reference = reference_of(extractor, digit_sets[0], tmp_path / "enough.npz", keep=4)
    with pytest.raises(UserError, match="recall needs at least 4 images, but there are 3 images measured"):
        measured(extractor, reference, ["recall"], digit_sets[1][:3]).results()
