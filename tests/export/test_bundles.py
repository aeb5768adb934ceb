"""What an export writes beside the graph: statistics, unit ids, receptive fields; and the same bytes each time."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
import torch
import yaml
from mousetwin.cli import main
from mousetwin_export.dataset import read_dataset

sys.path.insert(0, str(Path(__file__).parent))
from test_refusals import CONFIG, MOUSE, NEURONS, one_line, weights


def save_checkpoint(folder: Path) -> list[str]:
    """A checkpoint and config in `folder`; the start of the command that exports them, without the slow gradients."""
    torch.save(weights(), folder / "model.pth")
    document = {"model_fn": "stacked_core_full_gauss_readout", "model_config": CONFIG}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    command = ["export", str(folder / "model.pth"), "--config", str(folder / "config.yaml"), "--mouse", MOUSE]
    return [*command, "--no-gradient"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command of `save_checkpoint`, and the models it exported; tests that change them work on a copy."""
    folder = tmp_path_factory.mktemp("exported")
    command = save_checkpoint(folder)
    assert main([*command, "--out", str(folder / "models")]) == 0
    return command, folder / "models"


def write_dataset(folder: Path, neurons: int = NEURONS) -> dict[str, Any]:
    """A data set's `meta` folder in the competition's layout; returns what is in it."""
    rng = np.random.default_rng(3)
    facts = {
        "statistics/images/all/mean": np.array(110.0),
        "statistics/images/all/std": np.array(60.0),
        "statistics/behavior/all/mean": rng.uniform(1, 2, 3),
        "statistics/behavior/all/std": rng.uniform(1, 2, 3),
        "statistics/pupil_center/all/mean": rng.uniform(80, 90, 2),
        "statistics/pupil_center/all/std": rng.uniform(5, 6, 2),
        "statistics/responses/all/mean": rng.uniform(1, 2, neurons),
        "statistics/responses/all/std": np.append(rng.uniform(1, 2, neurons - 1), 1e-9),
        "neurons/unit_ids": np.arange(2, 2 + 2 * neurons, 2),
        "neurons/cell_motor_coordinates": rng.integers(-500, 500, (neurons, 3)),
    }
    for name, values in facts.items():
        path = folder / "meta" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    return facts


def test_a_dataset_brings_statistics_unit_ids_and_coordinates(tmp_path: Path) -> None:
    facts = write_dataset(tmp_path / "static")
    command = save_checkpoint(tmp_path)
    assert main([*command, "--out", str(tmp_path / "models"), "--dataset", str(tmp_path / "static")]) == 0
    with mousetwin.connect(f"local:{tmp_path / 'models'}") as twins:
        mouse = twins[MOUSE]
        assert mouse.summary.takes_raw
        assert mouse.summary.required == ("images",)
        np.testing.assert_array_equal(mouse.info.unit_ids, facts["neurons/unit_ids"])
        np.testing.assert_array_equal(mouse.info.cell_motor_coordinates, facts["neurons/cell_motor_coordinates"])
        for variable in ("images", "behavior", "pupil_center"):
            for kind in ("mean", "std"):
                found = getattr(mouse.info.statistics[variable], kind)
                np.testing.assert_allclose(found, np.atleast_1d(facts[f"statistics/{variable}/all/{kind}"]))
        stds = facts["statistics/responses/all/std"]
        # The starter kit's loader floors a neuron's std at 1 % of their mean.
        np.testing.assert_allclose(mouse.info.statistics["responses"].std, np.maximum(stds, 0.01 * stds.mean()))
        images = np.random.default_rng(0).integers(0, 256, (3, 144, 256), np.uint8)
        chosen = mouse.predict(images, unit_ids=[6, 2])
        np.testing.assert_array_equal(chosen, mouse.predict(images)[:, [2, 0]])


