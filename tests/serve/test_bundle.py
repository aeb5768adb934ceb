"""A bundle says what it is, and what is damaged or does not fit is not served."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import BARE, FULL, IMAGE_ONLY, TinyTwin
from mousetwin.errors import InvalidArgument, NotFound
from mousetwin.query import TwinRef
from mousetwin_serve import bundle, repository
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine
from mousetwin_serve.repository import DEMO_MODELS, Repository
from numpy.testing import assert_allclose, assert_array_equal

CPU = choose("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return FULL.write(tmp_path)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "bundle.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("twin", [FULL, IMAGE_ONLY, BARE], ids=lambda twin: twin.mouse)
def test_what_is_written_is_read_back(twin: TinyTwin, tmp_path: Path) -> None:
    manifest, files = twin.files()
    place = bundle.write(tmp_path, manifest, files)
    assert place == tmp_path / twin.mouse / twin.model / "1"
    assert sorted(path.name for path in place.iterdir()) == [
        "bundle.json",
        "forward.onnx",
        "gradient.onnx",
        "replay.npz",
    ]
    read = bundle.read(place)
    assert read.manifest == manifest
    assert read.digest == bundle.sha256((place / "bundle.json").read_bytes())
    assert read.graphs == {name: files[f"{name}.onnx"] for name in ("forward", "gradient")}
    with np.load(io.BytesIO(files["replay.npz"])) as replay:
        assert set(read.replay) == set(replay)
        assert_array_equal(read.replay["responses"], replay["responses"])


def test_the_manifest_is_json_that_people_and_programs_read(folder: Path) -> None:
    document = json.loads((folder / "bundle.json").read_text())
    assert (document["mouse"], document["neurons"]["count"]) == ("full", 7)
    assert document["graphs"]["forward"]["sha256"] == bundle.sha256((folder / "forward.onnx").read_bytes())


@pytest.mark.parametrize("name", ["forward.onnx", "replay.npz"])
def test_a_file_that_is_not_the_one_described(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(bundle.BundleError, match=rf"{name}: sha256 is {bundle.sha256(bytes(data))}"):
        bundle.read(folder)


@pytest.mark.parametrize("name", ["forward.onnx", "replay.npz", "bundle.json"])
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(bundle.BundleError, match=f"{name}: No such file"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "name", ["../forward.onnx", "/etc/passwd", "a/b.onnx", "", ".", "..", ".hidden", "bundle.json", "a\\b", "x\n"]
)
@pytest.mark.parametrize("what", ["graph", "replay"])
def test_file_names_that_lead_elsewhere(folder: Path, name: str, what: str) -> None:
    (folder.parent / "forward.onnx").write_bytes((folder / "forward.onnx").read_bytes())

    def change(document: dict[str, Any]) -> None:
        (document["replay"] if what == "replay" else document["graphs"]["forward"])["file"] = name

    edit(folder, change)
    with pytest.raises(bundle.BundleError, match="is not a plain file name"):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(schema=2), "schema is 2, this version reads 1"),
        (lambda d: d.update(mouse="someone-else"), "lies in full/linear/1 but says it is someone-else/linear/1"),
        (lambda d: d.update(model="ln"), "lies in full/linear/1 but says it is full/ln/1"),
        (lambda d: d.update(version="2"), "lies in full/linear/1 but says it is full/linear/2"),
        (lambda d: d.update(mouse="../full"), "cannot name a folder"),
        (lambda d: d.update(graphs={"backward": d["graphs"]["forward"]}), "no 'forward'"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("source"), "source"),
        (lambda d: d["neurons"].update(count="7"), "count"),
        (lambda d: d["neurons"].update(count=0), "expected at least 1"),
        (lambda d: d["neurons"].update(unit_ids=[1, 2]), "unit_ids does not hold 7"),
        (lambda d: d["neurons"].update(unit_ids=[1, 1, 2, 3, 4, 5, 6]), "unit_ids repeat"),
        (lambda d: d["statistics"]["behavior"].update(mean=[1.0]), "statistics.behavior.mean has 1 entries"),
        (lambda d: d["statistics"]["images"].update(std=[0.0]), "must be positive"),
        (lambda d: d.update(truth={"depth": [1.0]}), "truth.depth does not hold 7"),
    ],
)
def test_manifests_that_make_no_sense(folder: Path, change: Callable[[dict[str, Any]], None], complaint: str) -> None:
    edit(folder, change)
    with pytest.raises(bundle.BundleError) as caught:
        bundle.read(folder)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_manifests_that_are_none(folder: Path, data: bytes) -> None:
    (folder / "bundle.json").write_bytes(data)
    with pytest.raises(bundle.BundleError, match=r"bundle\.json"):
        bundle.read(folder)


def with_replay(twin: TinyTwin, **changes: Any) -> tuple[bundle.Manifest, dict[str, bytes]]:
    """The twin's bundle with other vectors, consistent in all else."""
    manifest, files = twin.files()
    with np.load(io.BytesIO(files["replay.npz"])) as archive:
        arrays = {**archive, **changes}
    stream = io.BytesIO()
    np.savez(stream, **{name: values for name, values in arrays.items() if values is not None})
    files["replay.npz"] = stream.getvalue()
    replay = msgspec.structs.replace(manifest.replay, sha256=bundle.sha256(files["replay.npz"]))
    return msgspec.structs.replace(manifest, replay=replay), files


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"responses": FULL.respond(**FULL.inputs(3)) + 0.01}, "off by 0.01, tolerance 0.0001"),
        ({"responses": np.full((3, 7), np.nan)}, "off by nan"),
        ({"images": np.zeros((3, 1, 6, 9), np.float32)}, "the graph forward does not run on it"),
        ({"behavior": None}, "holds"),
        ({"surprise": np.zeros(1)}, "holds"),
    ],
)
def test_a_bundle_that_does_not_replay_is_not_served(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    place = bundle.write(tmp_path, *with_replay(FULL, **changes))
    IMAGE_ONLY.write(tmp_path)
    repository = Repository.load(tmp_path, CPU)
    assert [mouse for mouse, _, _ in repository.twins] == ["image-only"]
    assert len(repository.refused) == 1
    (refused,) = repository.refused.values()
    assert refused.startswith("not served: ")
    assert complaint in refused
    assert "replay.npz" in refused
    assert str(place) in refused


def test_a_graph_that_does_not_load_is_not_served(tmp_path: Path) -> None:
    manifest, files = FULL.files()
    files["forward.onnx"] = b"not a graph"
    graph = msgspec.structs.replace(manifest.graphs["forward"], sha256=bundle.sha256(b"not a graph"))
    graphs = {**manifest.graphs, "forward": graph}
    place = bundle.write(tmp_path, msgspec.structs.replace(manifest, graphs=graphs), files)
    (refused,) = Repository.load(tmp_path, CPU).refused.values()
    assert "forward.onnx" in refused
    assert str(place) in refused


def test_versions_are_numbered_and_the_same_content_keeps_its_number(tmp_path: Path) -> None:
    unnumbered = replace(FULL, version="")
    assert unnumbered.write(tmp_path).name == "1"
    assert unnumbered.write(tmp_path).name == "1"
    others = [replace(unnumbered, seed=seed) for seed in range(1, 11)]
    assert [twin.write(tmp_path).name for twin in others] == [str(n) for n in range(2, 12)]
    assert others[4].write(tmp_path).name == "6"
    repository = Repository.load(tmp_path, CPU)
    assert [version for _, _, version in repository.twins] == [str(n) for n in range(1, 12)]
    # 11 is newer than 9, as numbers go.
    assert repository.find(TwinRef("full")).identity.version == "11"


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    place = FULL.write(tmp_path)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert FULL.write(tmp_path) == place
    with pytest.raises(bundle.BundleError, match="exists with other content"):
        replace(FULL, seed=9).write(tmp_path)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in place.parent.iterdir()] == ["1"]


