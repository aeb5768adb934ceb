"""What a bundle wants to know from a SENSORIUM data set: statistics, unit ids and cortical coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mousetwin.dataset import Dataset
from mousetwin.errors import MousetwinError
from mousetwin.fits import is_other_mouse
from mousetwin_serve import bundle

from .errors import ExportError
from .statistics import VARIABLES


@dataclass(frozen=True)
class DatasetFacts:
    """What the data set tells about one mouse; None where it does not."""

    statistics: bundle.Statistics
    unit_ids: tuple[int, ...] | None
    cell_motor_coordinates: tuple[tuple[float, float, float], ...] | None


def read_dataset(path: Path, neurons: int, mouse: str = "") -> DatasetFacts:
    """The facts in a data set's folder or zip.

    Args:
        path: as `Dataset.open` takes it.
        neurons: how many the checkpoint has.
        mouse: what the checkpoint calls it.

    Raises:
        ExportError: no such data set, a damaged or misshapen file, or one of another mouse or another number of
            neurons; the message names the file.
    """
    try:
        with Dataset.open(path) as dataset:
            facts = _facts(dataset, path, neurons)
            # A checkpoint knows no unit ids: which mouse it is of is all that it tells.
            if is_other_mouse(dataset.data_key, mouse):
                raise ExportError(f"{path}: meta/neurons: of the mouse {dataset.data_key}, expected {mouse}")
    except ExportError:
        raise
    except MousetwinError as error:
        raise ExportError(str(error)) from None
    if facts == DatasetFacts(bundle.Statistics(), None, None):
        raise ExportError(f"{path}: not a SENSORIUM data set: neither meta/statistics nor meta/neurons in it")
    return facts


def _facts(dataset: Dataset, path: Path, neurons: int) -> DatasetFacts:
    statistics = bundle.Statistics(**{variable: _moments(dataset, path, variable, neurons) for variable in VARIABLES})
    unit_ids, coordinates = dataset.unit_ids, dataset.cell_motor_coordinates
    for name, values in (("unit_ids", unit_ids), ("cell_motor_coordinates", coordinates)):
        if values is not None and len(values) != neurons:
            raise ExportError(f"{path}: meta/neurons/{name}.npy: {len(values)} neurons, the checkpoint has {neurons}")
    return DatasetFacts(
        statistics,
        None if unit_ids is None else tuple(unit_ids.tolist()),
        None if coordinates is None else tuple((float(x), float(y), float(z)) for x, y, z in coordinates),
    )


def _moments(dataset: Dataset, path: Path, variable: str, neurons: int) -> bundle.Moments:
    width = {"images": 1, "behavior": None, "pupil_center": 2, "responses": neurons}[variable]
    found = {}
    for kind in ("mean", "std"):
        values = dataset.statistic(variable, kind)
        if values is None:
            continue
        if width not in (None, values.size):
            name = f"meta/statistics/{variable}/all/{kind}.npy"
            raise ExportError(f"{path}: {name}: {values.size} values, expected {width}")
        found[kind] = tuple(values.tolist())
    if min(found.get("std", (1.0,))) == 0:
        # Withheld recordings come with zeroed behavior and pupil, whose statistics say nothing.
        return bundle.Moments()
    return bundle.Moments(**found)
