"""Outputs that would destroy what is read, or each other."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from .dataset_files import tops_among
from .errors import InvalidArgument, NotFound
from .files import Destination
from .sources import IMAGE_SUFFIXES, entries

# Folders of a data set that are read.
_RECORDED = ("data", "meta")


def check_outputs(outputs: Sequence[Destination], inputs: Mapping[str, str | Path]) -> None:
    """Whether a command may write all that it was asked for, before it does any work.

    Args:
        outputs: where it writes.
        inputs: what it reads, by field.

    Raises:
        InvalidArgument: an output is an input, or lies where a folder's images are read from, or is another output;
            or something is there already and may not be replaced.
    """
    for out in outputs:
        for field, given in inputs.items():
            _check_apart(out, field, Path(given))
    for one, other in combinations(outputs, 2):
        if _are_same(one, other):
            raise InvalidArgument(
                f"{other.field}: {other.name} is the same file as {one.field}: {one.name}", field=other.field
            )
    if all(Path(given).exists() for given in inputs.values()):
        # One that is missing is the first thing to tell, by whoever reads it.
        for out in outputs:
            out.check_free()


def _check_apart(out: Destination, field: str, given: Path) -> None:
    try:
        status = given.stat()
    except OSError:
        # Whoever reads it says so.
        return
    if out.through:
        if (
            (there := _status(_opened(out))) is not None
            and os.path.samestat(there, status)
            and not stat.S_ISCHR(status.st_mode)
        ):
            raise _is_input(out, field, given)
        return
    for written in (out.path, out.partial, out.journal):
        if (there := _status(written)) is not None and os.path.samestat(there, status):
            raise _is_input(out, field, given)
    source = Path(os.path.realpath(given))
    if out.path in source.parents:
        raise InvalidArgument(f"{out.field}: {out.name} holds {field}: {given}", field=out.field)
    if stat.S_ISDIR(status.st_mode) and _is_read_from(source, out.path):
        raise InvalidArgument(
            f"{out.field}: {out.name} is among the files that are read from {field}: {given}", field=out.field
        )


def _is_read_from(folder: Path, path: Path) -> bool:
    """Whether a file at `path` is, or would be, one that is read from a folder: by its place, or by a link to it."""
    parts = path.relative_to(folder).parts if folder in path.parents else ()
    try:
        sets = [folder / top for top in tops_among(folder, entries(folder, "images"))]
    except NotFound:
        # Whoever reads it says so.
        return False
    for top in sets:
        if top in path.parents and path.relative_to(top).parts[0] in _RECORDED:
            return True
    # Images in a folder inside are looked for too, since they would be missed in the answer.
    if folder not in sets and 1 <= len(parts) <= 2 and path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if (there := _status(path)) is None:
        return False
    recorded = [top / name for top in sets for name in _RECORDED]
    for within in [Path(each) for top in recorded for each, _, _ in os.walk(top)] or [folder]:
        with os.scandir(within) as inside:
            for entry in inside:
                if not sets and Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                # Not every file's status is asked for: there may be a hundred thousand.
                if entry.inode() == there.st_ino or entry.is_symlink():
                    with contextlib.suppress(OSError):
                        if os.path.samestat(entry.stat(), there):
                            return True
    return False


def _is_input(out: Destination, field: str, given: Path) -> InvalidArgument:
    return InvalidArgument(f"{out.field}: {out.name} is the same file as {field}: {given}", field=out.field)


def _are_same(one: Destination, other: Destination) -> bool:
    if one.through or other.through:
        first, second = _status(_opened(one)), _status(_opened(other))
        # A device takes from any number.
        if first is None or second is None or (stat.S_ISCHR(first.st_mode) and not one.is_standard_output):
            return False
        return os.path.samestat(first, second)
    first, second = _status(one.path), _status(other.path)
    there = first is not None and second is not None and os.path.samestat(first, second)
    return there or one.path == other.path


def _opened(out: Destination) -> Path | int:
    return out.path if out.descriptor is None else out.descriptor


def _status(path: Path | int) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
