"""Bytes on their way from a caller who sends faster than they are worked on."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import deque
from typing import Any, BinaryIO

from mousetwin.errors import ResourceExhausted

log = logging.getLogger(__name__)

_IN_MEMORY = 1 << 20
_PIECE = 1 << 18


class Spool:
    """First in, first out; what is beyond a megabyte waits in a temporary file.

    So a caller who sends everything before reading any answer, as most HTTP libraries do, is served all the same, and
    no memory grows with what was sent.
    """

    def __init__(self, what: str) -> None:
        """what: an error names that there is no room for."""
        self._what = what
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._file: BinaryIO | None = None
        self._read = self._written = 0
        self._ended = False
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Add some. Raises ResourceExhausted where the temporary file has no room for it."""
        if self._written == self._read and self._held < _IN_MEMORY:
            self._pieces.append(data)
            self._held += len(data)
        elif data:
            if self._file is None:
                self._file = open_temporary(self._what)
            self._file.seek(self._written)
            write(self._file, data, self._what)
            self._written += len(data)
        self._changed.set()

    def end(self) -> None:
        """All has come."""
        self._ended = True
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Nothing more will come: `get` raises this."""
        self._failure = error
        self._changed.set()

    @property
    def full(self) -> bool:
        """Whether more would go to the file."""
        return self._held >= _IN_MEMORY or self._read < self._written

    def get(self) -> bytes | None:
        """What came next; None where nothing has come yet, empty at the end. Raises what `fail` was given."""
        if self._failure is not None:
            raise self._failure
        if self._pieces:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self._held = 0
            return whole
        if self._read < self._written:
            return self._from_file()
        return b"" if self._ended else None

    async def changed(self) -> None:
        """Returns once there is something new to get."""
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _from_file(self) -> bytes:
        assert self._file is not None
        self._file.seek(self._read)
        piece = self._file.read(min(_PIECE, self._written - self._read))
        self._read += len(piece)
        if self._read == self._written:
            self._file.seek(0)
            self._file.truncate()
            self._read = self._written = 0
        return piece


def open_temporary(what: str) -> BinaryIO:
    """A file without a name, gone when it is closed or the process ends.

    Args:
        what: an error names that there is no room for.

    Raises:
        ResourceExhausted: none can be made.
    """
    try:
        # Unbuffered: what cannot be written is known at once, and not by whoever reads or closes it.
        file: Any = tempfile.TemporaryFile(prefix="mousetwin-", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _no_room(what, error) from error
    return file  # type: ignore[no-any-return]


def write(file: BinaryIO, data: bytes | memoryview, what: str) -> None:
    """Write all of it to a temporary file. Raises ResourceExhausted where there is no room for it."""
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise _no_room(what, error) from error


def _no_room(what: str, error: OSError) -> ResourceExhausted:
    log.error("what waits of a large request cannot be kept", exc_info=error)
    return ResourceExhausted(f"{what}: the service has no room for it; send fewer images at once", field=what)
