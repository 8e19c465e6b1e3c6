"""Fixtures shared by all tests: small, real data."""

import os
import signal
from collections import Counter

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import pytest
import torch
import yaml

from edm.config import TrainingConfig
from edm.data.archive import read_archive
from edm.data.prepare import prepare

torch.set_num_threads(1)
if yaml.__with_libyaml__:  # what safe_load and safe_dump use; libyaml's are five times as fast
    yaml.SafeLoader, yaml.SafeDumper = yaml.CSafeLoader, yaml.CSafeDumper
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background job; commands under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Folders whose files have few, long tests. They and the files of tests/ itself start first, so that at the end no core
#: waits for a long one.
FIRST = ("tests", "workflow", "plugins", "training", "evaluation")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.parent.name not in FIRST)
    seen = Counter()
    for item in items:
        if limit := item.get_closest_marker("first"):
            function = item.nodeid.partition("[")[0]
            seen[function] += 1
            if seen[function] > limit.args[0]:
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def same_process():
    """No test leaves a signal ignored, or another working directory: the commands of later tests inherit both."""
    folder, before = os.getcwd(), {number: signal.getsignal(number) for number in SIGNALS}
    yield
    os.chdir(folder)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def digits_archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.zip"
    prepare("digits", path)
    return path


@pytest.fixture(scope="session")
def digits(digits_archive):
    return read_archive(digits_archive)


@pytest.fixture
def tiny():
    """A configuration that trains a step in milliseconds."""

    def make(**changes):
        fields = {
            "resolution": 8, "channels": 1, "classes": 10, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1,
            "attn_resolutions": (4,), "dropout": 0.1, "batch_size": 32, "duration": 320e-6, "lr_rampup": 160e-6,
            "learning_rate": 2e-3, "ema_halflife": 1e-4, "augment": 0.12,
            "level_samples": 16,
        }  # fmt: skip
        return TrainingConfig(**{**fields, **changes})

    return make


@pytest.fixture
def rgb_images():
    return np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)
