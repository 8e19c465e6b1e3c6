"""What a part of each kind gets and gives: one protocol per kind of :mod:`edm.registry`. Does not import torch.

A part is a function with the parameters of its protocol, or a class, or a function, that makes an object with the
protocol's methods from what the docstring says that it is made of. Every further parameter, with a default value, is a
setting. B images have the shape [B, C, H, W].
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy import ndarray
    from torch import Tensor, nn


class Schedule(Protocol):
    """σ(t) of Table 1, its derivative and its inverse; float64 tensors of any shape, σ > 0, in any unit of t.

    Made of (sigma_min, sigma_max): the levels of a sampler run from sigma_max down to sigma_min.
    """

    def sigma(self, t: "Tensor") -> "Tensor": ...
    def sigma_dot(self, t: "Tensor") -> "Tensor": ...
    def inverse(self, sigma: "Tensor") -> "Tensor": ...


class Scaling(Protocol):
    """(s(t), ṡ(t)) of Table 1: float64, shaped as t, s > 0 and s(0) = 1; ``schedule`` has the methods of Schedule."""

    def __call__(self, schedule: Any, t: "Tensor") -> "tuple[Tensor, Tensor]": ...


class Discretization(Protocol):
    """The time steps of Table 1: ``number`` ≥ 1 falling noise levels between sigma_max and sigma_min, all above 0.

    Returns a list of floats or a float64 tensor [number], without the final 0. ``sigma_range=(low, high)`` in
    ``register`` gives the default sigma_min and sigma_max, (0.002, 80) if it is left out.
    """

    def __call__(self, number: int, sigma_min: float, sigma_max: float) -> "Sequence[float] | Tensor": ...


class Solver(Protocol):
    """Solves dx/dσ = (x − D(x; σ))/σ from the first of ``sigmas`` to the last one.

    ``denoise(x, sigma)`` gives D(x; σ), float64 [B, C, H, W], for a float64 x and one level: one network evaluation,
    which the program counts. latents: standard-normal draws, float64 [B, C, H, W], to be multiplied by the first level.
    sigmas: N + 1 falling floats for N steps, of which the last is 0 for ``final: zero``. ``noise(i, x)`` gives the
    standard-normal draw of step i, shaped as x, from the seed of each image. Returns finite images, shaped as latents.
    A setting with the name of a field of SamplerConfig, such as S_churn, is that field.

    ``evaluations`` in ``register``: network evaluations per step, for ``edm plan``; 1 if it is left out.
    ``levels=False``: the solver chooses noise levels of its own, so ``sigmas`` is empty.
    """

    def __call__(
        self, denoise: "Callable[[Tensor, float], Tensor]", latents: "Tensor", sigmas: list[float],
        noise: "Callable[[int, Tensor], Tensor]",
    ) -> "Tensor": ...  # fmt: skip


class Preconditioning(Protocol):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise), the middle block of Table 1. Made of nothing but settings.

    ``coefficients(sigma)`` gives (c_skip, c_out, c_in, c_noise), each float32 and shaped as the float32 tensor
    ``sigma`` [B, 1, 1, 1] > 0. Attributes ``sigma_min`` and ``sigma_max``, if it has them, bound the noise levels.
    A setting named sigma_data, P_mean or P_std is the field of TrainingConfig.
    """

    def coefficients(self, sigma: "Tensor") -> "tuple[Tensor, Tensor, Tensor, Tensor]": ...


class Loss(Protocol):
    """Training noise and loss weight, the last block of Table 1. Made of nothing but settings.

    All methods map float tensors elementwise.
    ``sigma(u)``: the noise level > 0 at quantile u in (0, 1), not falling in u. ``density(sigma)``: of ln σ, ≥ 0.
    ``weight(sigma)``: λ(σ) > 0. Attribute ``sigma_range``, if it has one: the least and the largest σ of training.
    A setting named sigma_data, P_mean or P_std is the field of TrainingConfig.
    """

    def sigma(self, u: "Tensor") -> "Tensor": ...
    def density(self, sigma: "Tensor") -> "Tensor": ...
    def weight(self, sigma: "Tensor") -> "Tensor": ...


