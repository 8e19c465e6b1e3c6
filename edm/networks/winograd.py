"""3×3 convolutions on CPUs with a quarter of the multiplications.

Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", section
4). It transforms tiles of 6×6 pixels and the filter, multiplies them elementwise, and transforms the products back to
4×4 results, with 36 multiplications instead of 144:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A.

Summed over the input channels, the elementwise products become 36 matrix products. winograd.c, which
:mod:`edm.networks.native` compiles, transforms tiles, multiplies them and transforms the products back while they are
in a core's cache. In float32 the rounding errors are a few times those of a direct convolution
(tests/networks/test_winograd.py).
"""

import ctypes
import threading
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.compiler import is_compiling as compiling
from torch.utils.weak import WeakTensorKeyDictionary

from edm.networks import native

SOURCE = Path(__file__).with_suffix(".c")
#: Side of a tile's output and of its input, in pixels.
RESULTS, INPUTS = 4, 6
#: Minimum input channels for which the products save more than the transforms cost, and tiles in a batch for which
#: those of a large filter do. Small filters are used for any number of tiles, so that the number decides less.
LEAST_CHANNELS, LEAST_TILES = 16, 16
#: Bytes of the smallest and the largest transformed filter that is kept: transforming smaller ones again costs little,
#: and larger ones are those of a third of ADM's layers.
LEAST_KEPT, LARGEST_KEPT = 2**20, 48 * 2**20
#: Bytes of all filters that a process keeps, besides a quarter as much for the weights; others are made again, with
#: equal results.
MOST_KEPT = 2**31
#: As in winograd.c: the most pixels of an image's width times its rows of tiles in one unit. Channels of a group whose
#: mean a vector holds, in any of its lengths.
UNIT, GROUPS = 64, (1, 2, 4, 8)
#: Bytes of transformed tiles per core, little enough for its cache, and of all cores together for a weight's gradient.
OWN_TILES, SHARED_TILES = 768 * 2**10, 4 * 2**20


_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_ssize_t


class _Shape(ctypes.Structure):
    """Of images, as winograd.c has it; last: whether channels are last in memory."""

    _fields_ = [(name, _SIZE) for name in ("images", "height", "width", "channels", "last")]


class _Steps(ctypes.Structure):
    """Of a weight [C_out, C, 3, 3] in memory."""

    _fields_ = [(name, _SIZE) for name in ("outputs", "inputs", "rows", "columns")]


class _Norm(ctypes.Structure):
    """Group normalisation and SiLU before a convolution; none with size 0."""

    _fields_ = [("size", _SIZE), ("weight", _POINTER), ("bias", _POINTER), ("step", _SIZE), ("offset", _POINTER),
                ("eps", ctypes.c_float)]  # fmt: skip


class _Join(ctypes.Structure):
    """Images that are added to the result, and the factor of the sum."""

    _fields_ = [("images", _POINTER), ("factor", ctypes.c_float)]


