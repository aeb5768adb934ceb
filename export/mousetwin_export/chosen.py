"""Readouts of neurons that are chosen when the graph runs: each is a position, features and a bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import whole_blocks


class ChosenReadout(nn.Module):
    """A few neurons, the same for all images.

    A neuron's bilinear weights over the whole window are two tents max(0, 1 - |distance|), one along each axis, zero
    almost everywhere: multiplying by the zeros costs less than gathering, forwards and backwards.
    """

    def __init__(self, window_left: int, window_top: int) -> None:
        super().__init__()
        self._left, self._top = window_left, window_top

    def forward(
        self, maps: Tensor, positions: Tensor, features: Tensor, bias: Tensor, fraction: Tensor | None = None
    ) -> Tensor:
        """Maps of a window (N, C, h, w) to readout sums (N, K).

        Args:
            maps: of the window, moved by the whole pixels of a shift.
            positions: float64 (K, 2), x and y in pixels of the whole map.
            features: (K, C).
            bias: (K,).
            fraction: (N, 2), what is left of a shift beside whole pixels.
        """
        x, y = (positions[:, 0] - self._left).float()[None], (positions[:, 1] - self._top).float()[None]
        if fraction is not None:
            # The same for all neurons of an image: as a product image by image, whose gradient adds up alike anywhere.
            moved = torch.ones_like(features[None, :, :1]) @ fraction[:, None]
            x, y = x + moved[..., 0], y + moved[..., 1]
        along_x, along_y = _tents(x, maps.shape[3]), _tents(y, maps.shape[2])
        weights = (along_y[..., None] * along_x[:, :, None]).flatten(2)
        samples = weights @ maps.flatten(2).transpose(1, 2)
        return whole_blocks(samples * features).sum(-1) + bias


class EachReadout(nn.Module):
    """One neuron an image: maps (N, C, 2, 2) of its cell to its readout sum (N, 1)."""

    def forward(self, maps: Tensor, fraction: Tensor, features: Tensor, bias: Tensor) -> Tensor:
        """
        Args:
            maps: of each image's cell.
            fraction: (N, 2), x and y in [0, 1), where in its cell each image's neuron looks.
            features: (N, C).
            bias: (N,).
        """
        along_x, along_y = (torch.stack([1 - at, at], 1) for at in fraction.unbind(1))
        # As products, image by image: sums over some of the dimensions would round an image alone unlike one of many.
        weights = (along_y[:, :, None] @ along_x[:, None]).flatten(1)
        samples = weights[:, None] @ maps.flatten(2).transpose(1, 2)
        return whole_blocks(samples.flatten(1) * features).sum(1, keepdim=True) + bias[:, None]


def _tents(looked: Tensor, length: int) -> Tensor:
    """(…) positions in pixels to the weights (…, length) of a row of pixels."""
    return torch.relu(1 - torch.abs(looked[..., None] - torch.arange(length)))
