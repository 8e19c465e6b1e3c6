"""Memory of freed tensors is used again instead of being asked of the system anew."""

import platform
import subprocess
import sys

import pytest

from edm.cluster.memory import keep_freed

COUNT = """
import resource, sys, torch
from edm.cluster.memory import keep_freed
torch.set_num_threads(1)
faults = []
for keep in (False, True):
    assert not keep or keep_freed()
    for _ in range(20):
        torch.zeros(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)  # 64 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_large_tensors_of_the_same_size_cost_no_page_faults():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert usual > 100 and kept < usual / 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed() is False
