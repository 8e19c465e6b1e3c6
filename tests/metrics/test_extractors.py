"""Image features: those of the classifier, and those of Inception-v3 compared with torch-fidelity."""

import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections import OrderedDict

import pytest
import torch
from image_sets import smooth_images, torch_fidelitys_measures

from edm import registry
from edm.errors import UserError
from edm.files import download
from edm.files.hashes import sha256_file
from edm.metrics import EXTRACTORS, PIXELS
from edm.metrics.extractors import CLASSIFIER, INCEPTION, Extractor, distance_label, extract, load_features
from edm.metrics.frechet import frechet_distance
from edm.metrics.weights import read_tensors


def our_distance(features, first: torch.Tensor, second: torch.Tensor) -> float:
    stats = [extract(features, images.split(16)) for images in (first, second)]
    return frechet_distance(stats[0].mean, stats[0].covariance, stats[1].mean, stats[1].covariance)


# The classifier's features


def test_the_classifiers_features_tell_digits_from_noise(digits, classifier):
    features = load_features(CLASSIFIER, classifier[0])
    images = torch.from_numpy(digits[0])
    noise = torch.randint(256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert our_distance(features, images[:400], images[400:800]) < 0.2 * our_distance(features, images[:400], noise)


def test_torch_fidelity_measures_the_same_distance_with_our_extractor(digits, classifier):
    images = torch.from_numpy(digits[0])
    features = load_features(CLASSIFIER, classifier[0])
    theirs = torch_fidelitys_measures(images[:300], images[300:700], CLASSIFIER, classifier[0], fid=True)
    ours = our_distance(features, images[:300], images[300:700])
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


# Names


def test_only_inception_features_are_called_fid():
    assert [name for name in EXTRACTORS if distance_label(name) == "FID"] == [INCEPTION]
    assert distance_label(CLASSIFIER) == "FD (digits-classifier)"


def test_other_weights_in_inceptions_layers_are_not_called_fid(inception_weights):
    features = load_features(INCEPTION, inception_weights)
    assert features.label == "FD (inception-v3-compat, other weights)"
    assert features.weights_sha256 == sha256_file(inception_weights)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"digits-classifier, .*, dinov2-vit-s-14, inception-v3-compat, pixels"):
        load_features("inception", None)


def test_every_named_extractor_can_be_opened():
    assert all(isinstance(registry.find("features", name).make, Extractor) for name in EXTRACTORS)


# Pixels


def test_pixel_features_are_the_averages_of_an_8_by_8_grid():
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([255, 51])  # half of the first cell of the first channel
    images[1, 2, 14:, 14:] = 102  # the whole last cell of the last channel
    expected = torch.zeros(2, 3 * 64)
    expected[0, 0], expected[1, -1] = (1 + 0.2) / 4, 0.4
    torch.testing.assert_close(load_features(PIXELS)(images), expected)


def test_pixel_features_of_images_smaller_than_the_grid_are_the_pixels():
    images = torch.arange(2 * 5 * 3, dtype=torch.uint8).view(2, 1, 5, 3)
    torch.testing.assert_close(load_features(PIXELS)(images), images.flatten(1) / 255)


def test_a_distance_in_pixels_is_not_called_fid_and_says_that_it_is_no_measure_of_quality():
    features = load_features(PIXELS)
    assert features.label == "FD (pixels)"
    assert "nothing of image quality" in features.description


@pytest.mark.slow
def test_pixel_features_need_neither_weights_nor_torch_fidelity(tmp_path):
    with pytest.raises(UserError, match="leave the weights out"):
        load_features(PIXELS, tmp_path / "weights.pth")
    program = "import sys; from edm.metrics.extractors import load_features; load_features('pixels'); "
    program += "assert 'torch_fidelity' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# Inception-v3


