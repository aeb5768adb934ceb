"""The core's layers taken apart, so that they can be computed on part of a map."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .family import Core, DepthSeparable

Size = tuple[int, int]
# Numbers in 64 bytes, where ONNX Runtime's arrays begin.
ROW_BLOCK = 16


@dataclass(frozen=True)
class Window:
    """Rows top … bottom and columns left … right of a map, ends included; may reach beyond the map."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> Size:
        return (self.bottom - self.top + 1, self.right - self.left + 1)

    def grown(self, other: Window) -> Window:
        """Each edge moved by `other`'s."""
        return Window(
            self.top + other.top, self.bottom + other.bottom, self.left + other.left, self.right + other.right
        )


class Layer(nn.Module):
    """One layer around the one convolution in it that has an extent, which here pads nothing.

    Attributes:
        before, conv, after: what runs in front of that convolution, itself, and what runs behind it.
        padding: pixels of zeros that the layer puts around what `conv` reads.
        reach: how far the kernel goes beyond its first pixel.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, nn.Sequential)
        rest = list(itertools.islice(layer, 1, None))
        spatial, before = layer[0], list[nn.Module]()
        if isinstance(spatial, DepthSeparable):
            inwards, spatial, outwards = spatial
            before, rest = [inwards], [outwards, *rest]
        assert isinstance(spatial, nn.Conv2d)
        assert isinstance(spatial.padding[0], int)
        self.padding = spatial.padding[0]
        self.reach = (spatial.kernel_size[0] - 1) * spatial.dilation[0]
        self.before, self.conv, self.after = nn.Sequential(*before), _unpadded(spatial), nn.Sequential(*rest)

    def output_size(self, size: Size) -> Size:
        """Of the whole map, for a whole input map of `size`."""
        change = 2 * self.padding - self.reach
        return (size[0] + change, size[1] + change)

    def reads(self, window: Window) -> Window:
        """What of the layer's input `window` of its output is made from."""
        first, last = -self.padding, self.reach - self.padding
        return window.grown(Window(first, last, first, last))

    def multiply_adds(self, read: Size, padded: Size) -> int:
        """For an input of `read`, which with zeros around is `padded`."""
        out = (padded[0] - self.reach) * (padded[1] - self.reach)
        work = _weights(self.before) * read[0] * read[1]
        return work + (_weights(self.conv) + _weights(self.after)) * out

    def split_behavior(self) -> RowLinear:
        """Leave only the image's weights in `conv`; returns what behavior (N, B) adds to its output: (N, C)."""
        conv = self.conv
        self.conv = _bare(conv, 1)
        self.conv.weight = nn.Parameter(conv.weight[:, :1].clone())
        self.conv.bias = conv.bias
        return RowLinear(conv.weight[:, 1:].double().sum((2, 3)).float(), None)


class RowLinear(nn.Module):
    """A small linear layer that treats each row twice: a matrix product of one row alone rounds unlike one of many."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        twice = torch.stack([rows, rows], 1)
        return F.linear(twice, self.weight, self.bias)[:, :1].squeeze(1)


def whole_blocks(rows: Tensor) -> Tensor:
    """Rows with zeros behind them, so that all begin where vectors do: the order of a sum depends on it."""
    missing = -rows.shape[-1] % ROW_BLOCK
    return F.pad(rows, [0, missing]) if missing else rows


def take_apart(core: Core, native_size: Size) -> tuple[list[Layer], list[Size]]:
    """The layers of a core that is a chain, and the sizes of the image and of each layer's whole map."""
    layers = [Layer(layer) for layer in core.features]
    sizes = [native_size]
    for layer in layers:
        sizes.append(layer.output_size(sizes[-1]))
    return layers, sizes


def _bare(conv: nn.Conv2d, inputs: int) -> nn.Conv2d:
    """A convolution like `conv` that pads nothing."""
    return nn.Conv2d(
        inputs,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def _unpadded(conv: nn.Conv2d) -> nn.Conv2d:
    bare = _bare(conv, conv.in_channels)
    bare.load_state_dict(conv.state_dict())
    return bare.to(conv.weight.dtype)


def _weights(module: nn.Module) -> int:
    return sum(conv.weight.numel() for conv in module.modules() if isinstance(conv, nn.Conv2d))
