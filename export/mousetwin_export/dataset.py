"""What a bundle wants to know from a SENSORIUM data set: statistics, unit ids and cortical coordinates.

The competition's layout (sinzlab/sensorium, `notebooks/data`), unpacked or as its zip, read in place:
`meta/statistics/<variable>/all/{mean,std}.npy` and `meta/neurons/{unit_ids,cell_motor_coordinates}.npy`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from mousetwin.arrays import read_npy
from mousetwin.errors import InvalidArgument
from mousetwin_serve import bundle
from numpy.typing import NDArray

from .errors import ExportError
from .statistics import VARIABLES

# The loader floors each neuron's std at this share of their mean, so that silent neurons do not blow up.
_STD_FLOOR = 0.01


@dataclass(frozen=True)
class DatasetFacts:
    """What the data set tells about one mouse; None where it does not."""

    statistics: bundle.Statistics
    unit_ids: tuple[int, ...] | None
    cell_motor_coordinates: tuple[tuple[float, float, float], ...] | None


def read_dataset(path: Path, neurons: int) -> DatasetFacts:
    """The facts in a data set's folder or zip.

    Args:
        path: the folder that holds `meta`, or a zip of it (at its top or in one folder).
        neurons: how many the checkpoint has.

    Raises:
        ExportError: no such data set, a damaged or misshapen file, or one for another number of neurons; the message
            names the file.
    """
    if path.is_dir():
        return _Reader(path, lambda name: _read_file(path / name)).facts(neurons)
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise ExportError(f"{path}: neither a data set's folder nor its zip") from None
    with archive:
        top = _top_folder(path, archive)
        names = set(archive.namelist())

        def read(name: str) -> bytes | None:
            member = str(top / name)
            if member not in names:
                return None
            try:
                return archive.read(member)
            except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
                raise ExportError(f"{path}: {member}: {error}") from None

        return _Reader(path, read).facts(neurons)


class _Reader:
    def __init__(self, path: Path, read: Callable[[str], bytes | None]) -> None:
        self._path = path
        self._read = read

    def facts(self, neurons: int) -> DatasetFacts:
        statistics = bundle.Statistics(**{variable: self._moments(variable, neurons) for variable in VARIABLES})
        unit_ids = self._array("meta/neurons/unit_ids.npy", (neurons,))
        coordinates = self._array("meta/neurons/cell_motor_coordinates.npy", (neurons, 3))
        if unit_ids is not None and not (np.isfinite(unit_ids) & (unit_ids == np.round(unit_ids))).all():
            raise ExportError(f"{self._path}: meta/neurons/unit_ids.npy: expected whole numbers")
        if coordinates is not None and not np.isfinite(coordinates).all():
            raise ExportError(f"{self._path}: meta/neurons/cell_motor_coordinates.npy: expected finite numbers")
        if statistics == bundle.Statistics() and unit_ids is None and coordinates is None:
            raise ExportError(f"{self._path}: not a SENSORIUM data set: neither meta/statistics nor meta/neurons in it")
        return DatasetFacts(
            statistics,
            None if unit_ids is None else tuple(int(i) for i in unit_ids),
            None if coordinates is None else tuple((float(x), float(y), float(z)) for x, y, z in coordinates),
        )

    def _moments(self, variable: str, neurons: int) -> bundle.Moments:
        widths = {"images": 1, "behavior": None, "pupil_center": 2, "responses": neurons}
        found = {}
        for kind in ("mean", "std"):
            name = f"meta/statistics/{variable}/all/{kind}.npy"
            values = self._array(name)
            if values is None:
                continue
            values = values.astype(np.float64).reshape(-1)
            if not values.size:
                raise ExportError(f"{self._path}: {name}: holds no values")
            if widths[variable] not in (None, values.size):
                raise ExportError(f"{self._path}: {name}: {values.size} values, expected {widths[variable]}")
            if variable == "responses" and kind == "std":
                values = np.maximum(values, _STD_FLOOR * values.mean())
            if not np.isfinite(values).all() or (kind == "std" and values.min() < 0):
                raise ExportError(f"{self._path}: {name}: expected finite numbers, for a std none below 0")
            found[kind] = tuple(values.tolist())
        if min(found.get("std", (1.0,))) == 0:
            # Withheld recordings come with zeroed behavior and pupil, whose statistics say nothing.
            return bundle.Moments()
        return bundle.Moments(**found)

    def _array(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[Any] | None:
        data = self._read(name)
        if data is None:
            return None
        try:
            values = read_npy(data, name)
        except InvalidArgument as error:
            raise ExportError(f"{self._path}: {error}") from None
        if shape is not None and values.shape != shape:
            raise ExportError(f"{self._path}: {name}: shape {values.shape}, the checkpoint's mouse has {shape}")
        return values


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from None


def _top_folder(path: Path, archive: zipfile.ZipFile) -> PurePosixPath:
    tops = {name[: name.index("meta/")] for name in archive.namelist() if "meta/" in name}
    if not tops:
        raise ExportError(f"{path}: not a SENSORIUM data set: no folder meta in it")
    return PurePosixPath(min(tops, key=len))
