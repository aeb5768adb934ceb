"""The core on a window that moves over its map, image by image.

What the pupil does to all neurons, and what choosing one neuron does, is the same: another place of the map is looked
at. Instead of computing all that might be looked at, each image is cropped around the place that is, and the core
computed on that. Where the crop goes beyond a border the maps are set to the zeros that the whole core pads with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .family import Core, with_behavior
from .layers import Layer, RowLinear, Size, Window, take_apart


def pick(length: int, size: int, start: Tensor) -> Tensor:
    """(N, length, size): a one in row i at start + i, so that a product with it picks `length` rows from there.

    Beyond `size` there are zeros. Starts are (N,), whole numbers as floats.
    """
    wanted = start[:, None, None] + torch.arange(length, dtype=start.dtype)[:, None]
    return (wanted == torch.arange(size, dtype=start.dtype)).float()


def crop(maps: Tensor, top: Tensor, left: Tensor, size: Size) -> Tensor:
    """Each map's (N, C, H, W) part of `size` from its own top and left (N,) on; zeros beyond the borders.

    Two products with ones and zeros: exact, and their gradient needs no scattering.
    """
    rows = pick(size[0], maps.shape[2], top)[:, None]
    columns = pick(size[1], maps.shape[3], left)[:, None]
    return rows @ maps @ columns.transpose(2, 3)


class CroppedCore(nn.Module):
    """`core` (BatchNorm folded, each layer reading the one before) on a window that is placed anew for each image.

    `forward(images, behavior, x, y)`: (N, 1, H, W), (N, B), and by how many whole pixels each image's window is moved
    (N,); to the window (N, C, h, w), zero where it lies beyond the map.

    Attributes:
        image_window: what is read of an image whose window is not moved; may lie beyond the image.
        multiply_adds: of one image.
    """

    def __init__(self, core: Core, native_size: Size, window: Window, furthest: Window) -> None:
        """
        Args:
            core: a chain.
            native_size: of the images.
            window: on the last map, not moved; may lie beyond it.
            furthest: by how much each of its edges may be moved at the most.
        """
        super().__init__()
        layers, self._sizes = take_apart(core, native_size)
        self._windows = [window]
        for layer in reversed(layers):
            self._windows.insert(0, layer.reads(self._windows[0]))
        self.image_window = self._windows[0]
        # A layer that pads nothing may read what lies beyond a border: that only reaches what itself lies beyond.
        self._cleared = [
            _leaves(w.grown(furthest), size) and padding > 0
            for w, size, padding in zip(
                self._windows, self._sizes, [*(layer.padding for layer in layers), 1], strict=True
            )
        ]
        self.behavior_bias: RowLinear | None = None
        if core.input_channels > 1 and not self._cleared[0]:
            self.behavior_bias = layers[0].split_behavior()
        self.multiply_adds = sum(
            layer.multiply_adds(w.size, w.size) for layer, w in zip(layers, self._windows[:-1], strict=True)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor, behavior: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
        first = self.image_window
        maps = crop(images, y + first.top, x + first.left, first.size)
        bias = None
        if self.behavior_bias is not None:
            assert behavior is not None
            bias = self.behavior_bias(behavior)[:, :, None, None]
        elif behavior is not None:
            maps = with_behavior(maps, behavior)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            maps = layer.conv(self._inside(layer.before(maps), number, x, y))
            maps = layer.after(maps if bias is None else maps + bias)
            bias = None
        return self._inside(maps, len(self.layers), x, y)

    def _inside(self, maps: Tensor, number: int, x: Tensor, y: Tensor) -> Tensor:
        """Layer `number`'s input with zeros where the window is beyond that map."""
        if not self._cleared[number] or (number == 0 and maps.shape[1] == 1):
            return maps
        window, (height, width) = self._windows[number], self._sizes[number]
        rows = (y + window.top)[:, None] + torch.arange(window.size[0], dtype=y.dtype)
        columns = (x + window.left)[:, None] + torch.arange(window.size[1], dtype=x.dtype)
        inside_rows = ((rows >= 0) & (rows < height)).float()
        inside_columns = ((columns >= 0) & (columns < width)).float()
        return maps * (inside_rows[:, None, :, None] * inside_columns[:, None, None, :])


def _leaves(window: Window, size: Size) -> bool:
    return window.top < 0 or window.left < 0 or window.bottom >= size[0] or window.right >= size[1]
