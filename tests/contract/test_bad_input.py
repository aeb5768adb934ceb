"""Bad input as any program could send it, over gRPC and REST: a clear error, and no cost to anybody else.

What the Python client refuses, and what happens without a server, is in test_refusals.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from bundles import BREAKS_ABOVE, FRAGILE, FULL
from callers import Answer, Caller, GrpcCaller, RestCaller, to_message
from fuzzing import npz
from mousetwin import arrays
from mousetwin.v1 import digital_twin_pb2 as pb
from running import REQUEST_BYTES, RESPONSE_BYTES, Service


@pytest.fixture(params=[GrpcCaller, RestCaller], ids=["grpc", "rest"])
def caller(request: pytest.FixtureRequest, service: Service) -> Iterator[Caller]:
    asked: Caller = request.param(service)
    yield asked
    asked.close()


@pytest.fixture
def rest(service: Service) -> Iterator[RestCaller]:
    asked = RestCaller(service)
    yield asked
    asked.close()


@pytest.fixture
def over_grpc(service: Service) -> Iterator[GrpcCaller]:
    asked = GrpcCaller(service)
    yield asked
    asked.close()


IMAGES = FULL.inputs(3)["images"][:, 0]
MODEL: dict[str, Any] = {"images": IMAGES, "space": "model"}
HTTP = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404}


def with_pixel(value: float) -> np.ndarray[Any, Any]:
    images = IMAGES.copy()
    images[1, 2, 3] = value
    return images


# mouse, query, code, field, words of the message.
CASES: dict[str, tuple[str, dict[str, Any], str, str, list[str]]] = {
    "unknown mouse": ("nobody", MODEL, "NOT_FOUND", "mouse", ["nobody", "full", "bare"]),
    "unknown model": ("full", MODEL | {"model": "z"}, "NOT_FOUND", "model", ["'z'", "linear"]),
    "unknown version": ("full", MODEL | {"version": "7"}, "NOT_FOUND", "version", ["'7'", "1"]),
    "several models, none named": ("two-models", MODEL, "INVALID_ARGUMENT", "model", ["cnn, ln"]),
    "rank 2": ("full", MODEL | {"images": IMAGES[0]}, "INVALID_ARGUMENT", "images", ["(6, 8)", "images[None]"]),
    "rank 5": ("full", MODEL | {"images": IMAGES[None, None]}, "INVALID_ARGUMENT", "images", ["rank 5"]),
    "height": ("full", MODEL | {"images": IMAGES[:, :5]}, "INVALID_ARGUMENT", "images", ["5×8", "6×8"]),
    "width": ("full", MODEL | {"images": IMAGES[..., :7]}, "INVALID_ARGUMENT", "images", ["6×7", "6×8"]),
    "stimulus size in model space": (
        "full",
        MODEL | {"images": np.zeros((1, 24, 32))},
        "INVALID_ARGUMENT",
        "images",
        ["24×32", "model", "6×8"],
    ),
    "raw size": (
        "full",
        {"images": np.zeros((1, 12, 16), np.uint8)},
        "INVALID_ARGUMENT",
        "images",
        ["12×16", "6×8 or 24×32"],
    ),
    "channels": (
        "full",
        MODEL | {"images": np.zeros((2, 3, 6, 8))},
        "INVALID_ARGUMENT",
        "images",
        ["3 channels", "expected 1"],
    ),
    "complex": ("full", MODEL | {"images": IMAGES + 0j}, "INVALID_ARGUMENT", "images", ["complex64", "float32"]),
    "boolean": ("full", MODEL | {"images": IMAGES > 0}, "INVALID_ARGUMENT", "images", ["bool", "uint8"]),
    "text": ("full", MODEL | {"images": np.full((1, 6, 8), "a")}, "INVALID_ARGUMENT", "images", ["expected"]),
    "no images": ("full", MODEL | {"images": IMAGES[:0]}, "INVALID_ARGUMENT", "images", ["at least one"]),
    "images missing": ("full", {"space": "model"}, "INVALID_ARGUMENT", "images", ["missing"]),
    "NaN": ("full", MODEL | {"images": with_pixel(np.nan)}, "INVALID_ARGUMENT", "images", ["nan", "(1, 2, 3)"]),
    "infinity": ("full", MODEL | {"images": with_pixel(-np.inf)}, "INVALID_ARGUMENT", "images", ["-inf"]),
    "beyond float32": (
        "full",
        MODEL | {"images": with_pixel(0).astype(float) + 1e300},
        "INVALID_ARGUMENT",
        "images",
        ["1e+300", "float32"],
    ),
    "float without a space": ("full", {"images": IMAGES}, "INVALID_ARGUMENT", "space", ["float32", "raw", "model"]),
    "raw without statistics": (
        "bare",
        {"images": np.zeros((1, 6, 8), np.uint8)},
        "INVALID_ARGUMENT",
        "space",
        ["statistics", "--statistics"],
    ),
    "raw above 255": (
        "full",
        {"images": np.full((1, 6, 8), 256)},
        "INVALID_ARGUMENT",
        "images",
        ["256", "0 to 255"],
    ),
    "raw below 0": (
        "full",
        {"images": np.full((1, 6, 8), -0.5), "space": "raw"},
        "INVALID_ARGUMENT",
        "images",
        ["-0.5", "0 to 255"],
    ),
    "behavior missing": ("bare", MODEL, "INVALID_ARGUMENT", "behavior", ["missing", "running", "(N, 3)"]),
    "behavior unwanted": (
        "image-only",
        {"images": np.zeros((1, 9, 5)), "space": "model", "behavior": np.zeros((1, 3))},
        "INVALID_ARGUMENT",
        "behavior",
        ["takes none"],
    ),
    "pupil center unwanted": (
        "image-only",
        {"images": np.zeros((1, 9, 5)), "space": "model", "pupil_center": np.zeros((1, 2))},
        "INVALID_ARGUMENT",
        "pupil_center",
        ["takes none"],
    ),
    "behavior too wide": (
        "full",
        MODEL | {"behavior": np.zeros((3, 4))},
        "INVALID_ARGUMENT",
        "behavior",
        ["(3, 4)", "(3, 3)"],
    ),
    "behavior of other images": (
        "full",
        MODEL | {"behavior": np.zeros((2, 3))},
        "INVALID_ARGUMENT",
        "behavior",
        ["(2, 3)", "(3, 3)"],
    ),
    "behavior NaN": (
        "full",
        MODEL | {"behavior": np.full((3, 3), np.nan)},
        "INVALID_ARGUMENT",
        "behavior",
        ["nan"],
    ),
    "raw behavior without statistics": (
        "no-behavior-statistics",
        {"images": np.zeros((1, 6, 8), np.uint8), "behavior": np.zeros((1, 3))},
        "INVALID_ARGUMENT",
        "behavior",
        ["statistics"],
    ),
    "pupil center too narrow": (
        "full",
        MODEL | {"pupil_center": np.zeros((3, 1))},
        "INVALID_ARGUMENT",
        "pupil_center",
        ["(3, 1)", "(3, 2)", "horizontal"],
    ),
    "neuron negative": ("full", MODEL | {"neurons": [0, -1]}, "INVALID_ARGUMENT", "neurons", ["-1", "0 to 6"]),
    "neuron too large": ("full", MODEL | {"neurons": [7]}, "INVALID_ARGUMENT", "neurons", ["7", "0 to 6"]),
    "neuron repeated": ("full", MODEL | {"neurons": [4, 2, 4]}, "INVALID_ARGUMENT", "neurons", ["4", "repeated"]),
    "neurons not whole": ("full", MODEL | {"neurons": [1.5]}, "INVALID_ARGUMENT", "neurons", ["whole numbers"]),
    "neurons empty": (
        "full",
        MODEL | {"neurons": np.zeros(0, int)},
        "INVALID_ARGUMENT",
        "neurons",
        ["at least one"],
    ),
    "neurons of rank 2": ("full", MODEL | {"neurons": [[1]]}, "INVALID_ARGUMENT", "neurons", ["(1, 1)"]),
    "unit id unknown": ("full", MODEL | {"unit_ids": [11, 4]}, "INVALID_ARGUMENT", "unit_ids", ["4", "unit ids"]),
    "unit id repeated": ("full", MODEL | {"unit_ids": [7, 7]}, "INVALID_ARGUMENT", "unit_ids", ["7", "repeated"]),
    "unit ids where there are none": (
        "bare",
        {"images": np.zeros((1, 6, 8)), "space": "model", "unit_ids": [1]},
        "INVALID_ARGUMENT",
        "unit_ids",
        ["--dataset"],
    ),
    "neurons and unit ids": (
        "full",
        MODEL | {"neurons": [1], "unit_ids": [7]},
        "INVALID_ARGUMENT",
        "unit_ids",
        ["neurons"],
    ),
}


def check_clean(answer: Answer) -> None:
    """Nothing of the service's insides reaches a client; a request id does."""
    for word in ("Traceback", "site-packages", ".py", "onnx", "Error(", "/tmp"):
        assert word not in answer.message
    assert "\n" not in answer.message
    assert len(answer.request_id) == 16


