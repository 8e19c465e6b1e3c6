"""``edm.sample``: every solver as one function, with callables and lists where a setting has no name."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edm import registry
from edm.config import ADAPTIVE, NULL, ORIGINAL, SamplerConfig
from edm.design.schedules import Scaling
from edm.errors import UserError
from edm.models.denoiser import require_images
from edm.protocols import Schedule
from edm.sampling.drawing import draw_images
from edm.sampling.guidance import guided
from edm.sampling.sampler import Denoiser, Own

_OTHER = "another denoiser"  # stands for a guide that is given as an object
Levels = Callable[[int, float, float], Tensor | Sequence[float]]
Callback = Callable[[int, float, Tensor, Tensor], object]


def sample(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    solver: str = "heun",
    discretization: str | Levels | Sequence[float] | Tensor | None = None,
    schedule: str | Schedule = "linear",
    scaling: str | Scaling = "none",
    alpha: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    tolerance: float = 1e-4,
    predicts: str | None = None,
    over: str | None = None,
    order: int | None = None,
    corrector: bool | None = None,
    final: str = "zero",
    sigmas: Sequence[float] | Tensor | None = None,
    guide: Denoiser | str | None = None,
    guidance: float = 1.0,
    guidance_min: float = 0.0,
    guidance_max: float = math.inf,
    settings: Mapping[str, Any] | None = None,
    noise: Callable[[int, Tensor], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draws images by solving the probability-flow ODE of ``net``, with churn if S_churn > 0 (Algorithms 1, 2 and 3).

    net: denoiser D(x, σ, class_labels) for x of shape [B, C, H, W] and a scalar σ; its attributes ``sigma_min``,
        ``sigma_max`` (the supported range) and ``round_sigma(σ)`` (the nearest supported level) are used if present.
    latents: standard-normal draws, [B, C, H, W]; scaled here to the first noise level.
    class_labels: indices [B] or one-hot rows [B, classes]; passed on to ``net``.
    schedule: a name, or an object with ``sigma(t)``, ``sigma_dot(t)`` and ``inverse(sigma)`` on float64 tensors.
    scaling: a name, or a function of (schedule, t) that returns (s(t), ṡ(t)).
    discretization: a name, a function of (n, sigma_min, sigma_max) that returns n falling noise levels, or the levels
        themselves, as in ``sigmas``. sigmas: the levels, in place of ``num_steps`` and ``discretization``.
    settings: of registered parts (:func:`edm.register`), by their keys, such as {"solver.eta": 0.5}.
    guide: "null" (the network without its label), or a denoiser D_g like ``net``, such as an earlier snapshot. With it,
        D_w = D_g + ``guidance`` (D − D_g) replaces D at noise levels in (``guidance_min``, ``guidance_max``].
        guidance = 1 is no guidance, to the bit, and evaluates no guide.
    noise: ``noise(i, x)`` gives the standard-normal draw of step i, shaped as x; used if S_churn > 0, and by the
        stochastic samplers of Song et al. By default the draws come from torch's global generator.
    callback: ``callback(i, sigma, x, denoised)`` is called once in every step, after its first network evaluation, with
        the noise level (after churn), the unscaled x and D(x; σ), both float64 [B, C, H, W]. For "rk45", the samplers
        of ``ORIGINAL`` and those of plugins it is called after every evaluation, i counts these, x is as the network
        gets it, and σ is a tensor if images differ in it.
    The other arguments are the fields of :class:`SamplerConfig`, with its defaults; ``solver`` may also name a member
    of the multistep family, such as "unipc-3", with its steps unless ``discretization`` states others.

    Returns float64 images [B, C, H, W], about [−1, 1]. Raises UserError, a ValueError, for settings that are out of
    range, inconsistent or without effect, for latents, labels or results of another type or shape, and for images that
    are not finite.
    """
    if discretization is not None and not isinstance(discretization, str) and not callable(discretization):
        if sigmas is not None:
            raise UserError("discretization and sigmas both list the noise levels; leave one of them out")
        sigmas, discretization = discretization, None
    own = Own(
        schedule=None if isinstance(schedule, str) else _schedule(schedule),
        scaling=None if isinstance(scaling, str) else _scaling(scaling),
        discretization=_function("discretization", discretization) if callable(discretization) else None,
        callback=None if callback is None else _function("callback", callback),
    )
    stated: dict[str, Any] = {
        "num_steps": num_steps, "solver": solver, "alpha": alpha, "sigma_min": sigma_min, "sigma_max": sigma_max,
        "rho": rho, "S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise, "tolerance": tolerance,
        "final": final, "sigmas": None if sigmas is None else _levels(sigmas),
        "schedule": schedule if own.schedule is None else "linear",
        "scaling": scaling if own.scaling is None else "none",
    }  # fmt: skip
    choices = {"predicts": predicts, "over": over, "order": order, "corrector": corrector,
               "discretization": None if own.discretization else discretization}  # fmt: skip
    stated |= {name: value for name, value in choices.items() if value is not None}
    if guide is not None:  # an object is checked as a denoiser below
        stated["guide"] = guide if isinstance(guide, str) else _OTHER
    stated |= {"guidance": guidance, "guidance_min": guidance_min, "guidance_max": guidance_max}
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(
            f"settings is of type {type(settings).__name__}; expected a dictionary of settings by their keys"
        )
    config = SamplerConfig.from_dict({**stated, **(settings or {})})
    _require_effect(config, own)
    _require_latents(latents, net)
    whole = config.solver == ADAPTIVE or config.solver in ORIGINAL or not registry.is_own("solver", config.solver)
    if guide == NULL and class_labels is None and config.guides:
        raise UserError("guide null: class_labels is None, so there is no label to leave out; pass class_labels")
    other = None if guide is None or isinstance(guide, str) else _Checked(guide, None, "guide")
    checked: Denoiser = guided(_Checked(net, None), config, other)
    if whole and callback is not None:
        checked = _Checked(checked, callback)
    draws = _draws(noise) if noise is not None else lambda i, x: torch.randn_like(x)
    images, _ = draw_images(checked, latents, class_labels, config, draws, own)
    finite = images.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise UserError(f"sampling gave NaN or infinity in {len(bad)} of {len(images)} images, the first of them "
                        f"image {bad[0]}; check the model and its precision, or try more steps")  # fmt: skip
    return images


