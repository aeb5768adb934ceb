"""Responses on their way to a file, rows at a time, in a form that can be gone on with after a crash.

They are written to `OUT.partial`, which takes its place at `OUT` once it is whole; `OUT.partial.json` beside it says
what was asked and how many rows are there. Whoever asks the same again goes on from there; whoever asks something else
is refused, and so is a second command at the same time. Devices and pipes get the same bytes, and nothing is kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import narrowed
from .errors import InvalidArgument, MousetwinError, Unimplemented
from .files import Destination, open_through, remove, reported
from .formats import Answer, beginning, npz, rows
from .journal import Journal, claimed


class Output(Protocol):
    """An answer that is being written.

    Attributes:
        rows: how many are there, those of an earlier try among them.
        defaults: inputs that stood at their default.
    """

    @property
    def rows(self) -> int: ...

    @property
    def defaults(self) -> tuple[str, ...]: ...

    def append(self, responses: NDArray[Any], defaults: tuple[str, ...]) -> None: ...


@contextmanager
def open_output(out: Destination, asked: dict[str, Any], answer: Answer) -> Iterator[Output]:
    """An answer at its destination: a file that is whole or not there, or what a pipe takes.

    `.npy` holds the responses; `.npz` `responses`, `neurons` or `unit_ids`, `twin`, `digest` and `defaults`; `.csv` a
    row an image under the neurons' numbers or unit ids, each number the shortest that reads back exactly; `.zarr` an
    uncompressed array in chunks of whole rows.

    Args:
        out: where the answer takes its place when the block ends without an error and all rows are there.
        asked: what is asked, as JSON has it; an earlier try that asked the same is gone on with.
        answer: what will be written.

    Raises:
        InvalidArgument: an earlier try asked something else and `out.overwrite` is not set, or another command is
            writing there.
        NotFound: it cannot be written. Rows that are there stay for the next try, and the message of whatever ends the
            block says so.
        Unimplemented: zarr is not installed.
    """
    if out.through:
        with _piped(out, answer) as piped:
            yield piped
        return
    zarr = {"zarr_format": answer.zarr_format} if out.kind == ".zarr" else {}
    journal = Journal(
        out.journal, {**asked, "shape": answer.shape, "dtype": answer.dtype.name, "kind": out.kind, **zarr}
    )
    with claimed(out, journal):
        keep = finished = False
        output: _File | _Zarr | None = None
        try:
            # What another command has finished meanwhile.
            out.check_free()
            with reported(out):
                output = (_Zarr if out.kind == ".zarr" else _File)(out, journal, answer)
            yield output
            with reported(out):
                output.finish()
            finished = True
        except (InvalidArgument, Unimplemented):
            # What was asked cannot be answered: there is nothing to go on with.
            keep = output is None and journal.saved > 0
            raise
        except BaseException as error:
            # It may have come between rows and their journal.
            with suppress(OSError):
                journal.save()
            keep = journal.saved > 0
            _tell(error, journal.saved)
            raise
        finally:
            if output is not None:
                output.close()
            if not keep:
                journal.remove()
            if not keep and not finished:
                remove(out.partial)


@contextmanager
def _piped(out: Destination, answer: Answer) -> Iterator[Output]:
    with reported(out):
        stream = open_through(out)
    output = _Piped(stream, out, answer)
    try:
        with reported(out):
            output.begin()
        yield output
        with reported(out):
            output.finish()
    finally:
        output.close()


def _tell(error: BaseException, rows: int) -> None:
    """Add to what is told of a failure that nothing is lost."""
    kept = f"; {rows} rows are kept, the same command goes on from there" if rows else ""
    if isinstance(error, KeyboardInterrupt):
        error.args = (f"interrupted{kept}",)
    elif isinstance(error, MousetwinError):
        error.args = (f"{error}{kept}", *error.args[1:])


class _File:
    """A partial file of rows one after the other; an `.npz` is made of it at the end."""

    def __init__(self, out: Destination, journal: Journal, answer: Answer) -> None:
        self._out = out
        self._journal = journal
        self._answer = answer
        out.prepare(out.partial)
        self._file: BinaryIO = out.partial.open("r+b")
        if journal.rows and out.partial.stat().st_size >= journal.size:
            # What was written and not yet told of is written again.
            self._file.truncate(journal.size)
            self._file.seek(journal.size)
        else:
            self._file.truncate(0)
            journal.write(0, self._file.write(beginning(out.kind, answer)), ())

    @property
    def rows(self) -> int:
        return self._journal.rows

    @property
    def defaults(self) -> tuple[str, ...]:
        return self._journal.defaults

    def append(self, responses: NDArray[Any], defaults: tuple[str, ...]) -> None:
        with reported(self._out):
            written = self._file.write(rows(self._out.kind, self._answer, responses))
            self._file.flush()
            self._journal.write(self.rows + len(responses), self._journal.size + written, defaults)

    def finish(self) -> None:
        if self._out.kind == ".npz":
            self._zip()
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._out.place(self._out.partial)

    def close(self) -> None:
        # What could not be written is told of by whoever wrote it.
        with suppress(OSError):
            self._file.close()

    def _zip(self) -> None:
        zipped = self._out.partial.with_name(f".{self._out.partial.name}.{os.getpid()}.zip")
        try:
            with zipped.open("wb") as stream:
                self._out.prepare(zipped)
                with npz(stream, self._answer, lambda: self.defaults) as member:
                    self._file.seek(0)
                    shutil.copyfileobj(self._file, member, 1 << 20)
                stream.flush()
                os.fsync(stream.fileno())
            self._out.place(zipped)
        finally:
            zipped.unlink(missing_ok=True)
        self._out.partial.unlink()


class _Zarr:
    """An array in chunks of whole rows, each written once."""

    _CHUNK = 256

    def __init__(self, out: Destination, journal: Journal, answer: Answer) -> None:
        try:
            from zarr import create_array, open_array
        except ImportError:
            # Not there, or an older one.
            raise Unimplemented("zarr arrays need zarr 3: pip install 'mousetwin[zarr]'", field="out") from None
        self._out = out
        self._journal = journal
        self._answer = answer
        path = str(out.partial)
        if not journal.rows:
            for child in out.partial.iterdir():
                remove(child)
            # Uncompressed: whatever reads zarr reads that, and responses hardly compress.
            create_array(
                path,
                shape=answer.shape,
                chunks=(self._CHUNK, answer.shape[1]),
                dtype=answer.dtype.name,
                compressors=None,
                zarr_format=answer.zarr_format,
            )
        self._array: Any = open_array(path, mode="r+")
        self._held: list[NDArray[Any]] = []
        self._holding = 0
        self._defaults = journal.defaults

    @property
    def rows(self) -> int:
        return self._journal.rows

    @property
    def defaults(self) -> tuple[str, ...]:
        return self._defaults

    def append(self, responses: NDArray[Any], defaults: tuple[str, ...]) -> None:
        self._held.append(narrowed(responses, self._answer.dtype))
        self._holding += len(responses)
        self._defaults = defaults
        if self._holding >= self._CHUNK:
            with reported(self._out):
                self._write(self._holding // self._CHUNK * self._CHUNK)

    def finish(self) -> None:
        if self._holding:
            self._write(self._holding)
        self._out.place(self._out.partial)

    def close(self) -> None:
        self._held.clear()

    def _write(self, count: int) -> None:
        held = np.concatenate(self._held)
        start = self._journal.rows
        self._array[start : start + count] = held[:count]
        self._held, self._holding = [held[count:]], self._holding - count
        self._journal.write(start + count, 0, self._defaults)


class _Piped:
    """What goes to a device or a pipe as it comes."""

    def __init__(self, stream: BinaryIO, out: Destination, answer: Answer) -> None:
        self.rows = 0
        self.defaults: tuple[str, ...] = ()
        self._out = out
        self._answer = answer
        self._stream = stream
        self._stack = ExitStack()
        self._sink: IO[bytes] = stream

    def begin(self) -> None:
        if self._out.kind == ".npz":
            self._sink = self._stack.enter_context(npz(self._stream, self._answer, lambda: self.defaults))
        self._sink.write(beginning(self._out.kind, self._answer))

    def append(self, responses: NDArray[Any], defaults: tuple[str, ...]) -> None:
        with reported(self._out):
            self._sink.write(rows(self._out.kind, self._answer, responses))
            self._stream.flush()
        self.rows += len(responses)
        self.defaults = defaults

    def finish(self) -> None:
        self._stack.close()
        self._stream.flush()

    def close(self) -> None:
        """Where it is not whole, whoever reads it finds it cut off."""
        with suppress(OSError, ValueError):
            self._stack.close()
        with suppress(OSError):
            self._stream.close()
