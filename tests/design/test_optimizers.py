"""torch's optimizers without torch's compiler: the same updates, and no import of it."""

import sys

import pytest
import torch

from edm.design.optimizers import uncompiled
from edm.training.step import optimizer_of

KINDS = {
    torch.optim.Adam: {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True},
    torch.optim.AdamW: {"lr": 2e-3, "weight_decay": 1e-2},
}


def updated(kind, options):
    """Weights after three updates, a save and a load, and two more."""
    weights = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float32))
    draws = torch.Generator().manual_seed(0)
    optimizer = kind([weights], **options)
    for update in range(5):
        if update == 3:
            state = optimizer.state_dict()
            optimizer = kind([weights], **options)
            optimizer.load_state_dict(state)
        optimizer.param_groups[0]["lr"] = 1e-3 * update
        optimizer.zero_grad()
        (weights * torch.randn(12, generator=draws)).sum().backward()
        optimizer.step()
    return weights.detach()


@pytest.mark.parametrize(("kind", "options"), KINDS.items(), ids=[kind.__name__ for kind in KINDS])
def test_the_updates_are_those_of_torch_and_import_no_compiler(kind, options, monkeypatch):
    theirs = updated(kind, options)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # its import is an ImportError
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):  # torch keeps what it has imported
        monkeypatch.delattr(getattr(kind, name).__wrapped__, "__dynamo_disable", raising=False)
    assert torch.equal(updated(uncompiled(kind), options), theirs)
    with pytest.raises(ImportError):
        updated(kind, options)


def test_the_optimizer_of_a_training_run_imports_no_compiler(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    updated(lambda weights, **_: optimizer_of(tiny(), weights), {})
