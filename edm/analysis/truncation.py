"""Local truncation error of Euler and Heun steps vs. the noise level (Figure 13a, b; Appendix D.1)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from edm.config import SamplerConfig
from edm.design import draws as noise
from edm.design.timesteps import edm_levels
from edm.errors import UserError
from edm.sampling.sampler import Denoiser, supported_range
from edm.sampling.steps import euler_step, heun_step

#: Exponents of Eq. 5; ρ = 1 gives steps of uniform width.
RHOS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)


@torch.no_grad()
def truncation_errors(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    num_steps: int = 64,
    rhos: Sequence[float] = RHOS,
    substeps: int = 200,
    samples: int = 200,
    block: int = 50,
    classes: int = 0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    first_seed: int = 0,
) -> dict[str, Any]:
    """The error of one step from σ_i to σ_{i+1}, for every i and ρ, with Euler's and with Heun's method.

    Every step starts on the true trajectory of the seed's latent: ``substeps`` Euler steps of equal width from σ_i to
    σ_{i+1} give the true result, from which the next step starts. The error of an image is the root mean square, over
    its pixels and channels, of (one step − true result); the function returns its mean and standard deviation over
    ``samples`` images. It omits the step from σ_min to 0, whose sub-steps would evaluate the model at noise levels
    outside of its training.

    denoiser: D(x; σ, class_labels), whose ``sigma_min``, ``sigma_max`` clamp the range, by default [0.002, 80].
    shape: (C, H, W); block: images per batch, limits memory; classes: of a conditional model, drawn per seed.

    Returns JSON values: ``num_steps``, ``substeps``, ``samples``, ``first_seed``, ``sigma_min``, ``sigma_max`` and
    ``curves``, one per ρ: {"rho", "sigma": [σ_0 … σ_{N−2}], "euler": {"mean", "std"}, "heun": {"mean", "std"}}.
    Costs num_steps × (substeps + 3) × len(rhos) evaluations per image. Raises UserError if a number is too small.
    """
    least = {"num_steps": (num_steps, 2), "substeps": (substeps, 1), "samples": (samples, 2), "block": (block, 1)}
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UserError(f"{name} is {value}; truncation errors need at least {minimum}")
    low, high = supported_range(denoiser, SamplerConfig(num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max))
    device = getattr(denoiser, "device", torch.device("cpu"))
    curves = []
    for rho in rhos:
        levels = edm_levels(num_steps, low, high, rho)
        parts = []
        for start in range(0, samples, block):
            seeds = torch.arange(start, min(start + block, samples), device=device) + first_seed
            labels = noise.class_labels(seeds, classes) if classes else None
            parts.append(_errors(denoiser, high * noise.latents(seeds, shape), labels, levels, substeps))
        euler, heun = torch.cat(parts, dim=2).cpu()
        curves.append(
            {"rho": float(rho), "sigma": levels[:-1].tolist(), "euler": _summary(euler), "heun": _summary(heun)}
        )
    return {
        "num_steps": num_steps, "substeps": substeps, "samples": samples, "first_seed": first_seed,
        "sigma_min": low, "sigma_max": high, "curves": curves,
    }  # fmt: skip


def true_step(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, class_labels: Tensor | None, substeps: int
) -> Tensor:
    """x carried from σ to σ_next by ``substeps`` Euler steps of equal width."""
    fine = sigma + (sigma_next - sigma) * torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    for one, following in pairwise(fine):
        x = euler_step(denoiser, x, one, following, class_labels)
    return x


def _errors(denoiser: Denoiser, x: Tensor, class_labels: Tensor | None, levels: Tensor, substeps: int) -> Tensor:
    """Error per method (Euler, Heun), step and image, float64 [2, N − 1, B]."""
    rows = []
    for sigma, sigma_next in pairwise(levels):
        steps = [step(denoiser, x, sigma, sigma_next, class_labels) for step in (euler_step, heun_step)]
        x = true_step(denoiser, x, sigma, sigma_next, class_labels, substeps)
        rows.append(torch.stack([((step - x) ** 2).flatten(1).mean(dim=1).sqrt() for step in steps]))
    return torch.stack(rows, dim=1)


def _summary(errors: Tensor) -> dict[str, list[float]]:
    return {"mean": errors.mean(dim=1).tolist(), "std": errors.std(dim=1).tolist()}
