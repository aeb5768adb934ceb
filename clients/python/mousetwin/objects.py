"""From whatever a Python caller hands over for an array to numpy: lists, arrays of other libraries, pictures.

What would lose something on the way (a mask, units, a palette, missing values) is refused. Other libraries are
recognised by the names of their classes and attributes, none is imported.
"""

from __future__ import annotations

import array
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument

# No array has more dimensions.
MAX_RANK = 8
_NUMBERS = (int, float, np.integer, np.floating)
_PLAIN = frozenset({int, float, *(np.dtype(code).type for code in np.typecodes["AllInteger"] + "efd")})
_MISSING = ("NoneType", "NAType", "NaTType")
_LABELLED = frozenset({"pandas", "xarray", "polars", "pyarrow"})
_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__")
_EXPECTED = "expected numbers, in nested lists or an array"


def to_numpy(value: Any, field: str) -> NDArray[Any]:
    """The array that `value` is or stands for, without a look at the numbers of a plain one.

    Raises:
        InvalidArgument: it is no array, cannot be read as one, or says more than its numbers do.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, (list, tuple)):
        return _from_list(value, field)
    if isinstance(value, _NUMBERS) and not isinstance(value, bool):
        return np.asarray(value)
    _check_is_array(value, field)
    try:
        return _from_object(value, field)
    except InvalidArgument:
        raise
    except Exception as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InvalidArgument(
            f"{field}: {_named(value)} that cannot be read as an array: {told}", field=field
        ) from None


def _from_list(values: Iterable[Any], field: str) -> NDArray[Any]:
    plain = _plain(values, field, 1)
    try:
        found = np.asarray(plain)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field}: expected nested lists of numbers, all of one length", field=field) from None
    if found.dtype.hasobject:
        raise InvalidArgument(f"{field}: whole numbers beyond 64 bits, expected smaller ones", field=field)
    return found


def _plain(values: Iterable[Any], field: str, depth: int) -> Any:
    """The same lists, of numbers and plain arrays only; numpy by itself drops masks and units of what they hold."""
    if depth > MAX_RANK:
        raise InvalidArgument(f"{field}: lists nested more than {MAX_RANK} deep", field=field)
    if _PLAIN.issuperset(map(type, values)):
        return values
    return [
        _plain(value, field, depth + 1) if isinstance(value, (list, tuple)) else _item(value, field) for value in values
    ]


def _item(value: Any, field: str) -> NDArray[Any]:
    found = to_numpy(value, field)
    # Beside numbers these would become numbers.
    if found.dtype.kind not in "uif":
        _refuse(field, f"{_named(value)} of dtype {found.dtype}")
    return found


def _check_is_array(value: Any, field: str) -> None:
    """That `value` may be an array: what numpy would make something else of, by its bytes or as one object."""
    if isinstance(value, (str, bytes, bytearray, os.PathLike, io.IOBase)):
        _refuse(field, _named(value), "load it into an array first")
    if isinstance(value, Mapping):
        _refuse(field, _named(value), "choose one of its arrays")
    if isinstance(value, Set):
        _refuse(field, f"{_named(value)}, which has no order")
    if isinstance(value, Iterator):
        _refuse(field, _named(value), "make a list of it first")
    if isinstance(value, (bool, np.bool_)) or type(value).__name__ in _MISSING:
        _refuse(field, _named(value))
    if hasattr(type(value), "toarray") and not _is_array(value):
        _refuse(field, _named(value), "make it dense with .toarray()")


def _from_object(value: Any, field: str) -> NDArray[Any]:
    kind = type(value)
    homes = {each.__module__.partition(".")[0] for each in kind.__mro__}
    plain = next((name for name in ("magnitude", "value") if hasattr(kind, name)), "")
    units = [getattr(value, name, None) for name in ("unit", "units")] if plain else []
    # A point in time of pandas has a unit too.
    if any(unit is not None for unit in units) and "pandas" not in homes:
        _refuse(field, f"{_named(value)} with units", f"convert it and pass its .{plain}", "expected plain numbers")
    if isinstance(value, np.ndarray):
        return _from_masked(value, field) if hasattr(kind, "mask") else np.asarray(value)
    if "torch" in homes and hasattr(kind, "detach"):
        return _from_torch(value, field)
    if "PIL" in homes and hasattr(kind, "convert"):
        return _from_picture(value, field)
    if "dask" in homes and hasattr(kind, "compute"):
        # By itself it becomes an array without its masks.
        return to_numpy(value.compute(), field)
    if homes & _LABELLED:
        return _from_labelled(value, field, homes)
    if hasattr(kind, "__getitem__") and hasattr(kind, "__len__") and not _is_array(value):
        return _from_list(list(value), field)
    found: NDArray[Any] = np.asanyarray(value)
    if type(found) is not np.ndarray:
        return to_numpy(found, field)
    if found.dtype.hasobject and not found.shape:
        _refuse(field, _named(value))
    return found


def _is_array(value: Any) -> bool:
    return isinstance(value, (memoryview, array.array)) or any(hasattr(type(value), name) for name in _PROTOCOLS)


def _from_masked(value: Any, field: str) -> NDArray[Any]:
    """Of a masked array of numpy, or one like it."""
    # A structured array has a structured mask, and is refused for its dtype.
    hidden = 0 if value.dtype.names else int(np.count_nonzero(value.mask))
    if hidden:
        _refuse(
            field,
            f"a masked array that hides {hidden} of {value.size} values",
            "fill them with .filled(…) or leave them out",
            "expected all of them",
        )
    return np.asarray(value)


def _from_torch(value: Any, field: str) -> NDArray[Any]:
    if hasattr(type(value), "get_mask"):
        if not bool(value.get_mask().all()):
            _refuse(field, "a MaskedTensor that hides values", "fill them or leave them out", "expected all of them")
        value = value.get_data()
    value = value.detach().cpu().resolve_conj().resolve_neg()
    # numpy knows none of torch's other floats, all of which float32 holds.
    if value.is_floating_point() and not hasattr(np, str(value.dtype).removeprefix("torch.")):
        value = value.float()
    found: NDArray[Any] = value.numpy()
    return found


def _from_picture(value: Any, field: str) -> NDArray[Any]:
    if value.mode != "L":
        deep = "scale its values to 0-255 and " if value.mode.startswith(("I", "F")) else ""
        _refuse(
            field,
            f"a picture of mode {value.mode!r}",
            f"{deep}use .convert('L')",
            "expected 8-bit gray levels, mode 'L'",
        )
    if getattr(value, "n_frames", 1) > 1:
        _refuse(field, f"a picture of {value.n_frames} frames", "choose one")
    return np.asarray(value)


def _from_labelled(value: Any, field: str, homes: set[str]) -> NDArray[Any]:
    found = to_numpy(value.data, field) if "xarray" in homes else np.asarray(value)
    if found.dtype.hasobject and not found.shape:
        _refuse(field, _named(value))
    if found.dtype.hasobject:
        found = _from_list(found.tolist(), field)
    missing = int(np.count_nonzero(np.isnan(found))) if found.dtype.kind == "f" else 0
    if missing:
        _refuse(
            field,
            f"{_named(value)} in which {missing} of {found.size} values are missing",
            "fill them or leave them out",
            "expected all of them",
        )
    return found


def _named(value: Any) -> str:
    if type(value).__name__ in _MISSING:
        return f"a missing value ({value})"
    return type(value).__name__


def _refuse(field: str, came: str, advice: str = "", expected: str = _EXPECTED) -> NoReturn:
    raise InvalidArgument(f"{field}: {came}, {expected}{': ' if advice else ''}{advice}", field=field)
