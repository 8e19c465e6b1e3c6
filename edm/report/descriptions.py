"""Configurations in the words of Tables 7 and 8."""

from collections.abc import Callable

from edm.config import TrainingConfig
from edm.networks.flops import parameters


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _list(values) -> str:
    return "-".join(map(str, values))


#: Table 7, row by row.
HYPERPARAMETERS: dict[str, Callable[[TrainingConfig], str]] = {
    "duration (Mimg)": lambda c: _number(c.duration),
    "minibatch": lambda c: str(c.batch_size),
    "gradient clipping": lambda c: _number(c.clip_norm),
    "precision": lambda c: c.precision,
    "learning rate": lambda c: _number(c.learning_rate),
    "LR ramp-up (Mimg)": lambda c: _number(c.lr_rampup),
    "EMA half-life (Mimg)": lambda c: _number(c.ema_halflife),
    "EMA ramp-up ratio": lambda c: _number(c.ema_rampup),
    "dropout": lambda c: _number(c.dropout),
    "channels": lambda c: f"{c.model_channels} x {_list(c.channel_mult)}",
    "dataset x-flips": lambda c: _yes(c.x_flip),
    "augmentation probability": lambda c: _number(c.augment),
}

#: Table 8, row by row.
NETWORKS: dict[str, Callable[[TrainingConfig], str]] = {
    "resampling filter": lambda c: _list(c.network().resample_filter),
    "noise embedding": lambda c: c.network().embedding,
    "encoder residual skips": lambda c: _yes(c.network().residual_input),
    "blocks per resolution": lambda c: str(c.network().num_blocks),
    "attention at": lambda c: _list(c.network().attn_resolutions),
    "channels per head": lambda c: str(c.network().channels_per_head or "one head"),
    "parameters (M)": lambda c: f"{parameters(c.network()) / 1e6:.1f}",
}
