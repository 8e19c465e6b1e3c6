"""What our reader makes of torch's files is what ``torch.load(weights_only=True)`` makes of them."""

import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from edm.errors import UserError
from edm.files.stored import DTYPES, Stored, StoredTensors
from edm.files.torch_files import legacy, plain, zipped

BASE = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
TENSORS = {
    "contiguous": BASE.clone(),
    "transposed": BASE.clone().transpose(0, 2),
    "strided": BASE.clone()[:, ::2, 1:],
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "one": torch.ones(1, 1),
    **{str(dtype): torch.tensor([0, 1, 1, 0, 1]).to(dtype) for dtype in DTYPES.values()},
}
VALUE = {
    "tensors": OrderedDict(TENSORS),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "plain": [1, -(2**40), 2.5, float("-inf"), True, None, "text ✓", (1, (2,)), {"a": {3: []}}],
}


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("new, read", [(True, zipped), (False, legacy)], ids=["archive", "stream"])
def test_files_of_torch_are_read_as_torch_reads_them(new, read):
    file = saved(VALUE, _use_new_zipfile_serialization=new)
    expected = torch.load(file, weights_only=True)
    file.seek(0)
    value = read(file)
    assert value["plain"] == expected["plain"]
    ours = StoredTensors(file, {**value["tensors"], "parameter": value["parameter"]})
    theirs = {**expected["tensors"], "parameter": expected["parameter"].detach()}
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_pickled_tensors_are_read_as_python_reads_them():
    """Plain pickles hold each storage as a nested stream of torch.save."""
    file = io.BytesIO(pickle.dumps(VALUE, 4))
    value = plain(file)
    assert value["plain"] == VALUE["plain"]
    ours = StoredTensors(file, value["tensors"])
    for name, tensor in TENSORS.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numbers_of_numpy_become_pythons(protocol):
    numbers = [np.float64(0.1), np.float32(0.5), np.float16(2), np.int64(-5), np.int8(3), np.uint8(255), np.bool_(True)]
    value = plain(io.BytesIO(pickle.dumps(numbers, protocol)))
    assert value == [number.item() for number in numbers]
    assert [type(number) for number in value] == [float] * 3 + [int] * 3 + [bool]


def test_numbers_of_old_numpy_have_another_address():
    data = pickle.dumps(np.float64(0.25), 4)
    old = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    old = old[:3] + (int.from_bytes(data[3:11], "little") - (len(data) - len(old))).to_bytes(8, "little") + old[11:]
    assert plain(io.BytesIO(data)) == plain(io.BytesIO(old)) == 0.25


@pytest.mark.parametrize(
    "data",
    [
        *(
            pickle.dumps(value, 4)
            for value in (np.arange(3), np.datetime64("2022-06-01"), np.complex128(1), np.str_("a"))
        ),
        pickle.dumps(np.float64(1), 4).replace(b"\x8c\x01<", b"\x8c\x01>"),
    ],
    ids=["array", "date", "complex", "text", "big-endian"],
)
def test_other_objects_of_numpy_are_refused(data):
    with pytest.raises(UserError, match=r"it asks for numpy|a number of numpy's is not one"):
        plain(io.BytesIO(data))


def test_tensors_are_not_read_before_they_are_asked_for():
    class Counted(io.BytesIO):
        count = 0

        def readinto(self, buffer):
            Counted.count += len(buffer)
            return super().readinto(buffer)

    file = Counted(saved({"a": torch.zeros(10_000), "b": torch.ones(50_000)}).getvalue())
    tensors = StoredTensors(file, zipped(file))
    assert tensors.shape("a") == (10_000,) and "b" in tensors and len(tensors) == 2 and Counted.count == 0
    assert tensors["b"].sum() == 50_000 and Counted.count == 200_000


def test_views_of_one_storage_are_views():
    base = torch.arange(12.0)
    file = saved({"a": base[2:5], "b": base[6:].view(2, 3)})
    stored = zipped(file)
    assert all(isinstance(tensor, Stored) for tensor in stored.values())
    assert stored["a"].storage.start == stored["b"].storage.start
    assert torch.equal(StoredTensors(file, stored)["b"], base[6:].view(2, 3))
