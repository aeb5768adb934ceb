"""Batches of any length over REST: streamed in, streamed out, whole or recognisably not."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
import resource
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bundles import FULL, WIDE
from mousetwin.arrays import read_npy, write_npy
from mousetwin_serve.limits import Limits
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from running import REQUEST_BYTES, Service, as_command, in_thread, until

NPY, NPZ = "application/x-npy", "application/x-npz"
# 2.3 MB, nine times what one request may otherwise hold.
MANY = np.random.default_rng(0).integers(0, 256, (3000, *FULL.stimulus)).astype(np.uint8)


def post(service: Service, mouse: str, body: Any, content_type: str = NPY, **parameters: str) -> httpx.Response:
    headers = {"content-type": content_type}
    return httpx.post(
        f"{service.http}/v1/mice/{mouse}/predict", params=parameters, content=body, headers=headers, timeout=60
    )


def in_pieces(data: bytes, size: int = 50_000) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **values)
    return stream.getvalue()


def compressed(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **values)
    return stream.getvalue()


def good(service: Service) -> None:
    answer = post(service, "full", write_npy(MANY[:1]))
    assert_allclose(read_npy(answer.content, "responses"), FULL.respond_raw(MANY[:1]), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def right() -> NDArray[np.float64]:
    return FULL.respond_raw(MANY)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_of_any_length(chunked: bool, service: Service, right: NDArray[np.float64]) -> None:
    body = write_npy(MANY)
    assert len(body) > REQUEST_BYTES
    answer = post(service, "full", in_pieces(body) if chunked else body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == NPY
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["x-mousetwin-twin"] == "full/linear/1"
    assert answer.headers["x-mousetwin-defaults"] == "behavior,pupil_center"
    assert answer.headers["x-request-id"]
    assert_allclose(read_npy(answer.content, "responses"), right, rtol=0, atol=1e-5)


def test_what_goes_with_it(service: Service, right: NDArray[np.float64]) -> None:
    answer = post(service, "full", write_npy(MANY), neurons="5,0", dtype="float16")
    found = read_npy(answer.content, "responses")
    assert found.dtype == np.float16
    assert_allclose(found, right[:, [5, 0]], rtol=1e-3, atol=1e-3)
    few = post(service, "full", write_npy(MANY[:2]), dtype="float16")
    assert read_npy(few.content, "responses").dtype == np.float16
    floats = post(service, "full", write_npy(MANY.astype(np.float32)[:, None]), space="raw", unit_ids="7")
    assert_allclose(read_npy(floats.content, "responses"), right[:, [1]], rtol=0, atol=1e-5)


def test_behavior_and_pupil_beside_the_images(service: Service) -> None:
    rng = np.random.default_rng(1)
    behavior, pupil_center = rng.normal(4, 1, (len(MANY), 3)), rng.normal(0, 5, (len(MANY), 2))
    each = rng.integers(0, 7, (len(MANY), 1))
    right = FULL.respond_raw(MANY, behavior, pupil_center)
    body = npz(images=MANY, behavior=behavior, pupil_center=pupil_center)
    assert len(body) > REQUEST_BYTES
    found = read_npy(post(service, "full", body, NPZ).content, "responses")
    assert_allclose(found, right, rtol=0, atol=1e-5)
    body = npz(behavior=behavior[0], images=MANY, pupil_center=pupil_center[0], neurons=each)
    found = read_npy(post(service, "full", body, NPZ).content, "responses")
    right = FULL.respond_raw(MANY, np.repeat(behavior[:1], len(MANY), 0), np.repeat(pupil_center[:1], len(MANY), 0))
    assert_allclose(found, np.take_along_axis(right, each, 1), rtol=0, atol=1e-5)


class Connection:
    """A caller that sends and reads as it pleases."""

    def __init__(self, service: Service, mouse: str, length: int, parameters: str = "early=true") -> None:
        host, _, port = service.http.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST /v1/mice/{mouse}/predict?{parameters} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NPY}\r\n"
        self.socket.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        self.stream = self.socket.makefile("rb")

    def head(self) -> tuple[int, dict[str, str]]:
        status = int(self.stream.readline().split()[1])
        lines = iter(self.stream.readline, b"\r\n")
        return status, {n.strip().lower(): v.strip() for n, _, v in (line.decode().partition(":") for line in lines)}

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def test_the_first_rows_leave_while_later_images_arrive(service: Service, right: NDArray[np.float64]) -> None:
    body = write_npy(MANY)
    connection = Connection(service, "full", len(body))
    half = len(body) // 2
    connection.socket.sendall(body[:half])
    status, headers = connection.head()
    assert status == 200
    length = int(headers["content-length"])
    header = length - 4 * right.size
    begun = connection.stream.read(header + 4 * 7 * 1000)
    assert_allclose(np.frombuffer(begun[header:], "<f4").reshape(-1, 7), right[:1000], rtol=0, atol=1e-5)
    connection.socket.sendall(body[half:])
    whole = begun + connection.stream.read(length - len(begun))
    assert_allclose(read_npy(whole, "responses"), right, rtol=0, atol=1e-5)
    connection.close()


@pytest.mark.parametrize("parameters", ["", "early=false"])
def test_otherwise_the_answer_begins_once_all_images_are_in(
    parameters: str, service: Service, right: NDArray[np.float64]
) -> None:
    """Proxies stop forwarding a body once its answer begins."""
    body = write_npy(MANY)
    name = 'mousetwin_images_total{model="linear",mouse="full"}'
    before = counted(service, name)
    connection = Connection(service, "full", len(body), parameters)
    connection.socket.sendall(body[:-1])
    # The images are worked on all the same, all but those of the last part.
    until(lambda: counted(service, name) >= before + len(MANY) - 64)
    connection.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        connection.socket.recv(1)
    connection.socket.settimeout(60)
    connection.socket.sendall(body[-1:])
    status, headers = connection.head()
    assert status == 200
    found = connection.stream.read(int(headers["content-length"]))
    assert_allclose(read_npy(found, "responses"), right, rtol=0, atol=1e-5)
    connection.close()


@pytest.mark.parametrize("early", ["True", "1", "yes", ""])
@pytest.mark.parametrize("images", [MANY, MANY[:1]], ids=["many", "one"])
def test_early_is_true_or_false(early: str, images: NDArray[Any], service: Service) -> None:
    answer = post(service, "full", write_npy(images), early=early)
    assert answer.status_code == 400
    assert answer.json()["field"] == "early"
    assert "expected 'true' or 'false'" in answer.json()["detail"]


@pytest.mark.parametrize("early", ["true", "false"])
def test_a_caller_that_sends_everything_before_it_reads(early: str, service: Service) -> None:
    """As most HTTP libraries do: with more on its way both ways than sockets hold."""
    images = np.random.default_rng(2).integers(0, 256, (4000, *WIDE.stimulus)).astype(np.uint8)
    connection = http.client.HTTPConnection(service.http.removeprefix("http://"), timeout=60)
    connection.request("POST", f"/v1/mice/wide/predict?early={early}", write_npy(images), {"content-type": NPY})
    found = read_npy(connection.getresponse().read(), "responses")
    connection.close()
    assert found.shape == (4000, 4000)
    assert_allclose(found[-100:], WIDE.respond_raw(images[-100:]), rtol=0, atol=1e-4)


def damaged(name: str) -> tuple[bytes, str]:
    """A body that is wrong from the start, and what the answer says of it."""
    whole = write_npy(MANY)
    return {
        "no npy": (b"\0" * len(whole), "not a .npy"),
        "too short": (whole[:-1], "announced"),
        "too long": (whole + b"\0", "announced"),
        "fortran": (saved(np.asfortranarray(MANY.astype(np.float32))), "Fortran"),
        "objects": (whole.replace(b"'|u1'", b"'|O8'", 1), "plain numbers"),
        "another size": (write_npy(MANY.reshape(-1, 48, 16)), "48×16"),
        "wrong rank": (write_npy(MANY.reshape(-1)), "rank 1"),
        "one image": (write_npy(MANY[:20].reshape(-1, 32)), "shape (480, 32) is one image, expected (N, H, W)"),
        "huge rows": (whole.replace(b"(3000, 24, 32)", b"(3, 24, 32000)", 1), "bytes each"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["no npy", "too short", "too long", "fortran", "objects", "another size", "wrong rank", "one image", "huge rows"],
)
def test_what_is_wrong_from_the_start_is_refused(name: str, service: Service) -> None:
    body, told = damaged(name)
    answer = post(service, "full", body)
    assert answer.status_code == (413 if name == "huge rows" else 400), answer.content
    problem = answer.json()
    assert told in problem["detail"]
    assert problem["field"] == "images"
    good(service)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({"dtype": "float64"}, "dtype"), ({"neurons": "7"}, "neurons"), ({"space": "lab"}, "space"), ({"model": "x"}, "")],
)
def test_parameters_are_checked(parameters: dict[str, str], field: str, service: Service) -> None:
    answer = post(service, "full", write_npy(MANY), **parameters)
    assert answer.status_code in (400, 404)
    assert answer.json()["field"] in (field, "model")
    good(service)


def test_an_npz_is_checked(service: Service) -> None:
    for body, told in [
        (npz(images=MANY, behavior=np.zeros((7, 3))), "7 rows"),
        (npz(images=MANY, extra=MANY[:1]), "extra"),
        (npz(pupil_center=MANY), "expand to"),
        (npz(behavior=np.zeros(3), pupil_center=np.zeros(2), neurons=MANY[:300]), "images"),
        (npz(images=MANY)[:-2000], "not a .npz"),
    ]:
        answer = post(service, "full", body, NPZ)
        assert answer.status_code in (400, 413)
        assert told in answer.json()["detail"]
    good(service)


def computed(service: Service) -> float:
    return counted(service, 'mousetwin_images_total{model="linear",mouse="full"}')


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_what_is_compressed_counts_by_what_it_expands_to(chunked: bool, service: Service) -> None:
    """Also where it is read row by row: refused before anything is computed."""
    before = computed(service)
    half = REQUEST_BYTES // 2 // MANY[0].size + 1
    for body, words in [
        (compressed(images=np.zeros((100_000, *FULL.stimulus), np.uint8)), ["76800128 bytes", str(REQUEST_BYTES)]),
        (compressed(images=MANY), ["numpy.savez", "fewer images"]),
        (compressed(images=np.zeros((half, *FULL.stimulus), np.uint8), behavior=np.zeros((half, 3, 90))), ["images"]),
    ]:
        headers = {"content-type": NPZ, "accept": NPY}
        answer = httpx.post(
            f"{service.http}/v1/mice/full/predict",
            content=in_pieces(body) if chunked else body,
            headers=headers,
            timeout=60,
        )
        assert answer.status_code == 413
        assert answer.json()["code"] == "RESOURCE_EXHAUSTED"
        assert all(word in answer.json()["detail"] for word in words), answer.json()
    assert computed(service) == before
    # What is within the limit may come compressed, beside images of any length that do not.
    stream = io.BytesIO(npz(images=MANY))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("behavior.npy", write_npy(np.full((len(MANY), 3), 4.0)))
    answer = post(service, "full", stream.getvalue(), NPZ)
    right = FULL.respond_raw(MANY, np.full((len(MANY), 3), 4.0))
    assert_allclose(read_npy(answer.content, "responses"), right, rtol=0, atol=1e-5)
    few = post(service, "full", compressed(images=MANY[:60]), NPZ)
    assert few.status_code == 200


WRONG_LATER = ["not finite", "cut off", "more than announced"]


def wrong_later(wrong: str) -> bytes:
    images = MANY.astype(np.float32)
    if wrong == "not finite":
        images[2900, 3, 4] = np.nan
    body = write_npy(images)
    return body[:-5000] if wrong == "cut off" else body + b"\0" if wrong == "more than announced" else body


@pytest.mark.parametrize("wrong", WRONG_LATER)
def test_what_goes_wrong_later_never_looks_like_a_whole_answer(wrong: str, service: Service) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        post(service, "full", in_pieces(wrong_later(wrong)), space="raw", early="true")
    good(service)


@pytest.mark.parametrize("wrong", WRONG_LATER)
def test_what_is_found_before_the_answer_begins_is_told(wrong: str, service: Service) -> None:
    body = wrong_later(wrong)
    parameters = "space=raw&early=false"
    if wrong == "not finite":
        # It is found while the body is still on its way.
        connection = Connection(service, "full", len(body), parameters)
        connection.socket.sendall(body[:-1])
        status, headers = connection.head()
        problem = json.loads(connection.stream.read(int(headers["content-length"])))
        connection.close()
    else:
        answer = post(service, "full", in_pieces(body), space="raw")
        status, problem = answer.status_code, answer.json()
    assert status == 400
    assert problem["field"] == "images"
    told = {"not finite": "nan", "cut off": f"has {len(body) + 5000} bytes, {len(body)} came"}
    assert told.get(wrong, "more came") in problem["detail"]
    good(service)


def counted(service: Service, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{service.http}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("how", ["stops reading", "hangs up", "stops sending"])
def test_a_caller_that_is_lost_costs_no_more_than_its_window(how: str, models: Path) -> None:
    images = np.zeros((6000, *WIDE.stimulus), np.uint8)
    body = write_npy(images)
    with in_thread(models, limits=Limits(stall_seconds=0.3)) as service:
        connection = Connection(service, "wide", len(body))
        connection.socket.sendall(body[: len(body) // 2] if how == "stops sending" else body)
        assert connection.head()[0] == 200
        if how == "hangs up":
            connection.close()
        if how == "stops sending":
            with pytest.raises(http.client.IncompleteRead):
                raise http.client.IncompleteRead(connection.stream.read(), len(body))
        code = "CANCELLED" if how == "hangs up" else "DEADLINE_EXCEEDED"
        until(lambda: counted(service, f'mousetwin_requests_total{{call="Predict",code="{code}",protocol="rest"}}'))
        # What sockets hold and a window, not the whole.
        assert counted(service, 'mousetwin_images_total{model="linear",mouse="wide"}') < 4000
        good(service)
        connection.close()


def test_a_caller_that_stops_sending_is_told(models: Path) -> None:
    body = write_npy(MANY)
    with in_thread(models, limits=Limits(stall_seconds=0.3, discard_seconds=0.1)) as service:
        connection = Connection(service, "full", len(body), "early=false")
        connection.socket.sendall(body[: len(body) // 2])
        status, headers = connection.head()
        problem = json.loads(connection.stream.read(int(headers["content-length"])))
        assert status == 504
        assert problem["detail"].startswith("the caller sent nothing for 0.3 s")
        # What is left of the body could come at any time: nothing else can be asked on this connection.
        assert connection.stream.read() == b""
        connection.close()
        good(service)


def test_a_caller_that_hangs_up_while_it_sends_is_noticed(models: Path) -> None:
    body = write_npy(MANY)
    with in_thread(models) as service:
        connection = Connection(service, "full", len(body), "early=false")
        connection.socket.sendall(body[: len(body) // 2])
        connection.close()
        name = 'mousetwin_requests_total{call="Predict",code="CANCELLED",protocol="rest"}'
        until(lambda: counted(service, name))
        good(service)


def test_no_room_for_what_waits_is_told(models: Path) -> None:
    images = np.zeros((2000, *WIDE.stimulus), np.uint8)
    body = write_npy(images)
    with as_command("--models", str(models), "--device", "cpu") as command:
        # Of its temporary files, which it writes when more than a megabyte waits.
        resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        answer = post(command.service, "wide", body)
        assert answer.status_code == 429
        assert "no room" in answer.json()["detail"]
        good(command.service)


@pytest.mark.parametrize("call", ["predict", "score"])
def test_no_room_for_an_npz_is_told(call: str, models: Path) -> None:
    body = npz(images=np.zeros((20_000, *FULL.stimulus), np.uint8), behavior=np.zeros(3))
    with as_command("--models", str(models), "--device", "cpu") as command:
        resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        answer = httpx.post(
            f"{command.service.http}/v1/mice/full/{call}",
            params={"space": "model"} if call == "score" else {},
            content=body,
            headers={"content-type": NPZ, "accept": "*/*" if call == "score" else NPY},
            timeout=60,
        )
        assert answer.json()["code"] == "RESOURCE_EXHAUSTED"
        assert answer.json()["detail"].startswith("body: the service has no room")
        good(command.service)


def test_two_hundred_at_once(service: Service) -> None:
    body = write_npy(MANY[:700])
    right = FULL.respond_raw(MANY[:700])

    async def ask() -> list[bytes]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=service.http, timeout=120, limits=limits) as client:

            async def one() -> bytes:
                answer = await client.post("/v1/mice/full/predict", content=body, headers={"content-type": NPY})
                assert answer.status_code == 200
                return answer.content

            return await asyncio.gather(*(one() for _ in range(200)))

    answers = asyncio.run(ask())
    assert len(set(answers)) == 1
    assert_allclose(read_npy(answers[0], "responses"), right, rtol=0, atol=1e-5)
