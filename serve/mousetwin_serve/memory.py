"""Arrays where a device has its memory: numpy's on the CPU, CuPy's on a GPU.

What works on both is written with numpy's functions, which leave the work to whichever library made their arguments
(NEP 18), and makes arrays `like` others (NEP 35). Only this module knows of CuPy. Arrays of both kinds do not mix: CuPy
raises where they would, so nothing goes to a GPU and back unnoticed.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def on_gpu(array: NDArray[Any], index: int) -> NDArray[Any]:
    """The array, copied to a GPU. Typed as what it behaves like."""
    import cupy  # only where there is a GPU

    with gpu(index):
        copied: NDArray[Any] = cupy.ascontiguousarray(cupy.asarray(array))
    return copied


def compute_on_gpu(index: int) -> None:
    """Compute something. Raises what CuPy raises where it cannot, for want of a driver, a compiler or a library."""
    on_host(on_gpu(np.ones(1), index) + 1)


def wait_for_gpu(index: int) -> None:
    """Until all that was asked of a GPU on CuPy's stream is done."""
    import cupy

    with gpu(index):
        cupy.cuda.get_current_stream().synchronize()


def gpu(index: int) -> contextlib.AbstractContextManager[Any]:
    """A context in which CuPy makes arrays on that GPU."""
    import cupy

    device: contextlib.AbstractContextManager[Any] = cupy.cuda.Device(index)
    return device


def on_host(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the host's memory, copied only if it was elsewhere."""
    away: Any = array
    return array if isinstance(array, np.ndarray) else away.get()


def is_on_host(array: NDArray[Any]) -> bool:
    return isinstance(array, np.ndarray)


def index_of(array: NDArray[Any]) -> int | None:
    """Which GPU has the array in its memory; None where the host has it."""
    away: Any = array
    return None if isinstance(array, np.ndarray) else int(away.device.id)


def at(array: NDArray[Any]) -> contextlib.AbstractContextManager[Any]:
    """A context in which new arrays are made on the array's device."""
    away: Any = array
    return contextlib.nullcontext() if isinstance(array, np.ndarray) else away.device


def address(array: NDArray[Any]) -> int:
    """Of an array's first element, where its device has it."""
    interface: Any = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return int(interface["data"][0])
