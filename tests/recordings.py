"""Data sets in the SENSORIUM competition's layout, made up for a tiny twin."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bundles import TinyTwin
from numpy.typing import NDArray

TIERS = {"train": 30, "validation": 10, "test": 60, "final_test": 40}
REPEATS = {"test": 6, "final_test": 5}


@dataclass(frozen=True)
class Recording:
    """What was written: arrays with a row a trial."""

    folder: Path
    tiers: NDArray[np.str_]
    image_ids: NDArray[np.int64]
    trial_idx: NDArray[np.int64]
    images: NDArray[np.uint8]
    behavior: NDArray[np.float64]
    pupil_center: NDArray[np.float64]
    responses: NDArray[np.float64]
    response_std: NDArray[np.float64]

    def of(self, tier: str) -> NDArray[np.intp]:
        return np.flatnonzero(self.tiers == tier)


def record(folder: Path, twin: TinyTwin, *, noise: float = 1.0, withheld: bool = False) -> Recording:
    """A made-up recording of neurons that respond as the twin says, and noise.

    Args:
        folder: where `data` and `meta` are written.
        twin: with the statistics that the recording gets.
        noise: in units of each neuron's standard deviation.
        withheld: whether the responses of test and final_test are 0, as the competition's.
    """
    rng = np.random.default_rng(11)
    tiers = rng.permutation(np.repeat(list(TIERS), list(TIERS.values())))
    image_ids = np.arange(1000, 1000 + len(tiers))
    for tier, repeats in REPEATS.items():
        rows = np.flatnonzero(tiers == tier)
        image_ids[rows] = rng.permutation(np.repeat(image_ids[rows[: len(rows) // repeats]], repeats))
    pictures = {n: rng.integers(0, 256, (1, *twin.stimulus)).astype(np.uint8) for n in np.unique(image_ids)}
    images = np.stack([pictures[n] for n in image_ids])
    behavior = rng.normal(twin.behavior_mean, twin.behavior_std, (len(tiers), 3))
    pupil_center = rng.normal(twin.pupil_mean, twin.pupil_std, (len(tiers), 2))
    # One neuron is nearly silent: the loader floors its standard deviation.
    std = np.append(rng.uniform(2, 9, twin.neurons - 1), 1e-4)
    clean = twin.respond_raw(images, *((behavior, pupil_center) if twin.behavior else ()))
    responses = (clean + noise * rng.normal(size=clean.shape)) * np.maximum(std, 0.01 * std.mean())
    if withheld:
        responses[np.isin(tiers, list(REPEATS))] = 0
    meta: dict[str, Any] = {
        "neurons/unit_ids": np.array(twin.unit_ids or range(1, twin.neurons + 1)),
        "neurons/animal_ids": np.full(twin.neurons, 1),
        "neurons/sessions": np.full(twin.neurons, 2),
        "neurons/scan_idx": np.full(twin.neurons, 3),
        "neurons/area": np.full(twin.neurons, "V1"),
        "neurons/layer": np.full(twin.neurons, "L2/3"),
        "neurons/cell_motor_coordinates": rng.integers(-500, 500, (twin.neurons, 3)),
        "trials/tiers": tiers,
        "trials/frame_image_id": image_ids,
        "trials/frame_image_class": np.full(len(tiers), "imagenet"),
        "trials/trial_idx": rng.permutation(5 * len(tiers))[: len(tiers)],
        "statistics/images/all/mean": np.array(twin.image_mean),
        "statistics/images/all/std": np.array(twin.image_std),
        "statistics/responses/all/mean": responses.mean(0),
        "statistics/responses/all/std": std,
        "statistics/behavior/all/mean": np.array(twin.behavior_mean),
        "statistics/behavior/all/std": np.array(twin.behavior_std),
        "statistics/pupil_center/all/mean": np.array(twin.pupil_mean),
        "statistics/pupil_center/all/std": np.array(twin.pupil_std),
    }
    for name, values in meta.items():
        _save(folder / "meta" / name, values)
    data = {"images": images, "responses": responses, "behavior": behavior, "pupil_center": pupil_center}
    for name, values in data.items():
        for trial, row in enumerate(values):
            _save(folder / "data" / name / str(trial), row)
    return Recording(
        folder,
        tiers,
        image_ids,
        meta["trials/trial_idx"],
        images,
        behavior,
        pupil_center,
        responses,
        np.maximum(std, 0.01 * std.mean()),
    )


def zipped(folder: Path, path: Path, top: str = "") -> Path:
    """The folder as a zip, as macOS would make it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.npy")):
            name = f"{top}{file.relative_to(folder)}"
            archive.write(file, name)
            archive.writestr(f"__MACOSX/{name}", b"resource fork")
    return path


def _save(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_name(f"{path.name}.npy"), values)
