"""Bundles that do not verify: what answers in their place says so, and nothing is meant by chance."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import mousetwin
import mousetwin.aio
import numpy as np
import pytest
from bundles import FULL, IMAGE_ONLY, TWO_MODELS, TinyTwin
from mousetwin_serve import bundle
from numpy.testing import assert_allclose
from running import Service, as_command

GRAY = np.full((1, *FULL.native), 113, np.uint8)
NEAR: dict[str, Any] = {"rtol": 0, "atol": 2e-5}


def damage(twin: TinyTwin, models: Path) -> None:
    graph = twin.write(models) / "forward.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """full: versions 9 and 10 are served, 8, 11 and 12 do not verify. two-models: of ln nothing verifies."""
    models = tmp_path_factory.mktemp("models")
    for version in ("9", "10"):
        replace(FULL, version=version).write(models)
    for version in ("8", "11", "12"):
        damage(replace(FULL, version=version, seed=5), models)
    TWO_MODELS[0].write(models)
    damage(TWO_MODELS[1], models)
    damage(IMAGE_ONLY, models)
    return models


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Service]:
    with as_command("--models", str(folder)) as command:
        yield command.service


@pytest.fixture(params=["grpc", "local"])
def twins(request: pytest.FixtureRequest, folder: Path, running: Service) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(running.grpc if request.param == "grpc" else f"local:{folder}") as opened:
        yield opened


def test_an_older_version_in_place_of_the_newest_says_so(twins: mousetwin.Twins) -> None:
    known = {(s.twin.model, s.twin.version): s.newer_refused for s in twins.mice() if s.twin.mouse == "full"}
    assert known == {("linear", "9"): ("11", "12"), ("linear", "10"): ("11", "12")}
    with pytest.warns(mousetwin.MousetwinWarning, match="11, 12 was found and does not verify, version 10 answers"):
        mouse = twins["full"]
    assert mouse.summary.newer_refused == ("11", "12")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Whoever names the version means it.
        named = twins.mouse("full", version=10)
        assert_allclose(named.predict(GRAY), FULL.respond_raw(GRAY), **NEAR)
        assert named.predict(GRAY).warnings == ()


def test_asyncio_says_so_too(running: Service) -> None:
    import asyncio

    async def ask() -> None:
        async with mousetwin.aio.connect(running.grpc) as twins:
            await twins.mouse("full")

    with pytest.warns(mousetwin.MousetwinWarning, match="version 10 answers"):
        asyncio.run(ask())


def test_rest_says_so_in_answers_metadata_readiness_and_metrics(running: Service) -> None:
    with httpx.Client(base_url=running.http) as http:
        body = {"images": GRAY.tolist()}
        answer = http.post("/v1/mice/full/predict", json=body)
        (told,) = json.loads(answer.headers["x-mousetwin-warnings"])
        assert told.startswith("version: full/linear 11, 12 was found")
        assert answer.json()["warnings"] == [told]
        assert "x-mousetwin-warnings" not in http.post("/v1/mice/full/predict?version=10", json=body).headers
        assert http.get("/v1/mice/full").json()["summary"]["newer_refused"] == ["11", "12"]
        refused = ["full/linear/11", "full/linear/12", "full/linear/8", "image-only/linear/1", "two-models/ln/1"]
        assert sorted(http.get("/readyz").json()["not_served"]) == refused
        line = 'mousetwin_refused_bundles{model="linear",mouse="full",version="12"} 1.0'
        assert line in http.get("/metrics").text.splitlines()


@pytest.mark.parametrize(
    ("which", "error", "field", "words"),
    [
        (
            ("full", "", "12"),
            mousetwin.NotFound,
            "version",
            "'12' was found and does not verify.*expected one of 9, 10",
        ),
        (("full", "", "13"), mousetwin.NotFound, "version", "has no '13'"),
        (("two-models", "", None), mousetwin.InvalidArgument, "model", "several, expected one of cnn; ln was found"),
        (("two-models", "ln", None), mousetwin.NotFound, "model", "'ln' was found and does not verify"),
        (("image-only", "", None), mousetwin.NotFound, "mouse", "'image-only' was found and does not verify"),
    ],
)
def test_what_does_not_verify_is_never_replaced_by_something_else(
    which: tuple[str, str, str | None], error: type[mousetwin.MousetwinError], field: str, words: str, twins: Any
) -> None:
    with pytest.raises(error, match=words) as caught:
        twins.mouse(*which)
    assert caught.value.field == field
    assert "/tmp" not in str(caught.value)


# --- the engine's own failures, in the caller's process


def test_nothing_that_verifies_is_one_line(tmp_path: Path) -> None:
    damage(FULL, tmp_path)
    with pytest.raises(mousetwin.NotFound, match=r"forward\.onnx: sha256 is") as caught:
        mousetwin.connect(f"local:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_graph_that_fails_when_it_is_first_used(tmp_path: Path) -> None:
    import io

    import msgspec

    manifest, files = FULL.files()
    with np.load(io.BytesIO(files["replay.npz"])) as archive:
        vectors = {**archive, "d_images": archive["d_images"] + 1}
    stream = io.BytesIO()
    np.savez(stream, **vectors)
    files["replay.npz"] = stream.getvalue()
    replay = msgspec.structs.replace(manifest.replay, sha256=bundle.sha256(files["replay.npz"]))
    bundle.write(tmp_path, msgspec.structs.replace(manifest, replay=replay), files)
    with mousetwin.connect(f"local:{tmp_path}") as twins:
        mouse = twins["full"]
        for ask in (
            lambda: mouse.gradient(GRAY, np.ones(7)),
            lambda: mouse.optimize([1], steps=2),
            lambda: mouse.session().gradient(GRAY, np.ones(7)),
        ):
            with pytest.raises(mousetwin.Internal, match=r"replay\.npz: replayed on cpu, d_images of gradient are off"):
                ask()
        assert_allclose(mouse.predict(GRAY), FULL.respond_raw(GRAY), **NEAR)


def test_what_onnx_runtime_raises_is_one_line(models: Path) -> None:
    with mousetwin.connect(f"local:{models}") as twins:
        broken = np.full((1, 6, 8), 5000.0)
        with pytest.raises(mousetwin.Internal, match="the engine failed: ") as caught:
            twins["fragile"].predict(broken, space="model")
        assert "\n" not in str(caught.value)


def test_an_optimisation_says_so_too(running: Service, folder: Path) -> None:
    from mousetwin.optimization import Ascent, OptimizeQuery, OptimizeResult, Target
    from mousetwin.query import TwinRef
    from mousetwin.transport import open_transport

    query = OptimizeQuery((TwinRef("full"),), Target(neurons=np.array([[1]])), ascent=Ascent(steps=2))
    for address in (running.grpc, f"local:{folder}"):
        transport = open_transport(address)
        *_, found = transport.optimize(query, 60)
        assert isinstance(found, OptimizeResult)
        assert [warning.split(":")[0] for warning in found.warnings] == ["version"]
        transport.close()
