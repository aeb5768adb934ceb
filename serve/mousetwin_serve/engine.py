"""One twin: numpy in, numpy out, ONNX Runtime inside. Usable without a server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mousetwin.errors import Unimplemented
from numpy.typing import NDArray

from .batch import Answer, Batch, Float, Work, concatenate, join
from .bundle import Bundle, Manifest
from .device import Device
from .graphs import Graphs, neuron_rows

# Pixels in one run at the most: 256 images of the usual 36×64, 16 of 144×256.
_MAX_PIXELS = 256 * 36 * 64
# More neurons than this are answered faster by computing all of them and leaving the rest out.
_MOST_CHOSEN = 512


class Engine:
    """The graphs of one bundle on one device. Safe to use from several threads at once.

    The cheapest graph for what is asked is picked from the question alone, never from its company: an image is answered
    with the same bits alone and in a batch.

    Attributes:
        graphs: the sessions, and what their replays showed.
        neurons: how many the twin has.
        no_gradient: why the twin has no gradient; empty where it has.
        max_batch: images in one run at the most, so that the maps of a twin with large images fit into memory.
        best_batch: images in one run that take least time each.
        runs: how many runs at once keep the device busy.
        seconds: how long an image took, by graph, as first measured.
    """

    def __init__(self, bundle: Bundle, device: Device) -> None:
        """Load the forward graph and replay the bundle's vectors; other graphs follow when they are first asked for.

        Args:
            bundle: a verified bundle.
            device: where to run.

        Raises:
            BundleError: the graph does not load, or its replay is out of tolerance.
            DeviceError: the device was lost since it was chosen.
        """
        manifest = bundle.manifest
        self._bundle = bundle
        self.graphs = Graphs(bundle, device)
        self.neurons = manifest.neurons.count
        self.no_gradient = why_no_gradient(manifest)
        native = manifest.inputs.native_size
        self.max_batch = max(1, _MAX_PIXELS // (native.height * native.width))
        self.best_batch = min(device.best_batch, self.max_batch)
        self.runs = device.runs
        self.graphs.load("forward")
        self.seconds = {"forward": self._time(bundle)}

    def plan(self, batch: Batch) -> Work:
        """Make a batch ready for the cheapest graph that answers it.

        Raises:
            Unimplemented: a gradient is asked for and the twin has none.
        """
        kind = "forward" if batch.cotangent is None else "gradient"
        if kind == "gradient" and self.no_gradient:
            raise Unimplemented(f"gradient: this twin has none: {self.no_gradient}", field="cotangent")
        rows = {"images": batch.images}
        rows |= {} if batch.behavior is None else {"behavior": batch.behavior}
        rows |= {} if batch.pupil_center is None else {"pupil_center": batch.pupil_center}
        rows |= {} if batch.cotangent is None else {"cotangent": batch.cotangent}
        columns, there = batch.columns, self._bundle.manifest.graphs
        if columns is not None and columns.shape[-1] == 1 and f"{kind}_each" in there:
            each = np.broadcast_to(columns.ravel(), len(batch))
            return Work(f"{kind}_each", {**rows, **neuron_rows(self._bundle, each)}, {}, None, f"{kind}_each")
        if columns is not None and columns.ndim == 1 and len(columns) <= _MOST_CHOSEN and f"{kind}_chosen" in there:
            shared = neuron_rows(self._bundle, columns)
            return Work(f"{kind}_chosen", rows, shared, None, (f"{kind}_chosen", columns.tobytes()))
        if columns is not None and batch.cotangent is not None:
            rows["cotangent"] = self._on_all(batch.cotangent, columns)
        return Work(kind, rows, {}, columns, kind)

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Answer works of one key in one run.

        Raises:
            BundleError: the graph is needed for the first time and does not load, or its replay is out of tolerance.
        """
        outputs = self.graphs.run(works[0].graph, join(works))
        responses = outputs.pop("responses")
        answers, row = [], 0
        for work in works:
            rows = slice(row, row + len(work))
            row += len(work)
            gradient = {name.removeprefix("d_"): values[rows] for name, values in outputs.items()}
            answers.append(Answer(_picked(responses[rows], work.pick), gradient))
        return answers

    def answer(self, batch: Batch) -> Answer:
        """Answer a batch of any size, in as many runs, several at once.

        Raises:
            Unimplemented: a gradient is asked for and the twin has none.
            BundleError: a graph is needed for the first time and does not load, or its replay is out of tolerance.
        """
        work = self.plan(batch)
        parts = [work.part(i, i + self.best_batch) for i in range(0, len(work), self.best_batch)]
        if len(parts) == 1 or self.runs == 1:
            return concatenate([self.run([part])[0] for part in parts])
        with ThreadPoolExecutor(self.runs) as pool:
            return concatenate(list(pool.map(lambda part: self.run([part])[0], parts)))

    def _on_all(self, cotangent: Float, columns: NDArray[np.intp]) -> Float:
        whole = np.zeros((len(cotangent), self.neurons), np.float32)
        np.put_along_axis(whole, np.broadcast_to(columns, cotangent.shape), cotangent, 1)
        return whole

    def _time(self, bundle: Bundle) -> float:
        rows = {
            name: bundle.replay[name][:1] for name in ("images", "behavior", "pupil_center") if name in bundle.replay
        }
        start = time.perf_counter()
        self.graphs.run("forward", rows)
        return time.perf_counter() - start


def why_no_gradient(manifest: Manifest) -> str:
    """Why a twin has no gradient; empty where it has."""
    return "" if "gradient" in manifest.graphs else manifest.no_gradient or "its bundle holds none"


def _picked(responses: Float, pick: NDArray[np.intp] | None) -> Float:
    if pick is None:
        return responses
    return responses[:, pick] if pick.ndim == 1 else np.take_along_axis(responses, pick, 1)
