"""The readout as a few dense products.

Neurons that look into the same cell of the map's grid mix the same pixels. Sorted by cell and cut into tiles, a tile is
one small matrix product: its pixels' features against the features of its neurons; bilinear weights then mix the
pixels. The same sums as before, in another order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layers import Window

WIDTHS = (64, 32, 16, 8, 4)
# What a tile costs beside its neurons, in neurons: gathering its pixels.
_TILE_COST = 16


class _Tiles(nn.Module):
    """Neurons sorted into tiles of one cell each.

    Attributes:
        cells: (T, 2), x and y of each tile's cell in the window.
        fraction: (T, 2, width), where in the cell each neuron looks, x and y in [0, 1); float32.
        features: (T, C, width), zero where a tile is not full.
        order: (K,), each neuron's place among all tiles' columns.
        multiply_adds: for one pixel of every tile.
    """

    cells: Tensor
    fraction: Tensor
    order: Tensor

    def __init__(self, positions: Tensor, features: Tensor, window: Window) -> None:
        super().__init__()
        neurons, channels = features.shape
        width = tile_width(positions)
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
        self.multiply_adds = tiled.numel()

    def products(self, maps: Tensor, pixels: Tensor) -> Tensor:
        """What M pixels of maps (N, C, h, w) are to each neuron of their tile: (T, M, N, width).

        Args:
            maps: of the window.
            pixels: the flat indices of each tile's (T·M,).
        """
        tiles, channels, width = self.features.shape
        images, each = maps.shape[0], pixels.numel() // tiles
        rows = maps.permute(2, 3, 0, 1).flatten(0, 1)[pixels]
        products = torch.bmm(rows.view(tiles, each * images, channels), self.features)
        return products.view(tiles, each, images, width)

    def in_order(self, tiled: Tensor) -> Tensor:
        """(T, N, width) to (N, K)."""
        return tiled.transpose(0, 1).flatten(1)[:, self.order]


class TiledReadout(nn.Module):
    """Maps of a window (N, C, h, w) to readout sums (N, K), before the output nonlinearity; for positions that stay.

    Attributes:
        multiply_adds: of one image.
    """

    pixels: Tensor
    weights: Tensor

    def __init__(self, positions: Tensor, features: Tensor, bias: Tensor | None, window: Window) -> None:
        """
        Args:
            positions: float64 (K, 2), x and y in pixels of the whole map.
            features: (K, C).
            bias: (K,).
            window: what of the map will be given: every pixel that the positions are mixed from.
        """
        super().__init__()
        self.tiles = _Tiles(positions, features, window)
        self.multiply_adds = 4 * self.tiles.multiply_adds
        height, width = window.size
        x, y = self.tiles.cells.T
        # A neuron on the last pixel looks at nothing beyond it: its weight there is zero.
        right, below = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
        corners = [y * width + x, y * width + right, below * width + x, below * width + right]
        self.register_buffer("pixels", torch.stack(corners, 1).reshape(-1))
        fx, fy = self.tiles.fraction.unbind(1)
        mixed = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1)
        self.register_buffer("weights", mixed[:, :, None])
        self.bias = bias

    def forward(self, maps: Tensor) -> Tensor:
        products = self.tiles.products(maps, self.pixels)
        responses = self.tiles.in_order((products * self.weights).sum(1))
        return responses if self.bias is None else responses + self.bias


class ShiftedTiledReadout(nn.Module):
    """`TiledReadout` for positions that are moved by less than a pixel right and down, all alike.

    A neuron that looks u into its cell then looks u plus that fraction into it, which is mixed from 3×3 pixels with
    tent weights max(0, 1 - |distance|) along each axis.

    Attributes:
        multiply_adds: of one image.
    """

    pixels: Tensor

    def __init__(self, positions: Tensor, features: Tensor, bias: Tensor | None, window: Window) -> None:
        """
        Args:
            positions, features, bias: as for `TiledReadout`.
            window: what of the map will be given: every cell, and two pixels to its right and below.
        """
        super().__init__()
        self.tiles = _Tiles(positions, features, window)
        self.multiply_adds = 9 * self.tiles.multiply_adds
        offset = torch.arange(3)
        x, y = self.tiles.cells.T[..., None, None]
        self.register_buffer("pixels", ((y + offset[:, None]) * window.size[1] + x + offset).flatten())
        self.bias = bias

    def forward(self, maps: Tensor, fraction: Tensor) -> Tensor:
        products = self.tiles.products(maps, self.pixels).reshape(len(self.tiles.cells), 3, 3, maps.shape[0], -1)
        along_x, along_y = self._tents(fraction, 0), self._tents(fraction, 1)
        responses = self.tiles.in_order(((products * along_x[:, None]).sum(2) * along_y).sum(1))
        return responses if self.bias is None else responses + self.bias

    def _tents(self, fraction: Tensor, axis: int) -> Tensor:
        """The weights of three pixels in a row, (T, 3, N, width)."""
        looked = self.tiles.fraction[:, axis, None, None] + fraction[:, axis, None]
        return torch.relu(1 - torch.abs(looked - torch.arange(3)[:, None, None]))


def cells_of(positions: Tensor) -> Window:
    """The window of all cells that positions (K, 2) in pixels look into."""
    (left, top), (right, bottom) = (torch.floor(edge).int().tolist() for edge in (positions.amin(0), positions.amax(0)))
    return Window(top, bottom, left, right)


def tile_width(positions: Tensor) -> int:
    """The cheapest width of tiles for positions (K, 2) in pixels."""
    _, counts = torch.unique(torch.floor(positions), dim=0, return_counts=True)
    return min(
        WIDTHS, key=lambda width: sum(math.ceil(count / width) for count in counts.tolist()) * (width + _TILE_COST)
    )
