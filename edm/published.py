"""Networks under the parameter names of the published EDM files: the one place that knows those names."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from edm.denoiser import Denoiser
from edm.errors import UserError
from edm.networks import NetworkConfig, UNet
from edm.networks.unet import Block
from edm.preconditioning import EDM, IDDPM, VE, VP, Preconditioning

#: Published preconditioning classes, and which of their arguments are ours under which name.
_PRECONDITIONING = {
    "VPPrecond": (VP, {"beta_d": "beta_d", "beta_min": "beta_min", "M": "steps", "epsilon_t": "epsilon_t"}),
    "VEPrecond": (VE, {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}),
    "iDDPMPrecond": (IDDPM, {"C_1": "c1", "C_2": "c2", "M": "steps"}),
    "EDMPrecond": (EDM, {"sigma_data": "sigma_data", "sigma_min": "sigma_min", "sigma_max": "sigma_max"}),
}
#: Defaults of the published constructors where they differ from ours.
_SONG = {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16],
         "dropout": 0.10, "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
         "decoder_type": "standard", "resample_filter": [1, 1]}  # fmt: skip
_ADM = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8],
        "dropout": 0.10}  # fmt: skip
_MODELS = {"SongUNet": _SONG, "DhariwalUNet": _ADM}


def from_published(class_name: str, init_kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Denoiser:
    """A denoiser from a published network: the class it was saved as, its constructor arguments and its parameters.

    class_name: "VPPrecond", "VEPrecond", "iDDPMPrecond" or "EDMPrecond".
    state_dict: parameters and buffers under the published names ("model.enc.32x32_conv.weight", …).
    Raises UserError where a choice is not one of the paper's networks, or a tensor is missing, left over or misshapen.
    """
    preconditioning = _preconditioning(class_name, init_kwargs)
    config = network_config(class_name, init_kwargs)
    with torch.device("meta"):
        network = UNet(config)
    own = {}
    for name, published in published_names(network):
        key = f"model.{published}"
        if key not in state_dict:
            raise UserError(f"{class_name}: tensor {key!r} is missing from the state dict")
        own[name] = _own_order(name, state_dict[key].detach().to(torch.float32))
    known = {f"model.{published}" for _, published in published_names(network)} | {"u"}
    extra = [key for key in state_dict if key not in known and not key.endswith(".resample_filter")]
    if extra:
        raise UserError(f"{class_name}: tensor {extra[0]!r} has no place in this network ({len(extra)} left over)")
    with torch.random.fork_rng(devices=[]):
        network = UNet(config).to(memory_format=torch.channels_last)
    _load(network, own, class_name)
    if isinstance(preconditioning, IDDPM) and "u" in state_dict:
        preconditioning.u = state_dict["u"].detach().to(torch.float32)
    return Denoiser(network, preconditioning).eval().requires_grad_(False)


def to_published(denoiser: Denoiser) -> dict[str, Tensor]:
    """The state dict of a denoiser under the published names; the inverse of :func:`from_published`, exactly."""
    own = denoiser.network.state_dict()
    state = {f"model.{key}": _published_order(name, own[name]) for name, key in published_names(denoiser.network)}
    for key in _resampling_layers(denoiser.network):
        taps = torch.tensor(denoiser.network.config.resample_filter, dtype=torch.float32)
        state[f"model.{key}.resample_filter"] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    if isinstance(denoiser.preconditioning, IDDPM):
        state["u"] = denoiser.preconditioning.u
    return state


def network_config(class_name: str, init_kwargs: Mapping[str, Any]) -> NetworkConfig:
    """The architecture that a published constructor call describes."""
    default = "DhariwalUNet" if class_name == "iDDPMPrecond" else "SongUNet"
    default = "DhariwalUNet" if class_name == "EDMPrecond" else default
    model = init_kwargs.get("model_type", default)
    if model not in _MODELS:
        raise UserError(f"model_type {model!r} is unknown; expected {' or '.join(_MODELS)}")
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
        return NetworkConfig(**size, style="adm", channels_per_head=64)
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
        raise UserError(f"class {class_name!r} is unknown; expected one of {', '.join(_PRECONDITIONING)}")
    kind, arguments = _PRECONDITIONING[class_name]
    return kind(**{ours: init_kwargs[theirs] for theirs, ours in arguments.items() if theirs in init_kwargs})


def _load(network: UNet, tensors: dict[str, Tensor], source: str) -> None:
    for name, tensor in network.state_dict().items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{source}: tensor {name!r} has shape {list(tensors[name].shape)}, expected {list(tensor.shape)}"
            )
    network.load_state_dict(tensors)
