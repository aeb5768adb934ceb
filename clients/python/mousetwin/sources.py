"""Files that a user names: opened with care, listed in one order, and known again another time."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InvalidArgument, MousetwinError, NotFound

# What systems put beside a user's files, besides names that begin with a dot: macOS (`._1.png`, `.DS_Store`), Jupyter
# (`.ipynb_checkpoints`) and Kubernetes (`..data`) do.
_OF_THE_SYSTEM = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})

# Files that nobody puts beside images without meaning them: left out, they would be missed in the answer.
_NAMES = "npy png npz jpg jpeg jpe jfif jp2 bmp dib gif tif tiff webp avif heic heif tga pgm ppm pbm pnm"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())

# Size, times and place of a file; empty where there is none.
Stamp = tuple[int, ...]


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is one that the system put beside those of the user."""
    return name.startswith(".") or name.casefold() in _OF_THE_SYSTEM


def by_number(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """What to sort names by, so that 2.npy comes before 10.npy. Different names are never equal."""
    # Only 0-9: other characters that Unicode calls digits have no number in them, or one that nobody meant.
    parts = re.split("([0-9]+)", name)
    return [(1, 0, part) if n % 2 == 0 else (0, int(part), "") for n, part in enumerate(parts)], name


def listed(names: list[str]) -> str:
    """The names as one says them: "a, b and c"."""
    shown = names if len(names) <= 10 else [*names[:9], f"{len(names) - 9} more"]
    return " and ".join([*([", ".join(shown[:-1])] if shown[1:] else []), *shown[-1:]])


def is_folder(path: Path, field: str) -> bool:
    """Whether it is one; NotFound where there is nothing, or it cannot be told."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, field) from None


def is_open_folder(path: Path) -> bool:
    """Whether it is a folder, as far as this user can see."""
    try:
        with os.scandir(path):
            return True
    except OSError:
        return False


def entries(folder: Path, field: str) -> list[os.DirEntry[str]]:
    """What a user put into a folder, 2 before 10; NotFound where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not is_skipped(entry.name)), key=lambda e: by_number(e.name))
    except OSError as error:
        raise _unreadable(folder, error, field) from None


def folders_among(found: list[os.DirEntry[str]]) -> list[str]:
    """Names of those that are folders, as far as this user can see."""
    # That something is a file is known without asking; there may be a hundred thousand.
    return [e.name for e in found if not e.is_file(follow_symlinks=False) and is_open_folder(Path(e.path))]


def open_file(path: Path, field: str) -> BinaryIO:
    """The file, to be read.

    Raises:
        NotFound: it is not there, or cannot be opened.
        InvalidArgument: a folder, a pipe or a device: these cannot be read twice, or never end.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
            what = kinds.get(stat.S_IFMT(mode), "a device")
            raise InvalidArgument(f"{path}: {what}, expected a file", field=field)
        return path.open("rb")
    except MousetwinError:
        # Some of them are ValueErrors too.
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, field) from None


def read_file(path: Path, field: str, max_bytes: int) -> bytes:
    """The whole file. Raises as `open_file`; also InvalidArgument where it is longer than `max_bytes`."""
    with open_file(path, field) as stream:
        try:
            data = stream.read(max_bytes + 1)
        except OSError as error:
            raise _unreadable(path, error, field) from None
    if len(data) > max_bytes:
        raise InvalidArgument(f"{path}: longer than {max_bytes >> 20} MiB", field=field)
    return data


def stamp(path: Path) -> Stamp:
    """What changes when a file is written or replaced.

    A file's own times can be set back (`cp -p`, `rsync`, `tar`), the time of its last change of status and its number
    cannot; so this is exact without reading the file.
    """
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(frozen=True)
class Sources:
    """The files that something is read from.

    Attributes:
        root: what was named.
        take: stamps them as they are now, by name in `root`; "" is `root` itself.
        taken: as they were at the beginning.
    """

    root: Path
    take: Callable[[], dict[str, Stamp]]
    taken: dict[str, Stamp]

    @classmethod
    def begin(cls, root: Path, take: Callable[[], dict[str, Stamp]]) -> Sources:
        """To be called before anything is read of them."""
        return cls(root, take, take())

    @classmethod
    def of_file(cls, path: Path) -> Sources:
        return cls.begin(path, lambda: {"": stamp(path)})

    def told(self) -> dict[str, Any]:
        """What says that these are the same files as another time, unchanged."""
        files = hashlib.sha256(repr(sorted(self.taken.items())).encode()).hexdigest()
        return {"images": str(self.root.resolve()), "files": files}

    def check_unchanged(self) -> None:
        """Raises InvalidArgument, naming one, where files have changed, come or gone since the beginning."""
        now = self.take()
        for name in sorted(now.keys() | self.taken.keys(), key=by_number):
            if now.get(name) != self.taken.get(name):
                raise InvalidArgument(f"{self.root / name}: was changed while it was read", field="images")


def _unreadable(path: Path, error: OSError | ValueError, field: str) -> NotFound:
    return NotFound(f"{path}: {getattr(error, 'strerror', None) or error}", field=field)
