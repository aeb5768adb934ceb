"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import MousetwinError, NotFound


@contextmanager
def whole_file(path: str | Path, field: str, *, make_folder: bool = False) -> Iterator[BinaryIO]:
    """A file that takes its place at `path` once it is written whole, so that no half-written one passes for an answer.

    It is opened at once: that `path` cannot be written is known before anything has worked for it.

    Args:
        path: a file that is there already is replaced.
        field: what an error names.
        make_folder: whether to make the folder it is in.

    Raises:
        NotFound: it cannot be written.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        stream = partial.open("wb")
        try:
            with stream:
                yield stream
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except MousetwinError:
        # Some of them are OSErrors too.
        raise
    except OSError as error:
        raise NotFound(f"{path}: cannot be written: {error.strerror}", field=field) from None
