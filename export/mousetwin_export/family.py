"""The `stacked_core_full_gauss_readout` family in plain torch, as it is at inference.

The semantics are those of sinzlab/sensorium (`sensorium/models/models.py`) built on neuralpredictors 0.3.0
(`Stacked2dCore`, `FullGaussian2d`, `MLPShifter`, `StaticAffine2dShifter`, `FiringRateEncoder`), written anew. Module
names follow the originals', so that their checkpoints load by name.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import GridPredictorConfig, ModelConfig


class Core(nn.Module):
    """Images (N, 1, H, W) and behavior (N, B) to a feature map: convolutions, each with BatchNorm and ELU.

    Attributes:
        input_channels: the image's one, and B.
    """

    def __init__(self, config: ModelConfig, input_channels: int, biased: frozenset[str]) -> None:
        """
        Args:
            config: the model's config.
            input_channels: the image's and one per behavior variable.
            biased: names of the convolutions that have a bias, as "layer1.conv".
        """
        super().__init__()
        self.input_channels = input_channels
        self._skip = config.skip
        self._stack = config.stacked_layers
        self.features = nn.Sequential()
        width = config.hidden_channels
        padding = config.input_kern // 2 if config.pad_input else 0
        first = nn.Conv2d(input_channels, width, config.input_kern, padding=padding, bias="layer0.conv" in biased)
        self.features.add_module("layer0", _layer(config, 0, "conv", first))
        for number in range(1, config.layers):
            inputs = width * (min(config.skip, number) if config.skip > 1 else 1)
            name, kernel = f"layer{number}", config.hidden_kerns[number - 1]
            if config.depth_separable:
                conv: nn.Module = DepthSeparable(config, inputs, kernel, biased, f"{name}.ds_conv")
                self.features.add_module(name, _layer(config, number, "ds_conv", conv))
            else:
                conv = _hidden_conv(config, inputs, kernel, groups=1, bias=f"{name}.conv" in biased)
                self.features.add_module(name, _layer(config, number, "conv", conv))

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before and the readout reads the last."""
        return self._skip <= 1 and self._stack == (len(self.features) - 1,)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        x = with_behavior(images, behavior)
        maps: list[Tensor] = []
        for number, layer in enumerate(self.features):
            stacked = number >= 1 and self._skip > 1
            x = layer(torch.cat(maps[-min(self._skip, number) :], dim=1) if stacked else x)
            maps.append(x)
        chosen = [maps[number] for number in self._stack]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=1)


class DepthSeparable(nn.Sequential):
    """1×1, then depthwise k×k, then 1×1, with nothing in between."""

    def __init__(self, config: ModelConfig, inputs: int, kernel: int, biased: frozenset[str], name: str) -> None:
        super().__init__()
        width = config.hidden_channels
        self.add_module("in_depth_conv", nn.Conv2d(inputs, width, 1, bias=f"{name}.in_depth_conv" in biased))
        self.add_module(
            "spatial_conv",
            _hidden_conv(config, width, kernel, groups=width, bias=f"{name}.spatial_conv" in biased),
        )
        self.add_module("out_depth_conv", nn.Conv2d(width, width, 1, bias=f"{name}.out_depth_conv" in biased))


def _hidden_conv(config: ModelConfig, inputs: int, kernel: int, *, groups: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        config.hidden_channels,
        kernel,
        padding=config.effective_hidden_padding,
        dilation=config.hidden_dilation,
        groups=groups,
        bias=bias,
    )


def _layer(config: ModelConfig, number: int, conv_name: str, conv: nn.Module) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict({conv_name: conv})
    if config.batch_norm:
        parts["norm"] = nn.BatchNorm2d(config.hidden_channels)
    if not config.linear and (number < config.layers - 1 or config.final_nonlinearity):
        parts["nonlin"] = nn.ELU()
    return nn.Sequential(parts)


class GridPredictor(nn.Sequential):
    """Cortical position (K, D) to position on the core map (K, 2): linear layers with ELU between, tanh at the end."""

    def __init__(self, config: GridPredictorConfig) -> None:
        hidden = config.hidden_features
        sizes = [config.input_dimensions, *([hidden] * config.hidden_layers), 2]
        parts: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            parts += [nn.ELU()] if number else []
            parts.append(nn.Linear(inputs, outputs))
        super().__init__(*parts, *([nn.Tanh()] if config.final_tanh else []))


