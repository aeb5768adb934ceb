"""Pictures that are taken as images: PNG files of 8-bit gray, one image a file."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument, MousetwinError, Unimplemented
from .sources import read_file

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# A stimulus has 144×256. More than this is a damaged header, or a file made to fill the memory.
MAX_PIXELS = 1 << 24
_MAX_BYTES = 64 << 20
_GRAY = "Pillow's picture.convert('L') makes it one"
_WHAT = {
    "1": ("black and white", _GRAY),
    "P": ("indices into a palette, not gray levels", _GRAY),
    "PA": ("indices into a palette, and transparency", "put it on a background, then picture.convert('L')"),
    "LA": ("gray and transparency", "put it on a background, then picture.convert('L')"),
    "RGB": ("color", _GRAY),
    "RGBA": ("color and transparency", "put it on a background, then picture.convert('L')"),
    "I;16": ("16-bit gray", "np.uint8(np.asarray(picture) // 257) has 8 bits"),
    "I": ("16-bit gray", "np.uint8(np.asarray(picture) // 257) has 8 bits"),
}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The gray levels (H, W) of a PNG file.

    Raises:
        NotFound: it cannot be read.
        InvalidArgument: not a PNG, a damaged one, of anything but one image of 8-bit gray, or larger than `MAX_PIXELS`;
            the message names the file.
        Unimplemented: PNG files need pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise Unimplemented("PNG files need pillow: pip install 'mousetwin[plot]'", field="images") from None
    data = read_file(path, "images", _MAX_BYTES)
    kinds = _check_chunks(path, data)
    try:
        with warnings.catch_warnings():
            # What pillow only warns of is judged here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                if picture.mode != "L":
                    what, how = _WHAT.get(picture.mode, ("something else", _GRAY))
                    raise _wrong(path, f"mode {picture.mode} ({what}), expected 8-bit gray (L): {how}")
                if b"tRNS" in kinds:
                    raise _wrong(path, "a gray level that is transparent, expected 8-bit gray (L)")
                return np.asarray(picture)
    except MousetwinError:
        raise
    except Exception as error:  # pillow raises of every kind
        raise _wrong(path, f"not a PNG file, or a damaged one ({_brief(error)})") from None


def _check_chunks(path: Path, data: bytes) -> set[bytes]:
    """The kinds of chunks in a PNG file that is whole, of one image, and not too large to be decoded."""
    if not data.startswith(PNG_MAGIC):
        raise _wrong(path, "not a PNG file")
    at, kinds, rows = len(PNG_MAGIC), set[bytes](), bytearray()
    while b"IEND" not in kinds:
        head, at = data[at : at + 8], at + 8
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        body, check, at = data[at : at + length], data[at + length : at + length + 4], at + length + 4
        if not kind or check != zlib.crc32(kind + body).to_bytes(4, "big"):
            raise _wrong(path, "truncated" if at > len(data) else "damaged")
        if not kinds:
            if kind != b"IHDR" or length != 13:
                raise _wrong(path, "not a PNG file")
            width, height, depth, color, *_, interlaced = struct.unpack(">II5B", body)
            if width * height > MAX_PIXELS:
                raise _wrong(path, f"{height}×{width} pixels, expected at most {MAX_PIXELS}")
        if kind == b"acTL":
            raise _wrong(path, "an animation, expected one image")
        if kind == b"IDAT":
            rows += body
        kinds.add(kind)
    if at != len(data):
        raise _wrong(path, f"{len(data) - at} bytes after the end of the picture, expected one image")
    if color == 0 and depth < 8:
        mode = "mode 1, " if depth == 1 else ""
        raise _wrong(path, f"{mode}{depth}-bit gray, expected 8-bit gray (L): {_GRAY}")
    if color == 0 and depth == 8:
        _check_rows(path, bytes(rows), _row_bytes(width, height, interlaced=bool(interlaced)))
    return kinds


def _row_bytes(width: int, height: int, *, interlaced: bool) -> int:
    """Of all rows of 8-bit gray, each with a byte for its filter (PNG specification, sections 7.2 and 8.2)."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    total = 0
    for left, top, right, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (columns + 1) if columns > 0 and rows > 0 else 0
    return total


def _check_rows(path: Path, packed: bytes, expected: int) -> None:
    # Pillow takes fewer, and leaves the rest of the picture black.
    unpack = zlib.decompressobj()
    try:
        found = len(unpack.decompress(packed, expected + 1))
    except zlib.error as error:
        raise _wrong(path, f"not a PNG file, or a damaged one ({_brief(error)})") from None
    if found != expected or unpack.unused_data:
        raise _wrong(path, f"not a PNG file, or a damaged one ({found} bytes of pixels, expected {expected})")


def _brief(error: Exception) -> str:
    text: Any = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else f"{text[:100]}…"


def _wrong(path: Path, what: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {what}", field="images")
