"""A twin of the family, rewritten to be fast: the same numbers up to rounding, in three forms."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .chosen import ChosenReadout, EachReadout
from .crop import CroppedCore, crop
from .family import Core, DepthSeparable, PointReadout, Twin
from .layers import Size, Window
from .shift import PupilShift
from .tiles import ShiftedTiledReadout, TiledReadout, cells_of
from .window import WindowedCore, reached


class Seen(nn.Module):
    """The core on what a twin's neurons look at, wherever the pupil moves them.

    `forward(images, behavior, pupil_center)`: to the maps of `window`, moved by the whole pixels of the shift, and what
    is left of the shift (N, 2), None without a shifter.

    Attributes:
        window: of the whole map, before the shift.
        multiply_adds: of one image.
    """

    def __init__(self, core: Core, positions: Tensor, shift: PupilShift | None, native_size: Size, size: Size) -> None:
        """
        Args:
            core: with BatchNorm folded.
            positions: float64 (K, 2), x and y in pixels of the map.
            shift: what the pupil does.
            native_size: of the images.
            size: of the map.
        """
        super().__init__()
        self.shift = shift
        still = torch.zeros(2, dtype=torch.float64)
        reach = reached(positions, *((still, still) if shift is None else (shift.lowest, shift.highest)), size)
        whole = Window(0, size[0] - 1, 0, size[1] - 1)
        # Three pixels a cell once it is moved by less than a pixel.
        self.window = reach if shift is None else cells_of(positions).grown(Window(0, 2, 0, 2))
        self.core: Core | WindowedCore | CroppedCore = core
        self._given = whole
        if core.is_chain:
            self.core, self._given = WindowedCore(core, native_size, reach), reach
            if shift is not None:
                cropped = CroppedCore(core, native_size, self.window, shift.furthest)
                if cropped.multiply_adds < self.core.multiply_adds:
                    self.core = cropped
        self.multiply_adds = 0 if isinstance(self.core, Core) else self.core.multiply_adds

    def forward(
        self, images: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        window = self.window
        if self.shift is None:
            maps = self.core(images, behavior)
            top, left = window.top - self._given.top, window.left - self._given.left
            return maps[:, :, top : top + window.size[0], left : left + window.size[1]], None
        shift = self.shift(pupil_center)
        whole = torch.floor(shift)
        x, y = whole.float().unbind(1)
        if isinstance(self.core, CroppedCore):
            maps = self.core(images, behavior, x, y)
        else:
            top, left = window.top - self._given.top, window.left - self._given.left
            maps = crop(self.core(images, behavior), y + top, x + left, window.size)
        return maps, (shift - whole).float()


class AllNeurons(nn.Module):
    """Every neuron's response: `forward(images, behavior, pupil_center)` as `family.Twin`'s.

    BatchNorm is folded into the convolutions, the core is computed only where neurons look, and the readout is cut
    into tiles. No GridSample: it took three quarters of the naive graph on the CPU, and ONNX Runtime's CUDA kernel
    covers few cases.
    """

    def __init__(self, seen: Seen, positions: Tensor, readout: PointReadout, elu_offset: float) -> None:
        super().__init__()
        self.seen = seen
        self.elu_offset = elu_offset
        kind = TiledReadout if seen.shift is None else ShiftedTiledReadout
        self.readout = kind(positions, readout.features(), readout.bias, seen.window)
        self.multiply_adds = seen.multiply_adds + self.readout.multiply_adds

    def forward(self, images: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        maps, fraction = self.seen(images, behavior, pupil_center)
        sums = self.readout(maps) if fraction is None else self.readout(maps, fraction)
        return F.elu(sums + self.elu_offset) + 1


class ChosenNeurons(nn.Module):
    """Responses (N, K) of the neurons whose `positions` (K, 2), `features` (K, C) and `bias` (K,) are given."""

    def __init__(self, seen: Seen, elu_offset: float) -> None:
        super().__init__()
        self.seen = seen
        self.elu_offset = elu_offset
        self.readout = ChosenReadout(seen.window.left, seen.window.top)

    def forward(
        self,
        images: Tensor,
        positions: Tensor,
        features: Tensor,
        bias: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        maps, fraction = self.seen(images, behavior, pupil_center)
        return F.elu(self.readout(maps, positions, features, bias, fraction) + self.elu_offset) + 1


class EachNeuron(nn.Module):
    """Response (N, 1) of one neuron an image, computed on what that neuron sees of it.

    `positions` (N, 2), `features` (N, C) and `bias` (N,) are the neurons'.
    """

    def __init__(
        self, core: Core, positions: Tensor, shift: PupilShift | None, native_size: Size, elu_offset: float
    ) -> None:
        super().__init__()
        furthest = cells_of(positions)
        self.shift = shift
        self.core = CroppedCore(
            core, native_size, Window(0, 1, 0, 1), furthest if shift is None else _further(furthest, shift.furthest)
        )
        self.readout = EachReadout()
        self.elu_offset = elu_offset
        self.multiply_adds = self.core.multiply_adds

    def forward(
        self,
        images: Tensor,
        positions: Tensor,
        features: Tensor,
        bias: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        looked = positions if self.shift is None else positions + self.shift(pupil_center)
        cells = torch.floor(looked)
        x, y = cells.float().unbind(1)
        maps = self.core(images, behavior, x, y)
        return F.elu(self.readout(maps, (looked - cells).float(), features, bias) + self.elu_offset) + 1


class Forms:
    """A twin in the forms that are exported.

    Attributes:
        all, chosen, each: see the classes; `each` is None where the core's layers are no chain.
        table: what a chosen neuron is: `positions` float64 (K, 2), `features` (K, C) and `bias` (K,).
    """

    def __init__(self, twin: Twin, native_size: Size) -> None:
        core = fold_batch_norm(twin.core)
        size = map_size(twin, native_size)
        positions = twin.readout.positions_in_pixels(*size)
        shift = None if twin.shifter is None else PupilShift(twin.shifter, size)
        seen = Seen(core, positions, shift, native_size, size)
        self.all = AllNeurons(seen, positions, twin.readout, twin.elu_offset)
        self.chosen = ChosenNeurons(seen, twin.elu_offset)
        self.each = EachNeuron(core, positions, shift, native_size, twin.elu_offset) if core.is_chain else None
        features = twin.readout.features().detach()
        bias = features.new_zeros(len(features)) if twin.readout.bias is None else twin.readout.bias.detach()
        self.table = {"positions": positions, "features": features.contiguous(), "bias": bias}


def map_size(twin: Twin, native_size: Size) -> Size:
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


def _further(furthest: Window, shift: Window) -> Window:
    # A whole and a rest of either may add up to one more pixel.
    return furthest.grown(shift).grown(Window(0, 1, 0, 1))
