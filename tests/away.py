"""A device whose arrays are not numpy's: what a GPU's are to us, on a machine without one.

Like CuPy's, they answer to numpy's functions and mix with numbers, never with numpy's own arrays; and what is made is
made on the current device, which must be that of what it is made from.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mousetwin_serve.device import Device
from numpy.typing import NDArray

_MADE_LIKE = {np.asarray, np.zeros, np.ones, np.full, np.empty, np.arange}
_thread = threading.local()


class Place:
    """Which device an array is on; as a context, makes it the current one of the thread."""

    def __init__(self, id: int) -> None:
        self.id = id
        self._before: list[int] = []

    def __enter__(self) -> Place:
        self._before.append(current())
        _thread.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _thread.current = self._before.pop()


def current() -> int:
    """The thread's current device."""
    return getattr(_thread, "current", 0)


class Away(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on a device, the current one if none is named."""

    def __init__(self, values: Any, index: int | None = None) -> None:
        self._values = np.asarray(values)
        self.index = current() if index is None else index

    @property
    def device(self) -> Place:
        return Place(self.index)

    def get(self) -> NDArray[Any]:
        return self._values.copy()

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
        raise TypeError("taken to the host without a word")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            options["out"] = tuple(_here(one) for one in options["out"])
        found = getattr(ufunc, method)(*(_here(one) for one in inputs), **options)
        return self if "out" in options else Away(found)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if "device" in kwargs:
            # NumPy 2 hands it on for np.full and np.ones though nobody named one, and no function of CuPy's takes it.
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument 'device'")
        if function in _MADE_LIKE:
            # These may be told of the host's: they bring it over.
            return Away(function(*(_here(a) if isinstance(a, Away) else a for a in args), **kwargs))
        found = function(*(_here(one) for one in args), **{name: _here(one) for name, one in kwargs.items()})
        return tuple(map(Away, found)) if isinstance(found, tuple) else Away(found)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._values, name)
        if not callable(found):
            return Away(found, self.index) if isinstance(found, np.ndarray) else found

        def method(*args: Any, **kwargs: Any) -> Any:
            here = getattr(_here(self), name)
            return Away(here(*(_here(one) for one in args), **{key: _here(one) for key, one in kwargs.items()}))

        return method

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Away]:
        return (Away(values, self.index) for values in self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __getitem__(self, index: Any) -> Away:
        # A view can be had from anywhere.
        return Away(self._values[_here(index)], self.index)

    def __setitem__(self, index: Any, values: Any) -> None:
        _here(self)[_here(index)] = _here(values)


def _here(value: Any) -> Any:
    """What an argument holds. Raises TypeError for the host's arrays and those of another device."""
    if isinstance(value, Away):
        if value.index != current():
            raise TypeError(f"an array of device {value.index} while {current()} is current")
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError("an array of the host's among the device's")
    if isinstance(value, (list, tuple)):
        return type(value)(_here(one) for one in value)
    return value


@dataclass(frozen=True)
class AwayDevice(Device):
    """Computes on the CPU, and has its arrays where only it can see them. put_bytes: what was brought to it."""

    kind: str = "cpu"
    why: str = "a test's"
    put_bytes: list[int] = field(default_factory=list, compare=False)

    @property
    def best_batch(self) -> None:
        return None

    @property
    def runs(self) -> int:
        return 1

    @property
    def own_memory(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def current(self) -> contextlib.AbstractContextManager[Any]:
        return Place(self.index)

    def put(self, array: Any) -> Any:
        if isinstance(array, Away):
            assert array.index == self.index
            return array
        self.put_bytes.append(array.nbytes)
        return Away(np.ascontiguousarray(array).copy(), self.index)
