"""Measuring how far an exported graph is from the float64 model."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
import torch
from mousetwin_serve import bundle
from numpy.typing import NDArray
from torch import nn

BATCHES = (1, 3, 64)
TOLERANCE = 2e-5

Arrays = dict[str, NDArray[np.float32]]


def reference(twin: nn.Module, inputs: Arrays) -> NDArray[np.float64]:
    """The float64 model's responses (N, K) to float32 inputs."""
    exact = copy.deepcopy(twin).double()
    images = inputs["images"]
    # Few large images at a time: their maps are faster to make anew than to find memory for.
    step = max(1, 8 * 36 * 64 // images[0].size)
    with torch.no_grad():
        answers = [
            exact(**{name: torch.from_numpy(values[i : i + step]).double() for name, values in inputs.items()}).numpy()
            for i in range(0, len(images), step)
        ]
    return np.concatenate(answers)


def cases(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Arrays]]:
    """Seeded inputs, each with a word on what they are.

    Args:
        shapes: of one image's inputs, by name: `images`, and `behavior` and `pupil_center` where they are taken.
    """
    rng = np.random.default_rng(20220621)
    pupils = (("pupil within 3 σ", 3.0), ("pupil at 10 σ", 10.0)) if "pupil_center" in shapes else (("", 0.0),)
    for batch in BATCHES:
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


def measure(graph: bytes, inputs: Arrays, expected: NDArray[np.float64]) -> float:
    """Largest absolute error of a graph's responses, run by ONNX Runtime on the CPU."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = session.run(["responses"], inputs)[0]
    return float(np.abs(found - expected).max())


def worst(measured: dict[str, float], tolerance: float) -> bundle.Parity:
    """The record for the bundle; NaN where any case was."""
    # Python's own max loses a NaN that does not come first.
    return bundle.Parity(
        max_abs_error=float(np.max(list(measured.values()))), tolerance=tolerance, cases=tuple(measured)
    )
