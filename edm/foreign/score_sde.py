"""Checkpoints of score_sde (Song et al.): {optimizer, model, ema, step}, DDPM++ under VP or NCSN++ under VE.

``model`` names its tensors ``module.all_modules.K.…``, where K is the number of the module; the EMA weights are
``ema.shadow_params``, a list in the order of the trainable parameters of ``model``. The order and the shapes of the
modules determine the number of levels and blocks, and the position of attention.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from edm.config import NetworkConfig
from edm.design.preconditioning import Preconditioning, VEPreconditioning, preconditioning_from
from edm.design.schedules import VP_BETA_D, VP_BETA_MIN
from edm.errors import UserError
from edm.files.refusals import damaged, refused, shown, unsupported
from edm.files.stored import Stored, StoredTensors, unwrapped
from edm.foreign.asked import Asked
from edm.models.denoiser import Denoiser, assemble, require_shape
from edm.networks.limits import require_plausible
from edm.networks.unet import Block, UNet

SOURCE = "a checkpoint of score_sde"
LICENCE = "Apache-2.0, if published by Song et al."
_PREFIX = "all_modules."
_BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1",
          "skip": "Conv_2"}  # fmt: skip
_MOST_MODULES = 1000  # the published networks have up to 105
#: Settings of every published file that no file contains: scale of the images, conditioning on time, activation, and
#: dropout, which is active only in training.
_ASSUMED: dict[str, Any] = {"continuous": True, "nonlinearity": "swish", "dropout": 0.1}
_FIR = (1, 3, 3, 1)


class Kind(NamedTuple):
    """The kind of a numbered module, and its numbers of input and output channels."""

    name: str  # fourier, dense, conv, norm, block, resampling, attention or pyramid
    inputs: int = 0
    outputs: int = 0


def recognises(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        return False
    return "ema" in value and any(str(name).startswith(_PREFIX) for name in unwrapped(value["model"]))


def denoiser(value: dict[str, Any], file: BinaryIO, asked: Asked) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of the EMA weights, and the facts about it. Raises UserError."""
    about: dict[str, Any] = {"licence": LICENCE, "inferred": {}, "assumed": {}}
    weights, levels = _weights(value)
    config = infer({name: tensor.shape for name, tensor in weights.items()}, asked, about)
    preconditioning = _preconditioning(config, StoredTensors(file, levels), asked, about)
    return assemble(config, preconditioning, _own_tensors(config, StoredTensors(file, weights)), "its EMA"), about


def _weights(value: dict[str, Any]) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """(EMA weights by "K.…", with the stored value of untrained tensors; the list of noise levels, if any)."""
    model, ema = unwrapped(value["model"]), value["ema"]
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(tensor, Stored) for tensor in [*shadow, *model.values()]):
        raise damaged("it holds no list of EMA weights (ema.shadow_params), or a parameter that is no tensor")
    weights, levels = {}, {}
    for name, tensor in model.items():
        if str(name).startswith(_PREFIX):
            weights[name.removeprefix(_PREFIX)] = tensor
        elif name == "sigmas":
            levels["sigmas"] = tensor
        else:
            raise refused(f"its model holds {shown(name)}, which is no part of DDPM++ or NCSN++")
    trained = [name for name in weights if name != "0.W"]  # the Fourier frequencies are not trained
    if len(shadow) != len(trained):
        raise damaged(f"it has {len(shadow)} EMA weights for {len(trained)} trained parameters")
    for name, tensor in zip(trained, shadow, strict=True):
        if tensor.shape != weights[name].shape:
            raise damaged(f"the EMA weight of {shown(name)} has another size than the parameter")
        weights[name] = tensor
    return weights, levels


# Inference from shapes ------------------------------------------------------------------------------------------------


