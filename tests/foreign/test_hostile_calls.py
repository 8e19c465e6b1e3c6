"""Calls in checkpoints: none is made, whatever they are called by and wherever they lie; each ends in one line."""

import functools
import importlib
import io
import os
import pickle
import subprocess

import pytest
import torch
from small_files import TINY, Call, Saved, authors_modules, authors_pickle, execute, make, named, score_sde_file

from edm import foreign
from edm.design.preconditioning import EDMPreconditioning, VPPreconditioning

pytestmark = pytest.mark.usefixtures("nothing_happens")

CALLS = {
    "os.system": Call(os.system, "touch executed"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", "executed"]),
    "subprocess.check_output": Call(subprocess.check_output, ["touch", "executed"]),
    "eval": Call(eval, "__import__('os').mkdir('executed')"),
    "exec": Call(exec, "import os; os.mkdir('executed')"),
    "compile": Call(compile, "1", "x", "exec"),
    "getattr": Call(getattr, Call(__import__, "os"), "mkdir"),
    "getattr chain": Call(Call(getattr, Call(importlib.import_module, "os"), "mkdir"), "executed"),
    "importlib": Call(importlib.import_module, "antigravity"),
    "open": Call(open, "executed", "w"),
    "mkdir": Call(os.mkdir, "executed"),
    "partial": Call(functools.partial(os.mkdir, "executed")),
    "own function": Call(execute, 1),
    "setattr": Call(setattr, Call(__import__, "builtins"), "executed", 1),
    "torch.load": Call(torch.load, "executed"),
    "pickle.loads": Call(pickle.loads, pickle.dumps(1)),
}


@pytest.fixture(scope="module")
def network():
    return make("ddpmpp", VPPreconditioning(), **TINY)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused_in_whatever_protocol(tmp_path, refused, name, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": CALLS[name]}, protocol))
    refused("refused: it asks for|refused: its pickle uses|is of no known kind", tmp_path / "a.pkl")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "stream"])
def test_a_call_in_a_file_of_torch_is_refused(tmp_path, refused, network, name, legacy):
    def change(content):
        return {**content, "optimizer": CALLS[name]}

    path = score_sde_file(tmp_path / "a.pth", network, legacy=legacy, change=change)
    refused("refused: it asks for", path, resolution=8)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.first(4)
def test_a_call_anywhere_in_an_authors_pickle_is_refused(tmp_path, refused, network, name):
    """As a top-level value, as a value of a state, and as a part of a module."""
    places = {
        "loss_fn": lambda content: content.update(loss_fn=CALLS[name]),
        "state": lambda content: content["loss_fn"].meta["state"].update(x=CALLS[name]),
        "parameter": lambda content: content["ema"].meta["state"]["_parameters"].update(x=CALLS[name]),
        "source": lambda content: content["ema"].meta.update(module_src=CALLS[name]),
        "arguments": lambda content: content["ema"].meta["state"]["_init_kwargs"].update(M=CALLS[name]),
    }
    for place, change in places.items():
        path = authors_pickle(tmp_path / f"{place}.pkl", network, change=lambda c, f=change: f(c) or c)
        refused("refused: it asks for", path)


def nested(content):
    """An authors' pickle with this as a nested stream."""
    with authors_modules():
        value = Call(torch.storage._load_from_bytes, content)
        return pickle.dumps({"ema": Saved("EDMPrecond", {"_parameters": {"x": value}})}, 4)


def saved(value, legacy=True):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_inside_of_a_nested_stream_is_refused(tmp_path, refused, name):
    streams = [
        pickle.dumps(CALLS[name]).ljust(100, b"\0"),
        saved({"x": CALLS[name], "y": torch.zeros(9)}),
        saved(CALLS[name]).ljust(100, b"\0"),
        saved({"x": CALLS[name], "y": torch.zeros(9)}, legacy=False),
        saved(Call(torch.storage._load_from_bytes, saved(CALLS[name]))),
    ]
    for stream in streams:
        (tmp_path / "a.pkl").write_bytes(nested(stream))
        refused("refused: (it asks for|a stream in it is not of torch.save)", tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "system"), ("posix", "system"), ("nt", "system"), ("builtins", "eval"), ("__builtin__", "eval"),
        ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "set.__class__"), ("sys", "modules"),
        ("collections", "OrderedDict.__init__"), ("collections", "OrderedDict.__init__.__globals__"),
        ("collections", "namedtuple"), ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", "load"),
        ("torch._utils", "__builtins__"), ("torch.storage", "_load_from_bytes.__globals__"), ("torch.hub", "load"),
        ("torch_utils.persistence", "exec"), ("torch_utils.persistence", "_module_to_src_dict"),
        ("torch_utils", "persistence._reconstruct_persistent_obj"), ("dnnlib.util", "get_obj_by_name"),
        ("numpy", "load"), ("numpy", "dtype.__class__"), ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.testing._private.utils", "runstring"), ("copyreg", "_reconstructor"), ("functools", "partial"),
        ("operator", "attrgetter"), ("edm.files.torch_files", "plain"), ("", ""), ("os\n", "sys\ttem\x1b[2J"),
    ],
)  # fmt: skip
def test_names_that_no_checkpoint_needs_are_refused(tmp_path, refused, module, name):
    for program in (b"\x80\x04" + named(module, name) + b")R.", b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"."):
        (tmp_path / "a.pkl").write_bytes(program)
        refused("refused: it asks for", tmp_path / "a.pkl")


def test_the_source_code_in_a_file_is_text(tmp_path):
    """The small files carry code that would leave a trace if it were evaluated, or even compiled with an error."""

    def change(content):
        content["ema"].meta["module_src"] = "import os; os.mkdir('executed'); ("
        return content

    foreign.read(authors_pickle(tmp_path / "a.pkl", make("ddpmpp", EDMPreconditioning()), change=change))
