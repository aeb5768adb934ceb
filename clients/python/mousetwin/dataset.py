"""SENSORIUM data sets: the competition's folder layout (sinzlab/sensorium, `notebooks/data`), unpacked or as its zip.

    data/{images,responses,behavior,pupil_center}/N.npy     a file a trial
    meta/neurons/{unit_ids,cell_motor_coordinates,…}.npy    a row a neuron
    meta/trials/{tiers,frame_image_id,trial_idx}.npy        a row a trial
    meta/statistics/VARIABLE/all/{mean,std}.npy

Files are read when they are needed and checked when they are read; nothing holds a whole recording. Every error is an
InvalidArgument (NotFound where there is no data set) that names the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import read_npy
from .dataset_files import Files, open_files, wrong
from .errors import InvalidArgument
from .sources import Stamp

VARIABLES = ("images", "responses", "behavior", "pupil_center")
# The training loader floors each neuron's std at this share of their mean, so that silent neurons do not blow up
# (neuralpredictors, `NeuroNormalizer`).
_STD_FLOOR = 0.01
_OF_NEURONS = ("animal_ids", "sessions", "scan_idx", "unit_ids", "cell_motor_coordinates")
_OF_TRIALS = ("tiers", "frame_image_id", "trial_idx")


class Dataset:
    """One mouse's recording. A context manager.

    Attributes:
        path: its folder or zip, as it was named.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """The data set in a folder or in a zip: where `meta` is, at its top or in one folder inside.

        Raises:
            NotFound: there is nothing, or it cannot be read.
            InvalidArgument: no data set, or several, which the message names.
        """
        path = Path(path)
        return cls(path, open_files(path))

    @cached_property
    def data_key(self) -> str | None:
        """animal-session-scan; None where the data set does not tell."""
        parts = []
        for name in (f"meta/neurons/{name}.npy" for name in ("animal_ids", "sessions", "scan_idx")):
            values = self.array(name)
            if values is None or not values.size:
                return None
            if (values != values.flat[0]).any():
                raise wrong(self.path, name, "neurons of several recordings, expected those of one")
            parts.append(values.flat[0])
        return "-".join(str(part) for part in parts)

    @cached_property
    def unit_ids(self) -> NDArray[np.int64] | None:
        """(K,), or None where the data set does not hold them."""
        name = "meta/neurons/unit_ids.npy"
        values = self.array(name)
        if values is None:
            return None
        if values.ndim != 1 or values.dtype.kind not in "uif":
            raise wrong(self.path, name, f"{values.dtype} {values.shape}, expected a number a neuron")
        # Of larger ones float64 does not hold every whole number.
        if not (np.isfinite(values) & (values == np.round(values)) & (abs(values.astype(float)) < 2**53)).all():
            raise wrong(self.path, name, "expected whole numbers")
        return values.astype(np.int64)

    @cached_property
    def cell_motor_coordinates(self) -> NDArray[np.float64] | None:
        """(K, 3) in µm, or None where the data set does not hold them."""
        name = "meta/neurons/cell_motor_coordinates.npy"
        values = self.array(name)
        if values is None:
            return None
        if values.ndim != 2 or values.shape[1] != 3:
            raise wrong(self.path, name, f"shape {values.shape}, expected (neurons, 3)")
        if values.dtype.kind not in "uif" or not np.isfinite(values).all():
            raise wrong(self.path, name, "expected finite numbers")
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
            raise wrong(self.path, name, "holds no numbers" if values.size else "holds no values")
        values = values.astype(np.float64).reshape(-1)
        if not np.isfinite(values).all() or (kind == "std" and values.min() < 0):
            raise wrong(self.path, name, "expected finite numbers, for a std none below 0")
        if variable == "responses" and kind == "std":
            with np.errstate(over="ignore"):
                floor = _STD_FLOOR * values.mean()
            if not np.isfinite(floor):
                raise wrong(self.path, name, "too large to be averaged")
            values = np.maximum(values, floor)
        return values

    @cached_property
    def tiers(self) -> NDArray[np.str_]:
        """(T,): train, validation, test, …"""
        name = "meta/trials/tiers.npy"
        values = self._needed(name)
        if values.ndim != 1 or values.dtype.kind != "U":
            raise wrong(self.path, name, f"{values.dtype} {values.shape}, expected a word a trial")
        if not values.size:
            raise wrong(self.path, name, "no trials")
        words: NDArray[np.str_] = values
        return words

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
        return tuple(variable for variable in VARIABLES if self._files.names(f"data/{variable}") is not None)

    def trials_of(self, tier: str) -> NDArray[np.intp]:
        """The trials of a tier, as `batches` takes them, in their order."""
        found = np.flatnonzero(self.tiers == tier)
        if not found.size:
            there = ", ".join(sorted(set(self.tiers.tolist())))
            raise InvalidArgument(f"tier: {self.path} has no trials of {tier!r}, expected one of {there}", field="tier")
        return found

    def batches(self, variable: str, trials: NDArray[np.intp], size: int) -> Iterator[NDArray[Any]]:
        """What was recorded in some trials, `size` of them at a time, a row each: images (n, H, W), others (n, width).

        Args:
            variable: one of `variables`.
            trials: by number.
            size: rows in a batch at the most.
        """
        beyond = [number for number in self._numbers(variable) if number >= self.trials]
        if beyond:
            raise wrong(
                self.path, f"data/{variable}/{beyond[0]}.npy", f"meta/trials/tiers.npy has {self.trials} trials"
            )
        first: tuple[str, NDArray[Any]] | None = None
        for start in range(0, len(trials), size):
            rows = []
            for trial in trials[start : start + size].tolist():
                name = f"data/{variable}/{trial}.npy"
                values = self._needed(name)
                if values.dtype.kind not in "uif" or not np.isfinite(values).all():
                    raise wrong(self.path, name, "expected finite numbers")
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
            values = read_npy(data, name, words=True)
        except InvalidArgument as error:
            raise InvalidArgument(f"{self.path}: {error}", field="dataset") from None
        if values.dtype.kind in "US":
            try:
                values = values.astype(np.str_)
            except ValueError:
                # Bytes that are no ASCII.
                raise wrong(self.path, name, "expected words") from None
            # Numbers that are no characters: numpy itself fails where it shows them.
            if (np.ascontiguousarray(values).reshape(-1).view(np.uint32) > sys.maxunicode).any():
                raise wrong(self.path, name, "expected words")
        return values

    def stamps(self, variables: tuple[str, ...], trials: NDArray[np.intp]) -> dict[str, Stamp]:
        """What says that what was recorded in some trials, and what is known of them, is the same as another time."""
        names = [f"meta/neurons/{name}.npy" for name in _OF_NEURONS]
        names += [f"meta/trials/{name}.npy" for name in _OF_TRIALS]
        names += [f"meta/statistics/{name}/all/{kind}.npy" for name in VARIABLES for kind in ("mean", "std")]
        names += [f"data/{name}/{trial}.npy" for name in variables for trial in trials.tolist()]
        return self._files.stamps(names)

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _numbers(self, variable: str) -> list[int]:
        """The trials that there are files of."""
        found = (re.fullmatch(r"(0|[1-9][0-9]*)\.npy", name) for name in self._files.names(f"data/{variable}") or ())
        return [int(match[1]) for match in found if match]

    def _needed(self, name: str) -> NDArray[Any]:
        values = self.array(name)
        if values is None:
            raise wrong(self.path, name, "missing")
        return values

    def _a_trial(self, name: str) -> NDArray[Any]:
        values = self._needed(name)
        if values.shape != self.tiers.shape:
            raise wrong(self.path, name, f"shape {values.shape}, meta/trials/tiers.npy has {self.tiers.shape}")
        return values

    def _check_row(self, name: str, variable: str, values: NDArray[Any], first: str, expected: NDArray[Any]) -> None:
        if variable == "images" and values.ndim != 2:
            raise wrong(self.path, name, f"shape {values.shape}, expected one image (1, H, W)")
        if variable == "responses" and self.unit_ids is not None and values.shape != self.unit_ids.shape:
            raise wrong(
                self.path, name, f"{values.size} responses, meta/neurons/unit_ids.npy has {self.unit_ids.size} neurons"
            )
        if values.shape != expected.shape:
            raise wrong(self.path, name, f"shape {values.shape}, {first} has {expected.shape}")
