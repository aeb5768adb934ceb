"""Where the twins run: GPUs if ONNX Runtime can use them, else the CPU. What is asked for is never just replaced."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import onnxruntime as ort
from mousetwin.errors import InvalidArgument, MousetwinError
from numpy.typing import NDArray

from .memory import compute_on_gpu, gpu, on_gpu, wait_for_gpu


class DeviceError(MousetwinError):
    """The device that was asked for is not to be had; the message says why."""


@dataclass(frozen=True)
class Device:
    """Where to run.

    Attributes:
        kind: "cpu" or "cuda".
        why: which GPU it is; of the CPU, why it is not a GPU although there is one.
        threads: CPU cores to use; 0 for all.
        index: which of the GPUs.
        tf32: whether a GPU may round what it multiplies to 10 bits.
    """

    kind: str
    why: str
    threads: int = 0
    index: int = 0
    tf32: bool = False

    @property
    def runs(self) -> int:
        """How many runs at once keep the device busy: on the CPU one a core, each on a thread of its own."""
        if self.kind == "cuda":
            return 1
        return self.threads or _cores()

    @property
    def best_batch(self) -> int | None:
        """Images in one run that take least time each: on the CPU no more than whose maps stay in its caches.

        None where that is to be measured.
        """
        return None if self.kind == "cuda" else 8

    @property
    def own_memory(self) -> bool:
        """Whether arrays have to be brought to it."""
        return self.kind == "cuda"

    @property
    def providers(self) -> list[Any]:
        """ONNX Runtime's execution providers for the device."""
        if self.kind != "cuda":
            return ["CPUExecutionProvider"]
        options = {
            "device_id": self.index,
            "use_tf32": int(self.tf32),
            # Convolutions are not tried out for each new size of batch, which would stall requests.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Each graph has memory of its own, which would otherwise double whenever it grows.
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]

    def tolerances(self, responses: float, gradients: float) -> tuple[float, float]:
        """What a replay may be off by here: of responses, and of gradients relative to their norm.

        Args:
            responses, gradients: what they may be where float32 numbers are multiplied as such.
        """
        return (max(responses, _TF32[0]), max(gradients, _TF32[1])) if self.tf32 else (responses, gradients)

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which new arrays are made in the device's memory, if they are like ones that are there."""
        return gpu(self.index) if self.kind == "cuda" else contextlib.nullcontext()

    def wait(self) -> None:
        """Until what was last done to arrays in the device's memory is done."""
        if self.kind == "cuda":
            wait_for_gpu(self.index)

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array in the device's memory."""
        return on_gpu(array, self.index) if self.kind == "cuda" else array


CPU = Device("cpu", "")


