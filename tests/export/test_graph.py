"""The rewritten forms of a twin, wherever the neurons look: the same numbers as the plain modules in float64.

The plain modules themselves are held against the original library in tests/reference. Here the forms run in torch,
which is what is exported; that the exported graphs are the same is measured at every export, and for some twins here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from mousetwin_export import parity
from mousetwin_export.config import parse_config
from mousetwin_export.crop import CroppedCore
from mousetwin_export.family import Core, PointReadout, Shifter, Twin
from mousetwin_export.forward import Forms
from mousetwin_export.tiles import ShiftedTiledReadout, TiledReadout
from mousetwin_export.variants import Variant, compile_variants
from mousetwin_export.window import WindowedCore

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


# The same places every time: where one of 20,000 falls within float32's rounding of a whole pixel, its gradient may be
# that of either side.
torch.manual_seed(1)
PLACES = {
    "one patch": patch(400),
    "one cell": one_cell(300),
    "edges": edges(300),
    "one neuron": patch(1),
    "few and scattered": spread(60),
    "all over the map": spread(5000),
    "20,000 neurons": spread(20_000),
    "on whole pixels": torch.round(patch(200) * 10) / 10,
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


Arrays = dict[str, np.ndarray[Any, Any]]


def shapes_of(twin: Twin, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"images": (1, *size)}
    shapes |= {"behavior": (twin.core.input_channels - 1,)} if twin.core.input_channels > 1 else {}
    return shapes | ({"pupil_center": (2,)} if twin.shifter is not None else {})


def answers(
    module: torch.nn.Module, inputs: Arrays, rows: dict[str, torch.Tensor], cotangent: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], Arrays]:
    """Responses in float32, and the gradient of Σ cotangent · responses."""
    given = {name: torch.from_numpy(values).requires_grad_() for name, values in inputs.items()}
    responses = module(**given, **rows)
    gradients = torch.autograd.grad(responses, list(given.values()), torch.from_numpy(cotangent))
    return responses.detach().numpy(), {name: g.numpy() for name, g in zip(given, gradients, strict=True)}


def close(found: tuple[np.ndarray[Any, Any], Arrays], responses: np.ndarray[Any, Any], gradients: Any) -> None:
    np.testing.assert_allclose(found[0], responses, atol=2e-5, rtol=2e-6)
    for name, expected in gradients.items():
        tolerance = parity.GRADIENT_TOLERANCES[name]
        # What is left of a pupil's or behavior's gradient when thousands of terms cancel may be no larger than their
        # rounding.
        rounding = {"pupil_center": 1e-5, "behavior": 1e-6}.get(name, 1e-9)
        atol = tolerance * np.linalg.norm(expected) + rounding
        np.testing.assert_allclose(found[1][name], expected, rtol=0, atol=atol)


def check(twin: Twin, size: tuple[int, int] = SIZE) -> Forms:
    """Compare all forms and their gradients with the plain modules; returns the forms, to say which way they went."""
    forms = Forms(twin, size)
    rng = np.random.default_rng(0)
    neurons = len(forms.table["bias"])
    for batch, reach in ((1, 0.0), (5, 1.0), (5, 3.0), (3, 50.0)):
        inputs = {n: rng.normal(size=(batch, *dims)).astype(np.float32) for n, dims in shapes_of(twin, size).items()}
        if "pupil_center" in inputs:
            inputs["pupil_center"] = rng.uniform(-reach, reach, (batch, 2)).astype(np.float32)
        weights = rng.normal(size=(batch, neurons)).astype(np.float32)
        expected = parity.reference(twin, inputs, weights)
        close(answers(forms.all, inputs, {}, weights), expected.responses, expected.gradients)

        chosen = rng.permutation(neurons)[:6]
        some = np.zeros_like(weights)
        some[:, chosen] = weights[:, chosen]
        expected = parity.reference(twin, inputs, some)
        rows = {name: values[chosen] for name, values in forms.table.items()}
        found = answers(forms.chosen, inputs, rows, weights[:, chosen])
        close(found, expected.responses[:, chosen], expected.gradients)

        if forms.each is not None:
            own = rng.integers(0, neurons, (batch, 1))
            one = np.zeros_like(weights)
            np.put_along_axis(one, own, np.take_along_axis(weights, own, 1), 1)
            expected = parity.reference(twin, inputs, one)
            rows = {name: values[own[:, 0]] for name, values in forms.table.items()}
            found = answers(forms.each, inputs, rows, np.take_along_axis(weights, own, 1))
            close(found, np.take_along_axis(expected.responses, own, 1), expected.gradients)
    return forms


@pytest.mark.parametrize(
    ("place", "shifter"),
    [
        *((place, shifter) for place in PLACES for shifter in ("no shifter", "bounded shifter")),
        *((place, shifter) for place in ("edges", "one neuron") for shifter in ("unbounded shifter", "affine shifter")),
    ],
)
def test_wherever_the_neurons_look(place: str, shifter: str) -> None:
    forms = check(build(SHIFTERS[shifter], PLACES[place]))
    moved = SHIFTERS[shifter]["shifter"]
    assert isinstance(forms.all.readout, ShiftedTiledReadout if moved else TiledReadout)
    # A window that moves pays for one patch of neurons, not where they look everywhere anyway.
    if place in ("one patch", "one cell", "all over the map"):
        moves = moved and place != "all over the map"
        assert isinstance(forms.all.seen.core, CroppedCore if moves else WindowedCore)


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
    forms = check(build(CORES[core] | SHIFTERS[shifter], PLACES[place], behavior=2))
    # Layers that read others than the one before are computed whole, and no neuron alone.
    assert (forms.each is None) == (core in ("all layers stacked", "skip connections"))


EXPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"depth_separable": False}, "one patch"),
    "moved and at the border": ({"shifter": True, "pad_input": True}, "edges"),
    "no chain": ({"stack": None}, "one neuron"),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_exported(name: str) -> None:
    """All graphs of a twin, gradients among them, with the measurement that lets them pass."""
    config, place = EXPORTED[name]
    twin = build(config, PLACES[place], behavior=2)
    forms = Forms(twin, SIZE)
    variants = [Variant("", forms.all), Variant("_chosen", forms.chosen, "neurons")]
    variants += [] if forms.each is None else [Variant("_each", forms.each, "batch")]
    table = {key: values.numpy() for key, values in forms.table.items()}
    neurons, said = len(table["bias"]), list[str]()
    built = compile_variants(
        twin, variants, table, shapes_of(twin, SIZE), neurons, parity.TOLERANCE, gradient=True, say=said.append
    )
    kinds = ["", "_chosen"] + ([] if forms.each is None else ["_each"])
    assert set(built.graphs) == {f"{graph}{kind}" for graph in ("forward", "gradient") for kind in kinds}
    assert built.no_gradient == ""
    assert "batch 64" in " ".join(said)
    for graph, record in built.parity.items():
        assert record.max_abs_error <= 2e-5
        assert (record.gradient_error is None) == graph.startswith("forward")
        assert record.gradient_error is None or record.gradient_error <= 1e-5
        operators = {node.op_type for node in onnx.load_from_string(built.graphs[graph]).graph.node}
        assert not operators & {"GridSample", "ScatterND", "ScatterElements"}


def test_a_window_leaves_most_of_the_work_out() -> None:
    """The point of it all: of a large map, only what one patch of neurons looks at is computed."""
    forms = Forms(build({"shifter": False}, patch(400)), (144, 256))
    seen: list[int] = []
    for module in forms.all.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output[0, 0].numel()))
    forms.all(torch.zeros(1, 1, 144, 256))
    assert max(seen) < 0.3 * 140 * 252
