"""3×3 convolutions on CPUs with a quarter of the multiplications.

Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", section
4). It transforms tiles of 6×6 pixels and the filter, multiplies them elementwise, and transforms the products back to
4×4 results, with 36 multiplications instead of 144:

    y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A.

Summed over the input channels, the elementwise products become 36 matrix products, which take most of the time. In
float32 the rounding errors are a few times those of a direct convolution (four in tests/networks/test_winograd.py).

Transforms of whole tiles are products with matrices M ⊗ M. Copying tiles out of an image would take as long as
transforming them, so Bᵀ and A act on the rows of x or of a gradient, then on the columns, as sums of strided views.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Matrix = Sequence[Sequence[float]]
#: Side of a tile's output and of its input, in pixels.
RESULTS, INPUTS = 4, 6
#: Minimum channels, and tiles in a batch, for which the products save more than the transforms cost.
LEAST_CHANNELS, LEAST_TILES = 128, 64
#: Minimum tiles for a filter that is kept, and its maximum bytes: those of all layers of the paper's DDPM++ and NCSN++,
#: and of two thirds of ADM's, about 1 GiB each.
LEAST_TILES_KEPT, LARGEST_KEPT = 8, 48 * 2**20
#: Bytes of all filters that a process keeps, besides a quarter as much for the weights; others are made again, with
#: equal results.
MOST_KEPT = 2**31
#: Bytes of transformed tiles per pass: enough rows for fast products, little enough for the caches and for memory that
#: malloc reuses.
PIECE = 20 * 2**20

BT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
      (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
     (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
A = tuple(zip(*AT, strict=True))
#: M ⊗ M. Arrays of numpy, because a tensor that is made in inference mode, under a transform of torch.func or with fake
#: tensors, and kept, is of no use outside.
TWICE = {name: np.kron(m, m).astype(np.float32) for name, m in {"BT": BT, "G": G, "AT": AT}.items()}


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`convolve` supports this convolution of x [B, C, H, W] and is faster than torch's."""
    outputs, inputs, kernel, _ = weight.shape
    batch, _, height, width = x.shape
    tiles = batch * height * width / RESULTS**2
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and kernel == 3 and not torch.is_autocast_enabled("cpu")
        and min(inputs, outputs) >= LEAST_CHANNELS and height % RESULTS == width % RESULTS == 0
        and tiles >= (LEAST_TILES_KEPT if _is_for_keeping(weight) else LEAST_TILES)
    )  # fmt: skip


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of x [B, C, H, W] with weight [C_out, C, 3, 3], padded by one pixel, plus bias [C_out].

    float32 on a CPU, H and W multiples of 4. Returns [B, C_out, H, W] in channels_last. Like torch's own convolution,
    it supports repeated differentiation in backward and forward mode and by torch.func; in compiled code, only one
    backward pass.
    """
    function = _Convolution if torch.compiler.is_compiling() else _ConvolutionForwards
    y: Tensor = function.apply(x, weight, bias)
    return y


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient [C_out, C, 3, 3] of weight, for the convolved x [B, C, H, W]; gradient: that of the result."""
    function = _WeightGradient if torch.compiler.is_compiling() else _WeightGradientForwards
    found: Tensor = function.apply(x, gradient)
    return found


def _input_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient [B, C, H, W] of x, for a convolution with weight; gradient: that of the result."""
    return convolve(gradient, weight.flip(2, 3).transpose(0, 1), gradient.new_zeros(weight.shape[1]))


@torch.library.custom_op("edm::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    outputs, filters = len(weight), _filters(weight)
    y = x.new_empty(len(x), *x.shape[2:], outputs)
    for piece in _pieces(x, outputs):
        batch, rows, columns = _grid(x[piece])
        products = torch.bmm(_transformed(x[piece]), filters).view(INPUTS**2, batch * rows, -1)
        tiles = _each(twice("AT"), products).view(batch, rows, RESULTS, RESULTS, columns, outputs)
        torch.add(tiles.transpose(3, 4), bias, out=_tiles(y[piece]))
    return y.permute(0, 3, 1, 2)


@torch.library.custom_op("edm::convolve_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    inputs, outputs = x.shape[1], gradient.shape[1]
    filters = x.new_zeros(INPUTS**2, outputs, inputs)
    for piece in _pieces(x, outputs):
        filters.baddbmm_(_transformed_gradient(gradient[piece]).transpose(1, 2), _transformed(x[piece]))
    return _each(twice("G").T, filters).view(outputs, 3, 3, inputs).permute(0, 3, 1, 2)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, len(weight)).permute(0, 3, 1, 2)


@_weight_gradient.register_fake
def _(x: Tensor, gradient: Tensor) -> Tensor:
    return x.new_empty(gradient.shape[1], 3, 3, x.shape[1]).permute(0, 3, 1, 2)


class _Context(Protocol):
    """What torch keeps between the directions of a function."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def save_for_forward(self, *tensors: Tensor) -> None: ...


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = _convolve(x, weight, bias)
        return y

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _input_gradient(weight, gradient) if needs_x else None,
            weight_gradient(x, gradient) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
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
            _input_gradient(change, gradient) if needs_x else None,
            convolve(x, change, change.new_zeros(len(change))) if needs_gradient else None,
        )


class _ConvolutionForwards(_Convolution):
    """Adds forward-mode differentiation, which torch's compiler does not support."""

    @staticmethod
    def jvp(ctx: _Context, dx: Tensor, dweight: Tensor, dbias: Tensor) -> Tensor:
        x, weight = ctx.saved_tensors
        return convolve(dx, weight, dbias) + convolve(x, dweight, torch.zeros_like(dbias))


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


