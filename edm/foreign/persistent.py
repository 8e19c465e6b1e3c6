"""The authors' pickles, {ema, loss_fn, augment_pipe, dataset_kwargs}, whose objects include their class's source code.

``ema`` is one of the four preconditioning classes around a network. The source code is never run; class names,
constructor arguments and tensors are all that :func:`edm.foreign.published.from_published` needs.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from edm.errors import UserError
from edm.files.pickles import Instance, Name, Names
from edm.files.refusals import damaged, refused, shown, unsupported
from edm.files.stored import Stored, StoredTensors
from edm.files.torch_files import empty_dict, instance_of
from edm.foreign.asked import Asked
from edm.foreign.published import from_published, known_arguments
from edm.models.denoiser import Denoiser

SOURCE = "a pickle of the EDM authors' program"
LICENCE = "CC BY-NC-SA 4.0, if published by NVIDIA"
#: Classes of configuration A: NVIDIA's files of these classes are other authors' models under new names.
_ORIGINS = {
    "VPPrecond": "derived from Song et al., Apache-2.0",
    "VEPrecond": "derived from Song et al., Apache-2.0",
    "iDDPMPrecond": "derived from Dhariwal and Nichol, MIT",
}
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_MODULE_DICT = "torch.nn.modules.container.ModuleDict"
#: What stands for the names in these pickles. Their objects include source code (module_src), read as plain text.
NAMES: Names = {
    Name("torch_utils.persistence", "_reconstruct_persistent_obj"): instance_of(_PERSISTENT),
    Name("torch.nn.modules.container", "ModuleDict"): instance_of(_MODULE_DICT),
    Name("dnnlib.util", "EasyDict"): empty_dict,
}
_DEEPEST = 16  # nested modules; the authors' networks have 4
_MOST_ENTRIES = 20_000  # modules and tensors; the largest of the authors' networks has 1,500
_LONGEST_NAME = 100


class Module(NamedTuple):
    """One module of the pickle: the class it was saved as and its instance dictionary."""

    name: str
    state: dict


def recognises(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("ema"), Instance)


def is_training_state(value: Any) -> bool:
    """EDM's {net, optimizer_state} or EDM2's {state, net, optimizer, …}, which lack the EMA of the weights."""
    return isinstance(value, dict) and "net" in value and not {"optimizer", "optimizer_state"}.isdisjoint(value)


def training_state() -> UserError:
    kind = "the state of a training (network and optimizer), without the EMA of the weights"
    return unsupported(kind, "import a snapshot of it, such as EDM's network-snapshot-*.pkl")


def edm2() -> UserError:
    return unsupported("a model of EDM2 (Karras et al. 2024), another network than EDM's", "import a model of EDM")


def denoiser(value: dict[str, Any], file: BinaryIO, asked: Asked) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of ``ema``, and the facts about it. Raises UserError."""
    asked.allow()
    ema = _module(value["ema"])
    if ema.name == "Precond":
        raise edm2()
    if ema.state.get("_init_args") not in ((), None):
        raise refused(f"{ema.name} was made with positional arguments, as no published model")
    arguments = ema.state.get("_init_kwargs")
    if type(arguments) is not dict:
        raise damaged(f"{ema.name} holds no constructor arguments")
    kwargs, ignored = known_arguments(arguments)
    tensors = StoredTensors(file, dict(_tensors(ema)))
    about = {
        "licence": "; ".join([LICENCE, *([_ORIGINS[ema.name]] if ema.name in _ORIGINS else [])]),
        "inferred": {"class_name": shown(ema.name), "init_kwargs": kwargs},
        "assumed": {"ignored constructor arguments": ignored} if ignored else {},
    }
    return from_published(ema.name, kwargs, tensors), about


def _module(value: Any) -> Module:
    """The module described by an object of a decorated class or of torch's ModuleDict. Raises UserError for others."""
    if isinstance(value, Instance) and value.name == _MODULE_DICT and type(value.state) is dict:
        return Module("ModuleDict", value.state)
    meta = value.arguments[0] if isinstance(value, Instance) and value.name == _PERSISTENT and value.arguments else None
    name, state = (meta.get(key) for key in ("class_name", "state")) if type(meta) is dict else (None, None)
    if type(name) is not str or type(state) is not dict:
        raise damaged("a module in it is not described by its class and its state")
    return Module(name, state)


def _tensors(root: Module) -> Iterator[tuple[str, Stored]]:
    """(name, tensor) of every parameter and buffer below a module, under torch's dotted names."""
    waiting, met = [("", root, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        parts = [_entries(module, kind) for kind in ("_parameters", "_buffers", "_modules")]
        met += 1 + sum(map(len, parts))
        if depth > _DEEPEST or met > _MOST_ENTRIES:  # a module may contain itself, or another one many times
            raise refused("its modules hold each other without end")
        *tensors, modules = parts
        for name, tensor in (item for part in tensors for item in part.items()):
            name = _joined(prefix, name)
            if tensor is not None and not isinstance(tensor, Stored):
                raise damaged(f"{shown(name)} is not a tensor")
            if tensor is not None:
                yield name, tensor
        for name, child in modules.items():
            if child is not None:
                waiting.append((f"{_joined(prefix, name)}.", _module(child), depth + 1))


def _entries(module: Module, kind: str) -> dict:
    entries = module.state.get(kind)
    if type(entries) is not dict:
        raise damaged(f"the {kind} of a module ({shown(module.name)}) are missing")
    return entries


def _joined(prefix: str, name: Any) -> str:
    if type(name) is not str or len(name) > _LONGEST_NAME:
        raise damaged(f"a part of {shown(prefix) or 'a module'} has no name")
    return prefix + name
