"""The graphs of a bundle in ONNX Runtime, each loaded when it is first needed and tried on the bundle's own vectors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .bound import Bound, Profile
from .bundle import Bundle, BundleError
from .device import Device, DeviceError

Arrays = Mapping[str, NDArray[Any]]
log = logging.getLogger(__name__)


class _Runs(Protocol):
    """An ONNX Runtime session, as far as it is used once it is made."""

    def run(self, outputs: list[str], feeds: Arrays, /) -> list[NDArray[Any]]: ...


@dataclass(frozen=True)
class Replay:
    """What trying a graph on the bundle's own vectors showed.

    Attributes:
        error: the largest difference: of responses absolute, of a gradient relative to its norm.
        tolerance, gradient_tolerance: what either may be on this device.
        elsewhere: nodes that ran on another device than they should.
    """

    error: float
    tolerance: float
    gradient_tolerance: float
    elsewhere: tuple[str, ...]


class Graphs:
    """Runs the graphs of one bundle on one device. Safe to use from several threads at once.

    Attributes:
        device: which one.
        replays: of each graph that was loaded, what trying it showed.
    """

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self.device = device
        self._bundle = bundle
        self._lock = threading.Lock()
        self._sessions: dict[str, _Runs] = {}
        # ONNX Runtime reads these arrays where they are: they must live as long as the sessions.
        self._weights = {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in bundle.weights.items()}
        self.outputs = {
            name: [output.name for output in graph.outputs] or ["responses"]
            for name, graph in bundle.manifest.graphs.items()
        }
        self.replays: dict[str, Replay] = {}

    def run(self, name: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """What the graph `name` answers, by output.

        Raises:
            BundleError: the graph is needed for the first time and does not load, or its replay is out of tolerance.
            DeviceError: the device was lost since it was chosen.
        """
        session = self._sessions.get(name) or self.load(name)
        return dict(zip(self.outputs[name], session.run(self.outputs[name], feeds), strict=True))

    def load(self, name: str) -> _Runs:
        """The session of a graph, tried on the bundle's vectors. Raises as `run`."""
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._open(name)
            return self._sessions[name]

    def _open(self, name: str) -> _Runs:
        graph = self._bundle.manifest.graphs[name]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # One thread a run: runs beside each other keep the cores busy without waiting for one another.
        options.intra_op_num_threads = 1
        if graph.weights:
            options.add_external_initializers(list(graph.weights), [self._weights[weight] for weight in graph.weights])
        profile = Profile(options) if self.device.own_memory else None
        try:
            session = ort.InferenceSession(
                self._bundle.graphs[name], options, providers=self.device.providers, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime has no base class for what it raises
            raise BundleError(f"{graph.file}: ONNX Runtime refuses it: {error}") from error
        if self.device.kind == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError("the CUDA provider no longer starts: see ONNX Runtime's log", field="device")
        runs: _Runs = Bound(session, self.device) if profile else session
        told = self._bundle.manifest.replay
        tolerances = self.device.tolerances(told.tolerance, told.gradient_tolerance)
        off = self._replay(name, runs, *tolerances)
        elsewhere = profile.elsewhere(session, session.get_providers()[0]) if profile else []
        if elsewhere:
            log.warning("%s: not on the GPU: %s", graph.file, ", ".join(elsewhere))
        self.replays[name] = Replay(off, *tolerances, tuple(elsewhere))
        return runs

    def _replay(self, name: str, session: _Runs, of_responses: float, of_gradients: float) -> float:
        """The largest error; both tolerances are held."""
        file = self._bundle.manifest.replay.file
        feeds, expected = self._vectors(name)
        try:
            found = session.run(list(expected), feeds)
            errors = {n: _error(n, values, expected[n]) for n, values in zip(expected, found, strict=True)}
        except Exception as failure:  # the vectors may not fit the graph in any way at all
            raise BundleError(f"{file}: the graph {name} does not run on it: {failure}") from failure
        for what, error in errors.items():
            tolerance = of_responses if what == "responses" else of_gradients
            # Written so that a NaN fails too.
            if not error <= tolerance:
                raise BundleError(
                    f"{file}: replayed on {self.device.kind}, {what} of {name} are off by "
                    f"{error:.2g}, tolerance {tolerance:.2g}"
                )
        return max(errors.values())

    def _vectors(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """What to feed a graph, and what it is to answer."""
        replay = self._bundle.replay
        inputs = ["images", *(n for n in ("behavior", "pupil_center") if n in replay)]
        feeds, responses = {n: replay[n] for n in inputs}, replay["responses"]
        kind, _, rows = name.partition("_")
        if rows:
            # Graphs that choose are tried on one neuron an image; chosen for all images, each for its own counts.
            neurons = replay["neurons"] if "neurons" in replay else np.arange(len(responses)) % responses.shape[1]
            feeds |= neuron_rows(self._bundle, neurons)
            each = np.arange(len(neurons))
            responses = responses[each, neurons][:, None] if rows == "each" else responses[:, neurons]
        if kind != "gradient":
            return feeds, {"responses": responses}
        one = np.ones((len(responses), 1), np.float32) if rows == "each" else np.eye(len(responses), dtype=np.float32)
        feeds["cotangent"] = one if rows else replay["cotangent"]
        prefix = "each_" if rows else ""
        return feeds, {"responses": responses, **{f"d_{n}": replay[f"{prefix}d_{n}"] for n in inputs}}


def neuron_rows(bundle: Bundle, neurons: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """What some neurons are, for the graphs that are told."""
    return {name: bundle.weights[name][neurons] for name in ("positions", "features", "bias")}


def _error(name: str, found: NDArray[Any], expected: NDArray[Any]) -> float:
    if name == "responses":
        return float(np.abs(found - expected).max())
    off = float(np.linalg.norm(found - expected))
    return off / float(np.linalg.norm(expected)) if off else 0.0
