"""The small classifier: accuracy, reproducibility, and validation of its files."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edm.errors import UserError
from edm.metrics.classifier import HEADER_KEY, load_classifier, train_classifier
from edm.metrics.extractors import CLASSIFIER, load_features


@pytest.mark.slow
def test_the_classifier_reads_digits_it_has_not_seen(digits, classifier):
    """Checks its record independently: the accuracy, computed here over all images."""
    (images, labels), (path, record) = digits, classifier
    assert record["held_out_accuracy"] >= 0.97
    assert record["held_out_images"] >= 0.1 * len(images)
    assert record["training_images"] + record["held_out_images"] == len(images)
    model, header = load_classifier(path)
    assert header == record
    right = (model(torch.from_numpy(images))[1].argmax(dim=1).numpy() == labels).sum()
    parts = [record[f"{part}_accuracy"] * record[f"{part}_images"] for part in ("held_out", "training")]
    assert right == pytest.approx(sum(parts))


def test_a_seed_gives_the_same_bytes_and_another_seed_others(digits, tmp_path):
    images, labels = digits[0][:200], digits[1][:200]
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.rand(3)  # the global state differs from run to run and must not matter
        train_classifier(images, labels, tmp_path / name, seed=seed, epochs=2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    weights = [load_file(tmp_path / name)["logits.weight"] for name in ("a", "c")]
    assert not torch.equal(*weights)


def test_training_disturbs_neither_the_random_state_nor_the_threads(digits, tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train_classifier(digits[0][:100], digits[1][:100], tmp_path / "weights", epochs=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("channels", "resolution"), [(1, 28), (3, 5), (1, 2)])
def test_other_sizes_are_recorded_in_the_file_and_found_again(channels, resolution, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(40, channels, resolution, resolution), dtype=np.uint8)
    train_classifier(images, np.arange(40) % 3, tmp_path / "weights", epochs=1, features=16)
    features = load_features(CLASSIFIER, tmp_path / "weights")
    assert features.dimension == 16
    assert features(images).shape == (40, 16)


@pytest.mark.slow
def test_images_of_another_size_than_the_classifiers_are_refused(classifier):
    features = load_features(CLASSIFIER, classifier[0])
    for shape in ((2, 3, 8, 8), (2, 1, 16, 16)):
        with pytest.raises(UserError, match=r"trained on \(1, 8, 8\)"):
            features(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((30, 1, 8, 4), np.arange(30), "square"),
        ((30, 1, 8, 8), np.arange(29), "one label per image"),
        ((30, 1, 8, 8), np.zeros(30), "labels 0, 1"),
        ((4, 1, 8, 8), np.arange(4), "at least 20 images"),
    ],
)
def test_data_that_cannot_be_classified_is_refused(shape, labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_classifier(np.zeros(shape, np.uint8), labels, tmp_path / "weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_classifier_files_that_do_not_fit_give_one_line(classifier, tmp_path):
    tensors, path = load_file(classifier[0]), tmp_path / "weights"
    huge = '{"channels": 1, "resolution": 8, "classes": 1000000000000, "features": 64}'
    infinite = huge.replace("1000000000000", "1e999")
    bad = {
        "no such file": lambda: path.unlink(missing_ok=True),
        "not a readable safetensors": lambda: path.write_bytes(classifier[0].read_bytes()[:-100]),
        "not a classifier": lambda: save_file(tensors, path),
        "not a classifier written": lambda: save_file(tensors, path, metadata={HEADER_KEY: "[]"}),
        "not a classifier written by": lambda: save_file(tensors, path, metadata={HEADER_KEY: huge}),
        "not a classifier written by this": lambda: save_file(tensors, path, metadata={HEADER_KEY: infinite}),
    }
    for message, make in bad.items():
        make()
        with pytest.raises(UserError, match=message) as caught:
            load_features(CLASSIFIER, path)
        assert "\n" not in str(caught.value)
