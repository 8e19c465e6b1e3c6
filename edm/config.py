"""Configurations of networks, training runs and samplers as frozen, validated dataclasses. Does not import torch."""

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from edm import registry
from edm.checked import APART, LATER, Checked, choose, require
from edm.errors import UserError, nearest

#: Settings in which the paper's three architectures differ (Table 8), apart from size.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": {},
    "ncsnpp": {
        "embedding": "fourier",
        "channel_mult_noise": 2,
        "residual_input": True,
        "resample_filter": (1, 3, 3, 1),
    },
    "adm": {"style": "adm", "channels_per_head": 64},
}
DESIGNS = ("vp", "ve", "iddpm", "edm")  # columns of Table 1, as preconditioning, loss and discretisation
SCHEDULES = ("vp", "ve", "linear")
SCALINGS = ("vp", "none")
#: Time steps: those of the designs, uniform in λ = −ln σ, and uniform in the root of the VP schedule's time.
DISCRETIZATIONS = (*DESIGNS, "lambda", "vp-sqrt")
SOLVERS = ("euler", "heun")  # of Algorithms 1 to 3
MULTISTEP = "multistep"  # one formula with independent choices, see edm.sampling.multistep
PREDICTS, OVER = ("noise", "data"), ("sigma", "lambda", "vp-time", "rho")
FINAL = ("zero", "sigma_min")  # where sampling ends
#: Multistep solvers whose published code is no member of that formula.
SHIPPED = ("ipndm", "dpmpp-2m", "dpmpp-3m-shipped")
#: Names for choices of the multistep solver and of its steps; settings that are stated replace them.
MEMBERS: dict[str, dict[str, Any]] = {
    "lms": {"predicts": "noise", "over": "sigma", "order": 4},
    "ipndm_v": {"predicts": "noise", "over": "sigma", "order": 4},
    "deis-tab": {"predicts": "noise", "over": "vp-time", "order": 3, "discretization": "vp-sqrt"},
    "dpmpp-3m": {"predicts": "data", "over": "lambda", "order": 3, "discretization": "lambda"},
    "unipc-3": {"predicts": "data", "over": "lambda", "order": 3, "corrector": True, "discretization": "lambda"},
}
ADAPTIVE = "rk45"  # the black-box solver of Table 3
ORIGINAL = {"vp-ode": 1, "vp-sde": 1, "ve-ode": 1, "ve-pc": 2, "ddim": 1, "iddpm": 1}  # as shipped → NFE per step
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
#: Whether to compile networks. auto: on a GPU, if the work is long enough to pay for it. graphs: with CUDA graphs,
#: for small batches and networks, where launching kernels takes longer than running them.
COMPILE = ("auto", "yes", "graphs", "no")
AUTO = "auto"
#: What a solver of a plugin takes beside its own settings and the fields that it shares.
OF_ANY_SOLVER = {"num_steps", "discretization", "sigma_min", "sigma_max", "rho", "final", "sigmas"}
NULL = "null"  # the guide that is the same network with the null label, zeros
RK45_NFE = 120  # estimate: an adaptive solver chooses its NFE; the paper's best results took 93 to 131 (Table 3)
AUGMENT_DIM = 9  # Table 6
MAX_SEED = 2**19 - 1  # of a training run: each run has its own range of 2^44 sample seeds among the 64-bit seeds

MAX_SNAPSHOTS = 10_000  # of a training run

for _kind, _names, _module in (
    ("schedule", SCHEDULES, "edm.design.schedules"),
    ("scaling", SCALINGS, "edm.design.schedules"),
    ("discretization", DISCRETIZATIONS, "edm.design.timesteps"),
    ("preconditioning", DESIGNS, "edm.design.preconditioning"),
    ("loss", DESIGNS, "edm.design.losses"),
    ("architecture", ARCHITECTURES, "edm.networks.unet"),
    ("augmentation", ("edm",), "edm.design.augmentation"),  # of Table 6
    ("optimizer", ("adam",), "edm.training.step"),
    ("lr_schedule", ("ramp",), "edm.training.step"),
    ("solver", SOLVERS, "edm.sampling.sampler"),
    ("solver", (MULTISTEP, *MEMBERS, *SHIPPED), "edm.sampling.sampler"),
    ("solver", (ADAPTIVE, *ORIGINAL), "edm.sampling.drawing"),
):
    registry.own(_kind, _names, _module)
