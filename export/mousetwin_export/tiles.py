"""The readout as a few dense products.

Neurons that look into the same cell of the map's grid mix the same pixels. Sorted by cell and cut into tiles, a tile is
one small matrix product: its pixels' features against the features of its neurons; bilinear weights then mix the
pixels. The same sums as before, in another order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .window import Window

WIDTHS = (64, 32, 16, 8)
# What a tile costs beside its neurons, in neurons: gathering its pixels.
_TILE_COST = 16
# Tiles padded further than this waste more than they save.
_MOST_PADDING = 3.0
# Zeros around a window, so that a block of 3×3 pixels can lie beyond the map whole.
_MARGIN = 3


class _Tiles(nn.Module):
    """Neurons sorted into tiles of one cell each.

    Attributes:
        cells: (T, 2), x and y of each tile's cell in the window.
        fraction: (T, 2, width), where in the cell each neuron looks, x and y in [0, 1); float32.
        features: (T, C, width), zero where a tile is not full.
        order: (K,), each neuron's place among all tiles' columns.
    """

    cells: Tensor
    fraction: Tensor
    order: Tensor

    def __init__(self, positions: Tensor, features: Tensor, window: Window, width: int) -> None:
        super().__init__()
        neurons, channels = features.shape
        whole = torch.floor(positions)
        cells, cell_of = torch.unique(whole.long(), dim=0, return_inverse=True)
        tiles = [
            (cell, members)
            for number, cell in enumerate(cells)
            for members in torch.split(torch.nonzero(cell_of == number)[:, 0], width)
        ]
        fraction = torch.zeros(len(tiles), 2, width, dtype=torch.float64)
        tiled = torch.zeros(len(tiles), channels, width)
        order = torch.zeros(neurons, dtype=torch.long)
        for number, (_, members) in enumerate(tiles):
            fraction[number, :, : len(members)] = (positions - whole)[members].T
            tiled[number, :, : len(members)] = features[members].T
            order[members] = number * width + torch.arange(len(members))
        origin = torch.tensor([window.left, window.top])
        self.register_buffer("cells", torch.stack([cell for cell, _ in tiles]) - origin)
        self.register_buffer("fraction", fraction.float())
        self.register_buffer("order", order)
        self.features = nn.Parameter(tiled)

    def products(self, pixels: Tensor) -> Tensor:
        """Pixels (T, M, C) to what each is to each neuron of its tile (T, M, width)."""
        return torch.bmm(pixels, self.features)

    def in_order(self, tiled: Tensor) -> Tensor:
        """(T, N, width) to (N, K)."""
        return tiled.transpose(0, 1).flatten(1)[:, self.order]


class TiledReadout(nn.Module):
    """Maps of a window (N, C, h, w) to readout sums (N, K), before the output nonlinearity; for positions that stay."""

    pixels: Tensor
    weights: Tensor

    def __init__(self, positions: Tensor, features: Tensor, bias: Tensor | None, window: Window, width: int) -> None:
        """
        Args:
            positions: float64 (K, 2), x and y in pixels of the whole map.
            features: (K, C).
            bias: (K,).
            window: what of the map will be given: every pixel that the positions are mixed from.
            width: neurons in a tile.
        """
        super().__init__()
        self.tiles = _Tiles(positions, features, window, width)
        height, columns = window.size
        x, y = self.tiles.cells.T
        # A neuron on the last pixel looks at nothing beyond it: its weight there is zero.
        right, below = (x + 1).clamp(max=columns - 1), (y + 1).clamp(max=height - 1)
        corners = [y * columns + x, y * columns + right, below * columns + x, below * columns + right]
        self.register_buffer("pixels", torch.stack(corners, 1).reshape(-1))
        fx, fy = self.tiles.fraction.unbind(1)
        mixed = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1)
        self.register_buffer("weights", mixed[:, :, None])
        self.bias = bias

    def forward(self, maps: Tensor, pupil_center: Tensor | None = None) -> Tensor:
        tiles, channels, width = self.tiles.features.shape
        rows = maps.permute(2, 3, 0, 1).flatten(0, 1)
        corners = rows[self.pixels].reshape(tiles, -1, channels)
        products = self.tiles.products(corners).reshape(tiles, 4, -1, width)
        responses = self.tiles.in_order((products * self.weights).sum(1))
        return responses if self.bias is None else responses + self.bias


class ShiftedTiledReadout(nn.Module):
    """`TiledReadout` for positions that the pupil moves, all alike.

    The shift is split into whole and fractional pixels, in float64. The whole ones move each tile's cell; a neuron that
    looks u into its cell then looks u plus the fraction into it, which is mixed from 3×3 pixels with tent weights
    max(0, 1 - |distance|) along each axis. Zeros around the window stand for all that lies beyond the map.
    """

    half_size: Tensor

    def __init__(
        self,
        positions: Tensor,
        features: Tensor,
        bias: Tensor | None,
        shifter: nn.Module,
        map_size: tuple[int, int],
        window: Window,
        width: int,
    ) -> None:
        """
        Args:
            positions, features, bias, width: as for `TiledReadout`.
            shifter: pupil center (N, 2) to shift (N, 2), float64, in halves of the map's size.
            map_size: (height, width) of the whole map.
            window: what of the map will be given: all that any shift can reach, or the map's border.
        """
        super().__init__()
        self.tiles = _Tiles(positions, features, window, width)
        self.shifter = shifter
        self._size = window.size
        half = [(map_size[1] - 1) / 2, (map_size[0] - 1) / 2]
        self.register_buffer("half_size", torch.tensor(half, dtype=torch.float64))
        self.bias = bias

    def forward(self, maps: Tensor, pupil_center: Tensor) -> Tensor:
        tiles, channels, width = self.tiles.features.shape
        shift = self.shifter(pupil_center.double()) * self.half_size
        whole = torch.floor(shift)
        pixels = self._blocks(maps, whole.long()).reshape(tiles, -1, channels)
        products = self.tiles.products(pixels).reshape(tiles, -1, 3, 3, width)
        tents = self._tents((shift - whole).float())
        responses = self.tiles.in_order(((products * tents[0][:, :, None]).sum(3) * tents[1]).sum(2))
        return responses if self.bias is None else responses + self.bias

    def _blocks(self, maps: Tensor, whole: Tensor) -> Tensor:
        """The 3×3 pixels at each tile's shifted cell, (T·N·9, C)."""
        height, columns = self._size
        padded = F.pad(maps, (_MARGIN,) * 4)
        rows = padded.permute(0, 2, 3, 1).flatten(0, 2)
        offset = torch.arange(3)
        start = self.tiles.cells[:, None] + whole
        x = start[..., 0].clamp(-_MARGIN, columns)[..., None, None] + offset + _MARGIN
        y = start[..., 1].clamp(-_MARGIN, height)[..., None, None] + offset[:, None] + _MARGIN
        image = torch.arange(maps.shape[0])[:, None, None] * (height + 2 * _MARGIN)
        return rows[((image + y) * (columns + 2 * _MARGIN) + x).flatten()]

    def _tents(self, fraction: Tensor) -> list[Tensor]:
        """The weights of three pixels along x and along y, (T, N, 3, width) each."""
        offset = torch.arange(3)[:, None]
        looked = [self.tiles.fraction[:, axis, None] + fraction[:, axis, None] for axis in (0, 1)]
        return [torch.relu(1 - torch.abs(at[:, :, None] - offset)) for at in looked]


def tile_width(positions: Tensor) -> int | None:
    """The cheapest width of tiles for positions (K, 2) in pixels; None where cells are too many for tiles to pay."""
    _, counts = torch.unique(torch.floor(positions), dim=0, return_counts=True)

    def tiles(width: int) -> int:
        return sum(math.ceil(count / width) for count in counts.tolist())

    best = min(WIDTHS, key=lambda width: tiles(width) * (width + _TILE_COST))
    return best if tiles(best) * best <= _MOST_PADDING * len(positions) else None
