"""What is half written: whose it is, of what question, and how much of it is safely there."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InvalidArgument
from .files import Destination, foreign_to_zarr, reported

_FORMAT = 2
# What a question's parts are called where people read of them; others by their own names.
_CALLED = {
    "inputs": "images",
    "beside": "behavior or pupil_center",
    "digest": "digest of the twin",
    "kind": "kind of file",
}
# It follows from others.
_SHAPE = "shape"


@contextmanager
def claimed(out: Destination, journal: Journal) -> Iterator[None]:
    """The partial file as this command's own, made where there was none. Raises as `open_output`."""
    with reported(out):
        lock, fresh = _lock(out)
    try:
        with reported(out):
            if fresh or _is_empty(out.partial):
                journal.begin()
            elif difference := journal.differs():
                if not out.overwrite:
                    raise InvalidArgument(
                        f"{out.field}: {out.partial.name} is {difference}; --overwrite starts over", field=out.field
                    )
                if out.partial.is_dir() and (foreign := foreign_to_zarr(out.partial)):
                    raise InvalidArgument(
                        f"{out.field}: {out.partial.name} is a folder with {foreign} in it, no zarr array; "
                        "it is not replaced",
                        field=out.field,
                    )
                journal.begin()
            else:
                journal.read()
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(out: Destination) -> tuple[int | None, bool]:
    """A descriptor that keeps other commands away until it is closed, and whether the partial file is new."""
    folder = out.kind == ".zarr"
    while True:
        fresh = True
        try:
            if folder:
                out.partial.mkdir()
            else:
                out.partial.open("xb").close()
        except FileExistsError:
            fresh = False
            with suppress(FileNotFoundError):
                mode = out.partial.lstat().st_mode
                if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
                    raise InvalidArgument(
                        f"{out.field}: {out.partial.name} is in the way, and not of this command", field=out.field
                    ) from None
        if sys.platform == "win32":
            return None, fresh
        import fcntl

        try:
            lock = os.open(out.partial, os.O_RDONLY if folder else os.O_RDWR)
        except FileNotFoundError:
            # It was finished in between.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InvalidArgument(
                f"{out.field}: another command is writing {out.partial.name}", field=out.field
            ) from None
        except OSError:
            # A file system without locks.
            return lock, fresh
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), out.partial.stat()):
                return lock, fresh
        os.close(lock)


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


class Journal:
    """What was asked, and how much of it is safely there.

    Attributes:
        rows: how many.
        saved: how many of them the journal's file tells of.
        size: bytes of a file that they end at.
        defaults: inputs that stood at their default.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self._path = path
        self._asked = json.loads(json.dumps({"format": _FORMAT, **asked}))
        self.rows = self.size = self.saved = 0
        self.defaults: tuple[str, ...] = ()

    def begin(self) -> None:
        """From nothing."""
        self.write(0, 0, ())

    def differs(self) -> str:
        """Of what else the file is; "" where the same was asked."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return "not of this command"
        if not isinstance(found, dict) or not all(isinstance(found.get(name), int) for name in ("rows", "size")):
            return "not of this command"
        if not found["rows"]:
            # There is nothing to lose.
            return ""
        names = dict.fromkeys([*self._asked, *found])
        others = [n for n in names if n not in ("rows", "size", "defaults") and found.get(n) != self._asked.get(n)]
        if len(others) > 1:
            others = [name for name in others if name != _SHAPE]
        return f"of another question: not the same {', '.join(_CALLED.get(n, n) for n in others)}" if others else ""

    def read(self) -> None:
        """What there is of an earlier try that asked the same."""
        found = json.loads(self._path.read_text())
        if found["rows"]:
            self.rows = self.saved = found["rows"]
            self.size, self.defaults = found["size"], tuple(found.get("defaults", ()))
        else:
            self.begin()

    def write(self, rows: int, size: int, defaults: tuple[str, ...]) -> None:
        """Tell of rows that are there."""
        self.rows, self.size, self.defaults = rows, size, defaults
        self.save()

    def save(self) -> None:
        fresh = self._fresh
        told = {**self._asked, "rows": self.rows, "size": self.size, "defaults": self.defaults}
        fresh.write_text(json.dumps(told))
        os.replace(fresh, self._path)
        self.saved = self.rows

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._fresh.unlink(missing_ok=True)

    @property
    def _fresh(self) -> Path:
        return self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