#: The arguments of the functions of winograd.c.
SIGNATURES = {
    "filters_size": (_SIZE, _SIZE),
    "convolve_size": (_Shape, _SIZE, _SIZE, _SIZE),
    "weight_gradient_size": (_Shape, _SIZE, _SIZE, _SIZE),
    "transform_filters": (_POINTER, _POINTER, _Steps, _SIZE, _SIZE, _SIZE),
    "convolve": (_POINTER, _POINTER, _Shape, _Norm, _POINTER, _POINTER, _Join, _SIZE, _POINTER, _SIZE, _SIZE),
    "weight_gradient": (_POINTER, _Steps, _POINTER, _Shape, _POINTER, _SIZE, _POINTER, _SIZE, _SIZE),
}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether this machine can compile winograd.c, or has."""
    return native.library(SOURCE) is not None


@cache
def _functions() -> ctypes.CDLL:
    library = native.library(SOURCE)
    if library is None:
        raise RuntimeError("winograd.c is not compiled on this machine; use torch.nn.functional.conv2d")
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes, getattr(library, name).restype = arguments, _SIZE
    return library


@cache
def _size(name: str, *arguments: int) -> int:
    """What a function ``…_size`` says; five of its arguments describe images."""
    shape = () if len(arguments) == 2 else (_Shape(*arguments[:5]),)
    return int(getattr(_functions(), name)(*shape, *arguments[-3 if shape else 0 :]))


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`convolve` supports this convolution of x [B, C, H, W] and is faster than torch's."""
    _, inputs, kernel, _ = weight.shape
    batch, channels, height, width = x.shape
    least = LEAST_TILES if _transformed_bytes(weight) >= LEAST_KEPT else 1
    return (
        x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and kernel == 3
        and not torch.is_autocast_enabled("cpu") and channels == inputs >= LEAST_CHANNELS
        and height % RESULTS == width % RESULTS == 0 and batch * height * width >= least * RESULTS**2 and available()
    )  # fmt: skip


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, flipped: bool = False) -> Tensor:
    """The convolution of x [B, C, H, W] with weight [C_out, C, 3, 3], padded by one pixel, plus bias [C_out].

    float32 on a CPU, H and W multiples of 4. flipped: weight is [C, C_out, 3, 3], and x the gradient of the result of
    its convolution; returns the gradient of the input. Returns [B, C_out, H, W] with channels last in memory if they
    are in x. Like torch's own convolution, it supports repeated differentiation in backward and forward mode and by
    torch.func; in compiled code, only one backward pass.
    """
    function = _convolve if _alone() else _Convolution.apply if compiling() else _ConvolutionForwards.apply
    y: Tensor = function(x, weight, bias, flipped)
    return y


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient [C_out, C, 3, 3] of weight, for the convolved x [B, C, H, W]; gradient: that of the result."""
    function = _weight_gradient if _alone() else _WeightGradient.apply if compiling() else _WeightGradientForwards.apply
    found: Tensor = function(x, gradient)
    return found


def pays_activated(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether :func:`activated` supports this, and nobody wants a derivative of it."""
    if not (_alone() and x.is_contiguous() and pays(x, weight)):
        return False
    channels, height, width = x.shape[1:]
    whole = height // RESULTS <= max(1, UNIT // width)  # an image is one unit
    return whole and channels % groups == 0 and channels // groups in GROUPS


def activated(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    offset: Tensor | None = None, skip: Tensor | None = None, factor: float = 1.0,
) -> Tensor:  # fmt: skip
    """:func:`convolve` of silu(n) in one pass over small images, n = group normalisation of x + offset [B, C].

    float32. norm_weight, norm_bias: [C], or [B, C]. skip: images like the result, for (result + skip) · factor.
    """
    y: Tensor = _activated(x, weight, bias, groups, norm_weight, norm_bias, eps, offset, skip, factor)
    return y


def _alone() -> bool:
    """Whether nobody wants a derivative, so that a small layer does not wait for torch's autograd."""
    if torch.is_grad_enabled():
        return False
    # Compiled code has no forward mode. Should torch rename the level, this is slow, but right.
    return compiling() or getattr(torch.autograd.forward_ad, "_current_level", 0) < 0


