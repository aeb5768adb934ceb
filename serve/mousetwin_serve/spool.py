"""Bytes on their way from a caller who sends faster than they are worked on."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from typing import BinaryIO

_IN_MEMORY = 1 << 20
_PIECE = 1 << 18


class Spool:
    """First in, first out; what is beyond a megabyte waits in a temporary file.

    So a caller who sends everything before reading any answer, as most HTTP libraries do, is served all the same, and
    no memory grows with what was sent.
    """

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._file: BinaryIO | None = None
        self._read = self._written = 0
        self._ended = False
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Add some. Raises OSError where the temporary file cannot be written."""
        if self._written == self._read and self._held < _IN_MEMORY:
            self._pieces.append(data)
            self._held += len(data)
        elif data:
            if self._file is None:
                self._file = open_temporary()
            self._file.seek(self._written)
            self._file.write(data)
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


def open_temporary() -> BinaryIO:
    """A file without a name, gone when it is closed or the process ends."""
    return tempfile.TemporaryFile(prefix="mousetwin-")