def good(caller: Caller) -> None:
    answer = caller.predict("full", images=IMAGES[:1], behavior=[1, 2, 3], pupil_center=[0.5, 1], space="model")
    expected = FULL.respond(IMAGES[:1], [1, 2, 3], [0.5, 1])
    np.testing.assert_allclose(answer.responses, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_bad_requests(name: str, caller: Caller) -> None:
    mouse, query, code, field, words = CASES[name]
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(good, caller) for _ in range(2)]
        answer = caller.predict(mouse, **query)
        for neighbour in neighbours:
            neighbour.result()
    assert (answer.code, answer.field) == (code, field), answer.message
    assert answer.status in (None, HTTP[code])
    assert all(word in answer.message for word in words), answer.message
    check_clean(answer)
    good(caller)


def test_an_engine_that_fails_fails_for_nobody_else(caller: Caller) -> None:
    images = np.zeros((1, 6, 8), np.float32)
    bad = images.copy()
    bad[0, 0, 0] = 2 * BREAKS_ABOVE
    expected = FRAGILE.respond(images)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(caller.predict, "fragile", images=i, space="model") for i in (images, bad) * 8]
        answers = [question.result() for question in asked]
    for answer in answers[::2]:
        np.testing.assert_allclose(answer.responses, expected, atol=2e-5)
    for answer in answers[1::2]:
        assert answer.code == "INTERNAL"
        check_clean(answer)


