"""Checkpoints that claim more than they hold: tensors, storages, modules and sizes; each ends in one line, at once."""

import pickle
import zipfile

import pytest
import torch
from small_files import Saved, adm_file, authors_modules, authors_pickle, make, named, text

from edm.design.preconditioning import IDDPMPreconditioning, VPPreconditioning

pytestmark = pytest.mark.usefixtures("nothing_happens")

PERSISTENT = named("torch_utils.persistence", "_reconstruct_persistent_obj")


# Tensors that claim too much ------------------------------------------------------------------------------------------


class Claim:
    """Pickles as a tensor of a storage of four numbers, with these claims."""

    def __init__(self, offset, size, stride):
        self.claims = offset, size, stride

    def __reduce__(self):
        storage = torch.zeros(4).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (typed, *self.claims, False, {})


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (2**62,), (1,)), (0, (5,), (1,)), (1, (4,), (1,)), (5, (), ()), (2**70, (1,), (1,)), (0, (2, 2), (3, 1)),
        (0, (2**40,), (0,)), (0, (5, 1), (0, 0)), (0, (-1,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (-1, 1)),
        (0, (4,), ()), (0, (1,) * 9, (1,) * 9), (0, (0, 2**40, 2**40), (1, 1, 1)), (0, (1,), (2**80,)),
        (0, (0, 2**100), (1, 1)), (0, ("4",), (1,)), (0, (4.0,), (1,)), (0, [4], (1,)), (True, (4,), (True,)),
        (None, (4,), (1,)),
    ],
)  # fmt: skip
def test_tensors_that_claim_more_than_there_is_are_refused(tmp_path, refused, offset, size, stride):
    value = {"model": {"module.all_modules.0.W": Claim(offset, size, stride)}, "ema": {}}
    for legacy in (False, True):
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        refused("damaged: (a tensor|its pickle)", tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, 4))
    refused("damaged: a tensor", tmp_path / "a.pkl")


