"""Where outputs go: what a path is, whether it may be written, and files that are there whole or not at all.

A path that means a file is followed to where its links lead; what is written appears there whole or not at all. A
device, a pipe or an open descriptor (`-`, `/dev/stdout`, `>(…)` of a shell) is written through to as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InvalidArgument, MousetwinError, NotFound

# An output of this kind is a folder.
_FOLDER = ".zarr"
# What a zarr array's folder holds, in formats 2 and 3, and what macOS adds.
_OF_ZARR = re.compile(r"\.z(array|attrs|metadata)|zarr\.json|c|\d+(\.\d+)*|\.DS_Store")
_STANDARD_OUTPUT = 1
_MAX_LINKS = 40


@dataclass(frozen=True)
class Destination:
    """Where an output goes.

    Attributes:
        field: what an error names.
        name: as the caller named it.
        path: the file that it means, links followed; a device or pipe as it was named.
        kind: its suffix, in lower case.
        through: whether it is written to as it is: a device, a pipe or an open descriptor.
        descriptor: the open one, where it is one.
        overwrite: whether what is there already may be replaced.
    """

    field: str
    name: str
    path: Path
    kind: str
    through: bool = False
    descriptor: int | None = None
    overwrite: bool = True

    @property
    def is_standard_output(self) -> bool:
        return self.descriptor == _STANDARD_OUTPUT

    @property
    def partial(self) -> Path:
        """Where it stands until it is whole, if it can be gone on with."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def journal(self) -> Path:
        """What tells of `partial`."""
        return self.path.with_name(f"{self.path.name}.partial.json")

    def check_free(self) -> None:
        """Raises InvalidArgument where something is there that may not be replaced."""
        if self.through or not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise InvalidArgument(f"{self.field}: {self.name} exists; --overwrite replaces it", field=self.field)
        if self.path.is_dir() and (foreign := foreign_to_zarr(self.path)):
            raise InvalidArgument(
                f"{self.field}: {self.name} is a folder with {foreign} in it, no zarr array; it is not replaced",
                field=self.field,
            )

    def prepare(self, partial: Path) -> None:
        """Give `partial` the owner and permissions of the file it is to replace."""
        try:
            old, new = self.path.stat(), partial.stat()
        except FileNotFoundError:
            return
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            # Only root may, and some file systems have none.
            with contextlib.suppress(OSError, AttributeError):
                os.chown(partial, old.st_uid, old.st_gid)
        partial.chmod(stat.S_IMODE(old.st_mode) & 0o777)

    def place(self, partial: Path) -> None:
        """Put a file or folder that is whole where it belongs.

        Raises:
            FileExistsError: something else has come there meanwhile.
        """
        if partial.is_dir():
            self._place_folder(partial)
        elif self.overwrite:
            os.replace(partial, self.path)
        else:
            try:
                os.link(partial, self.path)
            except FileExistsError:
                raise
            except OSError:
                # A file system without hard links.
                if os.path.lexists(self.path):
                    raise _exists() from None
                os.replace(partial, self.path)
            else:
                partial.unlink()

    def _place_folder(self, partial: Path) -> None:
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        if os.path.lexists(self.path):
            if not self.overwrite:
                raise _exists()
            os.rename(self.path, aside)
        os.rename(partial, self.path)
        remove(aside)


Where = str | Path | Destination


