"""A device whose arrays are not numpy's: what a GPU's are to us, on a machine without one.

Like CuPy's, they answer to numpy's functions and mix with numbers, never with numpy's own arrays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mousetwin_serve.device import Device
from numpy.typing import NDArray

_MADE_LIKE = {np.asarray, np.zeros, np.ones, np.full, np.empty, np.arange}


@dataclass(frozen=True)
class Place:
    """Which device an array is on; as a context, does nothing."""

    id: int = 0

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Away(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the device."""

    device = Place()

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

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
        if function in _MADE_LIKE:
            # These may be told of the host's: they bring it over.
            return Away(function(*(a._values if isinstance(a, Away) else a for a in args), **kwargs))
        found = function(*(_here(one) for one in args), **{name: _here(one) for name, one in kwargs.items()})
        return tuple(map(Away, found)) if isinstance(found, tuple) else Away(found)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._values, name)
        if not callable(found):
            return Away(found) if isinstance(found, np.ndarray) else found

        def method(*args: Any, **kwargs: Any) -> Any:
            return Away(found(*(_here(one) for one in args), **{key: _here(one) for key, one in kwargs.items()}))

        return method

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Away]:
        return map(Away, self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __getitem__(self, index: Any) -> Away:
        return Away(self._values[_here(index)])

    def __setitem__(self, index: Any, values: Any) -> None:
        self._values[_here(index)] = _here(values)


def _here(value: Any) -> Any:
    """What an argument holds. Raises TypeError for the host's arrays."""
    if isinstance(value, Away):
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
        return contextlib.nullcontext()

    def put(self, array: Any) -> Any:
        if isinstance(array, Away):
            return array
        self.put_bytes.append(array.nbytes)
        return Away(np.ascontiguousarray(array).copy())
