"""State dicts of guided-diffusion (Dhariwal and Nichol): ADM for ImageNet-64, class-conditional, with learned variance.

The file is a plain dictionary of tensors. Their shapes determine everything except the resolution of the image, the
number of attention heads, the order of the attention's channels and the noise schedule. Values that the user does not
state are those of the published model; the first two are assumed only if the shapes match that model, too.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edm.config import NetworkConfig
from edm.design.preconditioning import IDDPMPreconditioning, LinearIDDPMPreconditioning
from edm.errors import UserError
from edm.files.refusals import damaged, refused, shown, unsupported
from edm.files.stored import Stored, StoredTensors, unwrapped
from edm.foreign.asked import Asked
from edm.models.denoiser import Denoiser, assemble, require_shape
from edm.networks.limits import require_plausible
from edm.networks.unet import Block, UNet

SOURCE = "a state dict of guided-diffusion"
LICENCE = "MIT, if published by OpenAI"
_NEEDED = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
_BLOCK = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
          "conv1": "out_layers.3", "skip": "skip_connection"}  # fmt: skip
_DROPOUT = 0.1  # active only in training
_GROUPS = 32  # of every norm, at any width


def recognises(value: Any) -> bool:
    return isinstance(value, dict) and unwrapped(value).keys() >= set(_NEEDED)


def denoiser(value: dict[str, Any], file: BinaryIO, asked: Asked) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a state dict, and the facts about it. Raises UserError."""
    if not all(type(name) is str and isinstance(tensor, Stored) for name, tensor in value.items()):
        raise damaged("an entry of the state dict is no tensor")
    about: dict[str, Any] = {"licence": LICENCE, "inferred": {}, "assumed": {}}
    value = unwrapped(value)
    config = infer({name: tensor.shape for name, tensor in value.items()}, asked, about)
    # The larger published models differ in both settings from the 64×64 model.
    large = (config.model_channels, config.num_blocks) == (256, 2)
    linear = asked.take("noise_schedule", None if large else "cosine", about) == "linear"
    ordered = any(config.heads(config.model_channels * mult) > 1 for mult in config.channel_mult)
    old = ordered and asked.take("attention_order", None if large else "new", about) == "old"
    preconditioning = LinearIDDPMPreconditioning() if linear else IDDPMPreconditioning()
    about["assumed"] |= preconditioning.arguments() | {"dropout": _DROPOUT}
    own = _own_tensors(config, StoredTensors(file, value), old) | {"preconditioning.u": preconditioning.u}
    return assemble(config, preconditioning, own, "its network"), about


