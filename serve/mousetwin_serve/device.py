"""Where the twins run: CUDA if ONNX Runtime finds one, else the CPU; what was asked for is never silently replaced."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
from mousetwin.errors import MousetwinError


class DeviceError(MousetwinError):
    """The device that was asked for is not to be had; the message says why."""


@dataclass(frozen=True)
class Device:
    """Where to run.

    Attributes:
        kind: "cpu" or "cuda".
        why: what decided.
        threads: CPU cores to use; 0 for all.
    """

    kind: str
    why: str
    threads: int = 0

    @property
    def runs(self) -> int:
        """How many runs at once keep the device busy: on the CPU one a core, each on a thread of its own."""
        if self.kind == "cuda":
            return 1
        return self.threads or _cores()

    @property
    def best_batch(self) -> int:
        """Images in one run that take least time each: on the CPU no more than whose maps stay in its caches."""
        return 64 if self.kind == "cuda" else 8

    @property
    def providers(self) -> list[Any]:
        """ONNX Runtime's execution providers for the device."""
        if self.kind == "cuda":
            # TF32 rounds to 10 bits and is on by default; a twin is to be exact.
            return [("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"]
        return ["CPUExecutionProvider"]


def choose(asked: str, threads: int = 0) -> Device:
    """The device for "auto", "cpu" or "cuda".

    Args:
        asked: which.
        threads: CPU cores to use; 0 for all.

    Raises:
        DeviceError: "cuda" where there is none that ONNX Runtime can use.
    """
    if asked == "cpu":
        return Device("cpu", "asked for", threads)
    trouble = _why_no_cuda()
    if trouble is None:
        return Device("cuda", "asked for" if asked == "cuda" else "found", threads)
    if asked == "cuda":
        raise DeviceError(f"--device cuda: {trouble}", field="device")
    return Device("cpu", trouble, threads)


def _cores() -> int:
    # Fewer than the machine's in a container that was given a few.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _why_no_cuda() -> str | None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} has no CUDA provider (pip install 'mousetwin[gpu]' has one)"
    # Finds the CUDA and cuDNN that pip installed, where there are any.
    ort.preload_dlls()
    # ONNX Runtime names the provider wherever it was compiled in; only making a session shows whether it works.
    session = ort.InferenceSession(_IDENTITY, _quiet(), providers=[*Device("cuda", "").providers])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return (
            f"onnxruntime {ort.__version__} has a CUDA provider that does not start here: no GPU, or no matching CUDA"
        )
    return None


def _quiet() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


# The smallest graph there is (y = Identity(x), opset 18), for trying a provider.
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001012"
)