def test_only_what_the_manifest_describes_is_written(tmp_path: Path) -> None:
    manifest, files = FULL.files()
    without = {name: data for name, data in files.items() if name != "replay.npz"}
    for wrong in (without, files | {"forward.onnx": b"other"}, files | {"notes.txt": b"mine"}):
        with pytest.raises(bundle.BundleError, match="is not the file"):
            bundle.write(tmp_path, manifest, wrong)
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize("name", ["", "..", "a/b", ".x", "a b", "x" * 200])
def test_names_that_cannot_be_folders_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(bundle.BundleError, match="cannot name a folder"):
        replace(FULL, mouse=name).write(tmp_path)
    assert not list(tmp_path.rglob("bundle.json"))


def test_what_a_repository_finds(tmp_path: Path) -> None:
    for twin in (FULL, replace(FULL, model="other"), IMAGE_ONLY):
        twin.write(tmp_path)
    (tmp_path / "full" / "linear" / ".writing-x").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    repository = Repository.load(tmp_path, CPU)
    assert not repository.refused
    assert len(repository.twins) == 3
    assert repository.find(TwinRef("image-only")).identity.mouse == "image-only"
    with pytest.raises(InvalidArgument, match="linear, other"):
        repository.find(TwinRef("full"))
    with pytest.raises(NotFound, match="'nobody' is not served, expected one of full, image-only"):
        repository.find(TwinRef("nobody"))
    with pytest.raises(NotFound, match="no such folder"):
        Repository.load(tmp_path / "elsewhere", CPU)


