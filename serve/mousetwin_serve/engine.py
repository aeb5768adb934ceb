"""One twin: arrays in, arrays out, ONNX Runtime inside. Usable without a server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mousetwin.errors import Unimplemented
from numpy.typing import NDArray

from .batch import Answer, Batch, Float, Work, concatenate, join
from .bundle import Bundle, Manifest
from .device import Device
from .graphs import Graphs, Replay, neuron_rows
from .memory import at, index_of

# Pixels in one run at the most: 256 images of the usual 36×64, 16 of 144×256.
_MAX_PIXELS = 256 * 36 * 64
# Sizes of batch that are tried, and how often, where the best one is not known: on a GPU.
_SIZES = (1, 8, 32, 64, 128, 256)
_TRIES = 4
# More neurons than this are answered faster by computing all of them and leaving the rest out.
_MOST_CHOSEN = 512


class Engine:
    """The graphs of one bundle on each of some devices. Safe to use from several threads at once.

    The cheapest graph for what is asked is picked from the question alone, never from its company: an image is answered
    with the same bits alone and in a batch. A batch whose images are in a device's memory is answered there, any other
    on the device that has least to do.

    Attributes:
        devices: which ones.
        neurons: how many the twin has.
        no_gradient: why the twin has no gradient; empty where it has.
        max_batch: images in one run at the most, so that the maps of a twin with large images fit into memory.
        best_batch: images in one run that take least time each.
        runs: how many runs at once keep the devices busy.
        seconds: how long an image took, by graph, as first measured.
    """

    def __init__(self, bundle: Bundle, devices: Sequence[Device]) -> None:
        """Load graphs and replay the bundle's vectors.

        On a GPU all of them, so that no request waits for it; on the CPU, where they load in no time, the forward
        graph, and others when they are first asked for.

        Args:
            bundle: a verified bundle.
            devices: where to run; all of one kind.

        Raises:
            BundleError: the graph does not load, or its replay is out of tolerance.
            DeviceError: the device was lost since it was chosen.
        """
        manifest = bundle.manifest
        self._bundle = bundle
        self.devices = tuple(devices)
        self._graphs = [Graphs(bundle, device) for device in devices]
        self._busy = [0] * len(self._graphs)
        self._lock = threading.Lock()
        self.neurons = manifest.neurons.count
        self.no_gradient = why_no_gradient(manifest)
        native = manifest.inputs.native_size
        self.max_batch = max(1, _MAX_PIXELS // (native.height * native.width))
        self.runs = sum(device.runs for device in devices)
        for graphs in self._graphs:
            for name in manifest.graphs if graphs.device.own_memory else ["forward"]:
                graphs.load(name)
        known = self.devices[0].best_batch
        # Several at once are tried only where that tells something.
        seconds = self._time(bundle, _SIZES if known is None else (1,))
        if known is None:
            self.max_batch = max(seconds)
        self.best_batch = min(known or _fastest(seconds), self.max_batch)
        self.seconds = {"forward": seconds[1]}

    @property
    def replays(self) -> dict[str, Replay]:
        """Of each graph that was loaded, what trying it showed; on several devices, of the one that is furthest off."""
        found: dict[str, Replay] = {}
        for graphs in self._graphs:
            for name, replay in graphs.replays.items():
                found[name] = max(found.get(name, replay), replay, key=lambda one: one.error)
        return found

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
        # What is in different memories does not mix.
        home = index_of(batch.images)
        if columns is not None and columns.shape[-1] == 1 and f"{kind}_each" in there:
            each = np.broadcast_to(columns.ravel(), len(batch))
            return Work(f"{kind}_each", {**rows, **neuron_rows(self._bundle, each)}, {}, None, (f"{kind}_each", home))
        if columns is not None and columns.ndim == 1 and len(columns) <= _MOST_CHOSEN and f"{kind}_chosen" in there:
            shared = neuron_rows(self._bundle, columns)
            return Work(f"{kind}_chosen", rows, shared, None, (f"{kind}_chosen", columns.tobytes(), home))
        if columns is not None and batch.cotangent is not None:
            rows["cotangent"] = self._on_all(batch.cotangent, columns)
        return Work(kind, rows, {}, columns, (kind, home))

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Answer works of one key in one run.

        Raises:
            BundleError: the graph is needed for the first time and does not load, or its replay is out of tolerance.
        """
        with at(works[0].rows["images"]):
            feeds = join(works)
            with self._least_busy(feeds["images"]) as graphs:
                outputs = graphs.run(works[0].graph, feeds)
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
        with at(cotangent):
            whole: Float = np.zeros((len(cotangent), self.neurons), np.float32, like=cotangent)
            row = np.arange(len(cotangent), like=cotangent)[:, None]
            whole[row, np.asarray(np.broadcast_to(columns, cotangent.shape), like=cotangent)] = cotangent
        return whole

    @contextlib.contextmanager
    def _least_busy(self, images: Float) -> Iterator[Graphs]:
        """The graphs to run next: where the images are, else of the device with fewest runs under way."""
        with self._lock:
            home = index_of(images)
            number = self._busy.index(min(self._busy))
            if home is not None:
                number = [device.index for device in self.devices].index(home)
            self._busy[number] += 1
        try:
            yield self._graphs[number]
        finally:
            with self._lock:
                self._busy[number] -= 1

    def _time(self, bundle: Bundle, sizes: Sequence[int]) -> dict[int, float]:
        """Seconds of a run of so many images, until they are more than a run may have or the device takes."""
        names = [name for name in ("images", "behavior", "pupil_center") if name in bundle.replay]
        seconds: dict[int, float] = {}
        for size in sizes:
            if size > self.max_batch:
                break
            rows = {name: np.resize(bundle.replay[name], (size, *bundle.replay[name].shape[1:])) for name in names}
            times = []
            try:
                for _ in range(1 if len(sizes) == 1 else _TRIES):
                    start = time.perf_counter()
                    self._graphs[0].run("forward", rows)
                    times.append(time.perf_counter() - start)
            except Exception:  # ONNX Runtime has no class of its own for what it raises where memory is short
                if not seconds:
                    raise
                break
            seconds[size] = min(times)
        return seconds


def _fastest(seconds: Mapping[int, float]) -> int:
    """The fewest images in one run that take hardly more time each than the best."""
    best = min(taken / size for size, taken in seconds.items())
    return next(size for size, taken in seconds.items() if taken / size <= 1.1 * best)


def why_no_gradient(manifest: Manifest) -> str:
    """Why a twin has no gradient; empty where it has."""
    return "" if "gradient" in manifest.graphs else manifest.no_gradient or "its bundle holds none"


def _picked(responses: Float, pick: NDArray[np.intp] | None) -> Float:
    if pick is None:
        return responses
    there = np.asarray(pick, like=responses)
    return responses[:, there] if pick.ndim == 1 else np.take_along_axis(responses, there, 1)