class PointReadout(nn.Module):
    """One point of the feature map per neuron: bilinear sample, weighted by the neuron's features, summed, plus bias.

    Positions are (x, y) in [-1, 1], -1 and 1 being the centres of the outermost pixels (`align_corners=True`); outside
    the map there are zeros. The width of the Gaussian that positions were drawn from in training plays no part.
    """

    def __init__(self, config: ModelConfig, channels: int, neurons: int, bias: bool) -> None:
        super().__init__()
        predictor = config.grid_mean_predictor
        if predictor is None:
            self._mu = nn.Parameter(torch.zeros(1, neurons, 1, 2))
        else:
            self.mu_transform = GridPredictor(predictor)
            self.register_buffer("source_grid", torch.zeros(neurons, predictor.input_dimensions))
        self._features = nn.Parameter(torch.zeros(1, channels, 1, neurons))
        self.bias = nn.Parameter(torch.zeros(neurons)) if bias else None

    def positions(self) -> Tensor:
        """(K, 2) in [-1, 1]."""
        mu = self.mu_transform(self.source_grid) if hasattr(self, "mu_transform") else self._mu
        return torch.clamp(mu.view(-1, 2), -1, 1)

    def positions_in_pixels(self, height: int, width: int) -> Tensor:
        """(K, 2), x and y on a map of this size, in float64: float32 is 1e-5 off far into a large map."""
        size = torch.tensor([width - 1, height - 1], dtype=torch.float64)
        return (copy.deepcopy(self).double().positions() + 1) / 2 * size

    def features(self) -> Tensor:
        """(K, C)."""
        return self._features[0, :, 0].T

    def forward(self, maps: Tensor, shift: Tensor | None = None) -> Tensor:
        grid = self.positions().expand(maps.shape[0], -1, 2)
        if shift is not None:
            grid = grid + shift[:, None]
        samples = F.grid_sample(maps, grid[:, :, None], align_corners=True)[..., 0]
        responses = torch.einsum("nck,kc->nk", samples, self.features())
        return responses if self.bias is None else responses + self.bias


class Shifter(nn.Module):
    """Pupil center (N, 2) to a shift of all positions (N, 2): linear layers, each followed by tanh."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.shifter_type == "StaticAffine":
            self.register_parameter("weight", nn.Parameter(torch.zeros(2, config.input_channels_shifter)))
            self.register_parameter("bias", nn.Parameter(torch.zeros(2)) if config.shifter_bias else None)
            return
        sizes = [config.input_channels_shifter, *([config.hidden_channels_shifter] * (config.shift_layers - 1)), 2]
        parts: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            parts += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.mlp = nn.Sequential(*parts)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest shift (2,) that any pupil center can bring.

        The last layer's inputs are outputs of tanh, hence within ±1, where there are hidden layers.
        """
        if not hasattr(self, "mlp") or len(self.mlp) == 2:
            one = torch.ones(2, dtype=next(self.parameters()).dtype)
            return -one, one
        last = self.mlp[-2]
        assert isinstance(last, nn.Linear)
        reach = last.weight.abs().sum(1)
        return torch.tanh(last.bias - reach), torch.tanh(last.bias + reach)

    def forward(self, pupil_center: Tensor) -> Tensor:
        if hasattr(self, "mlp"):
            shift: Tensor = self.mlp(pupil_center)
            return shift
        return torch.tanh(F.linear(pupil_center, self.weight, self.bias))


class Twin(nn.Module):
    """The whole model of one mouse: core, readout, and a shifter where there is one.

    `forward(images, behavior, pupil_center)`: images (N, 1, H, W), behavior (N, B) and pupil_center (N, 2) where the
    twin takes them; all in model space. Returns responses (N, K), in units of each neuron's standard deviation.
    """

    def __init__(self, core: Core, readout: PointReadout, shifter: Shifter | None, elu_offset: float) -> None:
        super().__init__()
        self.core = core
        self.readout = readout
        self.shifter = shifter
        self.elu_offset = elu_offset

    def forward(self, images: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        maps = self.core(images, behavior)
        shift = None if self.shifter is None else self.shifter(pupil_center)
        return F.elu(self.readout(maps, shift) + self.elu_offset) + 1


def with_behavior(images: Tensor, behavior: Tensor | None) -> Tensor:
    """Images with each behavior variable behind them as a constant channel: (N, 1 + B, H, W)."""
    if behavior is None:
        return images
    planes = behavior[:, :, None, None].expand(-1, -1, *images.shape[-2:])
    return torch.cat([images, planes], dim=1)
