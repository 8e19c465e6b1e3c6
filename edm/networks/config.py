"""What a U-Net is made of (Table 8), as data."""

from dataclasses import dataclass

from edm.errors import UserError

#: What sets the three architectures of the paper apart (Table 8); everything else is size.
ARCHITECTURES = {
    "ddpmpp": {},
    "ncsnpp": {"embedding": "fourier", "channel_mult_noise": 2, "residual_input": True, "resample_filter": (1, 3, 3, 1)},
    "adm": {"style": "adm", "num_blocks": 3, "attn_resolutions": (32, 16, 8), "channels_per_head": 64},
}


@dataclass(frozen=True)
class NetworkConfig:
    """A U-Net: size, conditioning, and the choices of its family.

    resolution: image side, a power of two from 8; channels: of the image (1 or 3); out_channels: of the output where it
    differs; classes: 0 for unconditional; augment_dim: width of the augmentation vector, 0 for none.
    channel_mult: channels per resolution, from the finest, in units of model_channels.
    attn_resolutions: resolutions whose blocks hold self-attention. channels_per_head: None for one head.
    style: "song" (DDPM++, NCSN++) or "adm" (Dhariwal and Nichol: adaptive group norm, no √½).
    residual_input: NCSN++'s skip from the downsampled input into every encoder level.
    """

    resolution: int
    channels: int = 3
    out_channels: int | None = None
    classes: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    style: str = "song"
    embedding: str = "positional"
    channel_mult_noise: int = 1
    residual_input: bool = False
    resample_filter: tuple[int, ...] = (1, 1)
    channels_per_head: int | None = None

    def __post_init__(self):
        for name in ("channel_mult", "attn_resolutions", "resample_filter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise UserError(f"resolution is {self.resolution}; it must be a power of two of at least 8")
        if self.resolution >> (len(self.channel_mult) - 1) < 1 or not self.channel_mult:
            raise UserError(f"channel_mult {self.channel_mult} has more levels than resolution {self.resolution} halves")
        if self.channels < 1 or self.model_channels < 4 or self.model_channels % 4 or self.num_blocks < 1:
            raise UserError("channels and num_blocks must be at least 1, model_channels a multiple of 4")
        if self.style not in ("song", "adm") or self.embedding not in ("positional", "fourier"):
            raise UserError(f"network style {self.style!r} or embedding {self.embedding!r} is unknown")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout:g}; it must lie in [0, 1)")

    @classmethod
    def of(cls, architecture: str, **size) -> "NetworkConfig":
        """The configuration of a named architecture ("ddpmpp", "ncsnpp" or "adm") at a given size."""
        if architecture not in ARCHITECTURES:
            raise UserError(f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
        return cls(**{**ARCHITECTURES[architecture], **size})

    @property
    def resolutions(self) -> list[int]:
        """The image side at every level, from the finest."""
        return [self.resolution >> level for level in range(len(self.channel_mult))]

    def heads(self, channels: int) -> int:
        """Attention heads of a block of that many channels; 0 is no attention (ADM below 64 channels)."""
        return 1 if self.channels_per_head is None else channels // self.channels_per_head
