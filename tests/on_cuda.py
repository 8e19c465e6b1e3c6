"""Tensors on "cuda" without a GPU: shapes and devices are those of a GPU, values do not exist.

Operations with a tensor on "cuda" run in torch's FakeTensorMode, which raises if another tensor is on the CPU; all
others compute as always. Reading a value from "cuda", which would wait for a GPU, raises, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


class _Split(TorchDispatchMode):
    """Lets FakeTensorMode, below it, see only operations on "cuda"."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        seen = _pytree.tree_leaves((args, kwargs))
        faked = any(isinstance(one, FakeTensor) or (isinstance(one, torch.device) and one.type == "cuda")
                    for one in seen)  # fmt: skip
        if faked:
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Yields the device, for tensors inside the block."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Split():
        yield CUDA


def built(make):
    """A module from ``make()`` with its parameters on the pretended device."""
    with torch.device(CUDA):
        return make()