@pytest.mark.slow
def test_distance_equals_torch_fidelitys_from_images_to_number(inception_weights):
    first, second = smooth_images(40, seed=1, contrast=60), smooth_images(32, seed=2, contrast=30)
    features = load_features(INCEPTION, inception_weights)
    ours = our_distance(features, first, second)
    measures = torch_fidelitys_measures(first, second, INCEPTION, inception_weights, fid=True)
    theirs = measures["frechet_inception_distance"]
    assert theirs > 1e-3  # the random network does tell the sets apart
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_grey_images_are_three_equal_channels(inception_weights):
    grey = smooth_images(2, seed=3, contrast=60)[:, :1]
    features = load_features(INCEPTION, inception_weights)
    result = features(grey)
    assert result.dtype == torch.float32
    assert result.shape == (2, features.dimension) == (2, 2048)
    assert not torch.equal(result[0], result[1])
    assert torch.equal(result, features(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match="2 channels"):
        features(grey.repeat(1, 2, 1, 1))


def test_float_images_are_not_taken_for_uint8(inception_weights):
    with pytest.raises(ValueError, match="uint8"):
        load_features(INCEPTION, inception_weights)(torch.zeros(1, 3, 8, 8))


def test_features_are_computed_without_tf32_and_the_setting_is_restored(classifier):
    features = load_features(CLASSIFIER, classifier[0])
    seen = []
    features.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        features(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
        assert seen == ["ieee"]
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_without_weights_or_network_one_line_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise urllib.error.URLError("Name or service not known")

    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", offline)
    with pytest.raises(UserError) as caught:
        load_features(INCEPTION)
    message = str(caught.value)
    assert "\n" not in message
    assert "Name or service not known" in message
    assert message.startswith(f"{INCEPTION}: no weights here") and f"get {URL_INCEPTION_V3} by other means" in message
    assert message.endswith("or give --weights FILE (--features pixels needs none)")
    assert str(tmp_path / "hub" / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]) in message
    assert not list(tmp_path.rglob("*.pth"))


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    published = tmp_path / "published" / "weights-01234567.pth"
    published.parent.mkdir()
    published.write_bytes(b"half of it")
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", published.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="expected 01234567; the published file is damaged"):
        load_features(INCEPTION)
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_published_weights_are_downloaded_once_verified_and_called_fid(inception_weights, tmp_path, monkeypatch):
    """The name of torch-fidelity's file holds the hash of the published weights; here, that of the random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    published = tmp_path / "published" / f"weights-{sha256_file(inception_weights)[:8]}.pth"
    published.parent.mkdir()
    shutil.copyfile(inception_weights, published)
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", published.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for _ in range(2):
        assert load_features(INCEPTION).label == "FID"
        published.unlink(missing_ok=True)
    assert sha256_file(tmp_path / "hub" / "checkpoints" / published.name) == sha256_file(inception_weights)


class Trap:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_inception_weights_that_do_not_fit_give_one_line_and_run_nothing(inception_weights, tmp_path):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    state = torch.load(inception_weights, weights_only=True)
    renamed = {name.replace("Mixed_5b", "Mixed_5x"): value for name, value in state.items()}
    bad = {
        "no such file": lambda: None,
        "not a readable file of tensors": lambda: path.write_bytes(b"<html>404</html>"),
        "not a readable file": lambda: path.write_bytes(inception_weights.read_bytes()[:100000]),
        "not a readable": lambda: torch.save({"fc.bias": Trap(sprung)}, path),
        "not a state dict": lambda: torch.save({"epoch": 3}, path),
        "not in the layout": lambda: torch.save(renamed, path),
        "not in the layout of": lambda: torch.save({**state, "fc.bias": torch.zeros(10)}, path),
    }
    for message, make in bad.items():
        make()
        with pytest.raises(UserError, match=message) as caught:
            load_features(INCEPTION, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert not sprung.exists()


def compressed(path):
    """Weights whose members are compressed: torch.save compresses none, and zeros fold a thousandfold."""
    torch.save({"fc.bias": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)


def nested_key(path):
    """A tuple of two of a tuple of two …, sixty deep, as a key: its hash would take 2^60 steps."""
    torch.save({}, path, _use_new_zipfile_serialization=False)
    start, program = path.read_bytes().split(b"}q\x00.", 1)
    nested = b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    path.write_bytes(start + b"})" + nested + b"Ns." + program)


def claiming(path):
    torch.save({"x": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x04", b"\x8a\x06" + (1 << 40).to_bytes(6, "little")))


@pytest.mark.parametrize(
    ("make", "message"),
    [(compressed, "is compressed"), (nested_key, "a tuple as a key"), (claiming, "claims 4,398,046,511,104 bytes")],
)
def test_weights_that_would_unfold_without_bound_are_refused(tmp_path, make, message):
    make(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"not a readable file of tensors .*{message}"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("new", [True, False])
def test_weights_are_read_as_torch_reads_them_also_where_they_share_memory(tmp_path, new):
    tied = torch.arange(6.0)
    state = OrderedDict(a=tied, b=tied.view(2, 3).T, c=torch.nn.Parameter(torch.ones(3)), d=torch.tensor(7))
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=new)
    ours, theirs = read_tensors(tmp_path / "weights.pth"), torch.load(tmp_path / "weights.pth", weights_only=True)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
