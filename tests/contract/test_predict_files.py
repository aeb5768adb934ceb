"""`mousetwin predict` on files of any size: whatever dies on the way, the finished file is as if nothing had."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import BUSY, FULL
from mousetwin.cli import main
from numpy.testing import assert_allclose
from running import Command, Service, as_command, limited, until

IMAGES = np.random.default_rng(0).integers(0, 256, (1500, *BUSY.stimulus)).astype(np.uint8)


@pytest.fixture(scope="module")
def command(models: Path) -> Iterator[Command]:
    with as_command("--models", str(models)) as started:
        yield started


@pytest.fixture(scope="module")
def uninterrupted(command: Command, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the answer where nothing happens on the way."""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "images.npy", IMAGES)
    finish(predict(folder, command.service.grpc))
    assert_allclose(np.load(folder / "r.npy"), BUSY.respond_raw(IMAGES), rtol=0, atol=1e-4)
    return digest(folder / "r.npy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path


def predict(folder: Path, server: str, *arguments: str, largest_file: int | None = None) -> subprocess.Popen[str]:
    """`mousetwin predict images.npy --out r.npy` for the busy twin."""
    out = [] if "--out" in arguments else ["--out", "r.npy"]
    given = ["images.npy", "--mouse", "busy", *out, "--server", server, *arguments]
    command = [sys.executable, "-m", "mousetwin.cli", "predict", *given]
    return subprocess.Popen(
        limited(command, largest_file) if largest_file else command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """What it said on stderr."""
    _, told = process.communicate(timeout=120)
    assert process.returncode == status, told
    return told


def rows(folder: Path) -> int:
    """How many rows are safely there."""
    try:
        return int(json.loads((folder / "r.npy.partial.json").read_text())["rows"])
    except (OSError, ValueError):
        return 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_killed_client_goes_on_where_it_was(command: Command, folder: Path, uninterrupted: str) -> None:
    for least in (1, 600):
        process = predict(folder, command.service.grpc)
        until(lambda least=least: rows(folder) >= least)
        process.kill()
        process.communicate()
        assert not (folder / "r.npy").exists()
    before = rows(folder)
    assert f"going on after {before} of 1500 images" in finish(predict(folder, command.service.grpc))
    assert digest(folder / "r.npy") == uninterrupted
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "r.npy"]


def test_a_row_that_was_half_written_is_written_again(command: Command, folder: Path, uninterrupted: str) -> None:
    process = predict(folder, command.service.grpc)
    until(lambda: rows(folder) >= 100)
    process.kill()
    process.communicate()
    with (folder / "r.npy.partial").open("ab") as partial:
        partial.write(b"torn")
    finish(predict(folder, command.service.grpc))
    assert digest(folder / "r.npy") == uninterrupted


def test_a_killed_service_that_comes_back_is_waited_for(models: Path, folder: Path, uninterrupted: str) -> None:
    with as_command("--models", str(models)) as first:
        address = first.service.grpc
        process = predict(folder, address)
        until(lambda: rows(folder) >= 200)
        first.process.kill()
        first.process.wait(60)
    with as_command("--models", str(models), "--grpc-port", address.rpartition(":")[2]):
        finish(process)
    assert digest(folder / "r.npy") == uninterrupted


def test_a_service_that_stays_away_costs_nothing(models: Path, folder: Path, uninterrupted: str) -> None:
    with as_command("--models", str(models)) as first:
        process = predict(folder, first.service.grpc, "--retry", "0.3")
        until(lambda: rows(folder) >= 200)
        first.process.kill()
        told = finish(process, 1)
    assert "rows are kept, the same command goes on from there" in told
    assert not (folder / "r.npy").exists()
    with as_command("--models", str(models)) as second:
        assert "going on after" in finish(predict(folder, second.service.grpc, "--retry", "0"))
    assert digest(folder / "r.npy") == uninterrupted


def test_a_full_disk(command: Command, folder: Path, uninterrupted: str) -> None:
    told = finish(predict(folder, command.service.grpc, largest_file=20_000), 1)
    assert "r.npy: cannot be written: File too large" in told
    assert "rows are kept" in told
    assert not (folder / "r.npy").exists()
    finish(predict(folder, command.service.grpc))
    assert digest(folder / "r.npy") == uninterrupted


@pytest.mark.parametrize("changed", ["images", "neurons", "dtype"])
def test_another_question_starts_over_where_that_is_asked_for(changed: str, command: Command, folder: Path) -> None:
    process = predict(folder, command.service.grpc)
    until(lambda: rows(folder) >= 100)
    process.kill()
    process.communicate()
    images = IMAGES[::-1] if changed == "images" else IMAGES
    if changed == "images":
        np.save(folder / "images.npy", images)
    arguments = {"images": [], "neurons": ["--neurons", "2,0"], "dtype": ["--dtype", "float16"]}[changed]
    before = rows(folder), digest(folder / "r.npy.partial")
    told = finish(predict(folder, command.service.grpc, *arguments), 1)
    assert told == (
        f"mousetwin: out: r.npy.partial is of another question: not the same {changed}; --overwrite starts over\n"
    )
    assert (rows(folder), digest(folder / "r.npy.partial")) == before
    assert "going on" not in finish(predict(folder, command.service.grpc, *arguments, "--overwrite"))
    found = np.load(folder / "r.npy")
    assert found.dtype == ("float16" if changed == "dtype" else "float32")
    right = BUSY.respond_raw(images)[:, [2, 0] if changed == "neurons" else slice(None)]
    assert_allclose(found, right, rtol=2e-3 if changed == "dtype" else 0, atol=1e-2 if changed == "dtype" else 1e-4)


def test_what_cannot_be_answered_leaves_nothing(command: Command, folder: Path) -> None:
    images = IMAGES.astype(np.float32)
    images[1200, 0, 0] = np.nan
    np.save(folder / "images.npy", images)
    told = finish(predict(folder, command.service.grpc, "--space", "raw"), 1)
    assert "images: nan at" in told
    assert "frame that begins at image 1" in told
    assert [path.name for path in folder.iterdir()] == ["images.npy"]


@pytest.mark.parametrize("kind", ["npz", "npz stored", "folder", "pictures"])
def test_other_files(kind: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(1).integers(0, 256, (200, *FULL.stimulus)).astype(np.uint8)
    behavior, pupil_center = None, None
    if kind.startswith("npz"):
        behavior, pupil_center = np.random.default_rng(2).normal(4, 1, (200, 3)), np.array([3.0, 4.0])
        save = np.savez if "stored" in kind else np.savez_compressed
        save("images", behavior=behavior, images=images, pupil_center=pupil_center)
        pupil_center = np.repeat(pupil_center[None], 200, 0)
    else:
        Path("images").mkdir()
        for n, image in enumerate(images):
            if kind == "folder":
                np.save(f"images/{n}.npy", image[None])
            else:
                from PIL import Image

                Image.fromarray(image).save(f"images/{n}.png")
    source = "images.npz" if kind.startswith("npz") else "images"
    assert main(["predict", source, "--mouse", "full", "--out", "r.npy", "--server", service.grpc]) == 0
    right = FULL.respond_raw(images, behavior, pupil_center)
    assert_allclose(np.load("r.npy"), right, rtol=0, atol=1e-5)


def test_a_zarr_array(command: Command, folder: Path) -> None:
    import zarr

    process = predict(folder, command.service.grpc, "--out", "r.zarr")
    partial = folder / "r.zarr.partial.json"
    until(lambda: partial.exists() and json.loads(partial.read_text())["rows"] >= 256)
    process.kill()
    process.communicate()
    assert "going on after" in finish(predict(folder, command.service.grpc, "--out", "r.zarr"))
    array: Any = zarr.open_array(str(folder / "r.zarr"), mode="r")
    assert_allclose(array[:], BUSY.respond_raw(IMAGES), rtol=0, atol=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "r.zarr"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: np.save("x/2.npy", np.zeros((3, 4), np.uint8)), "2.npy: uint8 (3, 4), 1.npy has uint8 (24, 32)"),
        (lambda: Path("x/2.npy").write_bytes(b"no"), "2.npy: not a .npy file"),
        (lambda: Path("x/3.png").write_bytes(b"no"), "both .npy and .png"),
        (lambda: Path("x/1.npy").unlink(), "no .npy and no .png"),
        (lambda: np.save("x/1.npy", np.zeros((5, 24, 32), np.uint8)), "1.npy: shape (5, 24, 32), expected one image"),
    ],
)
def test_a_folder_that_is_none_of_images(
    make: Any, words: str, service: Service, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    np.save("x/1.npy", np.zeros(FULL.stimulus, np.uint8))
    make()
    assert main(["predict", "x", "--mouse", "full", "--out", "r.npy", "--server", service.grpc]) == 1
    assert words in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["x"]
