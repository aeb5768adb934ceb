"""Responses on their way to a file, rows at a time, in a form that can be gone on with after a crash.

They are written to `OUT.partial`, which takes its place at `OUT` once it is whole; `OUT.partial.json` beside it says
what was asked and how many rows are there. Whoever asks the same again goes on from there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import npy_header
from .errors import InvalidArgument, MousetwinError, NotFound, Unimplemented

_FORMAT = 1


class Output(Protocol):
    """An answer that is being written.

    Attributes:
        rows: how many are there, those of an earlier try among them.
    """

    rows: int

    def append(self, responses: NDArray[Any]) -> None: ...


@contextmanager
def open_output(path: Path, asked: dict[str, Any], shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[Output]:
    """The file at `path`, whole or not there: `.npy`, or a zarr array where its name ends so.

    Args:
        path: where the answer takes its place when the block ends without an error and all rows are there.
        asked: what is asked, as JSON has it; an earlier try that asked the same is gone on with.
        shape, dtype: of the whole answer.

    Raises:
        NotFound: it cannot be written. Rows that are there stay for the next try.
        Unimplemented: zarr is not installed.
    """
    partial = path.with_name(path.name + ".partial")
    journal = _Journal(path.with_name(path.name + ".partial.json"), {**asked, "shape": shape, "dtype": dtype.name})
    kind = _Zarr if path.suffix == ".zarr" else _Npy
    keep = False
    try:
        if path.is_dir() and kind is _Npy:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        rows = journal.read() if partial.exists() else 0
        output = kind(partial, journal, rows, shape, dtype)
        try:
            yield output
            output.finish()
        except (InvalidArgument, Unimplemented):
            # What was asked cannot be answered: there is nothing to go on with.
            raise
        except BaseException:
            keep = output.rows > 0
            raise
        finally:
            output.close()
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except MousetwinError:
        # Some of them are OSErrors too.
        raise
    except OSError as error:
        hint = f"; {output.rows} rows are kept, the same command goes on from there" if keep else ""
        raise NotFound(f"{path}: cannot be written: {error.strerror}{hint}", field="out") from None
    finally:
        if not keep and path.parent.is_dir():
            journal.remove()
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


class _Journal:
    """What was asked, and how many rows are safely there."""

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self._path = path
        self._asked = json.loads(json.dumps({"format": _FORMAT, **asked}))

    def read(self) -> int:
        """Rows of an earlier try that asked the same; 0 where there was none."""
        try:
            found = json.loads(self._path.read_text())
            rows = found.pop("rows")
        except (OSError, ValueError, KeyError, AttributeError):
            return 0
        return rows if found == self._asked and isinstance(rows, int) else 0

    def write(self, rows: int) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.write_text(json.dumps({**self._asked, "rows": rows}))
        os.replace(fresh, self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._path.with_name(self._path.name + ".new").unlink(missing_ok=True)


class _Npy:
    def __init__(self, path: Path, journal: _Journal, rows: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.rows = rows
        self._journal = journal
        self._count = shape[0]
        self._dtype = dtype.newbyteorder("<")
        header = npy_header(shape, dtype)
        size = len(header) + rows * shape[1] * dtype.itemsize
        going_on = rows > 0 and path.stat().st_size >= size
        self._file: BinaryIO = path.open("r+b" if going_on else "wb")
        if going_on:
            # What was written and not yet told of is written again.
            self._file.truncate(size)
            self._file.seek(size)
        else:
            self.rows = 0
            self._file.write(header)

    def append(self, responses: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(responses, self._dtype).tobytes())
        self._file.flush()
        self.rows += len(responses)
        self._journal.write(self.rows)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Zarr:
    """An array in chunks of whole rows, each written once."""

    _CHUNK = 256

    def __init__(self, path: Path, journal: _Journal, rows: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        try:
            import zarr
        except ImportError:
            raise Unimplemented("zarr arrays need zarr: pip install 'mousetwin[zarr]'", field="out") from None
        if not rows:
            shutil.rmtree(path, ignore_errors=True)
            zarr.create_array(str(path), shape=shape, chunks=(self._CHUNK, shape[1]), dtype=dtype.name)
        self.rows = rows
        self._journal = journal
        self._array: Any = zarr.open_array(str(path), mode="r+")
        self._held: list[NDArray[Any]] = []
        self._holding = 0

    def append(self, responses: NDArray[Any]) -> None:
        self._held.append(responses)
        self._holding += len(responses)
        if self._holding >= self._CHUNK:
            self._write(self._holding // self._CHUNK * self._CHUNK)

    def finish(self) -> None:
        if self._holding:
            self._write(self._holding)

    def close(self) -> None:
        self._held.clear()

    def _write(self, count: int) -> None:
        held = np.concatenate(self._held)
        self._array[self.rows : self.rows + count] = held[:count]
        self._held, self._holding = [held[count:]], self._holding - count
        self.rows += count
        self._journal.write(self.rows)