def destination(given: str | Path, field: str, *, make_folder: bool = False) -> Destination:
    """What a path means as an output.

    Args:
        given: as the caller named it.
        field: what an error names.
        make_folder: whether the folder it is in will be made where there is none.

    Raises:
        NotFound: nothing can be written there.
    """
    path = Path(given)
    told = Destination(field, str(given), path, path.suffix.lower())
    with reported(told):
        if (descriptor := _descriptor(path)) is not None:
            # Also finds out whether it is open for writing.
            if descriptor != _STANDARD_OUTPUT:
                os.write(descriptor, b"")
            return replace(told, through=True, descriptor=descriptor)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            return replace(told, through=True)
        if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise NotFound(f"{given}: cannot be written: neither a file, a pipe nor a character device", field=field)
        target = Path(os.path.realpath(path))
        if mode is not None and stat.S_ISDIR(mode) and told.kind != _FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not make_folder and not stat.S_ISDIR(target.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for needed in (target, target.parent):
            if needed.exists() and not os.access(needed, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return replace(told, path=target)


def named_path(text: str) -> Path:
    """The type of an option that names a file or folder. As a path, an empty one would mean the folder that is here."""
    if not text:
        raise argparse.ArgumentTypeError("'', expected the name of a file or folder")
    return Path(text)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add the option that a command's `output` needs."""
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")


def output(
    text: str,
    field: str,
    kinds: Collection[str],
    *,
    overwrite: bool,
    default: str | None = None,
    make_folder: bool = False,
) -> Destination:
    """What a command's `--out` and its like mean, where `-` is standard output.

    Args:
        text: as it was typed.
        field: what an error names.
        kinds: suffixes that are known, in lower case; they are taken in any case.
        overwrite: whether what is there already may be replaced.
        default: the kind of a device, a pipe or a descriptor whose name has no suffix.
        make_folder: whether the folder it is in will be made where there is none.

    Raises:
        InvalidArgument: the suffix is none of `kinds`.
        NotFound: nothing can be written there.
    """
    if text == "-":
        found = Destination(field, "standard output", Path(text), "", True, _STANDARD_OUTPUT)
    elif not text:
        # As a path it would mean the folder that is here.
        found = Destination(field, text, Path(text), "")
    else:
        found = destination(text, field, make_folder=make_folder)
    kind = known_kind(found, kinds, default)
    if found.through and kind == _FOLDER:
        raise InvalidArgument(f"{field}: {text!r} is a device or a pipe, and a zarr array is a folder", field=field)
    return replace(found, kind=kind, overwrite=overwrite)


def known_kind(out: Destination, kinds: Collection[str], default: str | None = None) -> str:
    """The kind of an output, which must be among `kinds`; others are as in `output`."""
    kind = default if out.through and not out.kind and default is not None else out.kind
    if kind not in kinds:
        name = str(out.path) if out.through else out.name
        standard = "" if default is None else ", or - for standard output"
        raise InvalidArgument(
            f"{out.field}: {name!r}, expected a name that ends in one of {', '.join(kinds)}{standard}", field=out.field
        )
    return kind


@contextmanager
def whole_file(
    where: Where, field: str, kinds: Collection[str] = (), *, make_folder: bool = False
) -> Iterator[BinaryIO]:
    """A file that takes its place once it is written whole, so that no half-written one passes for an answer.

    It is opened at once: that it cannot be written is known before anything has worked for it.

    Args:
        where: a path, whose file is replaced where there is one, or what `output` made of it. What is no file is
            written through to.
        field: what an error names.
        kinds: suffixes that are known, where not any will do.
        make_folder: whether to make the folder it is in.

    Raises:
        NotFound: it cannot be written.
        InvalidArgument: the suffix is none of `kinds`.
    """
    out = where if isinstance(where, Destination) else destination(where, field, make_folder=make_folder)
    if kinds:
        known_kind(out, kinds)
    with reported(out):
        if out.through:
            with open_through(out) as stream:
                yield stream
            return
        if make_folder:
            out.path.parent.mkdir(parents=True, exist_ok=True)
        partial = out.path.with_name(f".{out.path.name}.{os.getpid()}.partial")
        stream = partial.open("wb")
        try:
            with stream:
                out.prepare(partial)
                yield stream
            out.place(partial)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def reported(out: Destination) -> Iterator[None]:
    """Where something cannot be written, raises NotFound that says so."""
    try:
        yield
    except MousetwinError:
        # Some of them are OSErrors too.
        raise
    except OSError as error:
        raise NotFound(f"{out.name}: cannot be written: {error.strerror or error}", field=out.field) from None


def open_through(out: Destination) -> BinaryIO:
    """A device, a pipe or a descriptor, to be written from beginning to end. Raises OSError where it cannot."""
    if out.is_standard_output:
        buffer: Any = getattr(sys.stdout, "buffer", None)
        if buffer is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.flush()
        # Not through its buffer: what a closed pipe did not take would be tried again, and told of, as Python ends.
        return io.BufferedWriter(_Sink(getattr(buffer, "raw", buffer), close=False))
    if out.descriptor is not None:
        return io.BufferedWriter(_Sink(io.FileIO(os.dup(out.descriptor), "wb"), close=True))
    return io.BufferedWriter(_Sink(out.path.open("wb", buffering=0), close=True))


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def foreign_to_zarr(folder: Path) -> str:
    """A name in a folder that no zarr array has there; "" where there is none."""
    names = sorted(entry.name for entry in folder.iterdir())
    if names and ".zarray" not in names and not _is_array(folder / "zarr.json"):
        return names[0]
    return next((name for name in names if not _OF_ZARR.fullmatch(name)), "")


def _is_array(metadata: Path) -> bool:
    """In format 3 a group, which may hold anything, has metadata of the same name."""
    try:
        return bool(json.loads(metadata.read_bytes())["node_type"] == "array")
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Sink(io.RawIOBase):
    """What can only be written to: nothing that writes zips or pictures is to go back in it."""

    def __init__(self, sink: Any, *, close: bool) -> None:
        self._sink = sink
        self._close = close

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        written: int | None = self._sink.write(data)
        return written

    def close(self) -> None:
        if not self.closed and self._close:
            self._sink.close()
        super().close()


def _descriptor(path: Path) -> int | None:
    """/dev/stdout, /dev/fd/3 and what a shell makes of >(…) are names for what is open already."""
    with contextlib.suppress(OSError):
        for _ in range(_MAX_LINKS):
            if re.fullmatch(r"\d{1,9}", path.name) and os.path.samefile(path.parent, "/dev/fd"):
                return int(path.name)
            if not path.is_symlink():
                break
            path = path.parent / os.readlink(path)
    return None


def _exists() -> OSError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
