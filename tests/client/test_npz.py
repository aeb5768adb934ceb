"""`.npz` files that are not what they say: bounded by what they expand to, and refused before anything is read."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from mousetwin import arrays
from mousetwin.errors import InvalidArgument, PayloadTooLarge
from numpy.testing import assert_array_equal

LIMIT = 1 << 20
NAMES = ("images", "behavior", "responses")
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 30, 40)).astype(np.uint8)
LONG = np.zeros(3 * LIMIT, np.uint8)


def npz(method: int = zipfile.ZIP_DEFLATED, **values: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, array in values.items():
            archive.writestr(f"{name}.npy", arrays.write_npy(np.asarray(array)))
    return stream.getvalue()


def mixed(stored: dict[str, Any], deflated: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for method, values in ((zipfile.ZIP_STORED, stored), (zipfile.ZIP_DEFLATED, deflated)):
            for name, array in values.items():
                archive.writestr(f"{name}.npy", arrays.write_npy(np.asarray(array)), method)
    return stream.getvalue()


def open_streamed(data: bytes, limit: int = LIMIT) -> Any:
    """What is beside the images, and all bytes of the images' `.npy`."""
    with ExitStack() as stack:
        beside, stream = arrays.open_npz(stack, io.BytesIO(data), "images", NAMES, limit)
        return beside, b"".join(iter(lambda: stream.read(1000), b""))


def read_whole(data: bytes, limit: int = LIMIT) -> Any:
    return arrays.read_npz(data, NAMES, limit)


READERS = [pytest.param(open_streamed, id="streamed"), pytest.param(read_whole, id="whole")]


def change_directory(data: bytes, **fields: int) -> bytes:
    """With other numbers for the first member in the directory at its end."""
    places = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "packed": (20, "<I"), "size": (24, "<I")}
    changed = bytearray(data)
    at = data.index(b"PK\1\2")
    for name, value in fields.items():
        offset, kind = places[name]
        struct.pack_into(kind, changed, at + offset, value)
    return bytes(changed)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_right_is_read(method: int, order: Any) -> None:
    behavior = np.asarray(np.random.default_rng(1).normal(size=(20, 3)), order=order)
    data = npz(method, images=IMAGES, behavior=behavior)
    whole = read_whole(data)
    assert_array_equal(whole["images"], IMAGES)
    assert_array_equal(whole["behavior"], behavior)
    beside, streamed = open_streamed(data)
    assert_array_equal(beside["behavior"], behavior)
    assert_array_equal(arrays.read_npy(streamed, "images"), IMAGES)


def test_what_is_long_must_be_sent_long() -> None:
    stored = npz(zipfile.ZIP_STORED, images=LONG)
    assert len(open_streamed(stored)[1]) > len(LONG)
    with pytest.raises(PayloadTooLarge):
        read_whole(stored)
    compressed = npz(images=LONG)
    assert len(compressed) < LIMIT / 100
    for read in (open_streamed, read_whole):
        with pytest.raises(PayloadTooLarge, match=r"images .*uncompressed \(numpy.savez\), or fewer images"):
            read(compressed)
        # A file of one's own.
        assert len(read(compressed, sys.maxsize))


def test_all_that_is_compressed_counts_together() -> None:
    half = np.zeros(LIMIT // 2 + 1, np.uint8)
    with pytest.raises(PayloadTooLarge, match="images and behavior uncompressed"):
        open_streamed(npz(images=half, behavior=half))
    assert len(open_streamed(mixed({"images": LONG}, {"behavior": half}))[1]) > len(LONG)
    with pytest.raises(PayloadTooLarge, match="send images uncompressed"):
        open_streamed(mixed({"behavior": half}, {"images": half}))
    with pytest.raises(PayloadTooLarge, match="fewer images"):
        open_streamed(mixed({"behavior": LONG, "images": half}, {}))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("forged", [True, False])
def test_a_directory_that_lies_about_sizes(read: Callable[[bytes], Any], shorter: bool, forged: bool) -> None:
    content = arrays.write_npy(LONG)
    # A few images whole, so that what is cut off is a right .npy too.
    size = 128 + 1000 if shorter else len(content) + 1000
    header = arrays.npy_header((1000,), np.uint8)
    content = header + content[len(header) :]
    fields = {"size": size}
    if forged:
        fields["crc"] = zlib.crc32(content[:size])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    # Beyond the limit it is not even begun.
    with pytest.raises(InvalidArgument if shorter else PayloadTooLarge):
        read(change_directory(stream.getvalue(), **fields))
    with pytest.raises(InvalidArgument, match="damaged"):
        read(change_directory(npz(images=IMAGES), size=IMAGES.nbytes + 4000))


@pytest.mark.parametrize("read", READERS)
def test_members_that_are_not_where_they_should_be(read: Callable[[bytes], Any]) -> None:
    stored = npz(zipfile.ZIP_STORED, images=IMAGES)
    large = {"packed": len(stored) * 2, "size": len(stored) * 2}
    two = npz(zipfile.ZIP_STORED, images=IMAGES, behavior=np.zeros((20, 3)))
    first, second = two.index(b"PK\1\2"), two.rindex(b"PK\1\2")
    overlapping = bytearray(two)
    # Both at the first one's place, as a bomb has it.
    overlapping[second + 42 : second + 46] = overlapping[first + 42 : first + 46]
    wrong = {
        "beyond the file": change_directory(stored, **large),
        "longer than stored": change_directory(stored, size=IMAGES.nbytes + 999),
        "into the next": change_directory(two, packed=IMAGES.nbytes + 200, size=IMAGES.nbytes + 200),
        "overlapping": bytes(overlapping),
        "a byte behind it": stored + b"\0",
        "another zip behind it": stored + npz(images=IMAGES)[:-1],
        "cut off": stored[:-30],
        "nothing": b"",
        "no zip": b"\x93NUMPY" + bytes(99),
    }
    for how, data in wrong.items():
        with pytest.raises(InvalidArgument, match="damaged"):
            pytest.fail(f"{how}: {read(data)}")


@pytest.mark.parametrize("read", READERS)
def test_what_is_packed_otherwise(read: Callable[[bytes], Any]) -> None:
    for method, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")):
        with pytest.raises(InvalidArgument, match=f"images in the .npz is compressed with {name}, expected deflate"):
            read(npz(method, images=IMAGES))
    with pytest.raises(InvalidArgument, match="deflate64"):
        read(change_directory(npz(images=IMAGES), method=9))
    with pytest.raises(InvalidArgument, match="method 77"):
        read(change_directory(npz(images=IMAGES), method=77))
    with pytest.raises(InvalidArgument, match="encrypted"):
        read(change_directory(npz(images=IMAGES), flags=1))


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_member(read: Callable[[bytes], Any]) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(npz(method, images=IMAGES))
        data[len(data) // 2] ^= 255
        with pytest.raises(InvalidArgument, match="damaged"):
            read(bytes(data))


@pytest.mark.parametrize("read", READERS)
def test_names(read: Callable[[bytes], Any]) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("images", "images.npy"):
            archive.writestr(name, arrays.write_npy(IMAGES))
    for data, words in (
        (npz(Images=IMAGES), "'Images', which is not expected"),
        (npz(images=IMAGES, IMAGES=IMAGES), "'IMAGES', which is not expected"),
        (npz(images=IMAGES, weights=IMAGES), "'weights', which is not expected"),
        (stream.getvalue(), "'images', twice"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            read(data)