@torch.library.custom_op("edm::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    return _computed(x, weight, bias, flipped, _Norm(), _Join())


@torch.library.custom_op("edm::convolve_activated", mutates_args=())
def _activated(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    offset: Tensor | None, skip: Tensor | None, factor: float,
) -> Tensor:  # fmt: skip
    x, (batch, channels) = x.contiguous(), x.shape[:2]
    for tensor in (x, norm_weight, norm_bias, offset, skip):
        _supported(tensor)
    step = channels if norm_weight.ndim == 2 else 0
    of_channels = (batch, channels) if step else (channels,)
    norm_weight, norm_bias = (t.expand(of_channels).contiguous() for t in (norm_weight, norm_bias))
    offset = None if offset is None else offset.expand(batch, channels).contiguous()
    skip = None if skip is None else skip.expand(batch, len(weight), *x.shape[2:]).contiguous()
    norm = _Norm(x.shape[1] // groups, norm_weight.data_ptr(), norm_bias.data_ptr(), step, _pointer(offset), eps)
    return _computed(x, weight, bias, False, norm, _Join(_pointer(skip), factor))


def _computed(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool, norm: _Norm, join: _Join) -> Tensor:
    outputs, inputs = weight.shape[:2] if not flipped else weight.shape[1::-1]
    _supported(x, (len(x), inputs, *x.shape[2:]))
    _supported(weight, (*weight.shape[:2], 3, 3))
    _supported(bias, (outputs,))
    if any(side == 0 or side % RESULTS for side in x.shape[2:]):
        raise RuntimeError(f"images of {x.shape[2]} x {x.shape[3]} pixels; expected multiples of {RESULTS}")
    x, filters, threads = _dense(x), _filters(weight, flipped), torch.get_num_threads()
    y = _like(x, outputs)
    shape, limits = _shape(x), (y.shape[1], OWN_TILES, threads)
    space = x.new_empty(_size("convolve_size", *shape, *limits))
    bias = None if bias is None else bias.contiguous()
    _functions().convolve(
        y.data_ptr(), x.data_ptr(), _Shape(*shape), norm, filters.data_ptr(), _pointer(bias), join, limits[0],
        space.data_ptr(), *limits[1:],
    )  # fmt: skip
    return y


@torch.library.custom_op("edm::convolve_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    _supported(x)
    _supported(gradient, (len(x), gradient.shape[1], *x.shape[2:]))
    x, threads = _dense(x), torch.get_num_threads()
    gradient = gradient.contiguous(memory_format=_format(x))
    found = _weight_like(x, gradient)
    if not len(x):
        return found.zero_()
    shape, limits = _shape(x), (gradient.shape[1], SHARED_TILES, threads)
    space = x.new_empty(_size("weight_gradient_size", *shape, *limits))
    _functions().weight_gradient(
        found.data_ptr(), _Steps(*found.stride()), x.data_ptr(), _Shape(*shape), gradient.data_ptr(), limits[0],
        space.data_ptr(), *limits[1:],
    )  # fmt: skip
    return found


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    return _like(x, weight.shape[1 if flipped else 0])


@_activated.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    offset: Tensor | None, skip: Tensor | None, factor: float,
) -> Tensor:  # fmt: skip
    return x.new_empty(len(x), len(weight), *x.shape[2:])


@_weight_gradient.register_fake
def _(x: Tensor, gradient: Tensor) -> Tensor:
    return _weight_like(x, gradient)


def _supported(tensor: Tensor | None, shape: tuple[int, ...] | None = None) -> None:
    """Raises RuntimeError for a tensor that winograd.c would misread."""
    if tensor is None:
        return
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.shape != (shape or tensor.shape):
        found = f"{list(tensor.shape)}, {tensor.dtype}, {tensor.device}"
        raise RuntimeError(f"a tensor of {found}; expected {list(shape or tensor.shape)}, float32, on the CPU")


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _format(x: Tensor) -> torch.memory_format:
    """The layout of x [B, C, H, W], or, where it has none, the one it gets."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_format(x))


def _like(x: Tensor, channels: int) -> Tensor:
    """Empty images with other channels."""
    shape = (len(x), channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def _weight_like(x: Tensor, gradient: Tensor) -> Tensor:
    shape = (gradient.shape[1], x.shape[1], 3, 3)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def _shape(x: Tensor) -> tuple[int, int, int, int, int]:
    """The fields of :class:`_Shape`."""
    batch, channels, height, width = x.shape
    return batch, height, width, channels, _format(x) is torch.channels_last


class _Context(Protocol):
    """What torch keeps between the directions of a function."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    flipped: bool

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def save_for_forward(self, *tensors: Tensor) -> None: ...


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
        y: Tensor = _convolve(x, weight, bias, flipped)
        return y

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
        ctx.flipped = inputs[3]
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        pair = (gradient, x) if ctx.flipped else (x, gradient)
        return (
            convolve(gradient, weight, flipped=not ctx.flipped) if needs_x else None,
            weight_gradient(*pair) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gradient: Tensor) -> Tensor:
        found: Tensor = _weight_gradient(x, gradient)
        return found

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: _Context, change: Tensor) -> tuple[Tensor | None, ...]:
        x, gradient = ctx.saved_tensors
        needs_x, needs_gradient = ctx.needs_input_grad
        return (
            convolve(gradient, change, flipped=True) if needs_x else None,
            convolve(x, change) if needs_gradient else None,
        )


class _ConvolutionForwards(_Convolution):
    """Adds forward-mode differentiation, which torch's compiler does not support."""

    @staticmethod
    def jvp(ctx: _Context, dx: Tensor, dweight: Tensor, dbias: Tensor | None, _: None) -> Tensor:
        x, weight = ctx.saved_tensors
        return convolve(dx, weight, dbias, ctx.flipped) + convolve(x, dweight, None, ctx.flipped)


class _WeightGradientForwards(_WeightGradient):
    @staticmethod
    def jvp(ctx: _Context, dx: Tensor, dgradient: Tensor) -> Tensor:
        x, gradient = ctx.saved_tensors
        return weight_gradient(dx, gradient) + weight_gradient(x, dgradient)


class _Kept(NamedTuple):
    """A copy of a weight, and its transformed filter."""

    weight: Tensor
    filters: Tensor


_KEPT: MutableMapping[Tensor, _Kept] = WeakTensorKeyDictionary()  # without a key that is gone
_CHANGING = threading.RLock()  # a key that goes may change the dictionary meanwhile


def _can_be_kept(weight: Tensor) -> bool:
    """Whether it is of a layer that is not trained, not too small and not too large."""
    fixed = isinstance(weight, torch.nn.Parameter) and not weight.requires_grad
    return fixed and LEAST_KEPT <= _transformed_bytes(weight) <= LARGEST_KEPT


def _transformed_bytes(weight: Tensor) -> int:
    return weight.nbytes * INPUTS**2 // 9


def _filters(weight: Tensor, flipped: bool) -> Tensor:
    """G w Gᵀ; for a layer that is not trained, kept while its weight lives and stays the same.

    The weight is compared, because torch does not count what is written by way of ``weight.data``.
    """
    if flipped or not _can_be_kept(weight):
        return _transformed_filter(weight, flipped)
    with _CHANGING:
        kept = _KEPT.get(weight)
    if kept and torch.equal(kept.weight, weight):
        return kept.filters
    filters, copy = _transformed_filter(weight, flipped), weight.detach().clone()
    with _CHANGING:
        _KEPT.pop(weight, None)
        if sum(other.filters.nbytes for other in list(_KEPT.values())) + filters.nbytes <= MOST_KEPT:
            _KEPT[weight] = _Kept(copy, filters)
    return filters


def _transformed_filter(weight: Tensor, flipped: bool) -> Tensor:
    """G w Gᵀ in the order of winograd.c."""
    outputs, inputs, rows, columns = weight.stride()
    channels, steps, start = weight.shape[1::-1], _Steps(outputs, inputs, rows, columns), 0
    if flipped:
        channels, steps = channels[::-1], _Steps(inputs, outputs, -rows, -columns)
        start = 2 * (rows + columns) * weight.element_size()
    filters = weight.new_empty(_size("filters_size", *channels))
    first = weight.data_ptr() + start
    _functions().transform_filters(filters.data_ptr(), first, steps, *channels, torch.get_num_threads())
    return filters
