"""The files of one data set, in a folder or in a zip."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from .errors import InvalidArgument, NotFound
from .sources import (
    Stamp,
    by_number,
    entries,
    folders_among,
    is_folder,
    is_open_folder,
    is_skipped,
    listed,
    open_file,
    read_file,
    stamp,
)

_META = "meta"
_NONE = "not a SENSORIUM data set: no folder meta in it, with meta/neurons, meta/trials and meta/statistics"
# A file of a data set is a trial, or a number a neuron.
_MAX_BYTES = 1 << 30


class Files(Protocol):
    """Files by name, with `/` between folders."""

    def read(self, name: str) -> bytes | None:
        """None where there is no such file; InvalidArgument where it cannot be read."""
        ...

    def names(self, folder: str) -> list[str] | None:
        """Of the files right in a folder, 2 before 10; None where there is no such folder."""
        ...

    def stamps(self, names: Iterable[str]) -> dict[str, Stamp]:
        """What says that some files are the same as another time, as `Sources` takes it."""
        ...

    def close(self) -> None: ...


def open_files(path: Path) -> Files:
    """The files of the data set in a folder or a zip: at its top, or in one folder inside.

    Raises:
        NotFound: there is nothing at `path`, or it cannot be read.
        InvalidArgument: no data set, or several.
    """
    if not is_folder(path, "dataset"):
        return _Zip(path)
    top = find_in_folder(path)
    if top is None:
        zips = [entry.name for entry in entries(path, "dataset") if entry.name.lower().endswith(".zip")]
        hint = f"; {listed(zips)} in it: name the zip itself" if zips else ""
        raise wrong(path, "", f"{_NONE}{hint}")
    return _Folder(path, top)


def find_in_folder(path: Path) -> str | None:
    """Where a folder holds a data set: "" for right in it, "NAME/" for one inside; None where there is none.

    Raises as `open_files`.
    """
    inside = entries(path, "dataset")
    tops = tops_among(path, inside)
    for needed in (_META, "data"):
        alike = [entry.name for entry in inside if entry.name.casefold() == needed]
        if len(alike) > 1:
            raise wrong(path, "", f"{listed(alike)} differ only in case, expected one of them")
    # A zip beside its own unpacked data and meta is what it was unpacked from; beside a folder it may be anything.
    zips = [e.name for e in inside if e.name.lower().endswith(".zip")] if tops and tops != [""] else []
    _check_one(path, [f"{top}{_META}" for top in tops] + zips)
    return tops[0] if tops else None


def tops_among(path: Path, inside: list[os.DirEntry[str]]) -> list[str]:
    """Where data sets are in a folder that holds `inside`: "" for right in it, "NAME/" for inside."""
    tops = ["", *(f"{name}/" for name in folders_among(inside))]
    return [top for top in tops if is_open_folder(path / f"{top}{_META}")]


def wrong(path: Path, name: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {name}: {what}" if name else f"{path}: {what}", field="dataset")


class _Folder:
    def __init__(self, path: Path, top: str) -> None:
        self._path = path / top
        self._top = top

    def read(self, name: str) -> bytes | None:
        try:
            return read_file(self._path / name, "dataset", _MAX_BYTES)
        except NotFound:
            # A link that leads nowhere is a file that cannot be read.
            if not os.path.lexists(self._path / name):
                return None
            raise

    def names(self, folder: str) -> list[str] | None:
        if not os.path.lexists(self._path / folder):
            return None
        return [entry.name for entry in entries(self._path / folder, "dataset")]

    def stamps(self, names: Iterable[str]) -> dict[str, Stamp]:
        return {f"{self._top}{name}": stamp(self._path / name) for name in names}

    def close(self) -> None:
        """Nothing to close."""


class _Zip:
    """A zip, read in place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as stack:
            file = stack.enter_context(open_file(path, "dataset"))
            try:
                self._archive = stack.enter_context(zipfile.ZipFile(file))
            except Exception:  # zipfile raises of every kind
                raise wrong(path, "", "neither a data set's folder nor its zip") from None
            members, folders = self._by_name()
            tops = {name[: name.index(f"/{_META}/") + 1] for name in [*members, *folders] if f"/{_META}/" in name}
            if not tops:
                raise wrong(path, "", _NONE)
            _check_one(path, sorted(f"{top[1:]}{_META}" for top in tops))
            (top,) = tops
            self._members = {name[len(top) :]: info for name, info in members.items() if name.startswith(top)}
            self._names = [*self._members, *(name[len(top) :] for name in folders if name.startswith(top))]
            self._close = stack.pop_all()

    def read(self, name: str) -> bytes | None:
        member = self._members.get(name)
        if member is None:
            return None
        if member.file_size > _MAX_BYTES:
            raise wrong(self._path, member.filename, f"longer than {_MAX_BYTES >> 20} MiB")
        try:
            return self._archive.read(member)
        except Exception as error:  # zipfile and what it decompresses with raise of every kind
            raise wrong(self._path, member.filename, " ".join(str(error).split())[:200] or "damaged") from None

    def names(self, folder: str) -> list[str] | None:
        inside = [name.removeprefix(f"{folder}/") for name in self._names if name.startswith(f"{folder}/")]
        return sorted((name for name in inside if name and "/" not in name), key=by_number) if inside else None

    def stamps(self, names: Iterable[str]) -> dict[str, Stamp]:
        return {"": stamp(self._path)}

    def close(self) -> None:
        self._close.close()

    def _by_name(self) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
        """Files by name, as in "/top/meta/trials/tiers.npy", and names of folders, which end in "/"."""
        members: dict[str, zipfile.ZipInfo] = {}
        folders = []
        seen: dict[str, str] = {}
        for info in self._archive.infolist():
            # Some programs for Windows write its own separator.
            whole = info.filename.replace("\\", "/")
            parts = [part for part in whole.split("/") if part not in ("", ".")]
            if any(is_skipped(part) for part in parts):
                continue
            name = "/" + "/".join(parts)
            # Where names differ only in case, which of them is meant depends on who unpacks.
            for upto in (name[:end] for end, letter in enumerate(f"{name}/") if letter == "/" and end):
                if (other := seen.setdefault(upto.casefold(), upto)) != upto:
                    alike = listed(sorted((other[1:], upto[1:])))
                    raise wrong(self._path, "", f"{alike} differ only in case, expected one of them")
            if whole.endswith("/"):
                folders.append(f"{name}/")
                continue
            if name in members:
                raise wrong(self._path, "", f"{members[name].filename} and {info.filename} are one file, expected one")
            members[name] = info
        return members, folders


def _check_one(path: Path, found: list[str]) -> None:
    if len(found) > 1:
        raise wrong(path, "", f"holds several data sets ({listed(found)}), expected one: name it, or unpack it alone")
