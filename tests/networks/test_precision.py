"""Half precision applies to convolutions only. Attention, embeddings and the result stay in float32 (Table 7)."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edm.models import building

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Recorded(TorchDispatchMode):
    """Every operation, forwards and backwards, with the floating types of its inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        self.seen.append((function.overloadpacket.__name__, {t.dtype for t in tensors if t.is_floating_point()}))
        return function(*args, **(kwargs or {}))

    def types(self, *words):
        """The types of all operations whose name holds one of some words; and how often they were called."""
        found = [dtypes for name, dtypes in self.seen if any(word in name for word in words)]
        return set().union(*found), len(found)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("architecture", ["ddpmpp", "adm"])
def test_in_half_precision_only_convolutions_are_half(tiny, architecture, precision):
    torch.manual_seed(0)
    config = tiny(architecture=architecture, model_channels=64, dropout=0.0, attn_resolutions=[8, 4])
    denoiser = building.build(config)
    denoiser.precision = precision
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    with Recorded() as recorded:
        out = denoiser(x, torch.tensor([0.5, 2.0]), labels, torch.zeros(2, 9))
        out.square().sum().backward()
    assert out.dtype == torch.float32
    attention, calls = recorded.types("attention", "softmax", "bmm", "baddbmm")
    assert attention == {torch.float32} and calls >= 10  # several blocks, forwards and backwards
    convolutions, calls = recorded.types("convolution")
    assert convolutions == {HALF[precision]} and calls >= 10
    linear, calls = recorded.types("addmm", "mm")
    assert linear == {torch.float32} and calls >= 10  # embeddings, and what each block makes of them