def _is_for_keeping(weight: Tensor) -> bool:
    """Whether evaluations keep the filter. By the layer alone: results do not depend on what a process did before."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return _can_be_kept(weight)


def _can_be_kept(weight: Tensor) -> bool:
    """Whether it is of a layer that is not trained, and not too large."""
    fixed = isinstance(weight, torch.nn.Parameter) and not weight.requires_grad
    return fixed and _transformed_bytes(weight) <= LARGEST_KEPT


def _transformed_bytes(weight: Tensor) -> int:
    return weight.nbytes * INPUTS**2 // 9


def _filters(weight: Tensor) -> Tensor:
    """G w Gᵀ [36, C, C_out]; for a layer that is not trained, kept while its weight lives and stays the same.

    The weight is compared, because torch does not count what is written by way of ``weight.data``.
    """
    if not _can_be_kept(weight):
        return _transformed_filter(weight)
    kept = _KEPT.get(weight)
    if kept and torch.equal(kept.weight, weight):
        return kept.filters
    _KEPT.pop(weight, None)
    filters = _transformed_filter(weight).mT.contiguous().mT
    if sum(_transformed_bytes(other) for other in _KEPT) + filters.nbytes <= MOST_KEPT:
        _KEPT[weight] = _Kept(weight.detach().clone(), filters)
    return filters


def _transformed_filter(weight: Tensor) -> Tensor:
    """G w Gᵀ [36, C, C_out], a view: those channels come last that do in weight, since reordering takes longer."""
    outputs, inputs = weight.shape[:2]
    if weight.stride(0) == 1:  # as in the gradient of x
        return _each(twice("G"), weight.permute(2, 3, 1, 0).reshape(9, inputs, outputs)).transpose(0, 1)
    return _each(twice("G"), weight.permute(2, 3, 0, 1).reshape(9, outputs, inputs)).permute(1, 2, 0)


def _each(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix [m, k] times x [k, n, C], one product for each of n: [n, m, C]. One large product keeps to one thread."""
    return torch.bmm(matrix.expand(x.shape[1], -1, -1), x.transpose(0, 1))


def twice(name: str) -> Tensor:
    """A transform of the rows and the columns of a tile as one matrix: M ⊗ M."""
    return torch.from_numpy(TWICE[name])


def _grid(x: Tensor) -> tuple[int, int, int]:
    """(images, rows, columns) of tiles."""
    return len(x), x.shape[2] // RESULTS, x.shape[3] // RESULTS


def _pieces(x: Tensor, outputs: int) -> Iterator[slice]:
    """Slices of the batch, each of at least one image."""
    _, rows, columns = _grid(x)
    size = max(1, PIECE // (4 * INPUTS**2 * rows * columns * max(x.shape[1], outputs)))
    return (slice(start, start + size) for start in range(0, len(x), size))


def _tiles(y: Tensor) -> Tensor:
    """A view of y [B, H, W, C] by tiles: [B, H/4, 4, W/4, 4, C]."""
    batch, height, width, channels = y.shape
    return y.view(batch, height // RESULTS, RESULTS, width // RESULTS, RESULTS, channels)


def _transformed(x: Tensor) -> Tensor:
    """Bᵀ x B of all tiles of x [B, C, H, W], each with the pixel around its results: [36, tiles, C]."""
    return _transformed_tiles(BT, F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)), _grid(x))


def _transformed_gradient(gradient: Tensor) -> Tensor:
    """A g Aᵀ of all tiles of a gradient [B, C, H, W]: [36, tiles, C]."""
    return _transformed_tiles(A, gradient.permute(0, 2, 3, 1), _grid(gradient))


def _transformed_tiles(matrix: Matrix, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """M x Mᵀ of the tiles of x [B, H, W, C], which start every four pixels: [36, tiles, C]."""
    (batch, rows, columns), side, (width, channels) = grid, len(matrix[0]), x.shape[2:]
    half = x.new_empty(INPUTS, batch, rows, width, channels)
    tiles = x.new_empty(INPUTS, INPUTS, batch, rows, columns, channels)
    _times(matrix, [x[:, start::RESULTS][:, :rows] for start in range(side)], half)
    _times(matrix, [half[..., start::RESULTS, :][..., :columns, :] for start in range(side)], tiles.transpose(0, 1))
    return tiles.view(INPUTS**2, -1, channels)


def _times(matrix: Matrix, x: Sequence[Tensor], out: Tensor) -> None:
    """Writes M x to out [6, …]; x: a tensor for each column of M, which is Bᵀ or A.

    Rows 1 and 2, as 3 and 4, differ in the signs of odd columns only.
    """
    for row in (0, 5):
        _sum(matrix[row], x, out[row])
    for row in (1, 3):
        even, odd = _sum(matrix[row][::2], x[::2]), _sum(matrix[row][1::2], x[1::2])
        torch.add(even, odd, out=out[row])
        torch.sub(even, odd, out=out[row + 1])


def _sum(factors: Sequence[float], tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """The sum of tensors times their factors; out: where to write it."""
    terms = sorted(((f, t) for f, t in zip(factors, tensors, strict=True) if f), key=lambda term: term[0] != 1)
    (factor, first), *rest = terms
    found = first if factor == 1 and rest else torch.mul(first, factor, out=out)
    for factor, tensor in rest:
        found = torch.add(found, tensor, alpha=factor, out=out if found is first else found)
    return found
