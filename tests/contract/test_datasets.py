"""`mousetwin score` and `predict` on data sets: folder or zip, whole or refused with the file named."""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import mousetwin
import numpy as np
import pytest
from bundles import FULL, IMAGE_ONLY, TWO_MODELS, UNIT_IDS, TinyTwin
from mousetwin import scores
from mousetwin.cli import main
from mousetwin.dataset import Dataset
from numpy.testing import assert_allclose, assert_array_equal
from recordings import Recording, record, zipped
from running import Service


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("data") / "set", FULL)


@pytest.fixture
def copy(recording: Recording, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(recording.folder, tmp_path / "set"))


@pytest.mark.parametrize("top", [None, "", "static1-2-3-GrayImageNet-abc/"])
def test_predict_takes_data_sets(top: str | None, recording: Recording, service: Service, tmp_path: Path) -> None:
    path = recording.folder if top is None else zipped(recording.folder, tmp_path / "set.zip", top)
    command = ["predict", str(path), "--mouse", "full", "--server", service.grpc]
    assert main([*command, "--out", str(tmp_path / "r.npy")]) == 0
    right = FULL.respond_raw(recording.images, recording.behavior, recording.pupil_center)
    assert_allclose(np.load(tmp_path / "r.npy"), right, rtol=0, atol=2e-5)
    assert main([*command, "--tier", "test", "--out", str(tmp_path / "t.npy")]) == 0
    assert_allclose(np.load(tmp_path / "t.npy"), right[recording.of("test")], rtol=0, atol=2e-5)


def test_a_twin_that_takes_less_than_was_recorded(service: Service, tmp_path: Path) -> None:
    recording = record(tmp_path / "set", IMAGE_ONLY)
    command = ["predict", str(recording.folder), "--mouse", "image-only", "--server", service.grpc]
    assert main([*command, "--out", str(tmp_path / "r.npy")]) == 0
    assert_allclose(np.load(tmp_path / "r.npy"), IMAGE_ONLY.respond_raw(recording.images), rtol=0, atol=2e-5)


