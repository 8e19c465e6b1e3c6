"""Wraps models with discrete time steps: any callable that predicts ε, v or x₀ becomes a denoiser D(x; σ).

The input of such a model is x_t = √ᾱ_t y + √(1 − ᾱ_t) n and the number t of the step. With σ_t = √((1 − ᾱ_t)/ᾱ_t) that
is x/√(1 + σ²) for x = y + σ n: column "iDDPM + DDIM" of Table 1, and VP's scaling s(t) of Eq. 26.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # diffusers' words; "sample" is x₀


class DiscreteDenoiser:
    """``net(x, sigma, class_labels=None)`` → D(x; σ), of the shape and type of x, for all samplers of :mod:`edm`.

    model: ``model(x_t, t)``, or ``model(x_t, t, class_labels)`` if labels are given, for x_t [B, C, H, W] and integers
        t [B]. It returns a tensor, an object with a tensor ``sample`` (diffusers), or a tuple that begins with a
        tensor. Channels beyond those of x, such as a learned variance, are ignored.
    alphas_cumprod: ᾱ_t of every step, decreasing, in [0, 1); steps with ᾱ = 0 have no finite σ and are omitted.
    prediction: "epsilon", "v_prediction" (Salimans and Ho 2022) or "sample" (x₀), as diffusers' schedulers call it.
    dtype: of the model's input. The attribute ``device`` is the model's device, or the CPU if it has no such attribute.

    ``sigma_min``, ``sigma_max`` and ``round_sigma`` give its levels to the samplers. A σ between two levels is passed
    to the model as the step number of the nearest level. Raises UserError for invalid levels or an unknown prediction.
    """

    def __init__(self, model: Callable[..., Any], alphas_cumprod: Sequence[float] | Tensor,
                 prediction: str = "epsilon", dtype: torch.dtype = torch.float32):  # fmt: skip
        if prediction not in PREDICTIONS:
            raise UserError(f"prediction {prediction!r} is unknown; choose one of {', '.join(PREDICTIONS)}")
        alphas = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64).flatten()
        if len(alphas) == 0 or not ((alphas >= 0) & (alphas < 1)).all() or not (alphas.diff() < 0).all():
            raise UserError("alphas_cumprod must fall from step to step within [0, 1)")
        if not (alphas > 0).any():
            raise UserError("alphas_cumprod holds no step with a finite noise level")
        self.model, self.prediction, self.dtype = model, prediction, dtype
        self.device = torch.device(getattr(model, "device", "cpu"))
        alphas = alphas[alphas > 0]
        self.levels = ((1 - alphas) / alphas).sqrt()  # σ_t, rising with t; float64
        self.sigma_min, self.sigma_max = float(self.levels[0]), float(self.levels[-1])

    def step(self, sigma: Tensor) -> Tensor:
        """The number t of the level nearest to σ, of the shape of ``sigma``."""
        return (sigma.reshape(-1, 1) - self.levels.to(sigma)).abs().argmin(dim=1).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level, of the shape and type of ``sigma``."""
        return self.levels.to(sigma)[self.step(sigma)]

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float64).flatten()
        t = self.step(sigma).expand(len(x))
        labels = () if class_labels is None else (class_labels,)
        sigma = sigma.reshape(-1, 1, 1, 1).to(x)
        s = (1 + sigma**2).rsqrt()
        out = self.model((s * x).to(self.dtype), t, *labels)
        out = out if isinstance(out, Tensor) else out[0] if isinstance(out, tuple) else out.sample
        out = out[:, : x.shape[1]].to(x)
        if self.prediction == "epsilon":
            return x - sigma * out
        if self.prediction == "v_prediction":  # v = √ᾱ ε − √(1 − ᾱ) x₀, so that x₀ = √ᾱ x_t − √(1 − ᾱ) v
            return s**2 * x - s * sigma * out
        return out
