"""From a torch module to an ONNX graph that ONNX Runtime serves without torch."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable
from typing import Any

import onnx
import torch
from mousetwin_serve import bundle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .family import Core, DepthSeparable, Twin
from .tiles import ShiftedTiledReadout, TiledReadout, tile_width
from .window import Window, WindowedCore, reached

OPSET = 18
Inputs = dict[str, Tensor]


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


def to_onnx(module: nn.Module, inputs: Inputs) -> bytes:
    """The ONNX model of `module`, with the first dimension of all inputs as its one dynamic dimension.

    Args:
        module: called with keyword arguments, answers one tensor.
        inputs: examples by name, with a batch of two: one would be taken for a constant.

    Returns:
        Bytes of a model with those inputs and the output `responses`; the same bytes each time.
    """
    batch = torch.export.Dim("batch", min=1)
    # The exporter tells of its own deprecations, and of torchvision's absence, which are not the caller's to mend.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["responses"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            verbose=False,
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def describe(data: bytes) -> tuple[tuple[bundle.Tensor, ...], tuple[bundle.Tensor, ...]]:
    """The model's inputs and outputs, for the bundle."""
    graph = onnx.load_from_string(data).graph
    return _tensors(graph.input), _tensors(graph.output)


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[bundle.Tensor, ...]:
    return tuple(
        bundle.Tensor(
            name=value.name,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=tuple("batch" if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _strip(model: onnx.ModelProto) -> None:
    # The exporter notes where in our files each node came from: of no use to a reader of the bundle, and another
    # digest for the same weights on every machine.
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
