"""Zip archives from anywhere: only what their directory says, whole, and no longer than that."""

from __future__ import annotations

import copy
import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

# How a member begins, and how the directory ends.
_HEADER = struct.Struct("<26x2H")
_END_BYTES, _END = 22, b"PK\5\6"
# A member that was written without going back has its checksum and sizes behind it, with or without a signature.
_DESCRIBED, _DESCRIPTOR_BYTES = 8, (12, 16, 20, 24)
_METHODS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma", 9: "deflate64", 93: "zstandard"}


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The archive in a file.

    Raises:
        ValueError: it is none, or damaged: members overlap or are longer than the file, or something follows its end.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # of every kind, by what is damaged
        raise ValueError(f"not a zip archive, or a damaged one: {error}") from error
    try:
        _check_places(file, archive)
    except BaseException:
        archive.close()
        raise
    return archive


def check_method(member: zipfile.ZipInfo) -> None:
    """Raises ValueError for a member that is encrypted, or compressed with anything but deflate."""
    if member.flag_bits & 1:
        raise ValueError("is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHODS.get(member.compress_type, f"method {member.compress_type}")
        raise ValueError(f"is compressed with {method}, expected deflate, or none at all")


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, wrong: Callable[[str], Exception]) -> BinaryIO:
    """A member, to be read.

    Args:
        wrong: makes the error that is raised, by this or by reading, for one that is damaged, is longer or shorter than
            the directory says, or that `check_method` refuses.
    """
    try:
        check_method(member)
    except ValueError as error:
        raise wrong(str(error)) from None
    # The rest of what a stream has is not needed here.
    stream: Any = _Member(archive, member, wrong)
    return stream  # type: ignore[no-any-return]


class _Member(io.RawIOBase):
    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, wrong: Callable[[str], Exception]) -> None:
        self._left = member.file_size
        self._wrong = wrong
        # zipfile never reads on behind the size in the directory: with room for one byte more it shows whether there
        # is one.
        longer = copy.copy(member)
        longer.file_size += 1
        try:
            self._stream = archive.open(longer)
        except Exception as error:
            raise wrong(f"damaged: {error}") from error

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except Exception as error:
            raise self._wrong(f"damaged: {error}") from error
        self._left -= len(data)
        ended = size < 0 or (size > 0 and not data)
        if self._left < 0 or (self._left and ended):
            raise self._wrong("damaged: not as long as the archive's directory says")
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


def _check_places(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    file.seek(-_END_BYTES - len(archive.comment), io.SEEK_END)
    whole = file.read(len(_END)) == _END
    end = archive.start_dir
    for member in sorted(archive.infolist(), key=lambda member: -member.header_offset):
        file.seek(member.header_offset)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise ValueError("damaged: members are missing")
        size = member.compress_size
        left = end - (member.header_offset + _HEADER.size + sum(_HEADER.unpack(header)) + size)
        # What lies between is read by nobody, unless it is a member's own size and checksum behind it.
        whole &= left == 0 or (bool(member.flag_bits & _DESCRIBED) and left in _DESCRIPTOR_BYTES)
        whole &= member.compress_type != zipfile.ZIP_STORED or member.file_size == size
        end = member.header_offset
    if not whole or end != 0:
        raise ValueError("damaged: its directory and what it holds do not fit together")
