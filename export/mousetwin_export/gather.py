"""The readout as four gathers, for neurons too scattered for tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .window import Window


class GatherReadout(nn.Module):
    """`PointReadout` as four gathers: the pixels around each neuron's position, weighted bilinearly.

    Positions are float64, at export and in the graph: in float32 a position 200 pixels into a map is off by 1e-5
    pixels, which a steep map turns into an error worth seeing. Rounding comes after the whole pixels are split off.
    """

    half_size: Tensor
    positions: Tensor
    features: Tensor
    corners: Tensor
    weights: Tensor

    def __init__(
        self,
        positions: Tensor,
        features: Tensor,
        bias: Tensor | None,
        shifter: nn.Module | None,
        map_size: tuple[int, int],
        window: Window,
    ) -> None:
        """
        Args:
            positions: float64 (K, 2), x and y in pixels of the whole map.
            features: (K, C).
            bias: (K,).
            shifter: pupil center (N, 2) to shift (N, 2), float64, in halves of the map's size; None for none.
            map_size: (height, width) of the whole map.
            window: what of the map will be given: all that any shift can reach, or the map's border.
        """
        super().__init__()
        self._size = window.size
        half = [(map_size[1] - 1) / 2, (map_size[0] - 1) / 2]
        self.register_buffer("half_size", torch.tensor(half, dtype=torch.float64))
        self.register_buffer("positions", positions - torch.tensor([window.left, window.top]))
        self.register_buffer("features", features.contiguous())
        self.bias = bias
        self.shifter = shifter
        if self.shifter is None:
            corners, weights = self._corners(self.positions)
            self.register_buffer("corners", corners)
            self.register_buffer("weights", weights)

    def forward(self, maps: Tensor, pupil_center: Tensor | None = None) -> Tensor:
        rows = maps.flatten(2).transpose(1, 2)
        if self.shifter is None:
            parts = [rows[:, self.corners[i]] * self.weights[i][:, None] for i in range(4)]
        else:
            assert pupil_center is not None
            shift = self.shifter(pupil_center.double())
            corners, weights = self._corners(self.positions + (shift * self.half_size)[:, None])
            pixels = self._size[0] * self._size[1]
            first = torch.arange(rows.shape[0], device=rows.device)[:, None] * pixels
            flat = rows.reshape(-1, rows.shape[2])
            parts = [flat[first + corners[i]] * weights[i][..., None] for i in range(4)]
        samples = parts[0] + parts[1] + parts[2] + parts[3]
        responses = (samples * self.features).sum(-1)
        return responses if self.bias is None else responses + self.bias

    def _corners(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Flat pixel indices and float32 weights of the four corners, (4, …, K) each; zero outside the window."""
        height, width = self._size
        whole = torch.floor(positions)
        fraction = (positions - whole).float()
        indices, weights = [], []
        for dy in (0, 1):
            for dx in (0, 1):
                x, y = whole[..., 0].long() + dx, whole[..., 1].long() + dy
                wx = fraction[..., 0] if dx else 1 - fraction[..., 0]
                wy = fraction[..., 1] if dy else 1 - fraction[..., 1]
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                weights.append(torch.where(inside, wx * wy, 0.0))
                indices.append(y.clamp(0, height - 1) * width + x.clamp(0, width - 1))
        return torch.stack(indices), torch.stack(weights)
