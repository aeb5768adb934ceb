"""The gradient of any traceable module as a module of its own, made of plain forward operations.

`torch.func.vjp` does not survive `torch.export`, so it goes the other way round: the module is exported first, and the
vector-Jacobian product of the exported program is traced into a new one. Backward operators that ONNX does not know
are spelled out in those it does, in the forms that ONNX Runtime is fast at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mousetwin_serve.bundle import Tensor as Input
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, decomposition_table
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from .errors import ExportError
from .graph import CHEAPER, examples, export_program, quiet, to_onnx
from .layers import ROW_BLOCK, whole_blocks

aten: Any = torch.ops.aten

# Below this many channels a convolution's gradient is cheaper as a transposed convolution: one matrix product, then
# overlapping sums.
_FEW_CHANNELS = 8
# Up to this many places times rows, rows are added up by a product with ones and zeros instead of by gathers.
_DENSE_SUM = 1 << 20


class Untraceable(ExportError):
    """The module's gradient cannot be made into a graph; the message says why."""


def trace_gradient(
    program: ExportedProgram, inputs: Sequence[Input], cotangent: Input, wrt: Sequence[str]
) -> ExportedProgram:
    """Responses and d(Σ cotangent · responses)/d each input of `wrt`, as a program of a cotangent and the inputs.

    Args:
        program: of a module called with `inputs` by name, which answers responses; its parameters are constants.
        inputs: what it takes.
        cotangent: shaped as its responses are.
        wrt: names of inputs.

    Returns:
        Called with the cotangent, then the inputs in their order; answers responses, then a gradient a name of `wrt`.

    Raises:
        Untraceable: torch cannot trace the gradient.
    """
    try:
        with quiet():
            forward = program.run_decompositions(_DIFFERENTIABLE).module()

            def pull_back(cotangent: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
                given = {t.name: value for t, value in zip(inputs, values, strict=True)}
                given |= {name: given[name].detach().requires_grad_() for name in wrt}
                responses = forward(**given)
                sources = [given[name] for name in wrt]
                return (responses, *torch.autograd.grad(responses, sources, cotangent, materialize_grads=True))

            # The argument is private: without it the module's constants would have to be fake tensors, and scattering
            # by a constant index could not become the gather that it is.
            traced = make_fx(
                pull_back,
                decomposition_table=_DECOMPOSITIONS,
                tracing_mode="symbolic",
                _allow_non_fake_inputs=True,
            )(*examples([cotangent, *inputs]).values())
        return export_program(traced, [cotangent, *inputs], by_name=False)
    except Exception as error:
        raise Untraceable(f"the gradient cannot be traced: {_in_short(error)}") from error


def translate_gradient(program: ExportedProgram, inputs: Sequence[Input], outputs: Sequence[str]) -> bytes:
    """As `graph.to_onnx`. Raises Untraceable where ONNX has no word for an operation of the gradient."""
    try:
        return to_onnx(program, inputs, outputs)
    except torch.onnx.errors.OnnxExporterError as error:
        raise Untraceable(f"the gradient cannot be put in ONNX: {_in_short(error.__cause__ or error)}") from error


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _elu_backward(
    gradient: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, value: Tensor
) -> Any:
    if alpha != 1 or scale != 1 or input_scale != 1 or is_result:
        return NotImplemented
    # What `_elu` has already: ONNX Runtime computes equal parts of a graph once.
    return gradient * torch.exp(torch.clamp(value, max=0))


def _convolution_backward(
    gradient: Tensor,
    value: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> Any:
    if transposed or output_mask[1] or output_mask[2]:
        return NotImplemented
    if not output_mask[0]:
        return None, None, None
    kernel = weight.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    around = [r - p for r, p in zip(reach, padding, strict=True)]
    per_group = weight.shape[1]
    if any(s != 1 for s in stride) or min(around) < 0 or per_group * groups < _FEW_CHANNELS:
        sizes = zip(value.shape[2:], gradient.shape[2:], stride, around, padding, strict=True)
        left_over = [size - (out - 1) * s - 1 - a + p for size, out, s, a, p in sizes]
        return (
            aten.convolution(gradient, weight, None, stride, padding, dilation, True, left_over, groups),
            None,
            None,
        )
    turned = weight.detach().flip(tuple(range(2, weight.ndim)))
    if groups == 1:
        turned = turned.transpose(0, 1)
    else:
        parts = turned.reshape(groups, -1, *turned.shape[1:]).transpose(1, 2)
        turned = parts.reshape(-1, *parts.shape[2:])
    return aten.convolution(gradient, turned, None, stride, around, dilation, False, output_padding, groups), None, None


def _slice_backward(gradient: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int) -> Any:
    if step != 1:
        return NotImplemented
    if isinstance(sizes[dim], torch.SymInt):
        # Only whole batches are sliced along the batch.
        return gradient
    start = start + sizes[dim] if start < 0 else min(start, sizes[dim])
    after = sizes[dim] - start - gradient.shape[dim]
    return F.pad(gradient, [0, 0] * (len(sizes) - 1 - dim) + [start, after])


def _index_put(values: Tensor, indices: list[Tensor | None], source: Tensor, accumulate: bool = False) -> Any:
    """Adding up rows at indices that are known now: a gather of each place's rows, and their sum."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if not accumulate or len(given) != 1 or not _is_known(given[0][1]):
        return NotImplemented
    ((dim, index),) = given
    with _disable_current_modes():
        flat = index.numpy().ravel()
    counts = np.bincount(flat, minlength=int(values.shape[dim]))
    order = np.argsort(flat, kind="stable")
    within = np.arange(flat.size) - (np.cumsum(counts) - counts)[flat[order]]
    # Where a place has fewer rows than the fullest it reads a row of zeros behind the last.
    table = np.full((counts.max(), counts.size), flat.size)
    table[within, flat[order]] = order
    # Rows in front: gathering scattered numbers is slow.
    shape = [*source.shape[:dim], flat.size, *source.shape[dim + index.ndim :]]
    rows = source.reshape(shape).movedim(dim, 0)
    if (counts < counts.max()).any():
        rows = F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, 1])
    total, *others = (rows.index_select(0, torch.from_numpy(row)) for row in table)
    for other in others:
        total = total + other
    return total.movedim(0, dim)


def _sum(value: Tensor, dims: list[int] | None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sums that do not depend on the size of the batch, nor on an image's place in it.

    ONNX Runtime adds up a whole array in another order than each column of one, and rows in an order that depends on
    how they lie in memory: so the batch goes in front where nothing else is kept, and rows become whole blocks.
    """
    summed = [dim for dim in range(value.ndim) if not dims or dim in dims or dim - value.ndim in dims]
    kept = [dim for dim in range(value.ndim) if dim not in summed]
    batch = [dim for dim in kept if isinstance(value.shape[dim], torch.SymInt)]
    length = math.prod(value.shape[dim] for dim in summed)
    if dtype is not None or not batch or isinstance(length, torch.SymInt):
        return NotImplemented
    shape = [value.shape[d] if d in kept else 1 for d in range(value.ndim) if keepdim or d in kept]
    last = max(kept) < min(summed)
    if last and length % ROW_BLOCK == 0:
        return NotImplemented
    if len(batch) == 1 and all(value.shape[d] == 1 for d in kept if d not in batch):
        rows = value.movedim(batch[0], 0).flatten(1)
    elif last:
        rows = value.flatten(min(summed))
    else:
        return NotImplemented
    return whole_blocks(rows).sum(-1).reshape(shape)


def _avg_pool(
    value: Tensor,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    padded = any(padding) if isinstance(padding, list) else bool(padding)
    if ceil_mode or divisor_override is not None or (padded and not count_include_pad):
        return NotImplemented
    size = kernel if len(kernel) == 2 else [*kernel, *kernel]
    weight = value.new_full((1, 1, *size), 1 / math.prod(size))
    pooled = F.conv2d(value.flatten(0, -3)[:, None], weight, stride=stride or size, padding=padding)
    return pooled.reshape(*value.shape[:-2], *pooled.shape[-2:])


def _attention(*args: Any, **kwargs: Any) -> Any:
    return aten._scaled_dot_product_attention_math(*args, **kwargs)[0]


def _is_known(index: Tensor) -> bool:
    return type(index) in (Tensor, nn.Parameter) and index.dtype == torch.long


# Forwards whose gradient ONNX has no word for, as arithmetic whose gradient is arithmetic too.
_DIFFERENTIABLE: dict[Any, Callable[..., Any]] = {
    aten.grid_sampler.default: decomposition_table[aten.grid_sampler_2d.default],
    aten.grid_sampler_2d.default: decomposition_table[aten.grid_sampler_2d.default],
    aten.avg_pool2d.default: _avg_pool,
    aten.scaled_dot_product_attention.default: _attention,
}

_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **core_aten_decompositions(),
    **CHEAPER,
    aten.elu_backward.default: _elu_backward,
    aten.convolution_backward.default: _convolution_backward,
    aten.slice_backward.default: _slice_backward,
    aten.sum.dim_IntList: _sum,
    aten.index_put.default: _index_put,
    aten._unsafe_index_put.default: _index_put,
}
