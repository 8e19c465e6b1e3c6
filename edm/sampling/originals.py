"""The samplers of Song et al., DDIM and iDDPM as their authors published them: the first rows of Tables 3 and 4.

All have the signature ``sampler(net, latents, class_labels=None, *, num_steps, noise=None) -> images``:

net: denoiser D(x, σ, class_labels) on the [−1, 1] scale, for x of shape [B, C, H, W] and a scalar σ.
latents: standard-normal draws, [B, C, H, W]; class_labels: passed on to ``net``.
num_steps: N, at least 2. noise: ``noise(k, x)`` gives the k-th standard-normal draw after the initial one, k ≥ 0,
shaped as x; by default the draws come from torch's global generator. Samplers request only draws that they use.

They return float64 images on the [−1, 1] scale and raise UserError for an unsupported number of steps or a model that
does not support their noise levels. Between steps x is float32, as in the originals; the coefficients, which depend
only on the step, are computed in float64.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from edm.design.schedules import VP_EPSILON_S, VPSchedule, vp_scaling
from edm.design.timesteps import IDDPM_STEPS, iddpm_levels
from edm.errors import UserError
from edm.sampling.sampler import Denoiser

Noise = Callable[[int, Tensor], Tensor]

# The VE model works on images in [0, 1], where noise is half as strong.
VE_SIGMA_MIN, VE_SIGMA_MAX = 0.01, 50.0
VE_EPSILON = 1e-5  # the last t
VE_SNR = 0.16  # r of Song et al., Algorithm 4


def vp_ode(net: Denoiser, latents: Tensor, class_labels: Tensor | None = None, *, num_steps: int,
           noise: Noise | None = None) -> Tensor:  # fmt: skip
    """Euler's method on the probability flow of the VP SDE: N evaluations, deterministic. Returns the last x."""
    return _vp(net, latents, class_labels, num_steps, None)


def vp_sde(net: Denoiser, latents: Tensor, class_labels: Tensor | None = None, *, num_steps: int,
           noise: Noise | None = None) -> Tensor:  # fmt: skip
    """Euler–Maruyama on the reverse VP SDE: N evaluations, draw k after step k < N − 1.

    Returns the mean of the last step, to which no noise is added.
    """
    return _vp(net, latents, class_labels, num_steps, noise or _global_noise)


@torch.inference_mode()
def _vp(net: Denoiser, latents: Tensor, class_labels: Tensor | None, num_steps: int, noise: Noise | None) -> Tensor:
    """dx = [−½β x − λ β ∇log p] dt + √β dw backwards in t: λ = 1, or λ = ½ without dw where ``noise`` is None.

    (Song et al., SDE paper: Eq. 6, 11 and 13.) t runs over linspace(1, ε_s, N), but every step is 1/N long, which is
    the distance between two t only for N = 1000: an oversight of the authors, kept here.
    """
    _require_steps(num_steps)
    t_steps = torch.linspace(1, VP_EPSILON_S, num_steps, dtype=torch.float64)
    schedule = VPSchedule()
    sigmas, scales = schedule.sigma(t_steps).tolist(), vp_scaling(schedule, t_steps)[0].tolist()
    betas = (schedule.beta_min + schedule.beta_d * t_steps).tolist()
    _require_range(net, sigmas)
    weight = 0.5 if noise is None else 1.0
    x = latents.to(torch.float32)
    for k, (sigma, s, beta) in enumerate(zip(sigmas, scales, betas, strict=True)):
        score = (s * _denoise(net, x / s, sigma, class_labels) - x) / (s * sigma) ** 2
        x = x + (0.5 * beta * x + weight * beta * score) / num_steps
        if noise is not None and k < num_steps - 1:
            x = x + math.sqrt(beta / num_steps) * noise(k, x).to(x)
    return x.to(torch.float64)


def ve_ode(net: Denoiser, latents: Tensor, class_labels: Tensor | None = None, *, num_steps: int,
           noise: Noise | None = None) -> Tensor:  # fmt: skip
    """The reverse-diffusion predictor with half the score term and no noise: N evaluations, deterministic."""
    return _ve(net, latents, class_labels, num_steps, None)


def ve_pc(net: Denoiser, latents: Tensor, class_labels: Tensor | None = None, *, num_steps: int,
          noise: Noise | None = None) -> Tensor:  # fmt: skip
    """Predictor–corrector: 2N evaluations, draw 2k in the corrector and 2k + 1 in the predictor of step k.

    Returns the mean of the last predictor step, to which no noise is added. The corrector's step size comes from norms
    averaged over the batch, so an image DEPENDS ON ITS BATCH: fix the blocks of seeds, and report them with the result.
    """
    return _ve(net, latents, class_labels, num_steps, noise or _global_noise)