def test_answers_over_the_limit(caller: Caller) -> None:
    most = RESPONSE_BYTES // (FULL.neurons * 4)
    answer = caller.predict("full", images=np.zeros((most + 1, 1, 1)), space="model")
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert answer.status in (None, 413)
    assert str(most) in answer.message


def npy(change: Any = None, **array: Any) -> bytes:
    data = arrays.write_npy(np.zeros((2, 6, 8), np.uint8))
    return change(data) if change else data


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


NPY, NPZ, JSON = "application/x-npy", "application/x-npz", "application/json"
BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "npy cut short": (NPY, npy(lambda d: d[:-1]), 400, "images"),
    "npy with more behind it": (NPY, npy(lambda d: d + b"\0"), 400, "images"),
    "npy whose header is cut": (NPY, npy(lambda d: d[:40]), 400, "images"),
    "npy that promises terabytes": (NPY, npy(lambda d: d.replace(b"(2, ", b"(9999999, ")), 400, "images"),
    "npy that is none": (NPY, b"GIF89a", 400, "images"),
    "npy that is empty": (NPY, b"", 400, "images"),
    "npy of objects": (NPY, saved(np.array([{"a": 1}], dtype=object)), 400, "images"),
    "npy of records": (NPY, saved(np.zeros(3, [("a", "f4")])), 400, "images"),
    "npy of text": (NPY, saved(np.array(["a"])), 400, "images"),
    "a pickle": (NPY, pickle.dumps([1, 2]), 400, "images"),
    "npz that is none": (NPZ, b"PK\3\4 nothing", 400, "body"),
    "npz with a stranger": (NPZ, npz({"images.npy": npy(), "weights.npy": npy()}), 400, "body"),
    "npz without images": (NPZ, npz({"behavior.npy": npy()}), 400, "images"),
    "npz with an array twice": (NPZ, npz({"images.npy": npy(), "images": npy()}), 400, "body"),
    "npz with an array in another case": (NPZ, npz({"Images.npy": npy()}), 400, "body"),
    "npz with an array in two cases": (NPZ, npz({"images.npy": npy(), "IMAGES.npy": npy()}), 400, "body"),
    "npz with an array in a folder": (NPZ, npz({"data/images.npy": npy()}), 400, "body"),
    "npz in bzip2": (NPZ, npz({"images.npy": npy()}, zipfile.ZIP_BZIP2), 400, "body"),
    "npz in lzma": (NPZ, npz({"images.npy": npy()}, zipfile.ZIP_LZMA), 400, "body"),
    "npz with more behind it": (NPZ, npz({"images.npy": npy()}) + b"\0", 400, "body"),
    "npz with an object array": (NPZ, npz({"images.npy": saved(np.array([None], dtype=object))}), 400, "images"),
    "npz that expands beyond the limit": (
        NPZ,
        npz({"images.npy": saved(np.zeros((100, 144, 256), np.float32))}),
        413,
        "body",
    ),
    "npz cut short": (NPZ, npz({"images.npy": npy()})[:-30], 400, "body"),
    "npz with a damaged member": (
        NPZ,
        npz({"images.npy": npy()}, zipfile.ZIP_STORED).replace(b"\0\0\0\0", b"\0\1\0\0", 60),
        400,
        "",
    ),
    "JSON that is none": (JSON, b'{"images": [', 400, "body"),
    "JSON that is not text": (JSON, b"\xff\xfe\x00", 400, "body"),
    "JSON that is no object": (JSON, b"[1, 2]", 400, "body"),
    "JSON nested without end": (JSON, b'{"images": ' + b"[" * 100_000, 400, "body"),
    "JSON with NaN": (JSON, b'{"images": [[[NaN]]]}', 400, "body"),
    "JSON with a stranger": (JSON, b'{"images": [[[1]]], "neuron": [1]}', 400, "body"),
    "JSON with ragged images": (JSON, b'{"images": [[[1, 2], [3]]]}', 400, "images"),
    "JSON with words for images": (JSON, b'{"images": "gray"}', 400, "images"),
    "JSON with null for images": (JSON, b'{"images": null}', 400, "images"),
    "JSON with another space": (JSON, b'{"images": [[[1]]], "space": "cielab"}', 400, "space"),
    "JSON with a number for space": (JSON, b'{"images": [[[1]]], "space": 3}', 400, "space"),
    "JSON in UTF-16": (JSON, json.dumps({"images": [[[1]]]}).encode("utf-16"), 400, "body"),
    "JSON in UTF-16 without a mark": (JSON, json.dumps({"images": [[[1]]]}).encode("utf-16-le"), 400, "body"),
    "JSON with images twice": (JSON, b'{"images": [[[1]]], "images": [[[2]]]}', 400, "body"),
    "JSON with a space twice": (JSON, b'{"space": "raw", "images": [[[1]]], "space": "raw"}', 400, "body"),
    "JSON with null, then a value": (JSON, b'{"images": [[[1]]], "neurons": null, "neurons": [1]}', 400, "body"),
    "JSON with a name twice, written otherwise": (JSON, b'{"images": [[[1]]], "\\u0069mages": [[[2]]]}', 400, "body"),
    "JSON with a word that looks like a name twice": (
        JSON,
        b'{"images": [[[1]]], "model": "\\"images\\": linear", "model": "linear"}',
        400,
        "body",
    ),
    "JSON with true among numbers": (JSON, b'{"images": [[[1, true]]]}', 400, "images"),
    "JSON with null among numbers": (JSON, b'{"images": [[[1, null]]]}', 400, "images"),
    "JSON with an object among numbers": (JSON, b'{"images": [[[1, {"images": 2}]]]}', 400, "images"),
    "JSON with words among numbers": (JSON, b'{"images": [[["1", "' + b"2" * 999 + b'"]]]}', 400, "images"),
    "JSON with a word for a neuron": (JSON, b'{"images": [[[1]]], "neurons": "5"}', 400, "neurons"),
    "JSON with words for neurons": (JSON, b'{"images": [[[1]]], "neurons": ["5"]}', 400, "neurons"),
    "JSON with true for a neuron": (JSON, b'{"images": [[[1]]], "neurons": true}', 400, "neurons"),
    "JSON with words for behavior": (JSON, b'{"images": [[[1]]], "behavior": ["1", "2", "3"]}', 400, "behavior"),
    "JSON with an object for images": (JSON, b'{"images": {"data": [1]}}', 400, "images"),
    "JSON nested too deep": (JSON, b'{"images": ' + b"[" * 20 + b"1" + b"]" * 20 + b"}", 400, "images"),
    "JSON with a number for a model": (JSON, b'{"images": [[[1]]], "model": 1}', 400, "model"),
    "JSON with a broken number for a version": (JSON, b'{"images": [[[1]]], "version": 1.0}', 400, "version"),
    "JSON with an empty space": (JSON, b'{"images": [[[1]]], "space": ""}', 400, "space"),
    "JSON with huge numbers": (JSON, json.dumps({"images": [[[10**400]]]}).encode(), 400, ""),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_cannot_be_read(name: str, rest: RestCaller) -> None:
    content_type, body, status, field = BODIES[name]
    answer = rest.send("full", body, content_type)
    assert answer.status == status, answer.message
    assert answer.field == field or not field
    check_clean(answer)
    good(rest)


