"""Network preconditioning, the middle block of Table 1: D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))."""

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from edm import registry
from edm.design.schedules import VP_BETA_D, VP_BETA_MIN, VP_EPSILON_T, VPSchedule
from edm.design.timesteps import IDDPM_C1, IDDPM_C2, IDDPM_STEPS, iddpm_levels, linear_levels
from edm.errors import UserError

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


class Preconditioning(nn.Module):
    """The four coefficients as functions of σ, and the noise levels that a model trained with them supports.

    ``sigma_min`` and ``sigma_max`` bound the supported levels; ``round_sigma`` maps a level to the nearest supported.
    Files store ``name`` and :meth:`arguments`; :func:`preconditioning_from` rebuilds the preconditioning from them.
    """

    name: str
    _range = (0.0, math.inf)

    def arguments(self) -> dict[str, float | int | None]:
        """Its constructor arguments, as values that JSON can hold."""
        raise TypeError("Preconditioning is a base class; use one that is registered")

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise), each shaped as the float32 tensor ``sigma``."""
        raise TypeError("Preconditioning is a base class; use one that is registered")

    @property
    def sigma_min(self) -> float:
        return self._range[0]

    @property
    def sigma_max(self) -> float:
        return self._range[1]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


@registry.register("preconditioning", "vp")
class VPPreconditioning(Preconditioning):
    """Song et al., variance preserving. The network sees the time σ⁻¹(σ), scaled to [0, M − 1]."""

    name = "vp"

    def __init__(self, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN, steps: int = IDDPM_STEPS,
                 epsilon_t: float = VP_EPSILON_T):  # fmt: skip
        super().__init__()
        self.schedule, self.steps, self.epsilon_t = VPSchedule(beta_d, beta_min), steps, epsilon_t
        self._range = self.schedule.sigma_at(epsilon_t), self.schedule.sigma_at(1.0)

    def arguments(self) -> dict[str, float | int | None]:
        return {"beta_d": self.schedule.beta_d, "beta_min": self.schedule.beta_min, "steps": self.steps,
                "epsilon_t": self.epsilon_t}  # fmt: skip

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.steps - 1) * self.schedule.inverse(sigma)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise


@registry.register("preconditioning", "ve")
class VEPreconditioning(Preconditioning):
    """Song et al., variance exploding."""

    name = "ve"

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        super().__init__()
        self._range = sigma_min, sigma_max

    def arguments(self) -> dict[str, float | int | None]:
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return one, sigma, one, (0.5 * sigma).log()


@registry.register("preconditioning", "iddpm")
class IDDPMPreconditioning(Preconditioning):
    """Nichol and Dhariwal: the network supports M noise levels u_j; c_noise numbers them, M − 1 for the noisiest.

    The buffer ``u`` [M + 1] is part of the model: published files contain it in float32.
    """

    name = "iddpm"
    u: Tensor

    def __init__(self, c1: float = IDDPM_C1, c2: float = IDDPM_C2, steps: int = IDDPM_STEPS):
        super().__init__()
        self.c1, self.c2, self.steps = c1, c2, steps
        self.register_buffer("u", iddpm_levels(steps, c1, c2).to(torch.float32))

    def arguments(self) -> dict[str, float | int | None]:
        return {"c1": self.c1, "c2": self.c2, "steps": self.steps}

    @property
    def sigma_min(self) -> float:
        return float(self.u[self.steps - 1])

    @property
    def sigma_max(self) -> float:
        return float(self.u[0])

    def index(self, sigma: Tensor) -> Tensor:
        """argmin_j |u_j − σ| over j < M, shaped as ``sigma``."""
        flat = sigma.to(self.u).reshape(-1, 1)
        return (flat - self.u[: self.steps]).abs().argmin(dim=1).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.u[self.index(sigma)].to(sigma)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.steps - 1 - self.index(sigma)).to(sigma.dtype)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise


@registry.register("preconditioning", "iddpm-linear")
class LinearIDDPMPreconditioning(IDDPMPreconditioning):
    """iDDPM's preconditioning over the levels of Ho et al. 2020, guided-diffusion's "linear" schedule.

    beta_first, beta_last: β of the least and the most noisy step for M = 1000; other M divide the same schedule.
    """

    name = "iddpm-linear"

    def __init__(self, beta_first: float = 1e-4, beta_last: float = 0.02, steps: int = IDDPM_STEPS):
        super().__init__(steps=steps)
        self.beta_first, self.beta_last = beta_first, beta_last
        scale = IDDPM_STEPS / steps
        self.u = linear_levels(steps, scale * beta_first, scale * beta_last).to(torch.float32)

    def arguments(self) -> dict[str, float | int | None]:
        return {"beta_first": self.beta_first, "beta_last": self.beta_last, "steps": self.steps}


@registry.register("preconditioning", "edm")
class EDMPreconditioning(Preconditioning):
    """The paper's design: unit variance of network input and training target, least error amplification (App. B.6)."""

    name = "edm"

    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.0, sigma_max: float | None = None):
        super().__init__()
        self.sigma_data = sigma_data
        self._range = sigma_min, math.inf if sigma_max is None else sigma_max

    def arguments(self) -> dict[str, float | int | None]:
        return {"sigma_data": self.sigma_data, "sigma_min": self.sigma_min,
                "sigma_max": None if self.sigma_max == math.inf else self.sigma_max}  # fmt: skip

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data * total.rsqrt()
        return c_skip, c_out, total.rsqrt(), 0.25 * sigma.log()


