"""Where the pupil moves the neurons to: whole pixels of the core's map, and the rest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .family import Shifter
from .layers import ROW_BLOCK, RowLinear, Size, Window, whole_blocks


class PupilShift(nn.Module):
    """Pupil center (N, 2) to the shift of all positions, x and y (N, 2) in pixels of the map, float64.

    In float64, since what is left after whole pixels are split off decides a response: in float32 a shift of 200 pixels
    is off by 1e-5.

    Attributes:
        lowest, highest: the least and greatest shift (2,) that any pupil center can bring.
    """

    half_size: Tensor

    def __init__(self, shifter: Shifter, map_size: Size) -> None:
        super().__init__()
        exact = copy.deepcopy(shifter).double()
        half = torch.tensor([(map_size[1] - 1) / 2, (map_size[0] - 1) / 2], dtype=torch.float64)
        self.lowest, self.highest = (bound * half for bound in exact.bounds())
        self.register_buffer("half_size", half)
        linear = [m for m in exact.mlp if isinstance(m, nn.Linear)] if hasattr(exact, "mlp") else [exact]
        self.layers = nn.Sequential(*(part for layer in linear for part in (_whole(layer), nn.Tanh())))

    @property
    def furthest(self) -> Window:
        """By how many whole pixels a window's edges move at the most."""
        (left, top), (right, bottom) = torch.floor(self.lowest).int().tolist(), torch.floor(self.highest).int().tolist()
        return Window(top, bottom, left, right)

    def forward(self, pupil_center: Tensor) -> Tensor:
        looked = whole_blocks(pupil_center.double())
        shift: Tensor = self.layers(looked)[:, :2] * self.half_size
        return shift


def _whole(layer: nn.Linear | Shifter) -> RowLinear:
    """A layer from and to whole blocks, the rest of them zero: tanh may round the end of an odd row in its own way."""
    rows, columns = (-size % ROW_BLOCK for size in layer.weight.shape)
    weight = F.pad(layer.weight, [0, columns, 0, rows])
    return RowLinear(weight, None if layer.bias is None else F.pad(layer.bias, [0, rows]))
