"""The rewritten forward graph, wherever the neurons look: the same numbers as the plain modules in float64.

The plain modules themselves are held against the original library in tests/reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from mousetwin_export import graph, parity
from mousetwin_export.config import parse_config
from mousetwin_export.family import Core, PointReadout, Shifter, Twin
from mousetwin_export.forward import ForwardGraph
from mousetwin_export.gather import GatherReadout
from mousetwin_export.tiles import ShiftedTiledReadout, TiledReadout

SIZE = (20, 30)
CONFIG: dict[str, Any] = {"layers": 3, "input_kern": 5, "hidden_kern": 5, "hidden_channels": 6, "depth_separable": True}


def spread(neurons: int) -> torch.Tensor:
    return torch.rand(neurons, 2) * 2 - 1


def edges(neurons: int) -> torch.Tensor:
    """On the map's border and its corners, and beyond them, where positions are clamped."""
    places = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -0.3], [0.2, 1.0], [-1.4, 0.1], [0.5, -3.0]])
    return places[torch.arange(neurons) % len(places)]


def one_cell(neurons: int) -> torch.Tensor:
    return torch.tensor([0.31, -0.2]) + torch.rand(neurons, 2) * 0.02


def patch(neurons: int) -> torch.Tensor:
    return torch.tensor([0.5, 0.2]) + torch.rand(neurons, 2) * 0.4


# Positions, and whether tiles pay for them.
PLACES = {
    "one patch": (patch(400), True),
    "one cell": (one_cell(300), True),
    "edges": (edges(300), True),
    "one neuron": (patch(1), False),
    "few and scattered": (spread(60), False),
    "all over the map": (spread(5000), True),
    "20,000 neurons": (spread(20_000), True),
    "on whole pixels": (torch.round(patch(200) * 10) / 10, True),
}
SHIFTERS: dict[str, dict[str, Any]] = {
    "no shifter": {"shifter": False},
    "bounded shifter": {"shifter": True},
    "unbounded shifter": {"shifter": True, "shift_layers": 1},
    "affine shifter": {"shifter": True, "shifter_type": "StaticAffine"},
}


def build(config: dict[str, Any], positions: torch.Tensor, behavior: int = 0) -> Twin:
    torch.manual_seed(3)
    parsed = parse_config({"stack": -1, **CONFIG, **config})
    channels = parsed.hidden_channels * len(parsed.stacked_layers)
    core = Core(parsed, 1 + behavior, frozenset())
    readout = PointReadout(parsed, channels, len(positions), bias=True)
    shifter = Shifter(parsed) if parsed.shifter else None
    twin = Twin(core, readout, shifter, 0.0).eval()
    for name, value in twin.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(0, 0.4)
    readout._mu.data = positions[None, :, None]
    return twin.requires_grad_(False)


def check(twin: Twin, size: tuple[int, int] = SIZE, behavior: int = 0) -> ForwardGraph:
    """Export, run and compare; returns the rewritten module, so that a test can say which way it went."""
    rewritten = ForwardGraph(twin, size)
    shapes: dict[str, tuple[int, ...]] = {"images": (1, *size)}
    shapes |= {"behavior": (behavior,)} if behavior else {}
    shapes |= {"pupil_center": (2,)} if twin.shifter is not None else {}
    model = graph.to_onnx(rewritten, {name: torch.zeros(2, *dims) for name, dims in shapes.items()})
    assert "GridSample" not in {node.op_type for node in onnx.load_from_string(model).graph.node}
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, reach in ((1, 0.0), (5, 1.0), (5, 3.0), (3, 50.0)):
        inputs = {name: rng.normal(size=(batch, *dims)).astype(np.float32) for name, dims in shapes.items()}
        if "pupil_center" in inputs:
            inputs["pupil_center"] = rng.uniform(-reach, reach, (batch, 2)).astype(np.float32)
        expected = parity.reference(twin, inputs)
        found = session.run(["responses"], inputs)[0]
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=2e-6)
    return rewritten


@pytest.mark.parametrize(
    ("place", "shifter"),
    [
        *((place, shifter) for place in PLACES for shifter in ("no shifter", "bounded shifter")),
        *((place, shifter) for place in ("edges", "one neuron") for shifter in ("unbounded shifter", "affine shifter")),
    ],
)
def test_wherever_the_neurons_look(place: str, shifter: str) -> None:
    positions, tiled = PLACES[place]
    rewritten = check(build(SHIFTERS[shifter], positions))
    expected = (ShiftedTiledReadout if SHIFTERS[shifter]["shifter"] else TiledReadout) if tiled else GatherReadout
    assert isinstance(rewritten.readout, expected)


CORES: dict[str, dict[str, Any]] = {
    "plain": {"depth_separable": False},
    "one layer": {"layers": 1},
    "padded input": {"pad_input": True},
    "dilated": {"hidden_dilation": 2},
    "no hidden padding": {"hidden_padding": 0},
    "more padding than needed": {"hidden_padding": 4},
    "even kernels": {"hidden_kern": 4, "input_kern": 6},
    "kernels of several sizes": {"layers": 4, "hidden_kern": [7, 3, 5]},
    "all layers stacked": {"stack": None},
    "skip connections": {"skip": 2, "depth_separable": False},
}


@pytest.mark.parametrize(("place", "shifter"), [("one patch", "no shifter"), ("edges", "bounded shifter")])
@pytest.mark.parametrize("core", CORES)
def test_whatever_the_core_is(core: str, place: str, shifter: str) -> None:
    check(build(CORES[core] | SHIFTERS[shifter], PLACES[place][0], behavior=2), behavior=2)


def test_a_window_leaves_most_of_the_work_out() -> None:
    """The point of it all: of a large map, only what one patch of neurons looks at is computed."""
    rewritten = ForwardGraph(build({"shifter": False}, patch(400)), (144, 256))
    seen: list[int] = []
    for module in rewritten.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output[0, 0].numel()))
    rewritten(torch.zeros(1, 1, 144, 256))
    assert max(seen) < 0.3 * 140 * 252
