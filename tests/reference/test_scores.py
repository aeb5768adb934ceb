"""Data sets, scores and submissions against the loader and the metrics that the competition itself uses."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bundles import FULL
from mousetwin import scores
from mousetwin.cli import main
from mousetwin.dataset import Dataset
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from recordings import Recording, record
from running import Service

sys.path.insert(0, str(Path(__file__).parent))
import original  # noqa: F401 - makes neuralpredictors importable
from neuralpredictors.data.datasets import FileTreeDataset
from neuralpredictors.data.transforms import NeuroNormalizer, ScaleInputs
from neuralpredictors.measures.np_functions import corr, fev


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("static1-2-3-GrayImageNet") / "set", FULL)


@pytest.fixture(scope="module")
def loaded(recording: Recording) -> Any:
    """The recording as the starter kit's loader gives it: normalised, and rescaled to the native size."""
    dataset = FileTreeDataset(str(recording.folder), "images", "responses", "behavior", "pupil_center")
    dataset.transforms.extend([NeuroNormalizer(dataset), ScaleInputs(scale=0.25)])
    return dataset


def rows(loaded: Any, tier: str) -> dict[str, NDArray[Any]]:
    """A tier as the loader gives it, and what the twin's own formula says of it."""
    points = [loaded[int(i)] for i in np.flatnonzero(loaded.trial_info.tiers == tier)]
    found = {name: np.stack([getattr(point, name) for point in points]) for name in points[0]._fields}
    found["predictions"] = FULL.respond(found["images"], found["behavior"], found["pupil_center"])
    found["image_ids"] = loaded.trial_info.frame_image_id[loaded.trial_info.tiers == tier]
    found["trial_idx"] = loaded.trial_info.trial_idx[loaded.trial_info.tiers == tier]
    return found


def test_the_reader_gives_what_the_loader_reads(recording: Recording, loaded: Any) -> None:
    with Dataset.open(recording.folder) as dataset:
        assert_array_equal(dataset.unit_ids, loaded.neurons.unit_ids)
        assert_array_equal(dataset.tiers, loaded.trial_info.tiers)
        trials = dataset.trials_of("test")
        std = dataset.statistic("responses", "std")
        assert std is not None
        found = np.concatenate(list(dataset.batches("responses", trials, 7))) / std
    assert_allclose(found, rows(loaded, "test")["responses"], rtol=1e-12)


@pytest.mark.parametrize("tier", ["test", "final_test"])
def test_scores_are_the_competitions(tier: str, loaded: Any) -> None:
    given = rows(loaded, tier)
    responses, predictions, ids = given["responses"], given["predictions"], given["image_ids"]
    # Predictions that are not perfect, and a neuron that never varies.
    predictions = predictions + np.random.default_rng(0).normal(size=predictions.shape)
    predictions[:, 4] = 1.5
    found = scores.score(responses, predictions, ids)

    def by_image(values: NDArray[Any]) -> list[NDArray[Any]]:
        return [values[ids == n] for n in np.unique(ids)]

    def averaged(values: NDArray[Any]) -> NDArray[Any]:
        return np.stack([each.mean(0) for each in by_image(values)])

    explained, right = fev(by_image(responses), by_image(predictions), return_exp_var=True)
    assert_allclose(found.per_neuron["single_trial_correlation"], corr(responses, predictions, axis=0), atol=1e-9)
    assert_allclose(
        found.per_neuron["correlation_to_average"], corr(averaged(responses), averaged(predictions), axis=0), atol=1e-9
    )
    assert_allclose(found.per_neuron["fev"], explained, atol=1e-9)
    kept = explained >= 0.15
    assert kept.any()
    assert_array_equal(np.isfinite(found.per_neuron["feve"]), kept)
    assert_allclose(found.per_neuron["feve"][kept], right[kept], atol=1e-9)
    assert found.mean["feve"] == pytest.approx(right[kept].mean(), abs=1e-9)
    assert found.mean["single_trial_correlation"] == pytest.approx(corr(responses, predictions, axis=0).mean())


def test_the_command_scores_the_twin(
    recording: Recording, loaded: Any, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--mouse", "full", "--report", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert main(["score", str(recording.folder), *arguments, "--server", service.grpc]) == 0
    printed = capsys.readouterr()
    assert "full, tier test: 60 trials of 10 images, 7 neurons" in printed.out
    assert "calls itself 1-2-3, not full" in printed.err
    given = rows(loaded, "test")
    right = scores.score(given["responses"], given["predictions"], given["image_ids"])
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["mouse"] == "full"
    assert report["tier"] == "test"
    assert report["synthetic"] is True
    table = pd.read_csv(tmp_path / "r.csv")
    assert table["unit_id"].tolist() == list(FULL.unit_ids or ())
    for metric in scores.METRICS:
        per_neuron = np.array(report[metric]["per_neuron"], float)
        assert_allclose(per_neuron, right.per_neuron[metric], atol=1e-6)
        assert_allclose(table[metric], right.per_neuron[metric], atol=1e-6)
        assert report[metric]["mean"] == pytest.approx(right.mean[metric], abs=1e-6)
        assert f"{right.mean[metric]:.4f}" in printed.out


@pytest.mark.parametrize("withheld", [False, True])
def test_submission_files(
    withheld: bool, loaded: Any, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(tmp_path / "set", FULL, withheld=withheld).folder
    command = ["score", str(folder), "--mouse", "full", "--server", service.grpc]
    assert main([*command, "--submission", str(tmp_path / "files")]) == 0
    printed = capsys.readouterr().out
    assert ("withheld" in printed) == withheld
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        "submission_file_final_test.csv",
        "submission_file_live_test.csv",
    ]
    for tier, name in (("test", "live_test"), ("final_test", "final_test")):
        given = rows(loaded, tier)
        ids = loaded.neurons.unit_ids.tolist()
        # As the starter kit's generate_submission_file makes its table.
        pd.DataFrame(
            {
                "trial_indices": given["trial_idx"],
                "image_ids": given["image_ids"],
                "prediction": given["predictions"].astype(np.float32).tolist(),
                "neuron_ids": [ids] * len(given["trial_idx"]),
            }
        ).to_csv(tmp_path / "theirs.csv", index=False)
        ours, theirs = (
            pd.read_csv(path) for path in (tmp_path / "files" / f"submission_file_{name}.csv", tmp_path / "theirs.csv")
        )
        assert ours.columns.tolist() == theirs.columns.tolist()
        for column in ("trial_indices", "image_ids", "neuron_ids"):
            assert ours[column].tolist() == theirs[column].tolist()
        assert_allclose(
            ours["prediction"].map(ast.literal_eval).tolist(),
            theirs["prediction"].map(ast.literal_eval).tolist(),
            rtol=0,
            atol=2e-5,
        )
    if withheld:
        assert main(command) == 1
        assert "withheld" in capsys.readouterr().err
