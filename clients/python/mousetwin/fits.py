"""Whether a data set is of the mouse that a twin is of."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset
from .dataset_files import wrong
from .query import MouseInfo

_DATA_KEY = re.compile(r"[0-9]+-[0-9]+-[0-9]+")


def is_other_mouse(data_key: str | None, mouse: str) -> bool:
    """Whether a data set calls itself other than a mouse that is called by animal, session and scan."""
    # Others may be called anything.
    return data_key is not None and data_key != mouse and _DATA_KEY.fullmatch(mouse) is not None


def check_fits(dataset: Dataset, info: MouseInfo) -> str:
    """Compares all that both tell: neurons, unit ids, statistics and the data_key.

    Returns:
        What is odd about it and no reason to refuse, in a line; empty where nothing is.

    Raises:
        InvalidArgument: the data set is of another mouse; the message names the file that tells.
    """
    _check_neurons(dataset, info)
    _check_statistics(dataset, info)
    twin, key = info.summary.twin, dataset.data_key
    # Where both tell their neurons, these are what counts.
    if is_other_mouse(key, twin.mouse) and (dataset.unit_ids is None or info.unit_ids is None):
        raise wrong(dataset.path, "meta/neurons", f"of the mouse {key}, expected {twin.mouse}")
    return f"{dataset.path} calls itself {key}, not {twin.mouse}" if key not in (None, twin.mouse) else ""


def _check_neurons(dataset: Dataset, info: MouseInfo) -> None:
    twin, neurons = info.summary.twin, info.summary.neurons
    counts = {
        "meta/neurons/unit_ids.npy": dataset.unit_ids,
        "meta/neurons/cell_motor_coordinates.npy": dataset.cell_motor_coordinates,
        "meta/statistics/responses/all/std.npy": dataset.statistic("responses", "std"),
    }
    for name, values in counts.items():
        if values is not None and len(values) != neurons:
            raise wrong(dataset.path, name, f"{len(values)} neurons, {twin.mouse}/{twin.model} has {neurons}")
    for name, here, known, rounding in (
        ("unit_ids", dataset.unit_ids, info.unit_ids, 0.0),
        ("cell_motor_coordinates", dataset.cell_motor_coordinates, info.cell_motor_coordinates, 1e-2),
    ):
        if here is not None and known is not None and not np.allclose(here, known, rtol=0, atol=rounding):
            raise wrong(
                dataset.path,
                f"meta/neurons/{name}.npy",
                f"other neurons than those of {twin.mouse}/{twin.model}",
            )


def _check_statistics(dataset: Dataset, info: MouseInfo) -> None:
    twin = info.summary.twin
    for variable, moments in info.statistics.items():
        found = {kind: dataset.statistic(variable, kind) for kind in ("mean", "std")}
        if found["std"] is not None and found["std"].min() == 0:
            # Withheld recordings come with zeros, whose statistics say nothing.
            continue
        for kind, here in found.items():
            known = getattr(moments, kind)
            if known and here is not None and not _close(here, np.array(known)):
                raise wrong(
                    dataset.path,
                    f"meta/statistics/{variable}/all/{kind}.npy",
                    f"statistics of another mouse than {twin.mouse}/{twin.model} was exported with",
                )


def _close(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-4, atol=1e-8)
