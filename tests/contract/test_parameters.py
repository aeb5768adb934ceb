"""Query parameters: what was sent is what is used, and what is not known is refused with the names there are."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from bundles import FULL
from mousetwin.arrays import read_npy, write_npy, write_npz
from mousetwin_serve.api import parameters
from numpy.testing import assert_allclose
from running import REQUEST_BYTES, Service

NPY, NPZ, JSON = "application/x-npy", "application/x-npz", "application/json"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *FULL.stimulus)).astype(np.uint8)
MANY = np.random.default_rng(1).integers(0, 256, (500, *FULL.stimulus)).astype(np.uint8)
RIGHT = FULL.respond_raw(IMAGES)


def predict(service: Service, query: Any, images: Any = IMAGES, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{service.http}/v1/mice/full/predict",
        params=query,
        content=write_npy(images),
        headers={"content-type": NPY, **headers},
        timeout=60,
    )


# By operationId: method, path, media type, body. Each with a body that is right, so that only the query is to blame.
CALLS: dict[str, tuple[str, str, str, bytes]] = {
    "listMice": ("GET", "", "", b""),
    "getMouse": ("GET", "/full", "", b""),
    "predict": ("POST", "/full/predict", NPY, write_npy(IMAGES)),
    "gradient": ("POST", "/full/gradient", NPZ, write_npz({"images": IMAGES, "cotangent": np.ones(7)})),
    "score": ("POST", "/full/score", NPZ, write_npz({"images": IMAGES})),
}
BODIES = {
    "npy": (NPY, write_npy(IMAGES)),
    "large npy": (NPY, write_npy(MANY)),
    "npz": (NPZ, write_npz({"images": IMAGES})),
    "json": (JSON, json.dumps({"images": IMAGES.tolist()}).encode()),
}


def ask(service: Service, call: str, query: Any) -> httpx.Response:
    method, path, kind, body = CALLS[call]
    headers = {"content-type": kind} if kind else {}
    return httpx.request(
        method, f"{service.http}/v1/mice{path}", params=query, content=body, headers=headers, timeout=60
    )


def refused(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.content
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == "INVALID_ARGUMENT"
    assert problem["detail"].startswith(problem["field"])
    assert "\n" not in problem["detail"]
    return problem


STRANGERS = ["neuron", "Space", "MODEL", "unit-ids", "unitIds", "behavior", "", " space", "space\n", "é" * 99]


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("call", CALLS)
def test_names_that_are_not_known(call: str, name: str, service: Service) -> None:
    problem = refused(ask(service, call, {name: "1"}))
    assert problem["field"] == (name[:80].replace("\n", "\\n") or "''")
    there = [parameter.name for parameter in parameters.PARAMETERS if call in parameter.taken_by]
    assert problem["detail"].endswith(", ".join(there) or "there are none")


@pytest.mark.parametrize("kind", BODIES)
def test_names_are_checked_with_every_body(kind: str, service: Service) -> None:
    content_type, body = BODIES[kind]
    assert len(BODIES["large npy"][1]) > REQUEST_BYTES
    url, headers = f"{service.http}/v1/mice/full/predict", {"content-type": content_type}
    for query, field in (("neuron=0", "neuron"), ("space=raw&space=raw", "space"), ("neurons=0,,1", "neurons")):
        answer = httpx.post(f"{url}?{query}", content=body, headers=headers, timeout=60)
        assert refused(answer)["field"] == field


def test_names_of_other_calls(service: Service) -> None:
    for call, query in (
        ("listMice", {"model": "linear"}),
        ("getMouse", {"space": "raw"}),
        ("gradient", {"dtype": "float16"}),
        ("score", {"neurons": "1"}),
        ("predict", {"space[]": "raw"}),
        ("predict", {"model[0]": "linear"}),
    ):
        assert refused(ask(service, call, query))["field"] == next(iter(query))


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ("neurons=4,0,2", [4, 0, 2]),
        ("neurons=4&neurons=0&neurons=2", [4, 0, 2]),
        ("neurons=4,0&neurons=2", [4, 0, 2]),
        ("neurons[]=4&neurons[]=0", [4, 0]),
        ("neurons%5B%5D=4&neurons%5B%5D=0", [4, 0]),
        ("neurons[0]=4&space=raw&neurons[1]=0", [4, 0]),
        ("neurons=5", [5]),
        ("unit_ids=30&unit_ids=11", [2, 0]),
        ("unit_ids[]=30&unit_ids[]=11", [2, 0]),
    ],
)
def test_lists_join(query: str, columns: list[int], service: Service) -> None:
    answer = predict(service, query)
    assert_allclose(read_npy(answer.content, "responses"), RIGHT[:, columns], rtol=0, atol=1e-5)
    many = read_npy(predict(service, query, MANY).content, "responses")
    assert_allclose(many, FULL.respond_raw(MANY)[:, columns], rtol=0, atol=1e-5)


def test_lists_as_http_libraries_write_them(service: Service) -> None:
    for query in ({"neurons": [0, 1, 2]}, {"neurons[]": [0, 1, 2]}, [("neurons", "0,1"), ("neurons", 2)]):
        answer = predict(service, query)
        assert_allclose(read_npy(answer.content, "responses"), RIGHT[:, :3], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("space=raw&space=raw", "space"),
        ("space=raw&space=model", "space"),
        ("model=linear&model=linear", "model"),
        ("version=1&version=1", "version"),
        ("timeout=5&timeout=6", "timeout"),
        ("dtype=float16&dtype=float16", "dtype"),
        ("neurons=1&neurons=1", "neurons"),
        ("neurons[1]=1", "neurons"),
        ("neurons[1]=1&neurons[0]=2", "neurons"),
        ("neurons[0]=1&neurons[0]=2", "neurons"),
        ("neurons[a]=1", "neurons[a]"),
        ("neurons[0][]=1", "neurons[0][]"),
        ("neurons=1&unit_ids=7", "unit_ids"),
    ],
)
def test_what_is_given_twice(query: str, field: str, service: Service) -> None:
    assert refused(predict(service, query))["field"] == field


@pytest.mark.parametrize("name", ["space", "neurons", "unit_ids", "timeout", "dtype"])
def test_empty_values(name: str, service: Service) -> None:
    for query in (f"{name}=", name, f"{name}=&model=linear"):
        assert refused(predict(service, query))["field"] == name


def test_a_name_that_is_empty_is_none(service: Service) -> None:
    answer = predict(service, "model=&version=")
    assert_allclose(read_npy(answer.content, "responses"), RIGHT, rtol=0, atol=1e-5)
    assert refused(predict(service, "model=&model=linear"))["field"] == "model"


NO_NUMBERS = ["1_0", " 1", "1 ", "1, 2", "+1", "٣", "0x1", "1.0", "1e0", "0,,1", "1,", "1;2", "9" * 19, "9" * 9000]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: text[:20])
@pytest.mark.parametrize("name", ["neurons", "unit_ids"])
def test_numbers_that_nobody_means(name: str, text: str, service: Service) -> None:
    assert refused(predict(service, {name: text}))["field"] == name


@pytest.mark.parametrize("text", ["1_0", " 5", "٣", "+5", "inf", "nan", "-1", "0", "1e999", "soon", "5s"])
def test_seconds_that_nobody_means(text: str, service: Service) -> None:
    assert refused(predict(service, {"timeout": text}))["field"] == "timeout"
    assert predict(service, {"timeout": "2.5e1"}).status_code == 200


def test_headers_are_for_torchserve(service: Service) -> None:
    problem = refused(predict(service, {}, **{"X-Mousetwin-Neurons": "1"}))
    assert problem["field"] == "x-mousetwin-neurons"
    assert "query parameter" in problem["detail"]


def test_the_document_lists_what_is_taken(service: Service) -> None:
    paths = httpx.get(f"{service.http}/openapi.json").json()["paths"]
    found = {
        operation["operationId"]: [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
        for operations in paths.values()
        for operation in operations.values()
    }
    for call in CALLS:
        assert found[call] == [p.name for p in parameters.taken_by(call)]
        if not found[call]:
            continue
        problem = refused(ask(service, call, {"x": "1"}))
        assert problem["detail"].endswith(", ".join(found[call]))
