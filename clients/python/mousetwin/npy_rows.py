"""`.npy` files as they come, some rows at a time, by the rules of `arrays`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from .arrays import NPY_HEAD, npy_layout
from .errors import InvalidArgument


class NpyRows:
    """Reads a `.npy` file as it comes, some rows of its first axis at a time.

    Attributes:
        shape, dtype: of the whole array, once its header has come; before that None.
        transposed: whether `shape` and the rows are of the transpose: the file is in Fortran order.
        bytes_in_all: how long the file is, by its header.
    """

    def __init__(self, field: str, *, any_order: bool = False) -> None:
        """any_order: whether to take a file in Fortran order, whose transpose is what can be read row by row."""
        self._field = field
        self._any_order = any_order
        self.transposed = False
        self._left = bytearray()
        self._rows_left = 0
        self.shape: tuple[int, ...] | None = None
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.bytes_in_all = 0

    @property
    def row_bytes(self) -> int:
        assert self.shape is not None
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def feed(self, data: bytes | memoryview) -> None:
        """Take in what came next.

        Raises:
            InvalidArgument: not a `.npy` file, of anything but plain numbers, or in Fortran order; or more came than
                its header says.
        """
        self._left += data
        if self.shape is None and (begun := _header_size(self._left)):
            if len(self._left) >= begun:
                self._begin(begun)
            elif begun > NPY_HEAD:
                raise InvalidArgument(f"{self._field}: not a .npy file of version 1 or 2", field=self._field)
        if self.shape is not None and len(self._left) > self._rows_left * self.row_bytes:
            raise InvalidArgument(f"{self._field}: more bytes than shape {self.shape} needs", field=self._field)

    def ready(self, most: int) -> NDArray[Any] | None:
        """The next rows, `most` of them, or all that are left; None where they have not come yet."""
        if self.shape is None or not self._rows_left:
            return None
        count = min(most, self._rows_left)
        size = count * self.row_bytes
        if len(self._left) < size:
            return None
        block, self._left = self._left[:size], self._left[size:]
        self._rows_left -= count
        values = np.frombuffer(block, self.dtype).reshape(count, *self.shape[1:])
        return values.astype(self.dtype.newbyteorder("="), copy=False)

    def check_ended(self) -> None:
        """Raises InvalidArgument where rows are missing."""
        if self.shape is None:
            raise InvalidArgument(f"{self._field}: not a .npy file, or not a whole one", field=self._field)
        if self._rows_left:
            missing = self._rows_left - len(self._left) // self.row_bytes
            raise InvalidArgument(
                f"{self._field}: truncated, {missing} of {self.shape[0]} rows are missing", field=self._field
            )

    def _begin(self, size: int) -> None:
        layout = npy_layout(bytes(self._left[:size]), None, self._field)
        self.transposed = layout.fortran_order and len(layout.shape) > 1
        if self.transposed and not self._any_order:
            raise InvalidArgument(
                f"{self._field}: in Fortran order, which cannot be read row by row; expected C order", field=self._field
            )
        if not layout.shape:
            raise InvalidArgument(f"{self._field}: a single number, expected rows", field=self._field)
        self.shape, self.dtype = layout.shape[::-1] if self.transposed else layout.shape, layout.dtype
        self._rows_left = self.shape[0]
        self._left = self._left[size:]
        self.bytes_in_all = size + layout.nbytes


def _header_size(data: bytearray) -> int:
    """Of the `.npy` header that begins `data`; 0 where too little came to tell."""
    begun = len(MAGIC_PREFIX) + 2
    if len(data) < begun + 4:
        return 0
    # One longer than any that is taken says that this is no .npy file.
    if not data.startswith(MAGIC_PREFIX):
        return NPY_HEAD + 1
    width = 2 if data[begun - 2] == 1 else 4
    return begun + width + int.from_bytes(data[begun : begun + width], "little")
