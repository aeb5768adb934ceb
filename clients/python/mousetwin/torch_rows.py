"""Rows of tensors: a dimension that torch maps over as more images, and inputs that stand for several answers.

Inputs are images (…, N, H, W) or (…, N, 1, H, W), behavior and pupil center (…, N, B) or (…, B), as `TwinModule` takes
them, with further dimensions in front.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def spread(values: Sequence[Tensor | None], dims: Sequence[int | None], size: int) -> list[Tensor | None]:
    """The dimension that is mapped over in front of all, at its size."""
    return [
        None if value is None else value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        for value, dim in zip(values, dims, strict=True)
    ]


def fold(inputs: Sequence[Tensor | None]) -> tuple[list[Tensor | None], int]:
    """Inputs with a dimension in front, as more images; and how many rows one of them is answered with."""
    images = inputs[0]
    assert images is not None
    if images.ndim < 4:
        # What is no set of images is told by its own shape.
        return [None if value is None else value[0] for value in inputs], -1
    rows = rows_of(inputs, 1)
    return [None if value is None else rowed(value, 1, rows).flatten(0, 1) for value in inputs], rows


def rows_of(inputs: Sequence[Tensor | None], ahead: int) -> int:
    """How many rows are answered, of inputs with so many other dimensions in front: one image has one a condition."""
    images, *conditions = inputs
    assert images is not None
    given = [value.shape[ahead] for value in conditions if value is not None and value.ndim == ahead + 2]
    return max([1, *given]) if images.shape[ahead] == 1 else images.shape[ahead]


def rowed(value: Tensor, ahead: int, rows: int) -> Tensor:
    """`value`, of an input with so many other dimensions in front, with a row an answer."""
    for_all = value.ndim == ahead + 1
    value = value.unsqueeze(ahead) if for_all else value
    # Conditions with a row an image have as many as they have: where that is wrong the service says so.
    if not for_all and (value.ndim == ahead + 2 or value.shape[ahead] != 1):
        return value
    return value.expand(*value.shape[:ahead], rows, *value.shape[ahead + 1 :])


def summed(gradient: Tensor, value: Tensor | None, ahead: int) -> Tensor:
    """A gradient with a row an answer, as that of an input that stands for several of them."""
    assert value is not None
    if value.ndim < gradient.ndim:
        return gradient.sum(ahead)
    return gradient.sum(ahead, keepdim=True) if value.shape[ahead] < gradient.shape[ahead] else gradient