class PluginPreconditioning(Preconditioning):
    """The preconditioning of a plugin, for the noise levels that both it and the training support."""

    def __init__(self, part: registry.Part, settings: Mapping[str, Any], levels: tuple[float, float]) -> None:
        super().__init__()
        self.name, self._settings, self._part, self._own = part.name, dict(settings), part, part(**settings)
        low, high = getattr(self._own, "sigma_min", 0.0), getattr(self._own, "sigma_max", math.inf)
        self._range = max(float(low), levels[0]), min(float(high), levels[1])
        if not 0 <= self._range[0] < self._range[1]:
            raise UserError(f"{part.where}: noise levels from {low:g} to {high:g}, of which training has none")
        self.coefficients(torch.logspace(-2, 1, 4).reshape(-1, 1, 1, 1))

    def arguments(self) -> dict[str, float | int | None]:
        return self._settings

    def coefficients(self, sigma: Tensor) -> Coefficients:
        with registry.guarded(self._part):
            found = self._own.coefficients(sigma)
        whole = isinstance(found, (tuple, list)) and len(found) == 4
        if not whole or not all(isinstance(one, Tensor) and one.shape == sigma.shape for one in found):
            told = ", ".join(
                str(list(one.shape)) if isinstance(one, Tensor) else type(one).__name__
                for one in (found if isinstance(found, (tuple, list)) else [found])
            )
            raise UserError(
                f"{self._part.where}: coefficients gave {told}; expected c_skip, c_out, c_in, c_noise, each shaped "
                f"as sigma {list(sigma.shape)}"
            )
        c_skip, c_out, c_in, c_noise = found
        return c_skip, c_out, c_in, c_noise


_MOST_STEPS = 100_000


def preconditioning_from(name: str, arguments: Mapping[str, Any]) -> Preconditioning:
    """Builds the preconditioning with the given ``name`` and ``arguments``; missing arguments take their defaults.

    Raises UserError for an unknown name or argument, and for values that do not define noise levels.
    """
    kind = registry.find("preconditioning", name).make if registry.is_own("preconditioning", name) else None
    known = () if kind is None else signature(kind).parameters
    if kind is None or not all(argument in known for argument in arguments):
        raise UserError(f"preconditioning {str(name)[:40]!r} is unknown, or has an unknown argument")
    numbers = {key: value for key, value in arguments.items() if value is not None}
    whole = numbers.get("steps", 1)
    if any(type(value) not in (int, float) for value in numbers.values()) or type(whole) is not int:
        raise UserError(f"an argument of preconditioning {name!r} is not a number")
    if not 1 <= whole <= _MOST_STEPS:
        raise UserError(f"preconditioning {name!r} has steps outside of 1 to {_MOST_STEPS}")
    try:
        floats = {key: float(value) for key, value in numbers.items() if key != "steps"}
        made: Preconditioning = kind(**floats, **({"steps": whole} if "steps" in numbers else {}))
        unbounded = made.sigma_max == math.inf and kind is not EDMPreconditioning
        made_sense = (
            0 <= made.sigma_min < made.sigma_max and not unbounded and not any(map(math.isnan, floats.values()))
        )
    except (ArithmeticError, ValueError):
        made_sense = False
    if not made_sense:
        raise UserError(f"the arguments of preconditioning {name!r} give no noise levels")
    return made
