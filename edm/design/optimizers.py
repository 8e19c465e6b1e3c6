"""torch's optimizers without torch's compiler, which their methods import: two seconds of every process that trains."""

import inspect

import torch
from torch.optim import Optimizer

_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def uncompiled(kind: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer, bit for bit, whose methods do not tell the compiler to leave them alone.

    Only for code that is not compiled, as an update of the weights is here.

        Adam = uncompiled(torch.optim.Adam)
    """
    members = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
    return type(kind.__name__, (kind,), {**members, "step": torch.no_grad()(inspect.unwrap(kind.step))})