@torch.inference_mode()
def _ve(net: Denoiser, latents: Tensor, class_labels: Tensor | None, num_steps: int, noise: Noise | None) -> Tensor:
    """Song et al., Algorithms 2 and 4 over σ_k = σ_min (σ_max/σ_min)^{k/(N−1)}, from k = N − 1 down to 0.

    x is on the [0, 1] scale: x₀₁ = (x + 1)/2, σ₀₁ = σ/2. The score is evaluated at σ(t) = σ_min (σ_max/σ_min)^t over
    t = linspace(1, 1e−5, N), which differs a little from σ_k.
    """
    _require_steps(num_steps)
    t_steps = torch.linspace(1, VE_EPSILON, num_steps, dtype=torch.float64)
    ratio = VE_SIGMA_MAX / VE_SIGMA_MIN
    score_sigmas = (VE_SIGMA_MIN * ratio**t_steps).tolist()
    sigmas = (VE_SIGMA_MIN * ratio ** torch.linspace(1, 0, num_steps, dtype=torch.float64)).tolist()
    _require_range(net, [2 * sigma for sigma in score_sigmas])

    def score(x: Tensor, sigma: float) -> Tensor:
        denoised = (_denoise(net, 2 * x - 1, 2 * sigma, class_labels) + 1) / 2
        return (denoised - x) / sigma**2

    x = latents.to(torch.float32) * VE_SIGMA_MAX
    for k, (sigma, sigma_next) in enumerate(pairwise([*sigmas, 0.0])):
        variance = sigma**2 - sigma_next**2
        if noise is None:
            x = x + 0.5 * variance * score(x, score_sigmas[k])
            continue
        # Corrector: one Langevin step of size ε = 2 (r ‖z‖/‖g‖)².
        g, z = score(x, score_sigmas[k]), noise(2 * k, x).to(x)
        epsilon = 2 * (VE_SNR * _mean_norm(z) / _mean_norm(g)) ** 2
        x = x + epsilon * g + (2 * epsilon).sqrt() * z
        # Predictor: reverse diffusion to the next level.
        x = x + variance * score(x, score_sigmas[k])
        if k < num_steps - 1:
            x = x + math.sqrt(variance) * noise(2 * k + 1, x).to(x)
    return 2 * x.to(torch.float64) - 1


@torch.inference_mode()
def ddim(net: Denoiser, latents: Tensor, class_labels: Tensor | None = None, *, num_steps: int,
         noise: Noise | None = None, clip_denoised: bool = True) -> Tensor:  # fmt: skip
    """DDIM with η = 0 (Song, Meng and Ermon, Eq. 12): N evaluations, deterministic.

    Steps are every q-th of the 1000 from the least noisy, for the smallest integer q that gives N of them; UserError
    if no q does. clip_denoised: D is clipped to [−1, 1], as in the original scripts.
    """
    sigmas = _iddpm_sigmas(net, _strided(num_steps))
    x = latents.to(torch.float32)
    for sigma, sigma_next in pairwise([*sigmas, 0.0]):
        a, a_next = _alpha_bar(sigma), _alpha_bar(sigma_next)
        x0 = _clipped(_denoise(net, x / math.sqrt(a), sigma, class_labels), clip_denoised)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * eps
    return x.to(torch.float64)


@torch.inference_mode()
def iddpm(net: Denoiser, latents: Tensor, class_labels: Tensor | None = None, *, num_steps: int,
          noise: Noise | None = None, clip_denoised: bool = True,
          variance: Callable[..., Tensor] | None = None) -> Tensor:  # fmt: skip
    """Ancestral sampling of iDDPM with learned variance: N evaluations, draw k after step k < N − 1.

    Steps are number round(999 i/(N − 1)) of the 1000. clip_denoised: as in :func:`ddim`.
    The variance is the model's second output, v in [−1, 1]: −1 for the variance of the posterior and 1 for β. A model
    whose ``learned_variance`` is true gives it with D, (D, v), from one evaluation: ``net.with_variance(x, sigma,
    class_labels)``.
    variance: ``variance(x, sigma, class_labels)`` → v, shaped as x or broadcastable to it, for any other model.
        Defaults to ``net.variance``; UserError without either. It is called right after ``net`` with the same x,
        except in the last step.
    """
    variance = variance or getattr(net, "variance", None)
    together: Callable[..., tuple[Tensor, Tensor]] | None = None
    if variance is None and getattr(net, "learned_variance", False):
        together = getattr(net, "with_variance", None)
    if variance is None and together is None:
        raise UserError("iddpm: the model has no learned variance; choose another sampler or give variance=")
    noise = noise or _global_noise
    sigmas = _iddpm_sigmas(net, _spread(num_steps))
    x = latents.to(torch.float32)
    for k, (sigma, sigma_next) in enumerate(pairwise([*sigmas, 0.0])):
        a, a_next = _alpha_bar(sigma), _alpha_bar(sigma_next)
        alpha = a / a_next
        beta, unscaled = 1 - alpha, x / math.sqrt(a)
        if together is not None:
            denoised, v = together(unscaled, _scalar(sigma, x), class_labels)
        else:
            denoised = _denoise(net, unscaled, sigma, class_labels)
        x0 = _clipped(denoised.to(torch.float32), clip_denoised)
        # Ho et al., Eq. 7: the posterior of the next x given x0 and x.
        mean = (math.sqrt(a_next) * beta * x0 + math.sqrt(alpha) * (1 - a_next) * x) / (1 - a)
        if k == num_steps - 1:
            break
        # Nichol and Dhariwal, Eq. 15: log Σ = w log β + (1 − w) log β̃.
        beta_tilde = beta * (1 - a_next) / (1 - a)
        if variance is not None:
            v = variance(unscaled, _scalar(sigma, x), class_labels)
        w = (v.to(x) + 1) / 2
        log_variance = w * math.log(beta) + (1 - w) * math.log(beta_tilde)
        x = mean + (0.5 * log_variance).exp() * noise(k, x).to(x)
    return mean.to(torch.float64)