@pytest.mark.parametrize("top", [".", "static"])
def test_a_zipped_dataset_is_the_unpacked_one(top: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "static")
    path = tmp_path / "static.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "static").rglob("*.npy")):
            archive.write(file, top / file.relative_to(tmp_path / "static"))
    assert read_dataset(path, NEURONS) == read_dataset(tmp_path / "static", NEURONS)


def test_a_dataset_for_a_twin_that_takes_no_behavior(tmp_path: Path) -> None:
    facts = write_dataset(tmp_path / "static")
    state = {key: value for key, value in weights().items() if not key.startswith("shifter")}
    state["core.features.layer0.conv.weight"] = state["core.features.layer0.conv.weight"][:, :1].clone()
    torch.save(state, tmp_path / "model.pth")
    document = {"model_fn": "stacked_core_full_gauss_readout", "model_config": {**CONFIG, "shifter": False}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    command = ["export", str(tmp_path / "model.pth"), "--config", str(tmp_path / "config.yaml"), "--mouse", MOUSE]
    command += ["--no-gradient", "--out", str(tmp_path / "models"), "--dataset", str(tmp_path / "static")]
    assert main(command) == 0
    with mousetwin.connect(f"local:{tmp_path / 'models'}") as twins:
        info = twins[MOUSE].info
        np.testing.assert_array_equal(info.unit_ids, facts["neurons/unit_ids"])
        assert info.summary.takes_raw
        assert info.statistics["behavior"].std == ()


def test_a_dataset_of_another_mouse_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "static", neurons=NEURONS + 1)
    command = save_checkpoint(tmp_path)
    assert main([*command, "--out", str(tmp_path / "models"), "--dataset", str(tmp_path / "static")]) == 1
    assert "meta/statistics/responses" in one_line(capsys)


def test_damaged_or_absent_datasets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*save_checkpoint(tmp_path), "--out", str(tmp_path / "models"), "--dataset"]
    (tmp_path / "empty").mkdir()
    assert main([*command, str(tmp_path / "empty")]) == 1
    assert "meta/statistics" in one_line(capsys)
    assert main([*command, str(tmp_path / "none")]) == 1
    assert "none" in one_line(capsys)
    assert main([*command, str(tmp_path / "model.pth.txt")]) == 1
    write_dataset(tmp_path / "static")
    (tmp_path / "static/meta/neurons/unit_ids.npy").write_bytes(b"\x93NUMPY")
    assert main([*command, str(tmp_path / "static")]) == 1
    assert "meta/neurons/unit_ids.npy" in one_line(capsys)
    (tmp_path / "broken.zip").write_bytes(b"PK nonsense")
    assert main([*command, str(tmp_path / "broken.zip")]) == 1
    assert "broken.zip" in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("neurons/unit_ids", np.full(NEURONS, np.nan)),
        ("neurons/unit_ids", np.arange(NEURONS) + 0.5),
        ("neurons/cell_motor_coordinates", np.full((NEURONS, 3), np.nan)),
        ("statistics/behavior/all/std", np.zeros(0)),
    ],
)
def test_values_that_say_nothing_are_refused(
    name: str, values: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "static")
    np.save(tmp_path / "static" / "meta" / f"{name}.npy", values)
    command = [*save_checkpoint(tmp_path), "--out", str(tmp_path / "models"), "--dataset", str(tmp_path / "static")]
    assert main(command) == 1
    assert f"meta/{name}.npy" in one_line(capsys)
    assert not (tmp_path / "models").exists()


def test_a_zip_damaged_inside_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "static")
    path = tmp_path / "static.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "static/meta/neurons/unit_ids.npy", "meta/neurons/unit_ids.npy")
        info = archive.infolist()[0]
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + 6] = b"\xff" * 6
    path.write_bytes(data)
    command = [*save_checkpoint(tmp_path), "--out", str(tmp_path / "models"), "--dataset", str(path)]
    assert main(command) == 1
    assert "meta/neurons/unit_ids.npy" in one_line(capsys)