registry.own("preconditioning", ("iddpm-linear",), "edm.design.preconditioning", hidden=True)  # of published files

_NOT_NEGATIVE, _SIGMA = {"minimum": 0}, {"exclusiveMinimum": 0, "maximum": 1e9}
#: The allowed values of each field, as JSON Schema keywords; for a list, of its entries and its length. Every
#: configuration is checked against them on creation, and the schema of params.yaml uses them too. The upper bounds
#: exceed what any laboratory runs: a wrong or hostile file gives an error at once, not after hours.
LIMITS: dict[str, dict[str, Any]] = {
    "resolution": {"minimum": 8, "maximum": 1 << 14},
    "channels": {"minimum": 1, "maximum": 256},
    "out_channels": {"minimum": 1, "maximum": 512},
    "classes": {"minimum": 0, "maximum": 1_000_000},
    "augment_dim": {"minimum": 0, "maximum": 4096},
    "model_channels": {"minimum": 4, "maximum": 1 << 14, "multipleOf": 4},
    "channel_mult": {"minItems": 1, "maxItems": 16, "minimum": 1, "maximum": 64},
    "num_blocks": {"minimum": 1, "maximum": 64},
    "attn_resolutions": {"maxItems": 16, "minimum": 1, "maximum": 1 << 14},
    "dropout": {"minimum": 0, "exclusiveMaximum": 1},
    "style": {"enum": ("song", "adm")},
    "embedding": {"enum": ("positional", "fourier")},
    "channel_mult_noise": {"minimum": 1, "maximum": 64},
    "resample_filter": {"minItems": 2, "maxItems": 16, "minimum": 0, "maximum": 1 << 20},
    "channels_per_head": {"minimum": 1, "maximum": 1 << 20},
    "norm_groups": {"minimum": 1, "maximum": 1 << 10},
    "architecture": {"enum": registry.Names("architecture")},
    "preconditioning": {"enum": registry.Names("preconditioning")},
    "loss": {"enum": registry.Names("loss")},
    "augmentation": {"enum": registry.Names("augmentation")},
    "optimizer": {"enum": registry.Names("optimizer")},
    "lr_schedule": {"enum": registry.Names("lr_schedule")},
    "P_mean": {"minimum": -100, "maximum": 100},
    "P_std": {"exclusiveMinimum": 0, "maximum": 100},
    "sigma_data": _SIGMA,
    "augment": {"minimum": 0, "maximum": 1},
    "label_dropout": {"minimum": 0, "exclusiveMaximum": 1},
    "duration": {"exclusiveMinimum": 0, "maximum": 1_000_000},
    "batch_size": {"minimum": 1, "maximum": 1 << 20},
    "microbatch": {"minimum": 1, "maximum": 1 << 20},
    "learning_rate": {"exclusiveMinimum": 0, "maximum": 1000},
    "lr_rampup": {"minimum": 0, "maximum": 1_000_000},
    "ema_halflife": {"minimum": 0, "maximum": 1_000_000},
    "ema_widths": {"maxItems": 8, "minimum": 0.001, "maximum": 0.2886},
    "ema_rampup": {"minimum": 0, "maximum": 1_000_000},
    "clip_norm": {"exclusiveMinimum": 0, "maximum": 1e9},
    "precision": {"enum": PRECISIONS},
    "loss_scale": {"exclusiveMinimum": 0, "maximum": 1e9},
    "snapshot_every": {"exclusiveMinimum": 0, "maximum": 1_000_000},
    "level_samples": {"minimum": 2, "maximum": 10_000_000},  # at least 2, to have a deviation
    "seed": {"minimum": 0, "maximum": MAX_SEED},
    "num_steps": {"minimum": 1, "maximum": 100_000},
    "solver": {"enum": registry.Names("solver")},
    "discretization": {"enum": registry.Names("discretization")},
    "schedule": {"enum": registry.Names("schedule")},
    "scaling": {"enum": registry.Names("scaling")},
    "alpha": {"exclusiveMinimum": 0, "maximum": 100},
    "sigma_min": _SIGMA,
    "sigma_max": _SIGMA,
    "rho": {"minimum": 0.1, "maximum": 1000},
    "S_churn": {"minimum": 0, "maximum": 1e9},
    "S_min": _NOT_NEGATIVE,
    "S_max": _NOT_NEGATIVE,
    "S_noise": {"minimum": 0, "maximum": 1000},
    "tolerance": {"minimum": 1e-12, "maximum": 1000},
    "guide": {"minLength": 1, "maxLength": 4096},
    "guidance": {"minimum": 0, "maximum": 1000},
    "guidance_min": _NOT_NEGATIVE,
    "guidance_max": _NOT_NEGATIVE,
    "predicts": {"enum": PREDICTS},
    "over": {"enum": OVER},
    "order": {"minimum": 1, "maximum": 4},
    "final": {"enum": FINAL},
    "sigmas": {"minItems": 1, "maxItems": 10_000, **_SIGMA},
}


