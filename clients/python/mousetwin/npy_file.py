"""`.npy` files of any size on disk, by the rules of `arrays`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import NPY_HEAD, npy_layout
from .errors import InvalidArgument, NotFound
from .sources import open_file


class NpyFile:
    """A `.npy` file whose rows are read when they are needed. A context manager.

    It is read and not mapped: where another program cuts a mapped file short, the process dies of a signal.

    Attributes:
        shape, dtype: of the whole array; the dtype in this machine's byte order.
    """

    def __init__(self, path: Path, field: str) -> None:
        """Opens it.

        Raises:
            NotFound: it cannot be opened.
            InvalidArgument: not a `.npy` file, truncated or with bytes left over, or of anything but plain numbers.
        """
        self._path = path
        self._field = field
        self._file = open_file(path, field)
        try:
            size = os.fstat(self._file.fileno()).st_size
            self._layout = npy_layout(self._read(NPY_HEAD), size, field)
        except InvalidArgument as error:
            self._file.close()
            # The file's name is what a user knows it by.
            raise InvalidArgument(f"{path}: {str(error).removeprefix(f'{field}: ')}", field=field) from None
        except BaseException:
            self._file.close()
            raise
        self.shape = self._layout.shape
        self.dtype: np.dtype[Any] = self._layout.dtype.newbyteorder("=")

    @property
    def nbytes(self) -> int:
        return self._layout.nbytes

    def rows(self, start: int, count: int) -> NDArray[Any]:
        """`count` rows of the first axis, fewer at its end. Raises InvalidArgument where they are no longer there."""
        count = max(min(count, self.shape[0] - start), 0)
        if self._layout.fortran_order and len(self.shape) > 1:
            return self._mapped_rows(start, count)
        width = self.nbytes // self.shape[0] if self.shape[0] else 0
        return self._values(self._layout.begin + start * width, (count, *self.shape[1:]), "C")

    def whole(self) -> NDArray[Any]:
        """All of it."""
        return self._values(self._layout.begin, self.shape, "F" if self._layout.fortran_order else "C")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> NpyFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _values(self, begin: int, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
        stored = self._layout.dtype
        size = math.prod(shape) * stored.itemsize
        self._file.seek(begin)
        data = self._read(size)
        if len(data) != size:
            raise self._cut_short()
        return np.frombuffer(data, stored).reshape(shape, order=order).astype(self.dtype, copy=False)

    def _mapped_rows(self, start: int, count: int) -> NDArray[Any]:
        """In Fortran order a row's numbers lie all over the file."""
        if not self.nbytes:
            return np.empty((count, *self.shape[1:]), self.dtype)
        if os.fstat(self._file.fileno()).st_size < self._layout.begin + self.nbytes:
            raise self._cut_short()
        mapped: NDArray[Any] = np.memmap(self._file, self._layout.dtype, "r", self._layout.begin, self.shape, "F")
        return np.array(mapped[start : start + count], self.dtype, order="C")

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise NotFound(f"{self._path}: {error.strerror or error}", field=self._field) from None

    def _cut_short(self) -> InvalidArgument:
        return InvalidArgument(f"{self._path}: was changed while it was read", field=self._field)