def test_statistics_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = save_checkpoint(tmp_path)
    statistics = tmp_path / "statistics.yaml"
    statistics.write_text("images: {mean: 100.0, std: 50}\nbehavior: {mean: [1, 2, 3], std: [1, 1, 2]}\n")
    assert main([*command, "--out", str(tmp_path / "models"), "--statistics", str(statistics)]) == 0
    with mousetwin.connect(f"local:{tmp_path / 'models'}") as twins:
        mouse = twins[MOUSE]
        raw = np.random.default_rng(0).integers(0, 256, (2, 36, 64)).astype(np.uint8)
        found = mouse.predict(raw, behavior=[1.0, 2.0, 3.0])
        model_space = (raw.astype(np.float32) - 100) / 50
        expected = mouse.predict(model_space, behavior=[1.0, 2.0, 1.5], space="model")
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found.defaults == ("pupil_center",)
        np.testing.assert_array_equal(mouse.predict(raw), found)
    for text, word in (
        ("images: {mean: a, std: 1}", "images.mean"),
        ("images: {mean: 1, std: 0}", "images.std"),
        ("pictures: {mean: 1, std: 1}", "pictures"),
        ("images: {mean: 1, var: 1}", "images"),
        ("behavior: {mean: [1, 2], std: [1, 2]}", "behavior"),
    ):
        statistics.write_text(text)
        assert main([*command, "--out", str(tmp_path / "more"), "--statistics", str(statistics)]) == 1
        assert word in one_line(capsys)


def test_the_same_export_is_the_same_bundle(exported: tuple[list[str], Path], tmp_path: Path) -> None:
    command, models = exported
    shutil.copytree(models, tmp_path / "two")
    versions = tmp_path / "two" / MOUSE / "cnn"
    # It is found to be there already only if every byte is the same.
    assert main([*command, "--out", str(tmp_path / "two")]) == 0
    assert [p.name for p in versions.iterdir()] == ["1"]
    assert main([*command, "--out", str(tmp_path / "two"), "--description", "changed"]) == 0
    assert sorted(p.name for p in versions.iterdir()) == ["1", "2"]
    with mousetwin.connect(f"local:{tmp_path / 'two'}") as twins:
        assert twins[MOUSE].summary.description == "changed"
        assert twins.mouse(MOUSE, version=1).summary.description == ""


def test_receptive_fields_are_where_the_image_matters(exported: tuple[list[str], Path]) -> None:
    with mousetwin.connect(f"local:{exported[1]}") as twins:
        mouse = twins[MOUSE]
        center = mouse.info.receptive_field_center
        size = mouse.info.receptive_field_size
        assert center is not None
        assert size is not None
        behavior = np.zeros(3)
        gray = mouse.predict(np.zeros((1, 36, 64)), behavior, space="model")[0]
        y, x = np.mgrid[:36, :64]
        for neuron in range(NEURONS):
            away = (abs(x - center[neuron, 0]) > size[1] / 2) | (abs(y - center[neuron, 1]) > size[0] / 2)
            outside = np.where(away, np.random.default_rng(0).normal(size=(36, 64)), 0)
            noise = np.random.default_rng(0).normal(size=(36, 64))
            responses = mouse.predict(np.stack([outside, noise]), behavior, space="model")[:, neuron]
            assert responses[0] == pytest.approx(gray[neuron], abs=1e-6)
            assert abs(responses[1] - gray[neuron]) > 1e-6


def test_a_moved_bundle_is_still_itself(exported: tuple[list[str], Path], tmp_path: Path) -> None:
    shutil.copytree(exported[1], tmp_path / "models")
    with mousetwin.connect(f"local:{tmp_path / 'models'}") as twins:
        digest = twins[MOUSE].summary.twin.digest
    shutil.move(tmp_path / "models", tmp_path / "elsewhere")
    with mousetwin.connect(f"local:{tmp_path / 'elsewhere'}") as twins:
        assert twins[MOUSE].summary.twin.digest == digest