def choose(asked: str, threads: int = 0, *, tf32: bool = False) -> tuple[Device, ...]:
    """The devices that work is shared among.

    Args:
        asked: "auto", "cpu", "cuda" for all GPUs there are, or "cuda:N" for one of them.
        threads: CPU cores to use; 0 for all.
        tf32: whether GPUs may round what they multiply to 10 bits.

    Raises:
        InvalidArgument: no such word.
        DeviceError: "cuda" where there is no GPU that ONNX Runtime can use.
    """
    if asked == "cpu":
        return (replace(CPU, threads=threads),)
    if not (found := re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", asked)):
        raise InvalidArgument(f"device: {asked!r}, expected auto, cpu, cuda or cuda:N", field="device")
    try:
        names = usable_gpus()
    except DeviceError as error:
        if asked != "auto":
            raise DeviceError(f"--device {asked}: {error}", field="device") from None
        # What is wrong with a GPU is told only where there may be one.
        return (Device("cpu", str(error) if _is_nvidia_here() else "", threads),)
    if found[1] and int(found[1]) >= len(names):
        raise DeviceError(f"--device {asked}: there are {len(names)} GPUs, counted from 0", field="device")
    indexes = [int(found[1])] if found[1] else range(len(names))
    return tuple(Device("cuda", names[index], threads, index, tf32) for index in indexes)


def told(devices: Sequence[Device]) -> str:
    """The devices, for people."""
    if devices[0].kind == "cuda":
        return f"cuda: {', '.join(device.why for device in devices)}"
    return f"the CPU (no GPU is used: {devices[0].why})" if devices[0].why else "the CPU"


def usable_gpus() -> list[str]:
    """The names of the GPUs that ONNX Runtime can use.

    Raises:
        DeviceError: there is none, or the pieces do not fit together; the message says which, in one line.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        installed = {found.metadata["Name"] for found in distributions()}
        if {"onnxruntime", "onnxruntime-gpu"} <= installed:
            raise DeviceError(
                "onnxruntime and onnxruntime-gpu are both installed, and hide each other: pip uninstall both, then "
                "pip install 'mousetwin[gpu]'"
            )
        raise DeviceError(
            f"onnxruntime {ort.__version__} has no CUDA provider (pip install 'mousetwin[gpu]' in a new environment)"
        )
    names, version = _driver()
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError("cupy is not installed: pip install 'mousetwin[gpu]'")
    # Finds the CUDA and cuDNN that pip installed, where there are any; what it prints of others is told below.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    # ONNX Runtime names the provider wherever it was compiled in; only making a session shows whether it works.
    ort.set_default_logger_severity(_FATAL)
    try:
        session = ort.InferenceSession(_IDENTITY, providers=Device("cuda", "").providers, enable_fallback=0)
        trouble = "" if session.get_providers()[0] == "CUDAExecutionProvider" else _loader_says()
    except Exception as error:  # ONNX Runtime has no base class for what it raises
        found = re.search(r"CUDA failure \d+: [^;]+", str(error))
        trouble = found[0].strip() if found else " ".join(str(error).split())
    finally:
        # Not warnings: at each session there would be one that no plug-in for CUDA is there, and none is needed.
        ort.set_default_logger_severity(_ERROR)
    if trouble:
        raise DeviceError(
            f"the CUDA provider does not start: {trouble}; onnxruntime {ort.__version__} is built for CUDA "
            f"{_built_for()}, the driver is of CUDA {version}, pip install 'mousetwin[gpu]' brings the libraries"
        )
    try:
        compute_on_gpu(0)
    except Exception as error:  # of CuPy's many parts, each of which has its own
        told = " ".join(str(error).split())
        raise DeviceError(
            f"cupy does not work: {told[:300]}; the driver is of CUDA {version}, pip install 'mousetwin[gpu]' brings "
            "what it needs"
        ) from None
    return names


def _driver() -> tuple[list[str], str]:
    """The GPUs that the driver shows, and the newest CUDA it knows. Raises DeviceError where there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        raise DeviceError("there is no NVIDIA driver here") from None
    count, version, handle, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(128)
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error or not count.value:
        raise DeviceError(f"the NVIDIA driver shows no GPU (CUDA error {error})")
    driver.cuDriverGetVersion(ctypes.byref(version))
    names = []
    for index in range(count.value):
        driver.cuDeviceGet(ctypes.byref(handle), index)
        driver.cuDeviceGetName(name, len(name), handle)
        names.append(name.value.decode())
    return names, f"{version.value // 1000}.{version.value % 1000 // 10}"


def _is_nvidia_here() -> bool:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:
        return bool(_driver()[0])
    except DeviceError:
        return False


def _loader_says() -> str:
    """What is wrong with the CUDA provider's libraries."""
    folder = Path(ort.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        return re.sub(r"\S*/", "", str(error))
    return "nothing is said why"


def _built_for() -> str:
    from onnxruntime.capi import build_and_package_info as build

    return str(getattr(build, "cuda_version", "unknown"))


def _cores() -> int:
    # Fewer than the machine's in a container that was given a few.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# TF32 rounds each factor by up to 2⁻¹¹ of it: a thousandth of responses of up to 20 or so, and some room; not measured.
_TF32 = (0.05, 0.02)
# Of ONNX Runtime's log.
_ERROR, _FATAL = 3, 4
# The smallest graph there is (y = Identity(x), opset 18), for trying a provider.
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001012"
)
