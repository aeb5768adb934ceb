"""SENSORIUM data sets: the competition's folder layout (sinzlab/sensorium, `notebooks/data`), unpacked or as its zip.

    data/{images,responses,behavior,pupil_center}/N.npy     a file a trial
    meta/neurons/{unit_ids,cell_motor_coordinates,…}.npy    a row a neuron
    meta/trials/{tiers,frame_image_id,trial_idx}.npy        a row a trial
    meta/statistics/VARIABLE/all/{mean,std}.npy

Files are read when they are needed and checked when they are read; nothing holds a whole recording. Every error is an
InvalidArgument (NotFound where there is no data set) that names the file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import read_npy
from .errors import InvalidArgument, NotFound

VARIABLES = ("images", "responses", "behavior", "pupil_center")
# The training loader floors each neuron's std at this share of their mean, so that silent neurons do not blow up
# (neuralpredictors, `NeuroNormalizer`).
_STD_FLOOR = 0.01


class Dataset:
    """One mouse's recording. A context manager."""

    def __init__(self, path: Path, files: _Files) -> None:
        self._path = path
        self._files = files

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """The data set in a folder that holds `meta`, or in a zip of it (at its top or in one folder)."""
        path = Path(path)
        if path.is_dir():
            return cls(path, _Folder(path))
        try:
            archive = zipfile.ZipFile(path)
        except OSError as error:
            raise NotFound(f"{path}: {error.strerror or error}", field="dataset") from None
        except zipfile.BadZipFile:
            raise _wrong(path, "", "neither a data set's folder nor its zip") from None
        try:
            return cls(path, _Zip(path, archive))
        except BaseException:
            archive.close()
            raise

    @cached_property
    def data_key(self) -> str | None:
        """animal-session-scan; None where the data set does not tell."""
        parts = [self.array(f"meta/neurons/{name}.npy") for name in ("animal_ids", "sessions", "scan_idx")]
        if any(part is None or not part.size for part in parts):
            return None
        return "-".join(str(part.flat[0]) for part in parts if part is not None)

    @cached_property
    def unit_ids(self) -> NDArray[np.int64] | None:
        """(K,), or None where the data set does not hold them."""
        name = "meta/neurons/unit_ids.npy"
        values = self.array(name)
        if values is None:
            return None
        if values.ndim != 1 or values.dtype.kind not in "uif":
            raise _wrong(self._path, name, f"{values.dtype} {values.shape}, expected a number a neuron")
        if not (np.isfinite(values) & (values == np.round(values))).all():
            raise _wrong(self._path, name, "expected whole numbers")
        return values.astype(np.int64)

    @cached_property
    def cell_motor_coordinates(self) -> NDArray[np.float64] | None:
        """(K, 3) in µm, or None where the data set does not hold them."""
        name = "meta/neurons/cell_motor_coordinates.npy"
        values = self.array(name)
        if values is None:
            return None
        if values.ndim != 2 or values.shape[1] != 3:
            raise _wrong(self._path, name, f"shape {values.shape}, expected (neurons, 3)")
        if values.dtype.kind not in "uif" or not np.isfinite(values).all():
            raise _wrong(self._path, name, "expected finite numbers")
        return values.astype(np.float64)

    def statistic(self, variable: str, kind: str) -> NDArray[np.float64] | None:
        """The training set's "mean" or "std" of a variable, flat; None where the data set does not hold it.

        A std of responses is floored as the training loader does.
        """
        name = f"meta/statistics/{variable}/all/{kind}.npy"
        values = self.array(name)
        if values is None:
            return None
        if values.dtype.kind not in "uif" or not values.size:
            raise _wrong(self._path, name, "holds no numbers" if values.size else "holds no values")
        values = values.astype(np.float64).reshape(-1)
        if not np.isfinite(values).all() or (kind == "std" and values.min() < 0):
            raise _wrong(self._path, name, "expected finite numbers, for a std none below 0")
        if variable == "responses" and kind == "std":
            values = np.maximum(values, _STD_FLOOR * values.mean())
        return values

    @cached_property
    def tiers(self) -> NDArray[np.str_]:
        """(T,): train, validation, test, …"""
        name = "meta/trials/tiers.npy"
        values = self._needed(name)
        if values.ndim != 1 or values.dtype.kind not in "US":
            raise _wrong(self._path, name, f"{values.dtype} {values.shape}, expected a word a trial")
        return values.astype(np.str_)

    @property
    def trials(self) -> int:
        """How many there are, of all tiers."""
        return len(self.tiers)

    @cached_property
    def image_ids(self) -> NDArray[Any]:
        """(T,): trials of one image have one number."""
        return self._a_trial("meta/trials/frame_image_id.npy")

    @cached_property
    def trial_idx(self) -> NDArray[Any]:
        """(T,), in the competition's sets hashed."""
        return self._a_trial("meta/trials/trial_idx.npy")

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Which of images, responses, behavior and pupil_center there are files of."""
        return tuple(variable for variable in VARIABLES if self._files.has_folder(f"data/{variable}"))

    def trials_of(self, tier: str) -> NDArray[np.intp]:
        """The trials of a tier, as `batches` takes them, in their order."""
        found = np.flatnonzero(self.tiers == tier)
        if not found.size:
            there = ", ".join(sorted(set(self.tiers.tolist())))
            raise InvalidArgument(
                f"tier: {self._path} has no trials of {tier!r}, expected one of {there}", field="tier"
            )
        return found

    def batches(self, variable: str, trials: NDArray[np.intp], size: int) -> Iterator[NDArray[Any]]:
        """What was recorded in some trials, `size` of them at a time, a row each: images (n, H, W), others (n, width).

        Args:
            variable: one of `variables`.
            trials: by number.
            size: rows in a batch at the most.
        """
        first: tuple[str, NDArray[Any]] | None = None
        for start in range(0, len(trials), size):
            rows = []
            for trial in trials[start : start + size].tolist():
                name = f"data/{variable}/{trial}.npy"
                values = self._needed(name)
                if values.dtype.kind not in "uif" or not np.isfinite(values).all():
                    raise _wrong(self._path, name, "expected finite numbers")
                values = values.squeeze() if variable == "images" else values.reshape(-1)
                first = (name, values) if first is None else first
                self._check_row(name, variable, values, *first)
                rows.append(values)
            yield np.stack(rows)

    def array(self, name: str) -> NDArray[Any] | None:
        """The array in one file of the data set, of numbers or words; None where there is no such file."""
        data = self._files.read(name)
        if data is None:
            return None
        try:
            return read_npy(data, name)
        except InvalidArgument as error:
            # Words are arrays of another kind.
            try:
                values = np.load(io.BytesIO(data), allow_pickle=False)
            except (ValueError, EOFError, OSError):
                values = None
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "US":
                raise InvalidArgument(f"{self._path}: {error}", field="dataset") from None
            return values

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _needed(self, name: str) -> NDArray[Any]:
        values = self.array(name)
        if values is None:
            raise _wrong(self._path, name, "missing")
        return values

    def _a_trial(self, name: str) -> NDArray[Any]:
        values = self._needed(name)
        if values.shape != self.tiers.shape:
            raise _wrong(self._path, name, f"shape {values.shape}, meta/trials/tiers.npy has {self.tiers.shape}")
        return values

    def _check_row(self, name: str, variable: str, values: NDArray[Any], first: str, expected: NDArray[Any]) -> None:
        if variable == "images" and values.ndim != 2:
            raise _wrong(self._path, name, f"shape {values.shape}, expected one image (1, H, W)")
        if variable == "responses" and self.unit_ids is not None and values.shape != self.unit_ids.shape:
            raise _wrong(
                self._path, name, f"{values.size} responses, meta/neurons/unit_ids.npy has {self.unit_ids.size} neurons"
            )
        if values.shape != expected.shape:
            raise _wrong(self._path, name, f"shape {values.shape}, {first} has {expected.shape}")


class _Files(Protocol):
    def read(self, name: str) -> bytes | None: ...

    def has_folder(self, name: str) -> bool: ...

    def close(self) -> None: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _wrong(self._path, name, error.strerror or str(error)) from None

    def has_folder(self, name: str) -> bool:
        return (self._path / name).is_dir()

    def close(self) -> None:
        """Nothing to close."""


class _Zip:
    """A zip, read in place."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        names = archive.namelist()
        # What macOS adds to a zip has the same names in a folder of its own.
        tops = {n[: n.index("meta/")] for n in names if "meta/" in n and not n.startswith("__MACOSX")}
        if not tops:
            raise _wrong(path, "", "not a SENSORIUM data set: no folder meta in it")
        self._top = min(tops, key=len)
        self._names = frozenset(names)

    def read(self, name: str) -> bytes | None:
        member = self._top + name
        if member not in self._names:
            return None
        try:
            return self._archive.read(member)
        except Exception as error:  # zipfile and what it decompresses with raise of every kind
            raise _wrong(self._path, member, str(error) or "damaged") from None

    def has_folder(self, name: str) -> bool:
        return any(n.startswith(f"{self._top}{name}/") for n in self._names)

    def close(self) -> None:
        self._archive.close()


def _wrong(path: Path, name: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {name}: {what}" if name else f"{path}: {what}", field="dataset")
