"""Numbers of many trials and neurons, in a temporary file: they come trial after trial, and are worked on by neuron."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .spool import open_temporary, write

_WRITTEN_BYTES = 4 << 20


class Table:
    """(rows, columns) numbers, appended by rows and read by blocks of columns; in memory are only a few of either.

    A block's columns lie together in the file, so that both are done in long pieces.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], width: int, *, transposed: bool = False) -> None:
        """An empty one.

        Args:
            shape: (rows, columns).
            width: columns of a block.
            transposed: whether the rows that are appended are of the transpose.
        """
        self._rows, self._columns = shape
        self._dtype = dtype
        self._width = width
        self._transposed = transposed
        self._done = 0
        self._waiting: list[NDArray[Any]] = []
        self._waiting_bytes = 0
        self._file = open_temporary("body")

    def append(self, rows: NDArray[Any]) -> None:
        """Add some rows. Raises ResourceExhausted where the file has no room for them."""
        self._waiting.append(rows.astype(self._dtype, copy=False))
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes >= _WRITTEN_BYTES:
            self._write()

    def blocks(self) -> Iterator[NDArray[Any]]:
        """(rows, at most width) each, once all rows have been appended."""
        self._write()
        for start, stop in self._blocks():
            self._file.seek(start * self._rows * self._dtype.itemsize)
            data = self._file.read((stop - start) * self._rows * self._dtype.itemsize)
            values = np.frombuffer(data, self._dtype)
            shape = (self._rows, stop - start)
            yield values.reshape(shape, order="F" if self._transposed else "C")

    def close(self) -> None:
        self._waiting.clear()
        self._file.close()

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._columns, self._width):
            yield start, min(start + self._width, self._columns)

    def _write(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        # Rows of the transpose are whole columns, which lie one behind the other as they come.
        for start, stop in [(0, self._rows)] if self._transposed else self._blocks():
            before = self._rows * start + self._done * (stop - start)
            self._file.seek(before * self._dtype.itemsize)
            write(self._file, np.ascontiguousarray(rows[:, start:stop]).data.cast("B"), "body")
        self._done += len(rows)
