"""The core on the part of its map that the readout looks at.

A mouse's neurons look at a small patch of the core's map. Walked back through the layers, that patch needs only part
of each earlier map and of the image; zeros are padded only where the whole map had its own border. What is left out is
what nobody reads.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .family import Core, DepthSeparable, with_behavior


@dataclass(frozen=True)
class Window:
    """Rows top … bottom and columns left … right of a map, ends included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return (self.bottom - self.top + 1, self.right - self.left + 1)


@dataclass(frozen=True)
class _Border:
    """Zeros that a convolution sees beyond the edges of its input."""

    left: int
    right: int
    top: int
    bottom: int

    def __bool__(self) -> bool:
        return bool(self.left or self.right or self.top or self.bottom)


class WindowedCore(nn.Module):
    """`core` (BatchNorm folded, each layer reading the one before) on one window of its map.

    `forward(images, behavior)`: (N, 1, H, W) and (N, B) to the window (N, C, h, w). Where the first convolution sees no
    border, behavior, which is constant over the image, is a bias.
    """

    def __init__(self, core: Core, native_size: tuple[int, int], window: Window) -> None:
        super().__init__()
        sizes = [native_size]
        for layer in core.features:
            sizes.append(_output_size(_spatial(layer), sizes[-1]))
        layers: list[nn.Module] = []
        border = _Border(0, 0, 0, 0)
        for layer, size in zip(reversed(core.features), reversed(sizes[:-1]), strict=True):
            window, border = _walk_back(_spatial(layer), size, window)
            layers.insert(0, _windowed_layer(layer, border))
        self._window = window
        self.layers = nn.Sequential(*layers)
        self.behavior_bias: nn.Linear | None = None
        if core.input_channels > 1 and not border:
            self._split_behavior(layers[0])

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        w = self._window
        patch = images[:, :, w.top : w.bottom + 1, w.left : w.right + 1]
        if self.behavior_bias is None:
            maps: Tensor = self.layers(with_behavior(patch, behavior))
            return maps
        assert behavior is not None
        first = self.layers[0]
        assert isinstance(first, nn.Sequential)
        maps = first[0](patch) + self.behavior_bias(behavior)[:, :, None, None]
        for part in itertools.chain(itertools.islice(first, 1, None), itertools.islice(self.layers, 1, None)):
            maps = part(maps)
        return maps

    def _split_behavior(self, first: nn.Module) -> None:
        assert isinstance(first, nn.Sequential)
        conv = first[0]
        assert isinstance(conv, nn.Conv2d)
        on_image = nn.Conv2d(1, conv.out_channels, conv.kernel_size, bias=conv.bias is not None)  # type: ignore[arg-type]
        on_image.weight = nn.Parameter(conv.weight[:, :1].clone())
        on_image.bias = conv.bias
        first[0] = on_image
        on_behavior = conv.weight[:, 1:].double().sum((2, 3)).float()
        self.behavior_bias = nn.Linear(on_behavior.shape[1], conv.out_channels, bias=False)
        self.behavior_bias.weight = nn.Parameter(on_behavior)


def _spatial(layer: nn.Module) -> nn.Conv2d:
    """The convolution of a layer that has an extent."""
    assert isinstance(layer, nn.Sequential)
    conv = layer[0].spatial_conv if isinstance(layer[0], DepthSeparable) else layer[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


def _geometry(conv: nn.Conv2d) -> tuple[int, int]:
    """(padding, reach): pixels of zeros on each side, and how far the kernel goes beyond its first pixel."""
    padding, dilation = conv.padding[0], conv.dilation[0]
    assert isinstance(padding, int)
    return padding, (conv.kernel_size[0] - 1) * dilation


def _output_size(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[int, int]:
    padding, reach = _geometry(conv)
    return (size[0] + 2 * padding - reach, size[1] + 2 * padding - reach)


def _walk_back(conv: nn.Conv2d, size: tuple[int, int], window: Window) -> tuple[Window, _Border]:
    """The part of the input, of `size`, that `window` of the output needs, and the border it sees there."""
    padding, reach = _geometry(conv)
    top, left = window.top - padding, window.left - padding
    bottom, right = window.bottom - padding + reach, window.right - padding + reach
    last_row, last_column = size[0] - 1, size[1] - 1
    border = _Border(max(-left, 0), max(right - last_column, 0), max(-top, 0), max(bottom - last_row, 0))
    needed = Window(max(top, 0), min(bottom, last_row), max(left, 0), min(right, last_column))
    return needed, border


def _windowed_layer(layer: nn.Module, border: _Border) -> nn.Sequential:
    assert isinstance(layer, nn.Sequential)
    spatial = _without_padding(_spatial(layer))
    pad = [nn.ZeroPad2d((border.left, border.right, border.top, border.bottom))] if border else []
    convolutions: list[nn.Module] = [*pad, spatial]
    if isinstance(layer[0], DepthSeparable):
        convolutions = [layer[0][0], *convolutions, layer[0][2]]
    return nn.Sequential(*convolutions, *itertools.islice(layer, 1, None))


def _without_padding(conv: nn.Conv2d) -> nn.Conv2d:
    bare = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    bare.load_state_dict(conv.state_dict())
    return bare.to(conv.weight.dtype)


def reached(positions: Tensor, lowest: Tensor, highest: Tensor, size: tuple[int, int]) -> Window:
    """The smallest window with every pixel that positions (K, 2) are mixed from when shifted by lowest … highest (2,).

    All in pixels; `size` is the map's. Where a shift leads beyond the map the window ends at its border.
    """
    last = torch.tensor([size[1] - 1, size[0] - 1], dtype=positions.dtype)
    near = torch.minimum(torch.floor(positions.amin(0) + lowest).clamp(min=0), last)
    far = torch.minimum(torch.ceil(positions.amax(0) + highest), last).clamp(min=0)
    (left, top), (right, bottom) = near.int().tolist(), far.int().tolist()
    return Window(top, bottom, left, right)
