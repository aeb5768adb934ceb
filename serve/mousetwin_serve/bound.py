"""Runs on a device with memory of its own: what goes in and comes out is bound there, and moved only if it must be."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .device import Device
from .memory import address, at, is_on_host, on_host

_DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(double)": np.float64}


class Bound:
    """An ONNX Runtime session whose inputs and outputs are in its device's memory. Safe to use from several threads."""

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        self._device = device
        self._place = (session.get_providers()[0].removesuffix("ExecutionProvider").lower(), device.index)
        self._shapes = {node.name: node.shape for node in (*session.get_inputs(), *session.get_outputs())}
        self._dtypes = {node.name: _DTYPES[node.type] for node in session.get_outputs()}

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What the session answers: on the device if the images came from there, else on the host.

        Args:
            outputs: which ones.
            feeds: by input, on the device or on the host.
        """
        there = {name: self._device.put(values) for name, values in feeds.items()}
        binding = self._session.io_binding()
        for name, values in there.items():
            binding.bind_input(name, *self._place, values.dtype.type, values.shape, address(values))
        # No output has a dimension that no input has.
        sizes = {d: n for name, values in there.items() for d, n in zip(self._shapes[name], values.shape, strict=True)}
        found = {}
        with at(there["images"]):
            for name in outputs:
                shape = [sizes.get(dim, dim) for dim in self._shapes[name]]
                found[name] = np.empty(shape, self._dtypes[name], like=there["images"])
                binding.bind_output(name, *self._place, self._dtypes[name], shape, address(found[name]))
        # ONNX Runtime has a stream of its own: what is still being copied or computed on another must be there first.
        self._device.wait()
        self._session.run_with_iobinding(binding)
        stays = not is_on_host(feeds["images"])
        return [found[name] if stays else on_host(found[name]) for name in outputs]


class Profile:
    """A recording of which provider runs each node."""

    def __init__(self, options: ort.SessionOptions) -> None:
        """Args: options: of the session that is to be recorded, before it is made."""
        self._folder = tempfile.TemporaryDirectory(prefix="mousetwin-")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "run")

    def elsewhere(self, session: ort.InferenceSession, provider: str) -> list[str]:
        """Nodes that computed numbers elsewhere than on a provider, as "name (operator)". Ends the recording.

        Whole numbers do not count: ONNX Runtime works out shapes on the CPU on purpose.
        """
        with self._folder:
            events = json.loads(Path(session.end_profiling()).read_text())
        names = {}
        for event in events:
            told = event.get("args", {})
            types = {kind for output in told.get("output_type_shape", ()) for kind in output}
            if told.get("provider", provider) != provider and types & {"float", "double", "float16"}:
                names[event["name"].removesuffix("_kernel_time")] = told["op_name"]
        return [f"{name} ({operator})" for name, operator in names.items()]
