"""The core on the part of its map that the readout looks at.

A mouse's neurons look at a small patch of the core's map. Walked back through the layers, that patch needs only part
of each earlier map and of the image; zeros are padded only where the whole map had its own border. What is left out is
what nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .family import Core, with_behavior
from .layers import Layer, RowLinear, Size, Window, take_apart


class WindowedCore(nn.Module):
    """`core` (BatchNorm folded, each layer reading the one before) on one window of its map.

    `forward(images, behavior)`: (N, 1, H, W) and (N, B) to the window (N, C, h, w). Where the first convolution sees no
    border, behavior, which is constant over the image, is a bias.

    Attributes:
        image_window: what is read of the image.
        multiply_adds: of one image.
    """

    def __init__(self, core: Core, native_size: Size, window: Window) -> None:
        super().__init__()
        layers, sizes = take_apart(core, native_size)
        parts: list[tuple[Window, Window]] = []
        for layer, size in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
            wanted = layer.reads(window)
            window = _within(wanted, size)
            parts.insert(0, (window, wanted))
        self.image_window = window
        self._borders = [_border(wanted, there) for there, wanted in parts]
        self.behavior_bias: RowLinear | None = None
        if core.input_channels > 1 and not any(self._borders[0]):
            self.behavior_bias = layers[0].split_behavior()
        self.multiply_adds = sum(
            layer.multiply_adds(there.size, wanted.size) for layer, (there, wanted) in zip(layers, parts, strict=True)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        w = self.image_window
        maps = images[:, :, w.top : w.bottom + 1, w.left : w.right + 1]
        bias = None
        if self.behavior_bias is not None:
            assert behavior is not None
            bias = self.behavior_bias(behavior)[:, :, None, None]
        elif behavior is not None:
            maps = with_behavior(maps, behavior)
        for layer, border in zip(self.layers, self._borders, strict=True):
            assert isinstance(layer, Layer)
            maps = layer.before(maps)
            maps = layer.conv(F.pad(maps, border) if any(border) else maps)
            maps = layer.after(maps if bias is None else maps + bias)
            bias = None
        return maps


def reached(positions: Tensor, lowest: Tensor, highest: Tensor, size: Size) -> Window:
    """The smallest window with every pixel that positions (K, 2) are mixed from when shifted by lowest … highest (2,).

    All in pixels; `size` is the map's. Where a shift leads beyond the map the window ends at its border.
    """
    last = torch.tensor([size[1] - 1, size[0] - 1], dtype=positions.dtype)
    near = torch.minimum(torch.floor(positions.amin(0) + lowest).clamp(min=0), last)
    far = torch.minimum(torch.ceil(positions.amax(0) + highest), last).clamp(min=0)
    (left, top), (right, bottom) = near.int().tolist(), far.int().tolist()
    return Window(top, bottom, left, right)


def _within(window: Window, size: Size) -> Window:
    return Window(
        max(window.top, 0), min(window.bottom, size[0] - 1), max(window.left, 0), min(window.right, size[1] - 1)
    )


def _border(wanted: Window, there: Window) -> tuple[int, int, int, int]:
    """Zeros to put left, right, above and below."""
    return (
        there.left - wanted.left,
        wanted.right - there.right,
        there.top - wanted.top,
        wanted.bottom - there.bottom,
    )