class _Checked:
    """A denoiser whose results are checked; tells ``callback`` of every evaluation."""

    def __init__(self, net: Denoiser, callback: Callback | None, name: str = "net") -> None:
        if not callable(net):
            raise UserError(f"{name} is of type {type(net).__name__}; expected a denoiser D(x, sigma, class_labels)")
        self._net, self._callback, self._calls, self._name = net, callback, 0, name

    def __call__(self, x: Tensor, sigma: Tensor, *rest: Tensor | None) -> Tensor:
        denoised = self._net(x, sigma, *rest)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape or denoised.is_complex():
            raise UserError(f"{self._name}: returned {_told(denoised)} for x {list(x.shape)}; expected D(x; sigma), "
                            "real and shaped as x")  # fmt: skip
        if self._callback is not None:
            level: Any = float(sigma) if sigma.numel() == 1 else sigma
            self._callback(self._calls, level, x.to(torch.float64), denoised.to(torch.float64))
            self._calls += 1
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)  # sigma_min, sigma_max, round_sigma, with_variance


def _function(name: str, found: Any) -> Any:
    if not callable(found):
        raise UserError(f"{name} is of type {type(found).__name__}; expected a name or a function")
    return found


def _require_latents(latents: Tensor, net: Denoiser) -> None:
    require_images("latents", latents)
    device = getattr(net, "device", latents.device)
    if latents.device != device:
        raise UserError(f"latents are on {latents.device}, the model on {device}; move one: latents.to(net.device)")
    if not bool(latents.isfinite().all()):
        raise UserError("latents: not all finite; expected standard-normal draws")


def _draws(noise: Any) -> Callable[[int, Tensor], Tensor]:
    """``noise`` with its results checked."""
    _function("noise", noise)

    def draw(i: int, x: Tensor) -> Tensor:
        drawn = noise(i, x)
        if not isinstance(drawn, Tensor) or drawn.shape != x.shape or drawn.is_complex():
            raise UserError(f"noise({i}, x) returned {_told(drawn)}; expected draws shaped as x, {list(x.shape)}")
        if not bool(drawn.isfinite().all()):
            raise UserError(f"noise({i}, x) returned NaN or infinity; expected standard-normal draws")
        return drawn

    return draw


def _schedule(found: Any) -> Any:
    """The schedule. Raises UserError unless its three functions agree with one another."""
    if isinstance(found, type):
        raise UserError(f"schedule is the class {found.__name__}; pass an object of it")
    missing = [name for name in ("sigma", "sigma_dot", "inverse") if not callable(getattr(found, name, None))]
    if missing:
        raise UserError(f"schedule: {type(found).__name__} has no function {', '.join(missing)}; see edm.sample")
    levels = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)

    def checked(name: str, given: Tensor) -> Tensor:
        got = getattr(found, name)(given)
        if not isinstance(got, Tensor) or got.shape != given.shape or not got.is_floating_point():
            raise UserError(f"schedule: {name} of float64 [3] gave {_told(got)}; expected float64 [3]")
        return got.to(torch.float64)

    times = checked("inverse", levels)
    again, _ = checked("sigma", times), checked("sigma_dot", times)
    if not torch.allclose(again, levels, rtol=1e-6):
        raise UserError(f"schedule: sigma(inverse(σ)) of {levels.tolist()} is {again.tolist()}; expected the same")
    return found


def _scaling(found: Any) -> Any:
    """The scaling with its results checked."""
    _function("scaling", found)

    def scaling(schedule: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        got = found(schedule, t)
        if not isinstance(got, tuple) or len(got) != 2 or any(not isinstance(one, Tensor) or one.shape != t.shape
                                                               for one in got):  # fmt: skip
            told = ", ".join(map(_told, got)) if isinstance(got, tuple) else _told(got)
            raise UserError(f"scaling(schedule, t) returned {told} for t {list(t.shape)}; expected (s(t), ṡ(t)) as t")
        s, s_dot = got
        return s, s_dot

    return scaling


def _told(found: object) -> str:
    """A wrong result in a message."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"


def _levels(found: Any) -> tuple[float, ...]:
    try:
        levels = torch.as_tensor(found, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError):
        levels = None
    if not isinstance(levels, list) or any(isinstance(level, list) for level in levels):
        raise UserError(f"sigmas: {found!r} is not a list of noise levels")
    return tuple(levels)


def _require_effect(config: SamplerConfig, own: Own) -> None:
    """Refuses callables that the solver would ignore."""
    stated = [name for name in ("schedule", "scaling", "discretization") if getattr(own, name) is not None]
    if stated and (config.solver == ADAPTIVE or config.solver in ORIGINAL):
        raise UserError(f"solver {config.solver} has no {stated[0]}; leave it out")
    if own.discretization is not None and config.sigmas is not None:
        raise UserError("discretization and sigmas both give the noise levels; leave one of them out")
