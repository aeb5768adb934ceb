"""Files of responses: how each kind of them begins, and what rows are in it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from .arrays import narrowed, npy_header, write_npy

FILE_KINDS = (".npy", ".npz", ".csv", ".zarr")
DEFAULT_KIND = ".npy"
# The first is the default: MATLAB, R and zarr 2 read no other.
ZARR_FORMATS: tuple[Literal[2], Literal[3]] = (2, 3)


@dataclass(frozen=True)
class Answer:
    """What is written.

    Attributes:
        shape: (N, K), of all of it.
        dtype: float32 or float16.
        columns: (K,) neurons' numbers, or unit ids where those were asked for.
        called: "neurons" or "unit_ids".
        twin: mouse/model/version.
        digest: the twin's.
        zarr_format: 2 or 3, of a zarr array.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    columns: Sequence[int]
    called: str
    twin: str
    digest: str
    zarr_format: Literal[2, 3] = ZARR_FORMATS[0]


def beginning(kind: str, answer: Answer) -> bytes:
    """What comes before the rows: of a `.csv` the columns' names, of others (an `.npz` holds a `.npy`) a header."""
    if kind == ".csv":
        return f"{','.join(map(str, answer.columns))}\n".encode()
    return npy_header(answer.shape, answer.dtype)


def rows(kind: str, answer: Answer, responses: NDArray[Any]) -> bytes:
    """Some rows, (n, K). In a `.csv` each number is the shortest that reads back as the same of its dtype.

    Raises InvalidArgument for a response that is beyond the dtype.
    """
    values = narrowed(responses, answer.dtype)
    if kind == ".csv":
        lines = (",".join(row.astype(np.str_).tolist()) for row in values)
        return "".join(f"{line}\n" for line in lines).encode()
    return np.ascontiguousarray(values, answer.dtype.newbyteorder("<")).tobytes()


@contextmanager
def npz(stream: BinaryIO, answer: Answer, defaults: Callable[[], Sequence[str]]) -> Iterator[IO[bytes]]:
    """An `.npz` whose `responses` are what is written in the block, as a `.npy`.

    Args:
        stream: it need not go back in what is written.
        answer: `twin`, `digest`, and `neurons` or `unit_ids` stand beside the responses.
        defaults: what stands as `defaults`, once the responses are there.
    """
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        # Without a date, as numpy's: the same answer is the same file.
        with archive.open(zipfile.ZipInfo("responses.npy"), "w", force_zip64=True) as member:
            yield member
        beside: dict[str, NDArray[Any]] = {
            answer.called: np.array(answer.columns, np.int64),
            "twin": np.array(answer.twin),
            "digest": np.array(answer.digest),
            "defaults": np.array(defaults(), np.str_),
        }
        for name, values in beside.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), write_npy(values))
