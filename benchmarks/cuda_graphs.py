"""Whether CUDA graphs would pay: a twin's graph run in place as it is, and captured once and then replayed.

Part of benchmarks/gpu.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from mousetwin_serve.bundle import Bundle
from mousetwin_serve.device import Device
from timing import median_ms

Given = dict[str, np.ndarray[Any, Any]]


class InPlace:
    """A session whose inputs and outputs keep their places in the device's memory, as a captured graph needs them."""

    def __init__(self, bundle: Bundle, name: str, device: Device, given: Given, *, captured: bool) -> None:
        """Raises what ONNX Runtime raises where it refuses to capture the graph."""
        graph = bundle.manifest.graphs[name]
        options = ort.SessionOptions()
        self._weights = [ort.OrtValue.ortvalue_from_numpy(bundle.weights[weight]) for weight in graph.weights]
        options.add_external_initializers(list(graph.weights), self._weights)
        (provider, settings), *others = device.providers
        settings = {**settings, "enable_cuda_graph": int(captured)}
        session = ort.InferenceSession(bundle.graphs[name], options, providers=[(provider, settings), *others])
        self._session, self._binding = session, session.io_binding()
        shapes = {"responses": (len(given["images"]), bundle.manifest.neurons.count)}
        shapes |= {f"d_{key}": values.shape for key, values in given.items()}
        place = (provider.removesuffix("ExecutionProvider").lower(), device.index)
        for key, values in given.items():
            self._binding.bind_ortvalue_input(key, ort.OrtValue.ortvalue_from_numpy(values, *place))
        for output in session.get_outputs():
            there = ort.OrtValue.ortvalue_from_shape_and_type(shapes[output.name], np.float32, *place)
            self._binding.bind_ortvalue_output(output.name, there)

    def run(self) -> None:
        """One run to its end."""
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[np.ndarray[Any, Any]]:
        """What the last run answered."""
        return [output.numpy() for output in self._binding.get_outputs()]


def capture(bundle: Bundle, device: Device, name: str, given: Given, seconds: float) -> str:
    """How long runs of a graph take as it is and captured, in one line of text."""
    plain = InPlace(bundle, name, device, given, captured=False)
    as_is = median_ms(plain.run, seconds)
    try:
        replayed = InPlace(bundle, name, device, given, captured=True)
        taken = median_ms(replayed.run, seconds)
    except Exception as error:  # ONNX Runtime has no base class for what it raises
        return f"{as_is:.3f} ms as it is, not to be captured: {' '.join(str(error).split())}"
    off = max(float(np.abs(a - b).max()) for a, b in zip(plain.outputs(), replayed.outputs(), strict=True))
    return f"{as_is:.3f} ms as it is, {taken:.3f} captured: {as_is / taken:.2f} times as fast, off by {off:.1e}"