def infer(shapes: Mapping[str, tuple[int, ...]], asked: Asked, about: dict[str, Any]) -> NetworkConfig:
    """The network whose tensors have these shapes; ``about`` notes what was inferred. Raises UserError."""
    first, last, time = (shapes[name] for name in ("input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight"))
    _refuse_others(shapes)
    asked.allow("resolution", "channels_per_head", "attention_order", "noise_schedule")
    if len(first) != 4 or len(last) != 4 or first[1] not in (1, 3) or last[0] not in (first[1], 2 * first[1]):
        raise refused("it is no model of guided-diffusion that makes images from noise alone")
    if len(time) != 2:
        raise damaged("its time_embed.0.weight is no matrix")
    width, channels = max(time[1], 1), first[1]
    inputs, outputs = (_count(shapes, group) for group in ("input_blocks", "output_blocks"))
    # Every decoder level except the finest ends with an upsampling block: the second or third part of its last entry.
    depth = 1 + sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", name)) for name in shapes)
    num_blocks = outputs // depth - 1
    if num_blocks < 1 or outputs != depth * (num_blocks + 1) or inputs != depth * (num_blocks + 1):
        raise refused("its blocks are not those of ADM (with residual up- and downsampling)")
    ends = [1 + level * (num_blocks + 1) + num_blocks - 1 for level in range(depth)]  # the last block of each level
    widths = [_outputs(shapes, end) for end in ends]
    if any(number % width or number % _GROUPS for number in widths):
        raise refused(f"its levels have {', '.join(map(str, widths))} channels, not each a multiple of {width}, its "
                      f"model_channels, and of {_GROUPS}, the groups of guided-diffusion's norms")  # fmt: skip
    mult = tuple(number // width for number in widths)
    attends = [f"input_blocks.{end}.1.qkv.weight" in shapes for end in ends]
    label = shapes.get("label_emb.weight", (0,))
    published = (width, mult, num_blocks, attends) == (192, (1, 2, 3, 4), 3, [False, True, True, True])
    resolution = asked.take("resolution", 64 if published else None, about)
    channels_per_head = asked.take("channels_per_head", 64 if published else None, about)
    for level, attending in enumerate(attends):
        if (attending or level == depth - 1) and width * mult[level] % channels_per_head:
            raise UserError(f"channels_per_head {channels_per_head} does not divide the {width * mult[level]} channels "
                            "of its attention; give another")  # fmt: skip
    inferred: dict[str, Any] = {
        "channels": channels,
        "out_channels": last[0] if last[0] != channels else None,
        "classes": label[0] if label else 0,
        "model_channels": width,
        "channel_mult": mult,
        "num_blocks": num_blocks,
        "attn_resolutions": tuple(resolution >> level for level, attending in enumerate(attends) if attending),
        "norm_groups": _GROUPS if min(widths) < 4 * _GROUPS else None,  # None gives the same if all are wide
    }
    about["inferred"] |= {name: list(value) if type(value) is tuple else value for name, value in inferred.items()}
    require_plausible({**inferred, "resolution": resolution, "channels_per_head": channels_per_head})
    return NetworkConfig(
        resolution, **inferred, channels_per_head=channels_per_head, style="adm", dropout=_DROPOUT
    )  # fmt: skip


def _refuse_others(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError for other models whose tensors have guided-diffusion's names."""
    if any(name.endswith(".qkv.weight") and len(shape) == 4 for name, shape in shapes.items()):
        kind = "one of OpenAI's consistency models, or their EDM of ImageNet-64, with another preconditioning"
        raise unsupported(kind, "import NVIDIA's EDM of ImageNet-64")
    if any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in shapes):
        kind = "a model of improved-diffusion, or of guided-diffusion without resblock_updown"
        raise unsupported(kind, "import one of guided-diffusion with resblock_updown")


def _count(shapes: Mapping[str, tuple[int, ...]], group: str) -> int:
    """Number of entries in a group of blocks."""
    numbers = {name.split(".")[1] for name in shapes if name.startswith(f"{group}.")}
    return len(numbers)


def _outputs(shapes: Mapping[str, tuple[int, ...]], entry: int) -> int:
    return (*shapes.get(f"input_blocks.{entry}.0.out_layers.3.weight", ()), 0)[0]


def _own_tensors(config: NetworkConfig, weights: StoredTensors, old: bool) -> dict[str, Tensor]:
    """The tensors under our names. old: whether the attention has the old order of channels."""
    with torch.device("meta"):
        network = UNet(config)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    own, used = {}, set()
    for name, theirs in places(network):
        if theirs not in weights:
            raise damaged(f"the weight {shown(theirs)} is missing")
        tensor = weights[theirs]
        if name == "embedding.label.weight" and tensor.ndim == 2:
            tensor = tensor.T  # an embedding table with one row per class
        elif ".attention." in name and tensor.ndim == 3:
            tensor = tensor[..., None]  # a one-dimensional convolution
        require_shape(theirs, tensor, shapes[name], "its network")
        if old and ".qkv." in name:  # theirs are (head, {q, k, v}, channel); ours ({q, k, v}, head, channel)
            tensor = tensor.unflatten(0, (config.heads(len(tensor) // 3), 3, -1)).transpose(0, 1).flatten(0, 2)
        own[f"network.{name}"] = tensor
        used.add(theirs)
    if len(used) != len(weights):
        odd = next(name for name in weights if name not in used)
        raise refused(f"the weight {shown(odd)} has no place in its network")
    return own


def places(network: UNet) -> Iterator[tuple[str, str]]:
    """(our name, their name) of every stored tensor."""
    config = network.config

    def both(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"

    def layer(ours: str, module: torch.nn.Module, theirs: str, part: int) -> Iterator[tuple[str, str]]:
        """In their entry a block is one part, and its attention the next."""
        if not isinstance(module, Block):
            yield from both(ours, f"{theirs}.{part}")
            return
        for name, place in _BLOCK.items():
            if name != "skip" or module.skip is not None:
                yield from both(f"{ours}.{name}", f"{theirs}.{part}.{place}")
        if module.attention is not None:
            for name, place in (("norm", "norm"), ("qkv", "qkv"), ("proj", "proj_out")):
                yield from both(f"{ours}.attention.{name}", f"{theirs}.{part + 1}.{place}")

    yield from both("embedding.layer0", "time_embed.0")
    yield from both("embedding.layer1", "time_embed.2")
    if config.classes:
        yield "embedding.label.weight", "label_emb.weight"
    for i, module in enumerate(network.encoder):
        yield from layer(f"encoder.{i}", module, f"input_blocks.{i}", 0)
    yield from layer("decoder.0", network.decoder[0], "middle_block", 0)
    yield from layer("decoder.1", network.decoder[1], "middle_block", 1 + (network.decoder[0].attention is not None))
    entry = -1
    for i, module in list(enumerate(network.decoder))[2:]:
        if module.resample is None:
            entry, part = entry + 1, 0
        else:  # the upsampling block, after the last block of the level and its attention
            part = 1 + (network.decoder[i - 1].attention is not None)
        yield from layer(f"decoder.{i}", module, f"output_blocks.{entry}", part)
    yield from both("out_norm", "out.0")
    yield from both("out_conv", "out.2")
