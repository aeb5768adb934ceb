"""Array encoding, in this one place: protobuf messages, `.npy`, `.npz` and nested JSON lists to numpy and back.

Whatever the bytes are, reading either gives an array of plain numbers or raises `InvalidArgument` (or
`PayloadTooLarge`) naming the field: nothing is unpickled, and no memory is set aside on the word of a header.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidArgument, PayloadTooLarge
from .objects import MAX_RANK, to_numpy
from .v1 import digital_twin_pb2 as pb
from .zipped import check_method, open_member, open_zip

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
# Looked up for every array: numpy makes a dtype's name anew each time, at ten times the cost.
_NAMES = {np.dtype(name): name for name in DTYPES}
_LITTLE_ENDIAN = {name: dtype.newbyteorder("<") for dtype, name in _NAMES.items()}
_MAX_HEADER = 10_000
# So many bytes of a `.npy` file hold its header.
NPY_HEAD = _MAX_HEADER + 16
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


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
    """`array` as the bytes of a `.npy` file, in C order: not every reader looks whether it is."""
    stream = io.BytesIO()
    npy_format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()


def npy_header(shape: tuple[int, ...], dtype: Any) -> bytes:
    """How a `.npy` file begins whose C-ordered little-endian bytes are still to come."""
    stream = io.BytesIO()
    descr = npy_format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    npy_format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@dataclass(frozen=True)
class NpyLayout:
    """What the header of a `.npy` file says. begin: where its numbers begin. nbytes: how long they are."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def npy_layout(head: bytes | memoryview, size: int | None, field: str, *, words: bool = False) -> NpyLayout:
    """What the header of a `.npy` file says, where it is one that is taken.

    Args:
        head: the file's beginning: `NPY_HEAD` bytes, or all of a shorter one.
        size: the whole file's length; None where that is not known.
        field: what an error names.
        words: whether an array may hold words (U, S) instead of numbers.

    Raises:
        InvalidArgument: not a `.npy` file, shorter or longer than its header says, or of anything but plain numbers.
    """
    stream = io.BytesIO(head)
    shape, fortran_order, dtype = _read_header(stream, field, words)
    begin = stream.tell()
    claimed = math.prod(shape) * dtype.itemsize if all(type(n) is int and n >= 0 for n in shape) else 0
    _check_shape(shape, dtype, claimed if size is None else size - begin, field)
    return NpyLayout(shape, fortran_order, dtype, begin)


def read_npy(data: bytes, field: str, *, words: bool = False) -> NDArray[Any]:
    """The array in the bytes of a `.npy` file. words: as in `npy_layout`.

    Raises:
        InvalidArgument: not a `.npy` file, truncated or with bytes left over, or of anything but plain numbers.
    """
    layout = npy_layout(memoryview(data)[:NPY_HEAD], len(data), field, words=words)
    values = np.frombuffer(memoryview(data)[layout.begin :], layout.dtype)
    values = values.reshape(layout.shape, order="F" if layout.fortran_order else "C")
    return values.astype(layout.dtype.newbyteorder("="), copy=False)


def _read_header(stream: io.BytesIO, field: str, words: bool = False) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            # numpy warns of odd but readable headers; the array is judged by what it turns out to be.
            warnings.simplefilter("ignore")
            version = npy_format.read_magic(stream)
            readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
            shape, fortran_order, dtype = readers[version](stream, max_header_size=_MAX_HEADER)
    except Exception as error:
        raise InvalidArgument(f"{field}: not a .npy file of version 1 or 2, or a damaged one", field=field) from error
    if not (words and dtype.kind in "US" and dtype.itemsize and dtype.subdtype is None):
        _check_dtype(dtype, field)
    return shape, fortran_order, dtype