def test_json_with_a_byte_order_mark(rest: RestCaller) -> None:
    images = np.arange(96).reshape(2, 6, 8)
    answer = rest.send("full", b"\xef\xbb\xbf" + json.dumps({"images": images.tolist()}).encode(), JSON)
    np.testing.assert_allclose(answer.responses, FULL.respond_raw(images), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (b'{"images": [[[1]]], "images": [[[2]]]}', ["'images'", "twice"]),
        (b'{"images": [[[1, true]]]}', ["true or false", "[0][0][1]"]),
        (b'{"images": [[["a"]]]}', ["a string", "[0][0][0]"]),
        ('{"images": [[[1]]]}'.encode("utf-16"), ["UTF-8"]),
    ],
)
def test_what_is_told_of_json(behind: bytes, words: list[str], rest: RestCaller) -> None:
    answer = rest.send("full", behind, JSON)
    assert all(word in answer.message for word in words), answer.message


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_bodies_over_the_limit(chunked: bool, rest: RestCaller) -> None:
    block = b"\0" * (1 << 20)
    body = (block for _ in range(5)) if chunked else block * 5
    answer = rest.send("full", body, JSON)
    assert answer.status == 413
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert str(REQUEST_BYTES) in answer.message
    good(rest)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"space": "cielab"}, "space"),
        ({"neurons": "1,b"}, "neurons"),
        ({"neurons": "9" * 40}, "neurons"),
        ({"unit_ids": ""}, "unit_ids"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": "nan"}, "timeout"),
        ({"timeout": "0"}, "timeout"),
    ],
)
def test_parameters_that_cannot_be_read(parameters: dict[str, str], field: str, rest: RestCaller) -> None:
    answer = rest.send("full", npy(), NPY, parameters)
    assert (answer.status, answer.field) == (400, field)
    check_clean(answer)


