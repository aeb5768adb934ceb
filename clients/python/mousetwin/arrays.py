"""Array encoding, in this one place: protobuf messages, `.npy`, `.npz` and nested JSON lists to numpy and back.

Whatever the bytes are, reading either gives an array of plain numbers or raises `InvalidArgument` (or
`PayloadTooLarge`) naming the field: nothing is unpickled, and no memory is set aside on the word of a header.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidArgument, MousetwinError, PayloadTooLarge
from .v1 import digital_twin_pb2 as pb

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
# Looked up for every array: numpy makes a dtype's name anew each time, at ten times the cost.
_NAMES = {np.dtype(name): name for name in DTYPES}
_LITTLE_ENDIAN = {name: dtype.newbyteorder("<") for dtype, name in _NAMES.items()}
_MAX_RANK = 8
_MAX_HEADER = 10_000


def to_proto(array: ArrayLike) -> pb.Array:
    """A message holding `array`, C-ordered and little-endian.

    Raises:
        InvalidArgument: the array does not hold plain numbers of one of `DTYPES`.
    """
    values = np.asarray(array)
    name = _check_dtype(values.dtype, "array")
    data = np.ascontiguousarray(values, dtype=_LITTLE_ENDIAN[name]).tobytes()
    return pb.Array(dtype=name, shape=values.shape, data=data)


def from_proto(message: pb.Array, field: str) -> NDArray[Any]:
    """The message's array, read-only where it can share the message's bytes.

    Raises:
        InvalidArgument: unknown dtype, negative sizes, or a shape that disagrees with the byte count.
    """
    dtype = _LITTLE_ENDIAN.get(message.dtype)
    if dtype is None:
        raise InvalidArgument(f"{field}: dtype is {message.dtype!r}, expected one of {', '.join(DTYPES)}", field=field)
    shape = tuple(message.shape)
    _check_shape(shape, dtype, len(message.data), field)
    return np.frombuffer(message.data, dtype).reshape(shape)


def write_npy(array: NDArray[Any]) -> bytes:
    """`array` as the bytes of a `.npy` file."""
    stream = io.BytesIO()
    npy_format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def read_npy(data: bytes, field: str) -> NDArray[Any]:
    """The array in the bytes of a `.npy` file.

    Raises:
        InvalidArgument: not a `.npy` file, truncated or with bytes left over, or of anything but plain numbers.
    """
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            # numpy warns of odd but readable headers; the array is judged by what it turns out to be.
            warnings.simplefilter("ignore")
            version = npy_format.read_magic(stream)
            readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
            shape, fortran_order, dtype = readers[version](stream, max_header_size=_MAX_HEADER)
    except Exception as error:
        raise InvalidArgument(f"{field}: not a .npy file of version 1 or 2, or a damaged one", field=field) from error
    _check_dtype(dtype, field)
    body = memoryview(data)[stream.tell() :]
    _check_shape(shape, dtype, len(body), field)
    values = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran_order else "C")
    return values.astype(dtype.newbyteorder("="), copy=False)


def write_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """`arrays` as the bytes of an uncompressed `.npz` file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", write_npy(array))
    return stream.getvalue()


def read_npz(data: bytes, allowed: Collection[str], max_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays in the bytes of a `.npz` file, whose names must be among `allowed`.

    Raises:
        InvalidArgument: not a `.npz` file, a damaged or encrypted one, an array not in `allowed`, or what `read_npy`
            refuses.
        PayloadTooLarge: it expands to more than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if (size := sum(member.file_size for member in members)) > max_bytes:
                raise PayloadTooLarge(f"body: the .npz expands to {size} bytes, the limit is {max_bytes}", field="body")
            arrays: dict[str, NDArray[Any]] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name not in allowed or name in arrays:
                    what = "twice" if name in arrays else "which is not expected"
                    raise InvalidArgument(
                        f"body: the .npz holds {name[:80]!r}, {what}; it may hold {', '.join(sorted(allowed))}",
                        field="body",
                    )
                # zipfile trusts the directory's size only up to a point: read one byte past it to be sure.
                with archive.open(member) as stream:
                    content = stream.read(member.file_size + 1)
                arrays[name] = read_npy(content, name)
            return arrays
    except MousetwinError:
        raise
    except Exception as error:
        raise InvalidArgument("body: not a .npz file, or a damaged one", field="body") from error


def from_nested(value: Any, field: str) -> NDArray[Any]:
    """The array in nested lists of numbers, as JSON gives them: int64 if all are integers, else float64.

    What already is an array stays as it is.

    Raises:
        InvalidArgument: ragged, too deep, or holding anything but numbers.
    """
    try:
        values = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field}: expected nested lists of numbers, all of one length", field=field) from error
    if values.size == 0 and values.dtype == np.float64:
        return values
    _check_dtype(values.dtype, field)
    return values


def _check_dtype(dtype: np.dtype[Any], field: str) -> str:
    """The dtype's name."""
    name = _NAMES.get(dtype) or _NAMES.get(dtype.newbyteorder("="))
    if dtype.hasobject:
        raise InvalidArgument(f"{field}: object arrays are not taken; expected plain numbers", field=field)
    if name is None:
        found = str(dtype)[:80]
        raise InvalidArgument(f"{field}: dtype is {found}, expected one of {', '.join(DTYPES)}", field=field)
    return name


def _check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], size: int, field: str) -> None:
    # An array without elements may not claim sizes either that no array can have; a .npy header may hold True for 1.
    claimed = math.prod(max(int(n), 1) for n in shape) * dtype.itemsize
    if len(shape) > _MAX_RANK or any(n < 0 or type(n) is not int for n in shape) or (0 in shape and claimed >= 1 << 63):
        raise InvalidArgument(
            f"{field}: shape is {_brief(shape)}, expected at most {_MAX_RANK} sizes of 0 or more", field=field
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected != size:
        raise InvalidArgument(
            f"{field}: shape {_brief(shape)} of {dtype.name} needs {expected} bytes, {size} came", field=field
        )


def _brief(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= _MAX_RANK else f"of {len(shape)} sizes"
