"""`POST …/score`: recordings of any length, worked on in little memory, with the scores they would have in a lot."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from bundles import FULL, WIDE
from mousetwin import scores
from mousetwin.arrays import write_npy
from mousetwin_serve import bundle
from mousetwin_serve.limits import Limits
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from running import REQUEST_BYTES, RESPONSE_BYTES, Service, in_thread

TRIALS = 120
STD = np.linspace(0.5, 4, WIDE.neurons)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of a twin with many neurons, and the statistics of its responses."""
    folder = tmp_path_factory.mktemp("models")
    manifest, files = WIDE.files()
    known = msgspec.structs.replace(manifest.statistics, responses=bundle.Moments(std=tuple(STD.tolist())))
    bundle.write(folder, msgspec.structs.replace(manifest, statistics=known), files)
    with in_thread(folder, limits=Limits(REQUEST_BYTES, RESPONSE_BYTES)) as running:
        yield running


@pytest.fixture(scope="module")
def recording() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (TRIALS // 4, *WIDE.stimulus)).astype(np.uint8)
    image_ids = rng.permutation(np.repeat(np.arange(TRIALS // 4), 4))
    images = pictures[image_ids]
    responses = WIDE.respond_raw(images) + rng.normal(size=(TRIALS, WIDE.neurons))
    return {"images": images, "responses": (responses * STD).astype(np.float32), "image_ids": image_ids}


def npz(save: Any = np.savez, **values: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, **values)
    return stream.getvalue()


def post(service: Service, body: Any, mouse: str = "wide", **query: str) -> httpx.Response:
    headers = {"content-type": "application/x-npz"}
    url = f"{service.http}/v1/mice/{mouse}/score"
    return httpx.post(url, content=body, params=query, headers=headers, timeout=120)


def check(answer: httpx.Response, recording: dict[str, NDArray[Any]]) -> None:
    assert answer.status_code == 200, answer.content
    right = scores.score(recording["responses"] / STD, WIDE.respond_raw(recording["images"]), recording["image_ids"])
    report = answer.json()
    assert (report["trials"], report["images"], report["neurons"]) == (TRIALS, TRIALS // 4, WIDE.neurons)
    for metric in scores.METRICS:
        per_neuron = np.array(report[metric]["per_neuron"], float)
        assert_allclose(per_neuron, right.per_neuron[metric], rtol=1e-4, atol=1e-5)
        assert report[metric]["mean"] == pytest.approx(right.mean[metric], abs=1e-5)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_responses_of_any_length(chunked: bool, wide: Service, recording: dict[str, NDArray[Any]]) -> None:
    body = npz(**recording)
    assert recording["responses"].nbytes > 7 * REQUEST_BYTES
    check(post(wide, iter([body[:70_000], body[70_000:]]) if chunked else body), recording)


@pytest.mark.parametrize("how", ["fortran", "float64", "big-endian", "model"])
def test_responses_however_they_are_written(how: str, wide: Service, recording: dict[str, NDArray[Any]]) -> None:
    responses = recording["responses"]
    changed = {
        "fortran": np.asfortranarray(responses),
        "float64": responses.astype(np.float64),
        "big-endian": responses.astype(">f4"),
        "model": responses / STD,
    }[how]
    answer = post(wide, npz(**{**recording, "responses": changed}))
    if how == "model":
        native = np.random.default_rng(1).normal(size=(TRIALS, *WIDE.native)).astype(np.float32)
        answer = post(wide, npz(**{**recording, "responses": changed, "images": native}), space="model")
        right = scores.score(changed, WIDE.respond(native), recording["image_ids"])
        assert_allclose(answer.json()["fev"]["per_neuron"], right.per_neuron["fev"], rtol=1e-5)
    else:
        check(answer, recording)


def test_what_is_compressed_is_bounded(wide: Service, recording: dict[str, NDArray[Any]]) -> None:
    answer = post(wide, npz(np.savez_compressed, **{**recording, "responses": np.zeros((TRIALS, WIDE.neurons))}))
    assert answer.status_code == 413
    assert "numpy.savez" in answer.json()["detail"]
    few = {name: values[:3] for name, values in recording.items()}
    assert post(wide, npz(np.savez_compressed, **few)).status_code == 200


def damaged(recording: dict[str, NDArray[Any]]) -> dict[str, tuple[dict[str, Any], str, str]]:
    responses, ids = recording["responses"], recording["image_ids"]
    broken = responses.copy()
    broken[70, 8] = np.nan
    floats = ids.astype(float)
    floats[3] = np.nan
    return {
        "none": ({"responses": None}, "responses", "missing"),
        "no ids": ({"image_ids": None}, "image_ids", "missing"),
        "no images": ({"images": None}, "images", "missing"),
        "fewer": ({"responses": responses[:-1]}, "responses", f"{TRIALS - 1} rows"),
        "other neurons": ({"responses": responses[:, :-1]}, "responses", f"(N, {WIDE.neurons})"),
        "of one trial": ({"responses": responses[0]}, "responses", f"shape ({WIDE.neurons},)"),
        "no trials": ({"responses": responses[:0]}, "responses", "shape (0"),
        "fewer ids": ({"image_ids": ids[1:]}, "image_ids", f"expected ({TRIALS},)"),
        "ids that are none": ({"image_ids": floats}, "image_ids", "finite"),
        "not finite": ({"responses": broken}, "responses", "finite"),
        "withheld": ({"responses": np.zeros_like(responses)}, "responses", "withheld"),
        "neurons": ({"neurons": np.arange(3)}, "body", "'neurons', which is not expected"),
        "a cotangent": ({"cotangent": np.ones(3)}, "body", "'cotangent', which is not expected"),
        "behavior of other trials": ({"behavior": np.zeros((3, 3))}, "behavior", "3 rows"),
        "behavior": ({"behavior": np.zeros(3)}, "behavior", "takes none"),
    }


@pytest.mark.parametrize("how", damaged({"responses": np.zeros((80, 9)), "image_ids": np.zeros(9)}))
def test_a_recording_that_cannot_be_scored(how: str, wide: Service, recording: dict[str, NDArray[Any]]) -> None:
    change, field, words = damaged(recording)[how]
    answer = post(wide, npz(**{n: v for n, v in {**recording, **change}.items() if v is not None}))
    assert answer.status_code == 400, answer.content
    assert answer.json()["field"] == field
    assert words in answer.json()["detail"]


def test_what_is_wrong_is_told_before_the_twin_works(wide: Service, recording: dict[str, NDArray[Any]]) -> None:
    def computed() -> str:
        lines = httpx.get(f"{wide.http}/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("mousetwin_images_total{"))

    before = computed()
    for how in ("fewer", "other neurons", "fewer ids", "not finite", "withheld"):
        change, _, _ = damaged(recording)[how]
        assert post(wide, npz(**{**recording, **change})).status_code == 400
    assert computed() == before


def test_responses_cut_short(wide: Service, recording: dict[str, NDArray[Any]]) -> None:
    longer = write_npy(recording["responses"]).replace(b"(120, 4000)", b"(121, 4000)")
    stream = io.BytesIO(npz(images=recording["images"], image_ids=recording["image_ids"]))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("responses.npy", longer)
    answer = post(wide, stream.getvalue())
    assert answer.status_code == 400
    assert "truncated, 1 of 121 rows" in answer.json()["detail"]


def test_statistics_that_are_not_known(service: Service) -> None:
    body = npz(images=np.zeros((2, *FULL.stimulus), np.uint8), responses=np.ones((2, 7)), image_ids=[1, 2])
    answer = post(service, body, "full")
    assert (answer.status_code, answer.json()["field"]) == (400, "responses")
    assert "--dataset" in answer.json()["detail"]


@pytest.mark.parametrize("repeated", [True, False])
def test_neurons_are_scored_alike_in_any_company(repeated: bool) -> None:
    """In blocks, as few as fit: each neuron's scores are those it has alone."""
    rng = np.random.default_rng(3)
    trials = 3000
    assert scores.block_width(trials) < 100
    responses, predictions = rng.normal(size=(2, trials, 210)).astype(np.float32)
    ids = rng.permutation(np.repeat(np.arange(trials // 10), 10)) if repeated else np.arange(trials)
    found = scores.score(responses, predictions, ids)
    for neuron in range(0, 210, 30):
        alone = scores.score(responses[:, [neuron]], predictions[:, [neuron]], ids)
        assert alone.per_neuron.keys() == found.per_neuron.keys()
        for metric, values in alone.per_neuron.items():
            assert_allclose(found.per_neuron[metric][[neuron]], values, rtol=1e-9, atol=1e-14)
    assert json.loads(json.dumps(found.report()))["neurons"] == 210
