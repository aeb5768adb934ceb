"""Arrays and bytes for tests that read whatever comes."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import strategies as st
from mousetwin import arrays

numbers = st.sampled_from(arrays.DTYPES).flatmap(
    lambda name: st.sampled_from("<>").map(lambda order: np.dtype(name).newbyteorder(order))
)
shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
plain_arrays = hnp.arrays(numbers, shapes)


@st.composite
def laid_out(draw: st.DrawFn) -> Any:
    """An array of numbers in C or Fortran order, or a strided or reversed view."""
    array = draw(plain_arrays)
    how = draw(st.sampled_from(["C", "F", "strided", "reversed"]))
    if how == "F":
        return np.asfortranarray(array)
    if how == "strided" and array.ndim:
        return array[::2]
    if how == "reversed" and array.ndim:
        return array[::-1]
    return array


@st.composite
def damaged(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes with some of them overwritten, dropped, doubled or cut off."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "write", "drop", "double", "cut"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            data[at : at + 1] = draw(st.binary(max_size=6))
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "double":
            data[at:at] = data[at : at + 16]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


def npy(array: Any) -> bytes:
    """As numpy itself writes it."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()
