"""One twin: numpy in, numpy out, ONNX Runtime inside. Usable without a server."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .bundle import Bundle, BundleError
from .device import Device, DeviceError

Float = NDArray[np.float32]
# Pixels in one run at the most: 256 images of the usual 36×64, 16 of 144×256.
_MAX_PIXELS = 256 * 36 * 64


class Engine:
    """The graphs of one bundle, ready to run on one device.

    Attributes:
        replay_error: largest absolute difference from the bundle's own vectors, measured here and now.
        seconds_per_image: how long one image took, as first measured.
        max_batch: images in one run at the most, so that the maps of a twin with large images fit into memory.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int = 0) -> None:
        """Load the graphs and replay the bundle's vectors.

        Args:
            bundle: a verified bundle.
            device: where to run.
            threads: for one run on the CPU; 0 for all cores.

        Raises:
            BundleError: a graph does not load, or its replay is out of tolerance.
            DeviceError: the device was lost since it was chosen.
        """
        manifest = bundle.manifest
        self.device = device
        self.neurons = manifest.neurons.count
        native = manifest.inputs.native_size
        self.max_batch = max(1, _MAX_PIXELS // (native.height * native.width))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self._forward = ort.InferenceSession(bundle.graphs["forward"], options, providers=device.providers)
        except Exception as error:  # ONNX Runtime has no base class for what it raises
            raise BundleError(f"{manifest.graphs['forward'].file}: ONNX Runtime refuses it: {error}") from error
        if device.kind == "cuda" and self._forward.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError("the CUDA provider no longer starts: see ONNX Runtime's log", field="device")
        self.replay_error = self._replay(bundle)
        self.seconds_per_image = self._time(bundle)

    def forward(self, images: Float, behavior: Float | None = None, pupil_center: Float | None = None) -> Float:
        """Responses of all neurons, float32 (N, K).

        Args:
            images: float32 (N, 1, H, W) in model space.
            behavior: float32 (N, B), and
            pupil_center: float32 (N, 2): exactly where the twin takes them. Nothing is checked here.
        """
        feeds: dict[str, Any] = {"images": images}
        if behavior is not None:
            feeds["behavior"] = behavior
        if pupil_center is not None:
            feeds["pupil_center"] = pupil_center
        responses: Float = self._forward.run(["responses"], feeds)[0]
        return responses

    def _replay(self, bundle: Bundle) -> float:
        manifest, vectors = bundle.manifest, bundle.replay
        try:
            found = self.forward(vectors["images"], vectors.get("behavior"), vectors.get("pupil_center"))
            error = float(np.abs(found - vectors["responses"]).max())
        except Exception as failure:  # the vectors may not fit the graph in any way at all
            raise BundleError(f"{manifest.replay.file}: the graph does not run on it: {failure}") from failure
        # Written so that a NaN fails too.
        if not error <= manifest.replay.tolerance:
            raise BundleError(
                f"{manifest.replay.file}: replayed on {self.device.kind} the responses are off by {error:.2g}, "
                f"tolerance {manifest.replay.tolerance:.2g}"
            )
        return error

    def _time(self, bundle: Bundle) -> float:
        rows = {name: values[:1] for name, values in bundle.replay.items() if name != "responses"}
        start = time.perf_counter()
        self.forward(**rows)
        return time.perf_counter() - start
