"""Network preconditioning, the middle block of Table 1: D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))."""

import math

import torch
from torch import Tensor, nn

from edm.schedules import VP as VPSchedule
from edm.schedules import VP_BETA_D, VP_BETA_MIN, VP_EPSILON_T
from edm.timesteps import IDDPM_C1, IDDPM_C2, IDDPM_STEPS, iddpm_levels

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


class Preconditioning(nn.Module):
    """The four coefficients as functions of σ, and the noise levels that a model trained with them supports.

    ``sigma_min`` and ``sigma_max`` bound the supported levels; ``round_sigma`` maps a level to the nearest supported.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise), each shaped as the float32 tensor ``sigma``."""
        raise TypeError("Preconditioning is a base class; use VP, VE, IDDPM or EDM")

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


class VP(Preconditioning):
    """Song et al., variance preserving. The network sees the time σ⁻¹(σ), scaled to [0, M − 1]."""

    def __init__(self, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN, steps: int = IDDPM_STEPS,
                 epsilon_t: float = VP_EPSILON_T):  # fmt: skip
        super().__init__()
        self.schedule, self.steps = VPSchedule(beta_d, beta_min), steps
        self.sigma_min = self.schedule.sigma_at(epsilon_t)
        self.sigma_max = self.schedule.sigma_at(1.0)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.steps - 1) * self.schedule.inverse(sigma)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise


class VE(Preconditioning):
    """Song et al., variance exploding."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        super().__init__()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return one, sigma, one, (0.5 * sigma).log()


class IDDPM(Preconditioning):
    """Nichol and Dhariwal: the network knows M noise levels u_j, and c_noise counts them from the noisiest, M − 1.

    The buffer ``u`` [M + 1] belongs to the model: a published file carries its own in float32.
    """

    u: Tensor

    def __init__(self, c1: float = IDDPM_C1, c2: float = IDDPM_C2, steps: int = IDDPM_STEPS):
        super().__init__()
        self.steps = steps
        self.register_buffer("u", iddpm_levels(steps, c1, c2).to(torch.float32))

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


class EDM(Preconditioning):
    """The paper's: unit variance at the network's input and training target, errors amplified least (App. B.6)."""

    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.0, sigma_max: float | None = None):
        super().__init__()
        self.sigma_data, self.sigma_min = sigma_data, sigma_min
        self.sigma_max = math.inf if sigma_max is None else sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data * total.rsqrt()
        return c_skip, c_out, total.rsqrt(), 0.25 * sigma.log()


PRECONDITIONINGS = {"vp": VP, "ve": VE, "iddpm": IDDPM, "edm": EDM}