def test_an_engine_answers_without_a_server(folder: Path) -> None:
    engine = Engine(bundle.read(folder), CPU)
    given = FULL.inputs(50, seed=3)
    assert_allclose(engine.answer(Batch(**given)).responses, FULL.respond(**given), rtol=0, atol=2e-6)
    assert engine.replays["forward"].error <= 1e-5
    # What is not asked for is not loaded.
    assert "gradient" not in engine.replays
    cotangent = np.random.default_rng(0).normal(size=(50, FULL.neurons)).astype(np.float32)
    answer = engine.answer(Batch(**given, cotangent=cotangent))
    for name, expected in FULL.gradient(cotangent).items():
        assert_allclose(answer.gradient[name], expected, rtol=0, atol=2e-6)
    assert engine.replays["gradient"].error <= 1e-5


def test_a_gradient_that_does_not_replay_answers_nobody_and_predictions_go_on(tmp_path: Path) -> None:
    manifest, files = with_replay(FULL, d_images=np.ones((3, 1, *FULL.native), np.float32))
    engine = Engine(bundle.read(bundle.write(tmp_path, manifest, files)), CPU)
    given = FULL.inputs(2)
    for _ in range(2):
        with pytest.raises(bundle.BundleError, match=r"d_images of gradient are off by .*, tolerance 0\.001"):
            engine.answer(Batch(**given, cotangent=np.ones((2, FULL.neurons), np.float32)))
    assert_allclose(engine.answer(Batch(**given)).responses, FULL.respond(**given), rtol=0, atol=2e-6)


def test_the_demo_mouse_is_small_honest_and_whole() -> None:
    (place,) = DEMO_MODELS.glob("*/*/*")
    read = bundle.read(place)
    manifest = read.manifest
    assert manifest.synthetic
    assert "synthetic" in manifest.description.lower()
    assert sum(path.stat().st_size for path in place.iterdir()) < 1_000_000
    assert (len(manifest.inputs.behavior), len(manifest.inputs.pupil_center)) == (3, 2)
    assert manifest.truth
    assert not Repository.load(DEMO_MODELS, CPU).refused


def test_folders_that_a_system_made_hold_no_twins(tmp_path: Path) -> None:
    """As Kubernetes, macOS and Jupyter leave them, at every level."""
    wanted = [TinyTwin(version=version).write(tmp_path / "models") for version in ("9", "10")]
    for name in ("..2024/full/linear", ".ipynb_checkpoints/full/linear", "__MACOSX/full/linear"):
        shutil.copytree(wanted[0], tmp_path / "models" / name / "1")
    (tmp_path / "models/..data").symlink_to("..2024")
    for name in ("full/.trash/1", "full/linear/.2"):
        shutil.copytree(wanted[0], tmp_path / "models" / name)
    assert repository.folders(tmp_path / "models") == wanted


def test_versions_in_one_order(tmp_path: Path) -> None:
    names = ["01", "1", "1²2", "2", "10", "²", "٣", "a"]
    for name in reversed(names):
        (tmp_path / "mouse/model" / name).mkdir(parents=True)
    found = [folder.name for folder in repository.folders(tmp_path)]
    assert found == ["01", "1", "1²2", "2", "10", "a", "²", "٣"]
    # What is written next counts only numbers as numbers.
    assert TinyTwin("mouse", "model", version="").write(tmp_path).name == "11"