@dataclass(frozen=True)
class _Data(Checked):
    """Base of the three configurations, which validates them against ``LIMITS``.

    chosen: the fields that name a part of :mod:`edm.registry`, whose kind has the name of the field. The settings of
    these parts are in the field ``settings``; in plain dictionaries, as in params.yaml, they are keys such as
    "solver.eta".
    """

    limits = LIMITS
    chosen: ClassVar[tuple[str, ...]] = ()

    def parts(self) -> list[registry.Part]:
        """The parts of plugins that it names."""
        named = ((kind, getattr(self, kind)) for kind in self.chosen)
        return [registry.find(kind, name) for kind, name in named if name and not registry.is_own(kind, name)]

    def settings_of(self, kind: str) -> dict[str, Any]:
        """The keyword arguments of the part of a plugin that it names."""
        part, start = registry.find(kind, getattr(self, kind)), f"{kind}."
        own = {key.removeprefix(start): value for key, value in self._settings() if key.startswith(start)}
        return part.bound(own, self)

    def _settings(self) -> tuple[tuple[str, Any], ...]:
        found: tuple[tuple[str, Any], ...] = getattr(self, "settings", ())
        return found

    def _check_settings(self) -> None:
        """Checks ``settings`` against the signatures of the parts; leaves out those that equal a default."""
        stated = self._settings()
        if not stated:
            return
        found: dict[str, Any] = {}
        for key, _ in stated:
            kind = key.partition(".")[0]
            require(kind in self.chosen, f"{type(self).__name__} field {key!r} is unknown{nearest(key, self.chosen)}")
            name = getattr(self, kind)
            require(not registry.is_own(kind, name), f"{key}: {kind} {name} is edm's own and has no such setting")
        for part in self.parts():
            start = f"{part.kind}."
            own = {key.removeprefix(start): value for key, value in stated if key.startswith(start)}
            found |= {start + name: value for name, value in part.check_settings(own).items()}
        object.__setattr__(self, "settings", tuple(sorted(found.items())))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        require("settings" not in values, f"{cls.__name__} field 'settings' is unknown; state keys such as solver.eta")
        own = {key: value for key, value in values.items() if "." in str(key)}
        if not own:
            return super().from_dict(values)
        rest = {key: value for key, value in values.items() if key not in own}
        made = super().from_dict(rest)
        return dataclasses.replace(made, settings=tuple(sorted(own.items())))  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in super().to_dict().items() if key != "settings"}
        return values | {key: list(value) if isinstance(value, tuple) else value for key, value in self._settings()}

    def changes(self) -> dict[str, Any]:
        values = self.to_dict()
        stated = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default and f.name in values]
        return {name: values[name] for name in (*stated, *dict(self._settings()))}


def _settings_field() -> Any:
    """The settings of the parts of plugins, by their keys, such as (("solver.eta", 0.5),)."""
    return dataclasses.field(default=(), metadata=APART)