@pytest.mark.parametrize("count", [3, 5, 2**40, 2**62])
def test_storages_that_claim_what_is_not_there_are_refused(tmp_path, refused, count):
    """The count of a storage is written in its persistent id, and in a stream before its numbers too."""
    for legacy in (False, True):
        torch.save({"x": torch.arange(4.0)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        data = (tmp_path / "a.pth").read_bytes()
        wide = b"\x8a\x08" + count.to_bytes(8, "little")
        stored = b"\x04\0\0\0\0\0\0\0" + torch.arange(4.0).numpy().tobytes()
        if legacy:
            claimed = data.replace(b"K\x04N", wide + b"N", 1)
            both = claimed.replace(stored, count.to_bytes(8, "little") + stored[8:], 1)
            assert claimed != data and both != claimed
            for content in (claimed, both, data.replace(stored, count.to_bytes(8, "little") + stored[8:], 1)):
                (tmp_path / "b.pth").write_bytes(content)
                refused("damaged: a (storage|tensor)|holds a dictionary of x" if count == 3 else "damaged: a storage",
                        tmp_path / "b.pth")  # fmt: skip
        else:
            write_archive(tmp_path / "b.pth", tmp_path / "a.pth", b"K\x04t", wide + b"t")
            refused("damaged: storage 0 claims", tmp_path / "b.pth")


def write_archive(path, source, old, new):
    """A copy of an archive with something else in its description, whose checksum is right."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            assert old in content or not name.endswith("data.pkl")
            after.writestr(name, content.replace(old, new, 1) if name.endswith("data.pkl") else content)


def test_tensors_that_share_one_storage_do_not_multiply_it(tmp_path, refused):
    """A small file whose many tensors are one would make a network far larger than itself."""
    net = make(
        "adm", IDDPMPreconditioning(), model_channels=64, channel_mult=(1, 1), num_blocks=4, out_channels=6, classes=3
    )

    def shared(state):
        largest = torch.cat([max(state.values(), key=torch.numel).flatten()])
        return {name: largest[: t.numel()].view(t.shape) for name, t in state.items()}

    path = adm_file(tmp_path / "a.pt", net, change=shared)
    assert path.stat().st_size < sum(p.numel() * 4 for p in net.parameters()) / 5
    refused("its tensors share their numbers", path, resolution=16, channels_per_head=64)


# Modules and arguments ------------------------------------------------------------------------------------------------


def state_of(modules):
    return {"_parameters": {}, "_buffers": {}, "_modules": modules, "_init_args": (), "_init_kwargs": {}}


def test_modules_that_hold_each_other_without_end_are_refused(tmp_path, refused):
    itself = state_of({})
    root = Saved("EDMPrecond", itself)
    itself["_modules"]["model"] = root
    laughs = Saved("Leaf", state_of({}))
    for level in range(14):
        laughs = Saved(f"Level{level}", state_of({str(i): laughs for i in range(10)}))
    crowd = Saved("EDMPrecond", {**state_of({}), "_parameters": {str(i): None for i in range(30_000)}})
    for name, ema in (("itself", None), ("laughs", laughs), ("crowd", crowd)):
        with authors_modules():
            if ema is None:  # an object that holds itself is no program of pickle's own: written by hand
                meta = b"}\x94(" + text("class_name") + text("EDMPrecond") + text("state") + b"}(" + b"".join(
                    text(key) + value for key, value in (("_parameters", b"}"), ("_buffers", b"}"),
                    ("_modules", b"}" + text("model") + PERSISTENT + b"h\0\x85Rs"), ("_init_args", b")"),
                    ("_init_kwargs", b"}"))) + b"uu"  # fmt: skip
                data = b"\x80\x04}" + text("ema") + PERSISTENT + meta + b"\x85Rs."
            else:
                data = pickle.dumps({"ema": ema}, 4)
        (tmp_path / f"{name}.pkl").write_bytes(data)
        refused("its modules hold each other without end", tmp_path / f"{name}.pkl")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_blocks": 10**9}, "num_blocks outside"),
        ({"model_channels": 2**62}, "model_channels outside"),
        ({"model_channels": 4096}, "has shape"),
        ({"channel_mult": [1] * 100_000}, "'channel_mult' is not a list"),
        ({"channel_mult": [0, 0]}, "channel_mult outside"),
        ({"channel_mult": []}, "channel_mult has 0 entries"),
        ({"channel_mult": "12"}, "'channel_mult' is not a list"),
        ({"img_resolution": 2**40}, "resolution outside"),
        ({"img_resolution": 25}, "resolution 25: channel_mult has"),
        ({"img_resolution": True}, "'img_resolution' is not a whole number"),
        ({"img_resolution": None}, "'img_resolution' is missing"),
        ({"img_channels": -3}, "channels outside"),
        ({"label_dim": 10**8}, "classes outside"),
        ({"M": 10**9}, "steps outside"),
        ({"beta_d": float("nan")}, "'beta_d' is nan"),
        ({"beta_min": "x" * 10_000}, "'beta_min' is not a number"),
        ({"dropout": 7}, "dropout is 7"),
        ({"model_type": "os.system"}, "model_type 'os.system' is unknown"),
        ({"embedding_type": "e" * 100_000}, "embedding 'eee"),
        ({"encoder_type": "skip"}, "encoder_type and decoder_type"),
        ({"channel_mult_emb": 3}, "channel_mult_emb"),
        ({"resample_filter": [0, 0]}, "resample_filter"),
        ({"channels_per_head": 0}, "channels_per_head outside"),
    ],
)
@pytest.mark.first(6)
def test_constructor_arguments_beyond_reason_are_refused_at_once(tmp_path, refused, change, message):
    def with_change(content):
        content["ema"].meta["state"]["_init_kwargs"] |= change
        return content

    refused(message, authors_pickle(tmp_path / "a.pkl", make("ddpmpp", VPPreconditioning()), change=with_change))
