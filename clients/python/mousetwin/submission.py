"""The competition's submission files, as its starter kit writes them (sinzlab/sensorium, `utility/submission.py`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import from_labels
from .files import whole_file

# Tiers that are submitted, and what their files are called after.
TIERS = {"test": "live_test", "final_test": "final_test"}


def submission_path(folder: str | Path, tier: str) -> Path:
    """Where a tier's file is."""
    return Path(folder) / f"submission_file_{TIERS[tier]}.csv"


def write_submission(
    folder: str | Path,
    tier: str,
    trial_idx: ArrayLike,
    image_ids: ArrayLike,
    predictions: Iterable[NDArray[np.float32]],
    unit_ids: ArrayLike,
) -> Path:
    """Write one tier's file, whole or not at all.

    Args:
        folder: is made where there is none.
        tier: "test" or "final_test".
        trial_idx, image_ids: (T,).
        predictions: float32 (n, K), batch after batch.
        unit_ids: (K,).

    Returns:
        Where it is.

    Raises:
        InvalidArgument: trials, images or units are neither numbers nor words.
        NotFound: it cannot be written.
    """
    path = submission_path(folder, tier)
    ids = str(from_labels(unit_ids, "unit_ids").tolist())
    trials, images = from_labels(trial_idx, "trial_idx"), from_labels(image_ids, "image_ids")
    whole = whole_file(path, "submission", make_folder=True)
    with whole as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial_indices", "image_ids", "prediction", "neuron_ids"])
        rows = (row for batch in predictions for row in np.asarray(batch).tolist())
        named = zip(trials.tolist(), images.tolist(), rows, strict=True)
        for trial, image, row in named:
            writer.writerow([trial, image, row, ids])
    return path