@dataclass(frozen=True)
class NetworkConfig(_Data):
    """A U-Net: size, conditioning and architecture (Table 8).

    resolution: image side, from 8, that each level of ``channel_mult`` but the first halves; channels: of the image (1
    or 3); out_channels: of the output if different; classes: 0 for unconditional; augment_dim: width of the
    augmentation vector, 0 for none.
    channel_mult: channels per resolution, from the finest, in units of model_channels.
    attn_resolutions: resolutions whose blocks have self-attention. channels_per_head: None for one head.
    style: "song" (DDPM++, NCSN++) or "adm" (Dhariwal and Nichol: adaptive group norm, no √½).
    residual_input: NCSN++'s skip from the downsampled input into every encoder level.
    norm_groups: of every group norm; None for min(32, C/4). skip_rescale: whether "song" scales its sums by √½.
    architecture: the name of a plugin's network, which replaces the U-Net; settings: its own.
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
    norm_groups: int | None = None
    skip_rescale: bool = True
    architecture: str = dataclasses.field(default="", metadata=APART)
    settings: tuple[tuple[str, Any], ...] = _settings_field()

    chosen = ("architecture",)

    def __post_init__(self) -> None:
        self.check()
        if self.architecture:
            require(isinstance(self.architecture, str), f"architecture is {self.architecture!r}, which is not text")
            require(not registry.is_own("architecture", self.architecture), f"{self.architecture} is no plugin's name")
            registry.find("architecture", self.architecture)
        self._check_settings()
        if self.architecture:
            return
        side, levels = self.resolution, len(self.channel_mult)
        unit = 1 << (levels - 1)
        lower = max(side - side % unit, unit)
        near = f"{lower} or {lower + unit}"
        halved = f"channel_mult has {levels} levels, so the side is a multiple of {unit}, such as {near}"
        require(side % unit == 0, f"resolution {side}: {halved}")
        taps = self.resample_filter
        require(len(taps) % 2 == 0 and sum(taps) > 0, "resample_filter needs an even number of taps, with a sum > 0")
        for width in (self.model_channels * m for m in self.channel_mult):
            heads = self.heads(width)
            require(heads == 0 or width % heads == 0, f"{width} channels cannot be shared by {heads} attention heads")
        for width in (self.first_channels, *(self.model_channels * m for m in self.channel_mult)):
            groups = self.norm_groups or 1
            require(width % groups == 0, f"{width} channels cannot be normalised in {groups} groups")

    @classmethod
    def of(cls, architecture: str, **size: Any) -> Self:
        """The configuration of a named architecture ("ddpmpp", "ncsnpp", "adm" or a plugin's) at a given size."""
        if architecture in ARCHITECTURES:
            return cls(**{**ARCHITECTURES[architecture], **size})
        choose("architecture", architecture, registry.Names("architecture"))
        shared = registry.find("architecture", architecture).shared
        images = ("resolution", "channels", "classes", "augment_dim", "settings")
        kept = {name: value for name, value in size.items() if name in (*images, *shared)}
        return cls(architecture=architecture, **kept)

    @property
    def resolutions(self) -> list[int]:
        """The image side at every level, from the finest."""
        return [self.resolution >> level for level in range(len(self.channel_mult))]

    @property
    def first_channels(self) -> int:
        """Outputs of the first convolution."""
        return self.model_channels * (self.channel_mult[0] if self.style == "adm" else 1)

    def heads(self, channels: int) -> int:
        """Attention heads of a block of that many channels; 0 is no attention (ADM below 64 channels)."""
        return 1 if self.channels_per_head is None else channels // self.channels_per_head


@dataclass(frozen=True)
class TrainingConfig(_Data):
    """One training run: a cell of Table 2 with its settings from Table 7. Durations are in millions of images (Mimg).

    resolution, channels, classes: of the dataset; classes are used only if ``conditional``.
    architecture, preconditioning, loss: columns of Table 1 or names of plugins, chosen independently. settings: of
    plugins. P_mean, P_std: of the EDM loss.
    augment: A_prob of Table 6, 0 for none; x_flip: random flips of the dataset itself.
    batch_size: over all GPUs and accumulation rounds; microbatch: maximum images per GPU and round, None for no limit.
    learning_rate: after warmup; ema_rampup: cap of the EMA half-life as a fraction of the images seen, None for no cap.
    ema_widths: relative widths of power-function averages that snapshots hold beside the EMA, for ``edm average``.
    clip_norm: None for no clipping. precision: of the network; embeddings, loss and weights stay in float32.
    loss_scale: factor on the loss in fp16; the gradients are divided by it again.
    label_dropout: probability that a training image has no label (zeros), which guidance by the null label needs.
    snapshot_every: Mimg between snapshots, None for none. level_samples: images per noise level of Figure 5a.
    """

    resolution: int
    channels: int
    classes: int = 0
    conditional: bool = True
    architecture: str = "ddpmpp"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    preconditioning: str = "edm"
    loss: str = "edm"
    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5
    augment: float = 0.0
    x_flip: bool = False
    duration: float = 200.0
    batch_size: int = 512
    microbatch: int | None = None
    learning_rate: float = 1e-3
    lr_rampup: float = 10.0
    ema_halflife: float = 0.5
    ema_rampup: float | None = 0.05
    clip_norm: float | None = None
    precision: str = "fp32"
    loss_scale: float = 1.0
    snapshot_every: float | None = None
    level_samples: int = 10_000
    seed: int = 0
    label_dropout: float = 0.0
    ema_widths: tuple[float, ...] = ()
    augmentation: str = dataclasses.field(default="edm", metadata=LATER)
    optimizer: str = dataclasses.field(default="adam", metadata=LATER)
    lr_schedule: str = dataclasses.field(default="ramp", metadata=LATER)
    settings: tuple[tuple[str, Any], ...] = _settings_field()

    chosen = ("architecture", "preconditioning", "loss", "augmentation", "optimizer", "lr_schedule")

    def __post_init__(self) -> None:
        self.check()
        self._check_settings()
        require(not self.conditional or self.classes > 0, "conditional training needs a dataset with classes")
        dropped = self.label_dropout == 0 or self.conditional
        require(dropped, "label_dropout has no effect in unconditional training; leave it out")
        kept = not self.ema_widths or self.snapshot_every is not None
        require(kept, "ema_widths has no effect without snapshots, which keep the averages; state snapshot_every")
        require(len(set(self.ema_widths)) == len(self.ema_widths), f"ema_widths {self.ema_widths} has a width twice")
        every = self.snapshot_every or math.inf
        few = self.duration / every <= MAX_SNAPSHOTS
        require(few, f"a snapshot every {every:g} of {self.duration:g} Mimg makes more than {MAX_SNAPSHOTS:,} of them")
        self.network()

    def network(self) -> NetworkConfig:
        """The network that this configuration trains."""
        own = tuple((key, value) for key, value in self.settings if key.startswith("architecture."))
        return NetworkConfig.of(
            self.architecture,
            resolution=self.resolution,
            channels=self.channels,
            classes=self.classes if self.conditional else 0,
            augment_dim=self._augment_dim if self.augment > 0 else 0,
            model_channels=self.model_channels,
            channel_mult=self.channel_mult,
            num_blocks=self.num_blocks,
            attn_resolutions=self.attn_resolutions,
            dropout=self.dropout,
            **({"settings": own} if own else {}),
        )

    @property
    def _augment_dim(self) -> int:
        if registry.is_own("augmentation", self.augmentation):
            return AUGMENT_DIM
        width: int = registry.find("augmentation", self.augmentation).facts["width"]
        return width

    @property
    def dataset_size(self) -> tuple[int, int, int]:
        """(resolution, channels, classes) that the dataset must have; 0 classes for unconditional training."""
        return self.resolution, self.channels, self.classes if self.conditional else 0

    @property
    def steps(self) -> int:
        """Optimiser steps: the duration, rounded up to whole batches."""
        return math.ceil(round(self.duration * 1e6) / self.batch_size)

    @property
    def snapshots(self) -> list[int]:
        """Image counts at which to take a snapshot: the first step that reaches each multiple of the interval."""
        if self.snapshot_every is None:
            return []
        size, total = max(1, round(self.snapshot_every * 1e6)), self.steps * self.batch_size
        steps = {-(-multiple * size // self.batch_size) for multiple in range(1, total // size + 1)}
        return [step * self.batch_size for step in sorted(steps)]


@dataclass(frozen=True)
class SamplerConfig(_Data):
    """The settings of one sampler. The defaults are Algorithm 1 with the paper's settings (Table 1, last column).

    ``solver`` "heun" is the second-order family of Algorithm 3: ``alpha`` = 1 is Heun, ½ midpoint, ⅔ Ralston. "rk45" is
    the adaptive black-box solver of Table 3, with ``tolerance`` as relative and absolute tolerance; the names in
    ``ORIGINAL`` are earlier samplers as their authors published them, whose only setting is ``num_steps``.
    "multistep" is the family of :mod:`edm.sampling.multistep`: ``predicts``, ``over``, ``order`` and ``corrector``, by
    default "data", "lambda", 3 and False, are None for all other solvers (``order`` except for "ipndm", by default 4).
    A solver, discretization, schedule or scaling may be a plugin's, with its own ``settings``.
    :meth:`from_dict` also takes the names in ``MEMBERS``. ``SHIPPED`` are related solvers as their authors published
    them. ``final`` "zero" takes N levels and a last Euler step to σ = 0, as Algorithm 1; "sigma_min" takes N + 1 levels
    and ends at the last one. ``sigmas`` lists the levels themselves, in place of a discretisation and ``num_steps``.
    ``sigma_min`` and ``sigma_max`` default to those of the discretisation. If ``S_churn`` > 0, churn (Algorithm 2)
    applies to the noise levels in [``S_min``, ``S_max``]; ``S_max`` None is infinity.
    ``guide`` names the network D_g of guidance: ``NULL`` (the same network without its label), or another one.
    ``guidance`` is w of D_w = D_g + w (D − D_g), for levels in (``guidance_min``, ``guidance_max``]; 1 is no guidance.
    """

    num_steps: int = 18
    solver: str = "heun"
    discretization: str = "edm"
    schedule: str = "linear"
    scaling: str = "none"
    alpha: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float | None = math.inf
    S_noise: float = 1.0
    tolerance: float = 1e-4
    predicts: str | None = None
    over: str | None = None
    order: int | None = None
    corrector: bool | None = None
    final: str = "zero"
    sigmas: tuple[float, ...] | None = None
    guide: str | None = None
    guidance: float = 1.0
    guidance_min: float = 0.0
    guidance_max: float | None = math.inf
    settings: tuple[tuple[str, Any], ...] = _settings_field()

    chosen = ("solver", "discretization", "schedule", "scaling")

    def __post_init__(self) -> None:
        most = math.inf if self.S_max is None else self.S_max
        object.__setattr__(self, "S_max", most)
        object.__setattr__(self, "guidance_max", self.most_guided)
        self.check()
        require(self.solver not in MEMBERS, f"solver {self.solver} stands for several settings: use from_dict")
        defaults = {"predicts": "data", "over": "lambda", "order": 3, "corrector": False}
        for name, value in (defaults if self.solver == MULTISTEP else {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.solver == "ipndm" and self.order is None:
            object.__setattr__(self, "order", 4)
        self._check_settings()
        self._refuse_choices_without_effect()
        if self.sigmas is not None:
            self._check_sigmas(self.sigmas)
        low, high = self.guidance_min, self.most_guided
        require(low < high, f"guidance_min {low:g} is not below guidance_max {high:g}: no noise level is guided")
        require(self.S_min <= most, f"S_min {self.S_min:g} is larger than S_max {most:g}; swap them")
        if self.sigma_min is not None and self.sigma_max is not None:
            ordered = self.sigma_min <= self.sigma_max
            require(ordered, f"sigma_min {self.sigma_min:g} is larger than sigma_max {self.sigma_max:g}; swap them")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As :meth:`Checked.from_dict`; the name of a member of the multistep family stands for its settings."""
        solver = values.get("solver")
        if isinstance(solver, str) and solver in MEMBERS:
            values = {**MEMBERS[solver], **values, "solver": MULTISTEP}
        return super().from_dict(values)

    def _check_sigmas(self, sigmas: tuple[float, ...]) -> None:
        falls = all(high > low for high, low in itertools.pairwise(sigmas))
        require(falls, "sigmas must fall from each level to the next")
        for name in ("discretization", "sigma_min", "sigma_max"):
            stated = getattr(self, name) != getattr(type(self), name)
            require(not stated, f"sigmas lists the levels: {name} has no effect; leave it out")
        steps = len(sigmas) - (self.final == "sigma_min")
        require(steps >= 1, "sigmas has one level and final is sigma_min: there is no step")
        agrees = self.num_steps in (steps, type(self).num_steps)
        require(agrees, f"num_steps is {self.num_steps}, but sigmas takes {steps} steps; leave num_steps out")
        object.__setattr__(self, "num_steps", steps)

    def _refuse_choices_without_effect(self) -> None:
        """Refuses settings that the solver ignores: the results file would record them although they had no effect."""
        guiding = {"guide", "guidance", "guidance_min", "guidance_max"}
        for name in guiding - {"guide"} if self.guide is None else ():
            stated = getattr(self, name) != getattr(type(self), name)
            require(not stated, f"{name} has no effect without a guide; name one (the null label is 'null', in quotes)")
        known = self._fields_of_solvers().get(self.solver)
        if known is None:
            known = OF_ANY_SOLVER.union(registry.find("solver", self.solver).shared)
        apart = {*known, *guiding, "solver", "settings"}
        for field in dataclasses.fields(self):
            if field.name not in apart and getattr(self, field.name) != field.default:
                raise UserError(f"solver {self.solver} has no {field.name}; it takes {', '.join(sorted(known))}")

    @classmethod
    @functools.cache
    def _fields_of_solvers(cls) -> dict[str, set[str]]:
        """The fields that have an effect, by solver, of our own."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"tolerance", "settings"}
        choices, churn = {"predicts", "over", "corrector"}, {"S_churn", "S_min", "S_max", "S_noise"}
        return {
            **dict.fromkeys(SOLVERS, fields - choices - {"order"}),
            MULTISTEP: fields - {"alpha"},
            **dict.fromkeys(SHIPPED, fields - choices - churn - {"alpha", "order"}),
            "ipndm": fields - choices - churn - {"alpha"},
            ADAPTIVE: {"sigma_min", "sigma_max", "tolerance"},
            **{name: {"num_steps"} for name in ORIGINAL},
        }

    @property
    def claimed_order(self) -> int | None:
        """The order that a solver's authors state; of the multistep family p, or p + 1 with a corrector.

        None for adaptive and stochastic solvers, and for earlier samplers as their authors published them.
        """
        if self.S_churn > 0 or self.solver in (ADAPTIVE, *ORIGINAL):
            return None
        stated = {"euler": 1, "heun": 2, "dpmpp-2m": 2, "dpmpp-3m-shipped": 3}
        return stated.get(self.solver) or (self.order or 0) + bool(self.corrector)

    @property
    def most_guided(self) -> float:
        """The largest guided noise level."""
        return math.inf if self.guidance_max is None else self.guidance_max

    @property
    def guides(self) -> bool:
        """Whether a second network has an effect."""
        return self.guide is not None and self.guidance != 1

    @property
    def expected_nfe(self) -> int:
        """Evaluations of all networks per image; an estimate for an adaptive solver, the most for guided intervals."""
        if self.nfe is None:
            own = RK45_NFE if self.solver == ADAPTIVE else self._of_plugin * self.num_steps
            return own * (1 + self.guides)
        return self.nfe

    @property
    def _of_plugin(self) -> int:
        """Network evaluations per step that a plugin states for its solver."""
        found: int = registry.find("solver", self.solver).facts["evaluations"]
        return found

    @property
    def nfe(self) -> int | None:
        """Evaluations of all networks per image: those of :attr:`own_nfe`, twice if each level is guided.

        None for rk45, which counts its own, and for solvers of plugins, which the program counts. With an interval, the
        most that can be: images count their own.
        """
        return None if self.own_nfe is None else self.own_nfe * (1 + self.guides)

    @property
    def own_nfe(self) -> int | None:
        """Evaluations of the network itself, without those of a guide, per image.

        N for Euler and multistep; for second order 2N − 1, or 2N if it ends above 0. None for rk45 and plugins.
        """
        if self.solver == ADAPTIVE or not registry.is_own("solver", self.solver):
            return None
        if self.solver in ORIGINAL:
            return ORIGINAL[self.solver] * self.num_steps
        return self.num_steps if self.solver != "heun" else 2 * self.num_steps - (self.final == "zero")
