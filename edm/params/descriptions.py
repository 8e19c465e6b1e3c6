"""Configurations as the rows of Tables 7 and 8."""

from collections.abc import Callable

from edm.config import NetworkConfig, TrainingConfig
from edm.networks.flops import parameters
from edm.params.experiment import Training


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _list(values) -> str:
    return "-".join(map(str, values))


def _with_attention(network: NetworkConfig) -> list[int]:
    """Channels of the attention resolutions, from the finest."""
    widths = zip(network.resolutions, network.channel_mult, strict=True)
    return [network.model_channels * mult for side, mult in widths if side in network.attn_resolutions]


def _heads(network: NetworkConfig) -> str:
    if network.channels_per_head is None:
        return "1"
    return _list(dict.fromkeys(network.heads(channels) for channels in _with_attention(network))) or "none"


def _in_decoder(network: NetworkConfig) -> int:
    """One block at the bottleneck; per attention resolution the last block, in ADM every block."""
    each = network.num_blocks + 1 if network.style == "adm" else 1
    return 1 + each * len(_with_attention(network))


Entries = dict[str, Callable[[TrainingConfig, Training], str]]


def _of_unet(entry: Callable[[TrainingConfig, Training], str]) -> Callable[[TrainingConfig, Training], str]:
    """An entry that describes the U-Net; of another network it names the plugin's part."""
    return lambda c, training: c.network().architecture or entry(c, training)


#: Table 7, row by row.
HYPERPARAMETERS: Entries = {
    "GPUs": lambda _, training: str(training.gpus),
    "duration (Mimg)": lambda c, _: _number(c.duration),
    "minibatch": lambda c, _: str(c.batch_size),
    "gradient clipping": lambda c, _: _number(c.clip_norm),
    "precision": lambda c, _: c.precision,
    "learning rate": lambda c, _: _number(c.learning_rate),
    "LR ramp-up (Mimg)": lambda c, _: _number(c.lr_rampup),
    "EMA half-life (Mimg)": lambda c, _: _number(c.ema_halflife),
    "EMA ramp-up ratio": lambda c, _: _number(c.ema_rampup),
    "dropout": lambda c, _: _number(c.dropout),
    "channels": _of_unet(lambda c, _: f"{c.model_channels} x {_list(c.channel_mult)}"),
    "dataset x-flips": lambda c, _: _yes(c.x_flip),
    "augmentation probability": lambda c, _: _number(c.augment),
}

#: Table 8, row by row. Only the encoder of the U-Net has skip connections.
NETWORKS: Entries = {
    "resampling filter": _of_unet(lambda c, _: _list(c.network().resample_filter)),
    "noise embedding": _of_unet(lambda c, _: c.network().embedding),
    "skip connections in the encoder": _of_unet(lambda c, _: "residual" if c.network().residual_input else "none"),
    "skip connections in the decoder": _of_unet(lambda *_: "none"),
    "blocks per resolution": _of_unet(lambda c, _: str(c.network().num_blocks)),
    "attention at": _of_unet(lambda c, _: _list(c.network().attn_resolutions)),
    "attention heads": _of_unet(lambda c, _: _heads(c.network())),
    "channels per head": _of_unet(lambda c, _: str(c.network().channels_per_head or "one head")),
    "attention blocks in the encoder": _of_unet(
        lambda c, _: str(c.network().num_blocks * len(_with_attention(c.network())))
    ),
    "attention blocks in the decoder": _of_unet(lambda c, _: str(_in_decoder(c.network()))),
    "parameters (M)": lambda c, _: f"{parameters(c.network()) / 1e6:.1f}",
}
