"""Networks under the parameter names of the published EDM files; only this module knows those names."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from edm.config import NetworkConfig
from edm.design.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    Preconditioning,
    VEPreconditioning,
    VPPreconditioning,
    preconditioning_from,
)
from edm.errors import UserError
from edm.models.denoiser import Denoiser, assemble, require_shape
from edm.networks.layers import GroupNorm
from edm.networks.limits import require_plausible
from edm.networks.unet import Block, UNet

#: Published preconditioning classes, and the names of their arguments here.
_PRECONDITIONING: dict[str, tuple[type[Preconditioning], dict[str, str]]] = {
    "VPPrecond": (VPPreconditioning, {"beta_d": "beta_d", "beta_min": "beta_min", "M": "steps",
                                      "epsilon_t": "epsilon_t"}),
    "VEPrecond": (VEPreconditioning, {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}),
    "iDDPMPrecond": (IDDPMPreconditioning, {"C_1": "c1", "C_2": "c2", "M": "steps"}),
    "EDMPrecond": (EDMPreconditioning, {"sigma_data": "sigma_data", "sigma_min": "sigma_min",
                                        "sigma_max": "sigma_max"}),
}  # fmt: skip
#: Defaults of the published constructors where they differ from ours.
_SONG = {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16],
         "dropout": 0.10, "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
         "decoder_type": "standard", "resample_filter": [1, 1]}  # fmt: skip
_ADM = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8],
        "dropout": 0.10}  # fmt: skip
_MODELS = {"SongUNet": _SONG, "DhariwalUNet": _ADM}
#: Settings that the published classes fix and the networks here leave open, under the names here.
_OURS = ("channels_per_head", "out_channels", "norm_groups")
_OUTPUTS = ("out_conv.weight", "out_conv.bias")
_IN_WORDS = {int: "a whole number", float: "a number", str: "text", list: "a list of whole numbers"}
#: Constructor arguments that describe a network or its preconditioning, and their types.
_ARGUMENTS: dict[str, type] = {
    "img_resolution": int, "img_channels": int, "label_dim": int, "augment_dim": int, "model_type": str,
    "model_channels": int, "channel_mult": list, "channel_mult_emb": int, "num_blocks": int, "attn_resolutions": list,
    "dropout": float, "embedding_type": str, "channel_mult_noise": int, "encoder_type": str, "decoder_type": str,
    "resample_filter": list, "beta_d": float, "beta_min": float, "M": int, "epsilon_t": float, "sigma_min": float,
    "sigma_max": float, "sigma_data": float, "C_1": float, "C_2": float, "label_dropout": float,
    **dict.fromkeys(_OURS, int),
}  # fmt: skip
_WITHOUT_EFFECT = {"use_fp16"}  # on the float32 output of a trained network


def known_arguments(init_kwargs: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """(constructor arguments that describe a model, as plain values; unknown names) from an untrusted mapping.

    Raises UserError if an argument has the wrong type.
    """
    known: dict[str, Any] = {name: init_kwargs[name] for name in _ARGUMENTS if init_kwargs.get(name) is not None}
    for name, value in known.items():
        kind = _ARGUMENTS[name]
        if kind is list:
            value = list(value) if isinstance(value, (list, tuple)) and len(value) <= 16 else None
        elif kind is float and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if type(value) is not kind or (isinstance(value, list) and not all(type(item) is int for item in value)):
            raise UserError(f"constructor argument {name!r} is not {_IN_WORDS[kind]}")
        if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("sigma_max", math.inf):
            raise UserError(f"constructor argument {name!r} is {value}")
        known[name] = value
    if known.get("sigma_max") == math.inf:
        del known["sigma_max"]  # the default, which JSON cannot hold
    if known.get("label_dropout") == 0:
        del known["label_dropout"]  # the default
    unknown = [str(name)[:40] for name in init_kwargs if name not in _ARGUMENTS and name not in _WITHOUT_EFFECT]
    return known, sorted(unknown)[:20]


def from_published(class_name: str, init_kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Denoiser:
    """A denoiser from the class name, constructor arguments and parameters of a published network.

    class_name: "VPPrecond", "VEPrecond", "iDDPMPrecond" or "EDMPrecond".
    state_dict: parameters and buffers under the published names ("model.enc.32x32_conv.weight", …).
    Raises UserError if a setting is not one of the paper's, or if a tensor is missing, unexpected or misshapen.
    """
    init_kwargs, _ = known_arguments(init_kwargs)
    preconditioning = _preconditioning(class_name, init_kwargs)
    config = network_config(class_name, init_kwargs)
    with torch.device("meta"):
        network = UNet(config)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    places = {f"model.{published}": name for name, published in published_names(network)}
    known = {*places, "u"}
    extra = [key for key in state_dict if key not in known and not key.endswith(".resample_filter")]
    if extra:
        raise UserError(f"{class_name}: tensor {extra[0]!r} has no place in this network ({len(extra)} left over)")
    own = {}
    for key, name in places.items():
        if key not in state_dict:
            raise UserError(f"{class_name}: tensor {key!r} is missing from the state dict")
        tensor, rows = state_dict[key], shapes[name][0]
        padded = name in _OUTPUTS and config.out_channels is None and class_name == "iDDPMPrecond"
        if padded and tensor.shape[:1] == (2 * rows,):
            tensor = tensor[:rows]  # to_published pads it
        require_shape(key, tensor, shapes[name], class_name)
        own[f"network.{name}"] = _own_order(name, tensor)
    if isinstance(preconditioning, IDDPMPreconditioning):
        own["preconditioning.u"] = state_dict.get("u", preconditioning.u)
    return assemble(config, preconditioning, own, class_name)


def _unet(denoiser: Denoiser) -> UNet:
    if not isinstance(denoiser.network, UNet):
        name = denoiser.network.config.architecture
        raise UserError(f"the published classes have no architecture {name}, a plugin's; it cannot be exported")
    return denoiser.network


def to_published(denoiser: Denoiser) -> dict[str, Tensor]:
    """The state dict of a denoiser under the published names; the inverse of :func:`from_published`, exactly.

    iDDPMPrecond has outputs for a learned variance, which do not affect D. A network without them gets zeros there.
    """
    network = _unet(denoiser)
    own = network.state_dict()
    if isinstance(denoiser.preconditioning, IDDPMPreconditioning) and denoiser.network.config.out_channels is None:
        own |= {name: torch.cat((own[name], torch.zeros_like(own[name]))) for name in _OUTPUTS}
    state = {f"model.{key}": _published_order(name, own[name]) for name, key in published_names(network)}
    for key in _resampling_layers(network):
        taps = torch.tensor(denoiser.network.config.resample_filter, dtype=torch.float32)
        state[f"model.{key}.resample_filter"] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    if isinstance(denoiser.preconditioning, IDDPMPreconditioning):
        state["u"] = denoiser.preconditioning.u
    return state


def constructor_call(denoiser: Denoiser) -> tuple[str, dict[str, Any]]:
    """(class name, constructor arguments) from which :func:`from_published` makes the same denoiser; plain values.

    Arguments that the published classes lack (``channels_per_head``, ``out_channels``, ``norm_groups``) appear only
    if the network differs from the published one. Raises UserError for a network that the published classes cannot
    describe.
    """
    config, preconditioning = _unet(denoiser).config, denoiser.preconditioning
    classes = {kind: (name, arguments) for name, (kind, arguments) in _PRECONDITIONING.items()}
    if type(preconditioning) not in classes:
        raise UserError(f"the published classes have no {preconditioning.name} noise levels; it cannot be exported")
    class_name, arguments = classes[type(preconditioning)]
    values = preconditioning.arguments()
    kwargs = {
        "img_resolution": config.resolution, "img_channels": config.channels, "label_dim": config.classes,
        "augment_dim": config.augment_dim, "model_channels": config.model_channels,
        "channel_mult": list(config.channel_mult), "num_blocks": config.num_blocks,
        "attn_resolutions": list(config.attn_resolutions), "dropout": config.dropout,
        "model_type": "DhariwalUNet" if config.style == "adm" else "SongUNet",
        **{theirs: values[ours] for theirs, ours in arguments.items() if values[ours] is not None},
    }  # fmt: skip
    if config.style == "song":
        kwargs |= {
            "embedding_type": config.embedding, "channel_mult_noise": config.channel_mult_noise,
            "encoder_type": "residual" if config.residual_input else "standard", "decoder_type": "standard",
            "resample_filter": list(config.resample_filter),
        }  # fmt: skip
    usual = network_config(class_name, kwargs)
    if config.channels_per_head != usual.channels_per_head:
        kwargs["channels_per_head"] = config.channels_per_head
    if config.out_channels != usual.out_channels:
        kwargs["out_channels"] = config.out_channels or config.channels
    if config.norm_groups is not None:
        kwargs["norm_groups"] = config.norm_groups
    if network_config(class_name, kwargs) != config:
        raise UserError("this network is none that the published classes can describe; it cannot be exported")
    return class_name, kwargs


def differences(denoiser: Denoiser, init_kwargs: Mapping[str, Any]) -> list[str]:
    """The reasons why the authors' class does not compute the same as a denoiser; [] if it does.

    init_kwargs: from :func:`constructor_call`.
    """
    found, config = [], denoiser.network.config
    if "channels_per_head" in init_kwargs:
        found.append(f"its attention has {config.channels_per_head or 'all'} channels per head")
    norms = (module for module in denoiser.network.modules() if isinstance(module, GroupNorm))
    if any(norm.groups != min(32, len(norm.weight) // 4) for norm in norms):
        found.append("its norms do not have min(32, C/4) groups")
    if config.out_channels is not None and "out_channels" in init_kwargs:
        found.append(f"it has {config.out_channels} outputs")
    return found


def network_config(class_name: str, init_kwargs: Mapping[str, Any]) -> NetworkConfig:
    """The architecture that a published constructor call describes."""
    default = "DhariwalUNet" if class_name == "iDDPMPrecond" else "SongUNet"
    default = "DhariwalUNet" if class_name == "EDMPrecond" else default
    model = init_kwargs.get("model_type", default)
    if model not in _MODELS:
        raise UserError(f"model_type {model[:40]!r} is unknown; expected {' or '.join(_MODELS)}")
    kwargs = {**_MODELS[model], **init_kwargs}
    for needed in ("img_resolution", "img_channels"):
        if needed not in kwargs:
            raise UserError(f"{class_name}: constructor argument {needed!r} is missing")
    if kwargs.get("channel_mult_emb", 4) != 4:
        raise UserError("channel_mult_emb differs from 4, which no network of the paper has")
    size = {
        "resolution": kwargs["img_resolution"],
        "channels": kwargs["img_channels"],
        "classes": kwargs.get("label_dim", 0),
        "augment_dim": kwargs.get("augment_dim", 0),
        **{key: kwargs[key] for key in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")},
    }
    if class_name == "iDDPMPrecond":
        size["out_channels"] = 2 * kwargs["img_channels"]  # the second half is the learned variance
    if model == "DhariwalUNet":
        size |= {"style": "adm", "channels_per_head": 64}
    size |= {name: kwargs[name] for name in _OURS if name in kwargs}
    if size.get("out_channels") == size["channels"]:
        size["out_channels"] = None
    require_plausible(size)
    if model == "DhariwalUNet":
        return NetworkConfig(**size)
    require_plausible(kwargs)
    if kwargs["decoder_type"] != "standard" or kwargs["encoder_type"] not in ("standard", "residual"):
        raise UserError("encoder_type and decoder_type other than the paper's (standard or residual, standard)")
    return NetworkConfig(
        **size,
        embedding=kwargs["embedding_type"],
        channel_mult_noise=kwargs["channel_mult_noise"],
        residual_input=kwargs["encoder_type"] == "residual",
        resample_filter=kwargs["resample_filter"],
    )


def published_names(network: UNet) -> Iterator[tuple[str, str]]:
    """(our name, published name without "model.") of every stored tensor of the network."""
    adm = network.config.style == "adm"
    places = {
        "embedding.noise": "map_noise",
        "embedding.label": "map_label",
        "embedding.augment": "map_augment",
        "embedding.layer0": "map_layer0",
        "embedding.layer1": "map_layer1",
        "out_norm": "out_norm" if adm else f"dec.{network.config.resolution}x{network.config.resolution}_aux_norm",
        "out_conv": "out_conv" if adm else f"dec.{network.config.resolution}x{network.config.resolution}_aux_conv",
        **_layer_places(network),
    }
    for name in network.state_dict():
        place = max((p for p in places if name.startswith(p + ".")), key=len)
        rest = name[len(place) + 1 :].replace("attention.norm", "norm2").replace("attention.", "").replace("conv.", "")
        yield name, f"{places[place]}.{rest}"


def _layer_places(network: UNet) -> dict[str, str]:
    """Our layer → published layer, for encoder, decoder and input pyramid."""
    config = network.config
    places, encoder, decoder = {}, 0, 0
    for level, side in enumerate(config.resolutions):
        at = f"{side}x{side}"
        if str(encoder) in network.residual:
            places[f"residual.{encoder}"] = f"enc.{at}_aux_residual"
        for name in ["conv" if level == 0 else "down"] + [f"block{i}" for i in range(config.num_blocks)]:
            places[f"encoder.{encoder}"] = f"enc.{at}_{name}"
            encoder += 1
    for side in reversed(config.resolutions):
        at = f"{side}x{side}"
        first = ["in0", "in1"] if side == config.resolutions[-1] else ["up"]
        for name in first + [f"block{i}" for i in range(config.num_blocks + 1)]:
            places[f"decoder.{decoder}"] = f"dec.{at}_{name}"
            decoder += 1
    return places


def _resampling_layers(network: UNet) -> Iterator[str]:
    """Published layers that carry a ``resample_filter`` buffer."""
    for place, published in _layer_places(network).items():
        layer = network.get_submodule(place)
        if place.startswith("residual"):
            yield published
        elif isinstance(layer, Block) and layer.resample is not None:
            yield f"{published}.conv0"
            yield f"{published}.skip"


def _own_order(name: str, tensor: Tensor) -> Tensor:
    """Published qkv channels are (head, channel, {q, k, v}); ours are ({q, k, v}, head, channel)."""
    if ".qkv." not in name:
        return tensor
    return tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


def _published_order(name: str, tensor: Tensor) -> Tensor:
    if ".qkv." not in name:
        return tensor
    return tensor.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)


def _preconditioning(class_name: str, init_kwargs: Mapping[str, Any]) -> Preconditioning:
    if class_name not in _PRECONDITIONING:
        raise UserError(f"class {class_name[:40]!r} is unknown; expected one of {', '.join(_PRECONDITIONING)}")
    kind, arguments = _PRECONDITIONING[class_name]
    own = {ours: init_kwargs[theirs] for theirs, ours in arguments.items() if theirs in init_kwargs}
    return preconditioning_from(kind.name, own)