def test_a_thing_said_twice(rest: RestCaller) -> None:
    body = json.dumps({"images": [[[1]]], "space": "raw"}).encode()
    answer = rest.send("full", body, JSON, {"space": "model"})
    assert (answer.status, answer.field) == (400, "space")


def test_media_types_and_paths(rest: RestCaller) -> None:
    assert rest.send("full", npy(), "image/png").status == 415
    assert rest.send("full", npy(), "").status == 415
    assert rest.send("full", npy(), NPY, headers={"accept": "image/png"}).status == 406
    assert rest.send("full", npy(), NPY, headers={"accept": "image/png;q=x, application/x-npy;q=0.5"}).status == 200
    for method, path, status in (
        ("GET", "/v1/rats", 404),
        ("GET", "/v1/mice/nobody", 404),
        ("GET", "/v1/mice/full/predict", 405),
        ("POST", "/v1/mice", 405),
    ):
        response = rest.client.request(method, path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"


ARRAY = to_message(IMAGES)
MESSAGES: dict[str, tuple[pb.Array, list[str]]] = {
    "too few bytes": (pb.Array(dtype="float32", shape=[3, 6, 8], data=ARRAY.data[:-4]), ["576", "572"]),
    "too many bytes": (pb.Array(dtype="float32", shape=[3, 6, 8], data=ARRAY.data + b"\0"), ["576", "577"]),
    "negative size": (pb.Array(dtype="float32", shape=[-3, -6, 8], data=ARRAY.data), ["(-3, -6, 8)"]),
    "many sizes": (pb.Array(dtype="float32", shape=[1] * 50, data=ARRAY.data[:4]), ["50 sizes"]),
    "overflowing size": (pb.Array(dtype="uint8", shape=[2**32, 2**32], data=b""), ["18446744073709551616"]),
    "unknown dtype": (pb.Array(dtype="object", shape=[1], data=b"12345678"), ["'object'", "float32"]),
    "no dtype": (pb.Array(shape=[1], data=b"1"), ["''", "float32"]),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_arrays_that_cannot_be_read(name: str, over_grpc: GrpcCaller) -> None:
    message, words = MESSAGES[name]
    request = pb.PredictRequest(twin=pb.TwinRef(mouse="full"), images=message, space=pb.SPACE_MODEL)
    answer = over_grpc.send(request.SerializeToString())
    assert (answer.code, answer.field) == ("INVALID_ARGUMENT", "images")
    assert all(word in answer.message for word in words), answer.message
    check_clean(answer)
    good(over_grpc)


@pytest.mark.parametrize("call", ["ListMice", "GetMouse", "Predict"])
def test_messages_that_are_none(call: str, over_grpc: GrpcCaller) -> None:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        over_grpc.method(call)(b"\xff\xff\xff not protobuf")
    error: Any = caught.value
    assert error.code().name == "INVALID_ARGUMENT"
    assert "mousetwin.v1." in error.details()
    assert dict(error.trailing_metadata())["error-field"] == "request"
    good(over_grpc)


def test_a_space_that_is_not_known(over_grpc: GrpcCaller) -> None:
    request = pb.PredictRequest(twin=pb.TwinRef(mouse="full"), images=ARRAY)
    request.space = 9  # type: ignore[assignment]
    answer = over_grpc.send(request.SerializeToString())
    assert (answer.code, answer.field) == ("INVALID_ARGUMENT", "space")


def test_messages_over_the_limit(over_grpc: GrpcCaller) -> None:
    answer = over_grpc.predict("full", images=np.zeros((2000, 6, 8), np.float32), space="model")
    assert answer.code == "RESOURCE_EXHAUSTED"
    good(over_grpc)


def test_a_mouse_that_is_not_named(over_grpc: GrpcCaller) -> None:
    answer = over_grpc.predict("", **MODEL)
    assert (answer.code, answer.field) == ("INVALID_ARGUMENT", "mouse")
