"""Measuring how far exported graphs are from the float64 model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from mousetwin_serve import bundle
from numpy.typing import NDArray
from torch import nn

BATCHES = (1, 3, 64)
# Gradients take longer, and are either right or not.
GRADIENT_BATCHES = (1, 3, 16)
TOLERANCE = 2e-5
# Norm of the difference over norm of the gradient. A pupil's gradient is two numbers left over from thousands that
# nearly cancel.
GRADIENT_TOLERANCES = {"images": 1e-5, "behavior": 1e-5, "pupil_center": 1e-4}
# Neurons chosen at once, at the most, to measure graphs that choose.
CHOSEN = 20

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Answer:
    """responses: float64 (N, K). gradients: of Σ cotangent · responses, by input."""

    responses: NDArray[np.float64]
    gradients: Mapping[str, NDArray[np.float64]]


def reference(twin: nn.Module, inputs: Arrays, cotangent: NDArray[Any] | None = None) -> Answer:
    """The float64 model's answer to float32 inputs.

    Args:
        twin: called with the inputs by name.
        inputs: a batch.
        cotangent: (N, K); None for no gradient.
    """
    exact = copy.deepcopy(twin).double()
    images = inputs["images"]
    # Few large images at a time: their maps are faster to make anew than to find memory for.
    step = max(1, 8 * 36 * 64 // images[0].size)
    parts = []
    for i in range(0, len(images), step):
        given = {name: torch.from_numpy(values[i : i + step]).double() for name, values in inputs.items()}
        if cotangent is None:
            with torch.no_grad():
                parts.append([exact(**given)])
            continue
        sources = {name: values.requires_grad_() for name, values in given.items()}
        responses = exact(**sources)
        weights = torch.from_numpy(cotangent[i : i + step]).double()
        parts.append([responses, *torch.autograd.grad(responses, list(sources.values()), weights)])
    responses, *gradients = (
        np.concatenate([p.detach().numpy() for p in column]) for column in zip(*parts, strict=True)
    )
    return Answer(responses, dict(zip(inputs, gradients, strict=False)))


def cases(shapes: Mapping[str, tuple[int, ...]], batches: Sequence[int]) -> Iterator[tuple[str, Arrays]]:
    """Seeded inputs, each with a word on what they are.

    Args:
        shapes: of one image's inputs, by name: `images`, and `behavior` and `pupil_center` where they are taken.
        batches: how many images.
    """
    rng = np.random.default_rng(20220621)
    pupils = (("pupil within 3 σ", 3.0), ("pupil at 10 σ", 10.0)) if "pupil_center" in shapes else (("", 0.0),)
    for batch in batches:
        for pupil, reach in pupils:
            inputs = {name: rng.normal(size=(batch, *shape)).astype(np.float32) for name, shape in shapes.items()}
            # Every other image at three times the contrast that the loader's normalisation leaves.
            inputs["images"][1::2] *= 3
            if "behavior" in inputs:
                inputs["behavior"] = np.abs(inputs["behavior"]) * 2
            if "pupil_center" in inputs:
                corners = np.array([[-1, -1], [1, 1], [-1, 1], [1, -1]], np.float32)
                inputs["pupil_center"] = rng.uniform(-reach, reach, (batch, 2)).astype(np.float32)
                inputs["pupil_center"][:4] = corners[: min(batch, 4)] * reach
            yield f"batch {batch}" + (f", {pupil}" if pupil else ""), inputs


class Meter:
    """Measures the graphs of one twin, and remembers the worst.

    Attributes:
        names: of the inputs that gradients are with respect to.
    """

    def __init__(
        self, twin: nn.Module, shapes: Mapping[str, tuple[int, ...]], table: Arrays, neurons: int, tolerance: float
    ) -> None:
        """
        Args:
            twin: the plain modules.
            shapes: as for `cases`.
            table: what neurons are, a row each.
            neurons: how many there are.
            tolerance: of responses.
        """
        self._twin, self._shapes, self._table = twin, shapes, table
        self._neurons, self._tolerance = neurons, tolerance
        self.names = list(shapes)

    def forward(self, model: bytes, rows: str | None, say: Callable[[str], None]) -> bundle.Parity:
        """The record of a graph that answers responses.

        Args:
            model: the graph.
            rows: what the rows of `table` that it takes are of: "neurons", "batch"; None where it takes none.
            say: told of each case.
        """
        session = _session(model)
        measured: dict[str, float] = {}
        for case, inputs in cases(self._shapes, BATCHES):
            expected = reference(self._twin, inputs).responses
            columns = _columns(rows, *expected.shape)
            found = session.run(["responses"], {**inputs, **self._rows(columns)})[0]
            measured[case] = float(np.abs(found - _picked(expected, columns)).max())
            say(f"  parity, {case}: max abs error {measured[case]:.2g} (tolerance {self._tolerance:.2g})")
        # Python's own max loses a NaN that does not come first.
        worst = float(np.max(list(measured.values())))
        return bundle.Parity(max_abs_error=worst, tolerance=self._tolerance, cases=tuple(measured))

    def gradient(self, model: bytes, rows: str | None, say: Callable[[str], None]) -> bundle.Parity:
        """The record of a graph that answers responses and gradients; arguments as for `forward`."""
        session = _session(model)
        rng = np.random.default_rng(1)
        absolute: dict[str, float] = {}
        # Of all cases together: what is left of one image's gradient when terms cancel may be mere rounding.
        off, size = dict.fromkeys(self.names, 0.0), dict.fromkeys(self.names, 0.0)
        for case, inputs in cases(self._shapes, GRADIENT_BATCHES):
            whole = np.zeros((len(inputs["images"]), self._neurons), np.float32)
            columns = _columns(rows, *whole.shape)
            cotangent = rng.normal(size=_picked(whole, columns).shape).astype(np.float32)
            expected = reference(self._twin, inputs, _placed(whole, columns, cotangent))
            feeds = {**inputs, **self._rows(columns), "cotangent": cotangent}
            responses, *gradients = session.run(["responses", *(f"d_{name}" for name in self.names)], feeds)
            absolute[case] = float(np.abs(responses - _picked(expected.responses, columns)).max())
            for name, found in zip(self.names, gradients, strict=True):
                off[name] += float(np.square(found - expected.gradients[name]).sum())
                size[name] += float(np.square(expected.gradients[name]).sum())
        errors = {name: math.sqrt(off[name] / size[name]) if off[name] else 0.0 for name in self.names}
        for name, error in errors.items():
            say(f"  gradient parity, {name}: relative error {error:.2g} (tolerance {GRADIENT_TOLERANCES[name]:.2g})")
        # Each in units of its own tolerance, so that one number tells of all.
        share = float(np.max([error / GRADIENT_TOLERANCES[name] for name, error in errors.items()]))
        return bundle.Parity(
            max_abs_error=float(np.max(list(absolute.values()))),
            tolerance=self._tolerance,
            cases=tuple(absolute),
            gradient_error=share * GRADIENT_TOLERANCES["images"],
            gradient_tolerance=GRADIENT_TOLERANCES["images"],
        )

    def _rows(self, columns: NDArray[np.intp] | None) -> Arrays:
        return {} if columns is None else {name: values[columns.ravel()] for name, values in self._table.items()}


def holds(record: bundle.Parity) -> bool:
    """Whether a graph's errors are within their tolerances."""
    # Written so that a NaN fails too.
    return record.max_abs_error <= record.tolerance and (
        record.gradient_error is None
        or record.gradient_tolerance is None
        or record.gradient_error <= record.gradient_tolerance
    )


def _session(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def _columns(rows: str | None, images: int, neurons: int) -> NDArray[np.intp] | None:
    """Seeded neurons: (K,) the same for all images, (N, 1) one an image; None for all."""
    rng = np.random.default_rng(neurons)
    if rows == "neurons":
        return rng.permutation(neurons)[:CHOSEN]
    return rng.integers(0, neurons, (images, 1)) if rows == "batch" else None


def _picked(values: NDArray[Any], columns: NDArray[np.intp] | None) -> NDArray[Any]:
    if columns is None:
        return values
    return values[:, columns] if columns.ndim == 1 else np.take_along_axis(values, columns, 1)


def _placed(whole: NDArray[Any], columns: NDArray[np.intp] | None, values: NDArray[Any]) -> NDArray[Any]:
    if columns is None:
        return values
    np.put_along_axis(whole, np.broadcast_to(columns, values.shape), values, 1)
    return whole