def infer(shapes: Mapping[str, tuple[int, ...]], asked: Asked, about: dict[str, Any]) -> NetworkConfig:
    """The network whose tensors ("K.…") have these shapes; ``about`` notes what was inferred. Raises UserError."""
    kinds = _kinds(shapes)
    fourier = kinds[0].name == "fourier"
    asked.allow(
        "resolution", "skip_rescale", "scale_by_sigma", *(() if fourier else ("sde", "beta_min", "beta_max", "fir"))
    )
    body = kinds[fourier:]
    names = [kind.name for kind in body]
    # Other models of score_sde differ here; NCSN++ with a positional embedding could be VP or VE.
    pyramid = fourier and "resampling" in names
    if names[:3] != ["dense", "dense", "conv"] or names[-2:] != ["norm", "conv"] or ("pyramid" in names) != pyramid:
        raise refused("its modules are neither those of DDPM++ (VP) nor those of NCSN++ (continuous VE) for CIFAR-10")
    depth = names.count("resampling") // 2 + 1
    # n blocks per level give n·depth blocks in the encoder, (n + 1)·depth in the decoder, 2 in the middle, and
    # resampling.
    num_blocks = (names.count("block") - depth - 2) // (2 * depth)
    levels = _encoder_levels(body[3:], depth, num_blocks)
    width = max(body[2].outputs, 1)
    mult = tuple(level[-1].outputs // width for level in levels)
    attends = [any(kind.name == "attention" for kind in level) for level in levels]
    published = width == 128 and mult == (1, 2, 2, 2) and attends == [False, True, False, False]
    resolution = asked.take("resolution", 32 if published else None, about)
    inferred: dict[str, Any] = {
        "channels": body[2].inputs,
        "model_channels": width,
        "channel_mult": mult,
        "num_blocks": num_blocks,
        "attn_resolutions": tuple(resolution >> level for level, attending in enumerate(attends) if attending),
        "embedding": "fourier" if fourier else "positional",
        "channel_mult_noise": 2 if fourier else 1,
        "residual_input": fourier,
    }
    about["inferred"] |= {name: list(value) if type(value) is tuple else value for name, value in inferred.items()}
    about["assumed"] |= _ASSUMED
    if fourier:
        about["inferred"]["fir"] = True  # without the filter, Conv2d_0 of the pyramid has another name
        about["assumed"]["fir_kernel"] = list(_FIR)
    filtered = fourier or asked.take("fir", False, about)
    stated: dict[str, Any] = {
        "resample_filter": _FIR if filtered else (1, 1),
        "skip_rescale": asked.take("skip_rescale", True, about),
    }
    require_plausible({**inferred, "resolution": resolution})
    return NetworkConfig(resolution, **inferred, **stated, dropout=_ASSUMED["dropout"])


def _kinds(shapes: Mapping[str, tuple[int, ...]]) -> list[Kind]:
    """The modules in order. Raises UserError for a module of an unknown kind."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        number, _, rest = name.partition(".")
        modules.setdefault(number, {})[rest] = shape
    if list(modules) != [str(number) for number in range(len(modules))]:
        raise damaged("its modules are not numbered from 0 in order")
    if len(modules) > _MOST_MODULES:
        raise refused(f"it has {len(modules):,} modules, more than any network")
    return [_kind(number, shapes) for number, shapes in modules.items()]


def _kind(number: str, shapes: dict[str, tuple[int, ...]]) -> Kind:
    dimensions = len(shapes.get("weight", ()))
    convolution = shapes.get("Conv_0.weight", shapes.get("weight", ()))
    outputs, inputs = convolution[:2] if len(convolution) == 4 else (0, 0)
    if "W" in shapes:
        return Kind("fourier")
    if dimensions:
        return Kind({1: "norm", 2: "dense", 4: "conv"}.get(dimensions, "odd"), inputs, outputs)
    if "NIN_3.W" in shapes:
        return Kind("attention")
    if "Conv2d_0.weight" in shapes:
        return Kind("pyramid")
    if "GroupNorm_1.weight" in shapes and outputs:
        # Only resampling blocks have a shortcut between equal numbers of channels.
        return Kind("resampling" if "Conv_2.weight" in shapes and inputs == outputs else "block", inputs, outputs)
    raise refused(f"its module {shown(number)} is no part of DDPM++ or NCSN++")


def _encoder_levels(kinds: list[Kind], depth: int, num_blocks: int) -> list[list[Kind]]:
    """The blocks and attentions of each level of the encoder. Raises UserError for a level without any."""
    levels: list[list[Kind]] = [[]]
    for kind in kinds:
        blocks = [seen for seen in levels[-1] if seen.name == "block"]
        if len(levels) == depth and len(blocks) == num_blocks and kind.name == "block":
            break  # the first block of the middle
        if kind.name == "resampling":
            levels.append([])
        elif kind.name == "block":
            levels[-1].append(kind)
        elif kind.name == "attention" and levels[-1]:
            levels[-1].append(kind._replace(outputs=levels[-1][-1].outputs))
    if len(levels) != depth or not all(levels):
        raise damaged("its modules make no U-Net")
    return levels


def _preconditioning(
    config: NetworkConfig, levels: StoredTensors, asked: Asked, about: dict[str, Any]
) -> Preconditioning:
    ve = config.embedding == "fourier"
    if asked.take("scale_by_sigma", ve, about) != ve:
        raise unsupported(f"a model with scale_by_sigma {'off' if ve else 'on'}", "import one of the published kinds")
    about["assumed"]["centered"] = not ve
    if not ve:
        return _variance_preserving(asked, about)
    about["inferred"]["preconditioning"] = "ve"
    if "sigmas" not in levels or levels.shape("sigmas") == (0,):
        preconditioning = VEPreconditioning()
        about["assumed"] |= preconditioning.arguments()
        return preconditioning
    # VE works on images in [0, 1], where noise is half as strong; its list of levels is geometric.
    sigmas = levels["sigmas"]
    low, high = (float(f"{2 * float(level):.9g}") for level in (sigmas.min(), sigmas.max()))
    if not 0 < low < high < float("inf"):
        raise damaged("its noise levels (module.sigmas) make no sense")
    about["inferred"] |= {"sigma_min": low, "sigma_max": high}
    return VEPreconditioning(low, high)


def _variance_preserving(asked: Asked, about: dict[str, Any]) -> Preconditioning:
    if asked.take("sde", "vp", about) != "vp":
        raise unsupported("a model of the sub-VP SDE", "import one of the VP or the VE SDE")
    low, high = asked.take("beta_min", VP_BETA_MIN, about), asked.take("beta_max", VP_BETA_MIN + VP_BETA_D, about)
    if low >= high:
        raise UserError(f"beta_min is {low:g}, which is not below beta_max, {high:g}; give both")
    made = preconditioning_from("vp", {"beta_d": high - low, "beta_min": low})
    about["assumed"] |= {name: made.arguments()[name] for name in ("steps", "epsilon_t")}
    return made


# Their tensors under our names ----------------------------------------------------------------------------------------


def _own_tensors(config: NetworkConfig, weights: StoredTensors) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = UNet(config)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    own, used = {}, set()
    for name, theirs in places(network):
        for part in theirs:
            if part not in weights:
                raise damaged(f"the weight all_modules.{shown(part)} is missing")
        own[f"network.{name}"] = _own_tensor(name, [weights[part] for part in theirs], shapes[name])
        used.update(theirs)
    if len(used) != len(weights):
        odd = next(name for name in weights if name not in used)
        raise refused(f"the weight all_modules.{shown(odd)} has no place in its network")
    return own


def _own_tensor(name: str, parts: list[Tensor], shape: torch.Size) -> Tensor:
    """score_sde stores attention as matrices, input × output, one each for q, k, v and the projection."""
    if not name.endswith((".qkv.weight", ".proj.weight", ".qkv.bias")):
        return parts[0]
    channels, matrix = shape[0] // len(parts), name.endswith("weight")
    for part in parts:
        require_shape(name, part, torch.Size([channels, channels] if matrix else [channels]), "its attention")
    return torch.cat([part.T for part in parts])[:, :, None, None] if matrix else torch.cat(parts)


def places(network: UNet) -> Iterator[tuple[str, list[str]]]:
    """(our name, their names "K.…") of every stored tensor: three of theirs, q, k and v, make one ``qkv``."""
    numbers = count()

    def both(ours: str, theirs: str) -> Iterator[tuple[str, list[str]]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", [f"{theirs}.{kind}"]

    def layer(ours: str, module: torch.nn.Module) -> Iterator[tuple[str, list[str]]]:
        number = next(numbers)
        if not isinstance(module, Block):
            yield from both(ours, str(number))
            return
        for part, theirs in _BLOCK.items():
            if part != "skip" or module.skip is not None:
                yield from both(f"{ours}.{part}", f"{number}.{theirs}")
        if module.attention is not None:
            number = next(numbers)
            yield from both(f"{ours}.attention.norm", f"{number}.GroupNorm_0")
            for kind, theirs in (("weight", "W"), ("bias", "b")):
                yield f"{ours}.attention.qkv.{kind}", [f"{number}.NIN_{part}.{theirs}" for part in range(3)]
                yield f"{ours}.attention.proj.{kind}", [f"{number}.NIN_3.{theirs}"]

    if network.config.embedding == "fourier":
        yield "embedding.noise.freqs", [f"{next(numbers)}.W"]
    for name in ("layer0", "layer1"):
        yield from layer(f"embedding.{name}", network.embedding.get_submodule(name))
    for i, module in enumerate(network.encoder):
        yield from layer(f"encoder.{i}", module)
        if str(i) in network.residual:
            yield from both(f"residual.{i}.conv", f"{next(numbers)}.Conv2d_0")
    for i, module in enumerate(network.decoder):
        yield from layer(f"decoder.{i}", module)
    yield from layer("out_norm", network.out_norm)
    yield from layer("out_conv", network.out_conv)
