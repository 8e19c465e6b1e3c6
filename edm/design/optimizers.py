"""torch's optimizers without torch's compiler, which their methods import: two seconds of every process that trains."""

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)
_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def uncompiled(kind: type[Kind]) -> type[Kind]:
    """The same optimizer, bit for bit, whose methods do not tell the compiler to leave them alone.

    Only for code that is not compiled, as an update of the weights is here.

        Adam = uncompiled(torch.optim.Adam)
    """
    members = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
    members["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[Kind], type(kind.__name__, (kind,), members))