def write_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """`arrays` as the bytes of an uncompressed `.npz` file."""
    stream = io.BytesIO()
    with ZipFile(stream, "w", ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", write_npy(array))
    return stream.getvalue()


def read_npz(data: bytes, allowed: Collection[str], max_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays in the bytes of a `.npz` file, whose names must be among `allowed`.

    Raises:
        InvalidArgument, PayloadTooLarge: as `Npz`, or what `read_npy` refuses.
    """
    with Npz(io.BytesIO(data), allowed, max_bytes) as npz:
        return {name: npz.read(name) for name in npz.names}


def open_npz(
    stack: ExitStack, file: BinaryIO, streamed: str, allowed: Collection[str], max_bytes: int
) -> tuple[dict[str, NDArray[Any]], BinaryIO]:
    """The arrays in a `.npz` file but one, and that one's `.npy` file to be read as it is needed.

    Args:
        stack: closes what is opened.
        file: the `.npz`.
        streamed: the array that is not read.
        allowed: names that there may be.
        max_bytes: as for `Npz`.

    Raises:
        InvalidArgument, PayloadTooLarge: as `Npz`, or what `read_npy` refuses; also where `streamed` is missing.
            Reading the `.npy` raises InvalidArgument where it is damaged.
    """
    npz = stack.enter_context(Npz(file, allowed, max_bytes, (streamed,)))
    found = {name: npz.read(name) for name in npz.names if name != streamed}
    return found, stack.enter_context(npz.open(streamed))


class Npz:
    """A `.npz` file, whose directory is checked first and whose arrays are read one by one. A context manager.

    What it expands to is known before anything is read: a member that is longer than the directory says is refused as
    damaged.

    Attributes:
        names: of the arrays that are there.
    """

    def __init__(
        self, file: BinaryIO, allowed: Collection[str], max_bytes: int, streamed: Collection[str] = ()
    ) -> None:
        """Read the directory.

        Args:
            file: the `.npz`.
            allowed: names that there may be.
            max_bytes: what all arrays together may expand to. One that is streamed counts only where it is compressed:
                what is long must be sent long.
            streamed: arrays that are read as they are needed.

        Raises:
            InvalidArgument: not a `.npz` file, a damaged one, or one with an array that is not in `allowed`, is there
                twice, encrypted, or compressed with anything but deflate.
            PayloadTooLarge: it expands to more than `max_bytes`.
        """
        try:
            self._archive = open_zip(file)
        except (ValueError, OSError) as error:
            raise _damaged() from error
        try:
            self._members = _members(self._archive, allowed)
            _check_expansion(self._members, max_bytes, streamed)
        except BaseException:
            self._archive.close()
            raise
        self.names = tuple(self._members)

    def read(self, name: str) -> NDArray[Any]:
        """The whole array. Raises InvalidArgument where it is missing, or as `read_npy`."""
        with self.open(name) as stream:
            return read_npy(stream.read(), name)

    def open(self, name: str) -> BinaryIO:
        """The array's `.npy` file. Raises InvalidArgument where it is missing; reading does where it is damaged."""
        if name not in self._members:
            raise InvalidArgument(f"{name}: missing", field=name)
        return open_member(self._archive, self._members[name], lambda why: _damaged())

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *failure: object) -> None:
        self._archive.close()


def _members(archive: ZipFile, allowed: Collection[str]) -> dict[str, ZipInfo]:
    """By the names of the arrays."""
    found: dict[str, ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name not in allowed or name in found:
            what = "twice" if name in found else "which is not expected"
            raise InvalidArgument(
                f"body: the .npz holds {name[:80]!r}, {what}; it may hold {', '.join(sorted(allowed))}", field="body"
            )
        try:
            check_method(member)
        except ValueError as error:
            raise InvalidArgument(f"body: {name} in the .npz {error}", field="body") from None
        found[name] = member
    return found


def _check_expansion(members: Mapping[str, ZipInfo], most: int, streamed: Collection[str]) -> None:
    compressed = [name for name, member in members.items() if member.compress_type != ZIP_STORED]
    counted = [name for name in members if name not in streamed or name in compressed]
    if (size := sum(members[name].file_size for name in counted)) > most:
        how = f"send {' and '.join(compressed)} uncompressed (numpy.savez), or " if compressed else "send "
        raise PayloadTooLarge(
            f"body: {', '.join(counted)} in the .npz expand to {size} bytes, the limit is {most}: {how}fewer images",
            field="body",
        )


def _damaged() -> InvalidArgument:
    return InvalidArgument("body: not a .npz file, or a damaged one", field="body")


def from_nested(value: Any, field: str) -> NDArray[Any]:
    """The array that a caller hands over: nested lists of numbers (int64 if all are whole, else float64) or an array.

    Whatever a caller gives passes here, once: numpy's own `asarray` drops masks and units. Arrays of torch, pandas,
    xarray and others are taken where they hold nothing but numbers; a plain array stays as it is.

    Raises:
        InvalidArgument: ragged, too deep, holding anything but numbers, or saying more than its numbers do: a mask that
            hides values, missing values, units, a picture that is not in gray levels.
    """
    values = to_numpy(value, field)
    _check_dtype(values.dtype, field)
    return values


def whole_numbers(text: str) -> list[int]:
    """Whole numbers separated by commas: digits, and a minus before them. Raises ValueError for anything else."""
    parts = text.split(",")
    if not all(_WHOLE_NUMBER.fullmatch(part) for part in parts):
        raise ValueError("expected whole numbers separated by commas")
    numbers = [int(part) for part in parts]
    if not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
        raise ValueError("expected numbers of 64 bits")
    return numbers


def from_labels(value: Any, field: str) -> NDArray[Any]:
    """As `from_nested`, but words are taken too: what only tells things apart. Raises as `from_nested`."""
    listed = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(listed, (list, tuple)) and listed and all(isinstance(each, (str, bytes)) for each in listed):
        return np.asarray(listed)
    return from_nested(value, field)


def from_number(value: Any, field: str) -> Any:
    """One number as Python has it. Raises as `from_nested`, also for several."""
    found = from_nested(value, field)
    if found.shape:
        raise InvalidArgument(f"{field}: shape {found.shape}, expected one number", field=field)
    return found.item()


def narrowed(responses: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Responses in another dtype. Raises InvalidArgument where one is beyond it, as 70,000 is beyond float16."""
    with np.errstate(over="ignore"):
        values = responses.astype(dtype, copy=False)
    if values is not responses and not np.isfinite(values).all():
        raise InvalidArgument(
            f"dtype: a response of {responses.max():g} is beyond {dtype.name}, which ends at {np.finfo(dtype).max:g}: "
            "ask for float32",
            field="dtype",
        )
    return values


def _check_dtype(dtype: np.dtype[Any], field: str) -> str:
    """The dtype's name."""
    name = _NAMES.get(dtype) or _NAMES.get(dtype.newbyteorder("="))
    if dtype.names is not None:
        fields = ", ".join(dtype.names)[:80]
        raise InvalidArgument(f"{field}: a structured array of {fields}; expected plain numbers", field=field)
    if dtype.hasobject:
        raise InvalidArgument(f"{field}: object arrays are not taken; expected plain numbers", field=field)
    if name is None:
        found = str(dtype)[:80]
        raise InvalidArgument(f"{field}: dtype is {found}, expected one of {', '.join(DTYPES)}", field=field)
    return name


def _check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], size: int, field: str) -> None:
    # An array without elements may not claim sizes either that no array can have; a .npy header may hold True for 1.
    claimed = math.prod(max(int(n), 1) for n in shape) * dtype.itemsize
    if len(shape) > MAX_RANK or any(n < 0 or type(n) is not int for n in shape) or (0 in shape and claimed >= 1 << 63):
        raise InvalidArgument(
            f"{field}: shape is {_brief(shape)}, expected at most {MAX_RANK} sizes of 0 or more", field=field
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected != size:
        raise InvalidArgument(
            f"{field}: shape {_brief(shape)} of {dtype.name} needs {expected} bytes, {size} came", field=field
        )


def _brief(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= MAX_RANK else f"of {len(shape)} sizes"
