"""A twin of the family, rewritten to be fast: the same numbers up to rounding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .family import Core, DepthSeparable, Twin
from .gather import GatherReadout
from .tiles import ShiftedTiledReadout, TiledReadout, tile_width
from .window import Window, WindowedCore, reached


class ForwardGraph(nn.Module):
    """A twin rewritten for ONNX: the same numbers, BatchNorm folded into the convolutions, no GridSample.

    GridSample took three quarters of the naive graph on the CPU, and ONNX Runtime's CUDA kernel covers few cases.
    The core is computed on the window of its map that the neurons look at, wherever the pupil moves them, if its layers
    are a chain; the readout is cut into tiles, unless the neurons are too scattered for that to pay.
    """

    def __init__(self, twin: Twin, native_size: tuple[int, int]) -> None:
        super().__init__()
        core = fold_batch_norm(twin.core)
        self.elu_offset = twin.elu_offset
        height, width = map_size(twin, native_size)
        positions = twin.readout.positions_in_pixels(height, width)
        tiles = tile_width(positions)
        shifter = None if twin.shifter is None else copy.deepcopy(twin.shifter).double()
        window = Window(0, height - 1, 0, width - 1)
        self.core: nn.Module = core
        if core.is_chain:
            lowest, highest = torch.zeros(2, 2, dtype=torch.float64) if shifter is None else shifter.bounds()
            half = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
            window = reached(positions, lowest * half, highest * half, (height, width))
            self.core = WindowedCore(core, native_size, window)
        shown = (positions, twin.readout.features(), twin.readout.bias)
        self.readout: nn.Module
        if tiles is None:
            self.readout = GatherReadout(*shown, shifter, (height, width), window)
        elif shifter is None:
            self.readout = TiledReadout(*shown, window, tiles)
        else:
            self.readout = ShiftedTiledReadout(*shown, shifter, (height, width), window, tiles)

    def forward(self, images: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        return F.elu(self.readout(self.core(images, behavior), pupil_center) + self.elu_offset) + 1


def map_size(twin: Twin, native_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the core's map for images of `native_size`."""
    behaviors = twin.core.input_channels - 1
    with torch.no_grad():
        maps = twin.core(torch.zeros(1, 1, *native_size), torch.zeros(1, behaviors) if behaviors else None)
    return maps.shape[-2], maps.shape[-1]


def fold_batch_norm(core: Core) -> Core:
    """A copy of `core` with each BatchNorm folded, in float64, into the convolution before it."""
    folded = copy.deepcopy(core).double()
    for layer in folded.features:
        assert isinstance(layer, nn.Sequential)
        norm = getattr(layer, "norm", None)
        if norm is None:
            continue
        if isinstance(layer[0], DepthSeparable):
            layer[0].out_depth_conv = fuse_conv_bn_eval(layer[0].out_depth_conv, norm)  # type: ignore[type-var]
        else:
            layer[0] = fuse_conv_bn_eval(layer[0], norm)  # type: ignore[type-var]
        layer.norm = nn.Identity()
    return folded.float()