def test_models_side_by_side(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = record(tmp_path / "set", TWO_MODELS[0])
    report, picture = tmp_path / "r.json", tmp_path / "r.png"
    command = ["score", str(recording.folder), "--mouse", "two-models", "--server", service.grpc]
    assert main([*command, "--report", str(report), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in printed.splitlines()[2:]}
    # The recording is of the first model; the second knows nothing of it.
    assert rows["cnn"][0] > 0.5 > 0.3 > abs(rows["ln"][0])
    models = json.loads(report.read_text())["models"]
    assert [one["model"] for one in models] == ["cnn", "ln"]
    assert models[0]["single_trial_correlation"]["mean"] == pytest.approx(rows["cnn"][0], abs=1e-4)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--model", "ln", "--csv", str(tmp_path / "r.csv")]) == 0
    assert main([*command, "--csv", str(tmp_path / "both.csv")]) == 1
    assert "--model" in capsys.readouterr().err


def test_a_tier_without_repeats(recording: Recording, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(recording.folder), "--mouse", "full", "--tier", "train", "--server", service.grpc]) == 0
    printed = capsys.readouterr().out
    assert "30 trials of 30 images" in printed
    assert "need every image to be shown more than once" in printed


def scored(service: Service, body: bytes, **parameters: str) -> httpx.Response:
    headers = {"content-type": "application/x-npz"}
    return httpx.post(
        f"{service.http}/v1/mice/full/score", content=body, params=parameters, headers=headers, timeout=60
    )


def npz(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **values)
    return stream.getvalue()


def test_scores_over_rest(recording: Recording, service: Service) -> None:
    rows = recording.of("test")
    responses = recording.responses[rows] / recording.response_std
    conditions = {"behavior": recording.behavior[rows], "pupil_center": recording.pupil_center[rows]}
    given = {"images": recording.images[rows], "image_ids": recording.image_ids[rows], **conditions}
    # These statistics of responses are not in the twin's bundle.
    answer = scored(service, npz(responses=recording.responses[rows], **given))
    assert answer.status_code == 400
    assert answer.json()["field"] == "responses"
    inputs = FULL.inputs(len(rows))
    right = scores.score(responses, FULL.respond(**inputs), recording.image_ids[rows])
    answer = scored(service, npz(responses=responses, image_ids=recording.image_ids[rows], **inputs), space="model")
    report = answer.json()
    assert answer.status_code == 200
    assert report["mouse"] == "full"
    for metric in scores.METRICS:
        found = np.array(report[metric]["per_neuron"], float)
        assert_allclose(found, right.per_neuron[metric], rtol=1e-5, atol=1e-6)
    for body, field in [
        (npz(images=recording.images[rows], responses=responses), "image_ids"),
        (npz(responses=responses[:3], image_ids=recording.image_ids[rows], **inputs), "responses"),
        (npz(responses=responses, image_ids=[1, 2], **inputs), "image_ids"),
    ]:
        answer = scored(service, body, space="model")
        assert (answer.status_code, answer.json()["field"]) == (400, field)


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / f"{name}.npy"
        np.save(path, change(np.load(path)))

    return damage


def with_nan(values: Any) -> Any:
    values = values.astype(float)
    values.flat[0] = np.nan
    return values


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a trial's file is missing": (lambda f: (f / "data/images/17.npy").unlink(), "data/images/17.npy: missing"),
    "an image is of another size": (edit("data/images/17", lambda v: v[:, :8]), "data/images/17.npy: shape (8, 32)"),
    "responses of other neurons": (edit("data/responses/17", lambda v: v[:5]), "data/responses/17.npy: 5 responses"),
    "responses that are no numbers": (edit("data/responses/17", with_nan), "data/responses/17.npy: expected finite"),
    "behavior with too much": (edit("data/behavior/17", lambda v: np.append(v, 1)), "data/behavior/17.npy: shape (4,)"),
    "a file is cut off": (
        lambda f: (f / "data/pupil_center/17.npy").write_bytes(b"\x93NUMPY\x01\x00"),
        "data/pupil_center/17.npy: not a .npy file",
    ),
    "no tiers": (lambda f: (f / "meta/trials/tiers.npy").unlink(), "meta/trials/tiers.npy: missing"),
    "tiers that are numbers": (edit("meta/trials/tiers", lambda v: np.arange(len(v))), "meta/trials/tiers.npy: int64"),
    "too few image ids": (
        edit("meta/trials/frame_image_id", lambda v: v[:-1]),
        "meta/trials/frame_image_id.npy: shape",
    ),
    "a neuron too few": (edit("meta/neurons/unit_ids", lambda v: v[:-1]), "meta/neurons/unit_ids.npy: 6 neurons"),
    "other neurons": (edit("meta/neurons/unit_ids", lambda v: v + 1), "meta/neurons/unit_ids.npy: other neurons"),
    "statistics of another mouse": (
        edit("meta/statistics/images/all/mean", lambda v: v + 3),
        "meta/statistics/images/all/mean.npy: statistics of another mouse",
    ),
    "no statistics of responses": (
        lambda f: (f / "meta/statistics/responses/all/std.npy").unlink(),
        "meta/statistics/responses/all/std.npy: missing",
    ),
    "no behavior": (lambda f: shutil.rmtree(f / "data/behavior"), "data/behavior"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_data_set_is_refused(
    how: str, copy: Path, recording: Recording, service: Service, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    damage, words = DAMAGE[how]
    # All trials of one tier, so that the damaged one is among them.
    np.save(copy / "meta/trials/tiers.npy", np.full(len(recording.tiers), "test"))
    damage(copy)
    command = ["score", str(copy), "--mouse", "full", "--server", service.grpc, "--report", str(tmp_path / "r.json")]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert words in told
    assert str(copy) in told
    assert not (tmp_path / "r.json").exists()


def test_a_damaged_zip_is_refused(
    recording: Recording, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zipped(recording.folder, tmp_path / "set.zip")
    data = bytearray(path.read_bytes())
    middle = data.index(b"data/responses/3.npy") + 60
    data[middle : middle + 20] = bytes(20)
    path.write_bytes(data)
    with Dataset.open(path) as dataset, pytest.raises(mousetwin.InvalidArgument, match=r"data/responses/3\.npy"):
        list(dataset.batches("responses", np.arange(10), 4))
    (tmp_path / "none.zip").write_bytes(b"PK no")
    for name, words in (("none.zip", "neither"), ("gone.zip", "No such file")):
        assert main(["score", str(tmp_path / name), "--mouse", "full", "--server", service.grpc]) == 1
        assert words in capsys.readouterr().err


def test_tiers_that_are_not_there(recording: Recording, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(recording.folder), "--mouse", "full", "--tier", "exam", "--server", service.grpc]) == 1
    assert "expected one of final_test, test, train, validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("responses", "predictions", "image_ids", "words"),
    [
        (np.ones(3), np.ones((3, 2)), [1, 1, 2], "responses: shape (3,)"),
        (np.ones((3, 2)), np.ones((2, 2)), [1, 1, 2], "the predictions have (2, 2)"),
        (np.ones((3, 2)), np.ones((3, 2)), [1, 2], "image_ids: shape (2,)"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), [1, 1, 2], "responses: expected finite"),
        (np.zeros((3, 2)), np.ones((3, 2)), [1, 1, 2], "withheld"),
    ],
)
def test_what_cannot_be_scored(responses: Any, predictions: Any, image_ids: Any, words: str) -> None:
    with pytest.raises(mousetwin.InvalidArgument) as caught:
        scores.score(responses, predictions, image_ids)
    assert words in str(caught.value)


# --- one data set, whole, of this mouse


def test_of_several_data_sets_none_is_picked(recording: Recording, tmp_path: Path) -> None:
    def refused(path: Path, *names: str) -> None:
        told = set()
        for _ in range(3):
            with pytest.raises(mousetwin.InvalidArgument) as caught, Dataset.open(path):
                pass
            told.add(str(caught.value))
        (line,) = told
        assert "several data sets" in line
        places = [line.index(name) for name in names]
        assert places == sorted(places)

    def archive(name: str, *tops: str) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as opened:
            for top in tops:
                for file in ("meta/trials/tiers.npy", "data/images/0.npy"):
                    opened.write(recording.folder / file, f"{top}{file}")
        return path

    refused(archive("two.zip", "b/", "a/"), "a/meta", "b/meta")
    refused(archive("top.zip", "", "a/"), "a/meta", "meta")
    refused(archive("deep.zip", "a/", "a/old/"), "a/meta", "a/old/meta")
    refused(archive("windows.zip", "b\\", "a\\"), "a/meta", "b/meta")
    with Dataset.open(archive("one.zip", "a/", "__MACOSX/a/", ".trash/b/")) as dataset:
        assert dataset.trials == len(recording.tiers)
    folder = tmp_path / "folder"
    shutil.copytree(recording.folder, folder / "b")
    # One in a folder of its own is as in a zip.
    with Dataset.open(folder) as dataset:
        assert dataset.trials == len(recording.tiers)
    shutil.copytree(recording.folder / "meta", folder / "a/meta")
    refused(folder, "a/meta", "b/meta")
    shutil.rmtree(folder / "a")
    (folder / "b.zip").write_bytes(b"PK")
    refused(folder, "b/meta", "b.zip")
    (folder / "b.zip").unlink()
    shutil.copytree(recording.folder / "meta", folder / "meta")
    refused(folder, "meta", "b/meta")


@pytest.mark.parametrize("command", ["predict", "score"])
def test_several_data_sets_through_the_commands(
    command: str, recording: Recording, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "a"):
        shutil.copytree(recording.folder / "meta", tmp_path / f"sets/{name}/meta")
    out = ["--out", str(tmp_path / "r.npy")] if command == "predict" else []
    assert main([command, str(tmp_path / "sets"), "--mouse", "full", "--server", service.grpc, *out]) == 1
    assert "sets: holds several data sets (a/meta and b/meta)" in capsys.readouterr().err


def rezipped(recording: Recording, path: Path, names: dict[str, str]) -> Path:
    """The recording's zip with further members: what they are called, and what of."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in sorted(recording.folder.rglob("*.npy")):
            archive.write(file, str(file.relative_to(recording.folder)))
        for name, of in names.items():
            archive.write(recording.folder / of, name)
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data/images/1.npy", "data/images/1.npy and data/images/1.npy are one file"),
        ("./data//images/1.npy", "are one file"),
        ("data\\images\\1.npy", "are one file"),
        ("data/images/1.NPY", "differ only in case"),
        ("data/Images/1.npy", "data/Images and data/images differ only in case"),
        ("Meta/neurons/area.npy", "Meta and meta differ only in case"),
        ("data/images/140.npy", "data/images/140.npy: meta/trials/tiers.npy has 140 trials"),
    ],
)
def test_members_of_which_one_would_win(name: str, words: str, recording: Recording, tmp_path: Path) -> None:
    path = rezipped(recording, tmp_path / "set.zip", {name: "data/images/2.npy"})
    with pytest.raises(mousetwin.InvalidArgument) as caught, Dataset.open(path) as dataset:
        list(dataset.batches("images", np.arange(3), 8))
    told = str(caught.value)
    assert all(word in told for word in words.split(" and ")), told
    assert str(path) in told


def test_folders_that_differ_only_in_case(copy: Path) -> None:
    (copy / "Meta").mkdir()
    if len(list(copy.iterdir())) == 2:
        pytest.skip("this file system does not tell them apart")
    with pytest.raises(mousetwin.InvalidArgument, match="Meta and meta differ only in case"):
        Dataset.open(copy)


def test_a_zip_that_windows_made(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for folder in ("set\\", "set\\meta\\", "set\\data\\"):
            archive.writestr(folder, b"")
        for file in sorted(recording.folder.rglob("*.npy")):
            name = "set\\" + str(file.relative_to(recording.folder)).replace("/", "\\")
            archive.write(file, name)
            archive.writestr(f"__MACOSX\\{name}", b"fork")
        archive.writestr("set\\data\\images\\Thumbs.db", b"?")
    with Dataset.open(path) as dataset:
        (found,) = dataset.batches("images", np.arange(140), 200)
        assert_array_equal(found, recording.images[:, 0])
        assert dataset.variables == ("images", "responses", "behavior", "pupil_center")


def test_what_a_system_puts_beside_a_data_set(recording: Recording, tmp_path: Path) -> None:
    """As Kubernetes mounts it, and macOS and Jupyter look at it."""
    folder = tmp_path / "set"
    shutil.copytree(recording.folder, folder / "..2024_01_01")
    (folder / "..data").symlink_to("..2024_01_01")
    for name in ("meta", "data"):
        (folder / name).symlink_to(f"..data/{name}")
    for name in (".ipynb_checkpoints/meta", "__MACOSX/meta", "__MACOSX/set/meta"):
        (folder / name).mkdir(parents=True)
    for name in (".DS_Store", "data/images/._1.npy", "data/images/.DS_Store", "meta/trials/._tiers.npy"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    with Dataset.open(folder) as dataset:
        (found,) = dataset.batches("images", np.arange(140), 200)
    assert_array_equal(found, recording.images[:, 0])


OTHERS = {
    "fewer neurons": ("meta/neurons/unit_ids.npy: 6 neurons", edit("meta/neurons/unit_ids", lambda v: v[:-1])),
    "other neurons": ("meta/neurons/unit_ids.npy: other neurons", edit("meta/neurons/unit_ids", lambda v: v + 1)),
    "neurons in another order": (
        "meta/neurons/unit_ids.npy: other neurons",
        edit("meta/neurons/unit_ids", lambda v: v[::-1]),
    ),
    "places of other neurons": (
        "meta/neurons/cell_motor_coordinates.npy: 6 neurons",
        edit("meta/neurons/cell_motor_coordinates", lambda v: v[:-1]),
    ),
    "responses of other neurons": (
        "meta/statistics/responses/all/std.npy: 6 neurons",
        edit("meta/statistics/responses/all/std", lambda v: v[:-1]),
    ),
    "other images": ("meta/statistics/images/all/mean.npy", edit("meta/statistics/images/all/mean", lambda v: v + 1)),
    "other behavior": (
        "meta/statistics/behavior/all/std.npy",
        edit("meta/statistics/behavior/all/std", lambda v: v * 1.01),
    ),
    "another pupil": (
        "meta/statistics/pupil_center/all/mean.npy",
        edit("meta/statistics/pupil_center/all/mean", lambda v: v[::-1]),
    ),
    "several recordings": ("meta/neurons/sessions.npy: neurons of several", edit("meta/neurons/sessions", np.cumsum)),
}


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("command", ["predict", "score"])
def test_a_data_set_of_another_mouse(
    command: str, how: str, copy: Path, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, change = OTHERS[how]
    change(copy)
    out = ["--out", str(tmp_path / "r.npy")] if command == "predict" else ["--report", str(tmp_path / "r.json")]
    assert main([command, str(copy), "--mouse", "full", "--server", service.grpc, *out]) == 1
    told = capsys.readouterr().err
    assert f"{copy}: {words}" in told
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("command", ["predict", "score"])
def test_a_data_set_by_its_name(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A twin that knows no unit ids is of the mouse it is called after; one that does, of the mouse with these."""
    known = TinyTwin("1-2-4", unit_ids=UNIT_IDS)
    twins = (TinyTwin("1-2-3"), known, TinyTwin("9-2-3"))
    for twin in twins:
        twin.write(tmp_path / "models")
    recording = record(tmp_path / "set", known)
    for twin, status, words in zip(
        twins, (0, 0, 1), ("", "calls itself 1-2-3, not 1-2-4", "of the mouse 1-2-3"), strict=True
    ):
        out = ["--out", str(tmp_path / f"{twin.mouse}.npy")] if command == "predict" else []
        given = [command, str(recording.folder), "--mouse", twin.mouse, "--server", f"local:{tmp_path / 'models'}"]
        assert main([*given, *out]) == status
        told = capsys.readouterr().err
        assert words in told
        assert ("calls itself" in told) == ("calls itself" in words)


def test_withheld_recordings_say_nothing(copy: Path, service: Service, tmp_path: Path) -> None:
    """Where behavior was replaced by zeros, so were its statistics."""
    for kind in ("mean", "std"):
        edit(f"meta/statistics/behavior/all/{kind}", np.zeros_like)(copy)
    command = ["predict", str(copy), "--mouse", "full", "--out", str(tmp_path / "r.npy"), "--server", service.grpc]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("meta/trials/tiers", np.zeros(0, "U5"), "no trials"),
        ("meta/trials/tiers", np.full(140, 0x110000, "<u4").view("<U1"), "expected words"),
        ("meta/trials/tiers", np.full(140, b"\xff"), "expected words"),
        ("meta/neurons/unit_ids", np.full(7, 1e300), "expected whole numbers"),
        ("meta/neurons/unit_ids", np.full(7, 2**64 - 1, np.uint64), "expected whole numbers"),
        ("meta/statistics/responses/all/std", np.full(7, 1.7e308), "too large"),
    ],
)
def test_values_of_no_meaning(
    name: str, values: Any, words: str, copy: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(copy / f"{name}.npy", values)
    assert main(["score", str(copy), "--mouse", "full", "--server", service.grpc]) == 1
    assert f"{copy}: {name}.npy: {words}" in capsys.readouterr().err


def test_files_of_a_data_set_that_are_none(copy: Path) -> None:
    file = copy / "data/images/1.npy"
    for make, words in (
        (os.mkfifo, "a pipe, expected a file"),
        (Path.mkdir, "a folder, expected a file"),
        (lambda p: p.symlink_to("nowhere"), "No such file"),
        (lambda p: p.symlink_to(p), "Too many levels"),
        (lambda p: p.symlink_to("/dev/zero"), "a device, expected a file"),
        (lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 2 << 30), "longer than 1024 MiB"),
    ):
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        make(file)
        with Dataset.open(copy) as dataset, pytest.raises(mousetwin.MousetwinError) as caught:
            list(dataset.batches("images", np.arange(3), 8))
        assert f"{file}: {words}" in str(caught.value)
