"""Sources of plugins: images of any origin become an archive, checked like those of ours."""

import numpy as np
import pytest

from edm import params, registry
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance
from edm.cli import main
from edm.data.archive import read_archive
from edm.data.prepare import prepare
from edm.errors import UserError

SOURCE = """
import numpy as np
import edm


@edm.register("source", "lab-array")
def array(path, *, first: int = 0, classes: bool = True):
    with np.load(path) as found:
        images, labels = found["images"][first:], found["labels"][first:]
    return images, labels if classes else None
"""


@pytest.fixture
def raw(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8), np.arange(20) % 4
    np.savez(tmp_path / "raw.npz", images=images, labels=labels)
    return images, labels


def test_a_source_of_a_plugin_is_prepared_through_params(plugin, raw, tmp_path, monkeypatch):
    plugin(SOURCE, load=False)
    monkeypatch.chdir(tmp_path)
    text = (
        "plugins: [plugin.py]\nrun: []\nexperiments: {}\ndatasets:\n"
        "  lab: {source: lab-array, source.first: 4, path: raw.npz, resolution: 8, channels: 1, classes: 4}\n"
        "  digits: {source: digits, resolution: 8, channels: 1, classes: 10}\n"
    ).replace("run: []", "run: [none]")
    (tmp_path / "params.yaml").write_text(text)
    assert main(["prepare", "lab.zip", "--dataset", "lab", "--workers", "1"]) == 0
    found = read_archive("lab.zip")
    assert (found.images == raw[0][4:]).all() and (found.labels == raw[1][4:]).all()

    def specified():
        chain = Chain(params.load("params.yaml"))
        return {name: Provenance(chain).specification(chain.by_name[f"prepare {name}"]) for name in ("lab", "digits")}

    before = specified()
    assert before["lab"]["plugins"].keys() == {"source lab-array"} and "plugins" not in before["digits"]
    assert before["lab"]["settings"]["source.first"] == 4
    (tmp_path / "params.yaml").write_text(text.replace("source.first", "source.frist"))
    with pytest.raises(UserError, match=r"datasets\.lab: unknown key 'source\.frist'; did you mean 'source\.first'"):
        params.load("params.yaml")
    (tmp_path / "params.yaml").write_text(text.replace("path: raw", "split: test, path: raw"))
    with pytest.raises(UserError, match=r"datasets\.lab\.split: a plugin's source lab-array has no splits"):
        params.load("params.yaml")


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "return images, labels if classes else None",
            "return images",
            r"returned ndarray; expected \(images",
        ),
        ('["images"]', '["images"].astype(float)', "returned images float64 .*; expected uint8"),
        ("labels if classes", "labels[1:] if classes", "returned 19 labels for 20 images"),
        ("labels if classes", "labels - 1 if classes", "from -1"),
        ("np.load(path)", "np.load('none')", r"plugin\.py:7: source lab-array: FileNotFoundError"),
    ],
)
def test_a_source_that_fails_says_where(plugin, raw, tmp_path, old, new, message):
    plugin(SOURCE.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        prepare("lab-array", tmp_path / "lab.zip", tmp_path / "raw.npz", workers=1)
    assert "\n" not in str(caught.value) and not (tmp_path / "lab.zip").exists()


def test_the_sources_of_ours_are_registered():
    assert all(registry.find("source", name).own for name in registry.Names("source"))