#: By name; :data:`edm.config.ORIGINAL` holds their network evaluations per step.
ORIGINAL_SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "vp-ode": vp_ode,
    "vp-sde": vp_sde,
    "ve-ode": ve_ode,
    "ve-pc": ve_pc,
    "ddim": ddim,
    "iddpm": iddpm,
}


def _denoise(net: Denoiser, x: Tensor, sigma: float, class_labels: Tensor | None) -> Tensor:
    return net(x, _scalar(sigma, x), class_labels).to(torch.float32)


def _scalar(sigma: float, x: Tensor) -> Tensor:
    return x.new_full((), sigma, dtype=torch.float64)  # a copy from the host would wait for the GPU


def _global_noise(k: int, x: Tensor) -> Tensor:
    return torch.randn_like(x)


def _mean_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of an image, averaged over the batch."""
    mean: Tensor = x.flatten(1).norm(dim=1).mean()
    return mean


def _clipped(denoised: Tensor, clip: bool) -> Tensor:
    return denoised.clamp(-1, 1) if clip else denoised


def _alpha_bar(sigma: float) -> float:
    """ᾱ = 1/(1 + σ²), so that √ᾱ is the scaling and √(1 − ᾱ) = √ᾱ σ the noise of x."""
    return 1 / (1 + sigma**2)


def _strided(num_steps: int) -> list[int]:
    """Steps 0, q, 2q, … of the M = 1000, from the least noisy."""
    _require_steps(num_steps, IDDPM_STEPS)
    for q in range(1, IDDPM_STEPS):
        if len(range(0, IDDPM_STEPS, q)) == num_steps:
            return list(range(0, IDDPM_STEPS, q))
    raise UserError(f"num_steps is {num_steps}; ddim needs a count that an integer stride gives, such as 50 or 250")


def _spread(num_steps: int) -> list[int]:
    """Steps round(i (M − 1)/(N − 1)) of the M = 1000, from the least noisy."""
    _require_steps(num_steps, IDDPM_STEPS)
    return [round(i * (IDDPM_STEPS - 1) / (num_steps - 1)) for i in range(num_steps)]


def _iddpm_sigmas(net: Denoiser, steps: list[int]) -> list[float]:
    """Noise levels of ``steps`` (0 is the least noisy), from the noisiest."""
    u = iddpm_levels().tolist()
    sigmas = [u[IDDPM_STEPS - 1 - step] for step in reversed(steps)]
    _require_range(net, sigmas)
    return sigmas


def _require_steps(num_steps: int, most: float = math.inf) -> None:
    if not 2 <= num_steps <= most:
        limit = "at least 2 steps" if most == math.inf else f"2 to {most:g} steps"
        raise UserError(f"num_steps is {num_steps}; this original sampler takes {limit}")


def _require_range(net: Denoiser, sigmas: list[float]) -> None:
    """Raises UserError if the model does not support the fixed noise levels of an original sampler."""
    low, high = getattr(net, "sigma_min", 0.0), getattr(net, "sigma_max", math.inf)
    slack = 1e-5  # a model may hold its levels in float32
    if min(sigmas) < low * (1 - slack) or max(sigmas) > high * (1 + slack):
        raise UserError(
            f"this original sampler needs noise levels from {min(sigmas):.4g} to {max(sigmas):.4g}; "
            f"the model supports {low:.4g} to {high:.4g}: choose the sampler that its authors published"
        )