class Architecture(Protocol):
    """The raw network F: a torch.nn.Module with float32 parameters.

    Made of (resolution, channels, classes, augment_dim): the side and the channels of the images, and the widths of the
    two label vectors, 0 for none; torch's global generator gives its initial weights.
    ``forward`` gets x: float32 [B, C, H, W]; c_noise: [B]; class_labels: one-hot rows [B, classes], zeros without a
    class; augment_labels: [B, augment_dim], zeros for images that are not augmented. Labels of width 0 are None. It
    returns a tensor shaped as x.
    A setting with the name of a size in TrainingConfig (model_channels, channel_mult, num_blocks, attn_resolutions,
    dropout) is that field.
    """

    def forward(
        self, x: "Tensor", c_noise: "Tensor", class_labels: "Tensor | None", augment_labels: "Tensor | None"
    ) -> "Tensor": ...


class Augmentation(Protocol):
    """Transforms of training images, drawn from one seed each, so that a resumed run draws the same.

    images: float32 [B, C, H, W] in [−1, 1]; seeds: int64 [B]; probability: ``augment`` of the configuration, in (0, 1].
    Returns images shaped as the input, and the vectors that condition the network, float32 [B, width], zeros for an
    unchanged image; None without. ``width`` in ``register``: of these vectors, 0 if it is left out.
    :mod:`edm.design.draws` draws from seeds.
    """

    def __call__(
        self, images: "Tensor", seeds: "Tensor", probability: float
    ) -> "tuple[Tensor, Tensor | None]": ...  # fmt: skip


class Optimizer(Protocol):
    """A torch.optim.Optimizer of ``parameters``, a list of float32 parameters whose gradients stay allocated.

    The learning rate schedule sets ``lr`` of its groups before every step. Its state per parameter is tensors and
    numbers, from which an interrupted run resumes.
    """

    def __call__(self, parameters: "list[nn.Parameter]") -> "torch.optim.Optimizer": ...


class LrSchedule(Protocol):
    """The learning rate of a step, a finite number ≥ 0.

    learning_rate: of the configuration; seen: images before this step; total: of the whole run. A setting named
    lr_rampup, in millions of images, is the field of TrainingConfig.
    """

    def __call__(self, learning_rate: float, seen: int, total: int) -> float: ...


class Source(Protocol):
    """The images of a dataset, all in memory.

    path: ``path`` of the dataset in params.yaml, a Path, a list of them, or None. Returns (images, labels): a uint8
    array [n, C, H, W] of square images with 1 or 3 channels, and n class indices from 0, or None. Equal input gives
    equal images in equal order. ``resolution``, ``channels`` and ``classes`` are then checked or applied.
    """

    def __call__(self, path: "Path | Sequence[Path] | None") -> "tuple[ndarray[Any, Any], Sequence[int] | None]": ...


class Features(Protocol):
    """A feature extractor, for Fréchet distances and metrics: a torch.nn.Module, called without gradients.

    Made of (weights,): the path of the file under ``feature_weights``, or None. It takes no settings: register a name
    for each variant. ``forward`` gets images, uint8 [N, C, H, W], and returns features, finite floats [N, F].
    ``meaning`` in ``register``: a line for captions and notes.
    """

    def forward(self, images: "Tensor") -> "Tensor": ...


class Metric(Protocol):
    """A number from the features of two sets of images: float32 [N, F] of the model's, [M, F] of the dataset's.

    Returns a finite number. ``higher`` in ``register``: whether more is better, True if it is left out; ``fewest``: the
    least N and M, 2 if it is left out; ``meaning``: a line for the notes of tables.
    """

    def __call__(self, features: "Tensor", reference: "Tensor") -> float: ...


class Study(Protocol):
    """Numbers that a trained model gives, and images to show.

    denoiser: the model, as :class:`edm.Denoiser`, which :func:`edm.sample` takes. dataset: the training images, as
    :class:`edm.Dataset`, with ``dataset=True`` in ``register``; else None. features: the extractor of the experiment, a
    function from uint8 images [N, C, H, W] to features float32 [N, F], with ``features=True``; else None.
    Returns (images, numbers), both by name: uint8 tensors [n, C, H, W], or none; and finite numbers, which a table of
    the kind "study" shows, or lists of them, of which a figure of that kind draws one vs. another.
    """

    def __call__(
        self, denoiser: Any, dataset: Any, features: Any
    ) -> "tuple[dict[str, Tensor], dict[str, float | Sequence[float]]]": ...
