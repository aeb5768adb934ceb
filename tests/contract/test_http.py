"""HTTP itself: requests as other languages' libraries and proxies send them, and answers that always arrive."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bundles import BUSY, FULL
from mousetwin.arrays import read_npy, write_npy
from mousetwin_serve.limits import Limits
from numpy.testing import assert_allclose
from running import Service, in_thread, until

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
SHOWN = np.random.default_rng(0).integers(0, 256, (2, *FULL.stimulus)).astype(np.uint8)
RIGHT = FULL.respond_raw(SHOWN)
PREDICT = "/v1/mice/full/predict"


def head(path: str, *headers: str, method: str = "POST", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: a", *headers, "", ""]).encode()


def asked(*headers: str, body: bytes = b"", path: str = PREDICT, chunked: bool = False, version: str = "1.1") -> bytes:
    """A whole request with a body."""
    if chunked:
        pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        return head(path, *headers, "Transfer-Encoding: chunked", version=version) + body
    return head(path, *headers, f"Content-Length: {len(body)}", version=version) + body


class Connection:
    """What is sent is sent as it is."""

    def __init__(self, service: Service) -> None:
        address, _, port = service.http.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((address, int(port)), timeout=60)
        self.stream = self.socket.makefile("rb")

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next final answer: what says to continue is skipped, as by every client."""
        while True:
            status = int(self.stream.readline().split()[1])
            lines = [line.decode().partition(":") for line in iter(self.stream.readline, b"\r\n")]
            headers = {name.strip().lower(): value.strip() for name, _, value in lines}
            if status >= 200:
                return status, headers, self.stream.read(int(headers["content-length"]))

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


@contextmanager
def connected(service: Service) -> Iterator[Connection]:
    connection = Connection(service)
    try:
        yield connection
    finally:
        connection.close()


def check(answer: tuple[int, dict[str, str], bytes]) -> None:
    status, headers, body = answer
    assert status == 200, body
    found = read_npy(body, "responses") if headers["content-type"] == NPY else json.loads(body)["responses"]
    assert_allclose(found, RIGHT, rtol=0, atol=1e-5)


# Offers


OFFERS = {
    "Java's HttpClient": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB"],
    "curl --http2": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
    "websocket": ["Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Version: 13"],
    "TLS": ["Connection: upgrade", "Upgrade: TLS/1.0"],
    "several": ["Connection: keep-alive", "Connection: UPGRADE", "Upgrade: HTTP/2.0, SHTTP/1.3", "Upgrade: IRC/6.9"],
    "no connection": ["Upgrade: h2c"],
}


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("kind", [JSON, NPY])
@pytest.mark.parametrize("offer", OFFERS)
def test_a_request_that_offers_another_protocol_is_read_like_any_other(
    offer: str, kind: str, chunked: bool, service: Service
) -> None:
    body = write_npy(SHOWN) if kind == NPY else json.dumps({"images": SHOWN.tolist()}).encode()
    request = asked(*OFFERS[offer], f"Content-Type: {kind}", body=body, chunked=chunked)
    with connected(service) as connection:
        connection.socket.sendall(request)
        check(connection.answer())
        # The connection goes on: with the same, with others, several at once and in small pieces.
        others = head("/livez", *OFFERS[offer], method="GET") + request + head("/livez", method="GET")
        connection.socket.sendall(others)
        assert connection.answer()[0] == 200
        check(connection.answer())
        assert json.loads(connection.answer()[2]) == {"status": "live"}
        for start in range(0, len(request), 997):
            connection.socket.sendall(request[start : start + 997])
        check(connection.answer())


def test_offers_that_follow_on_each_other(service: Service) -> None:
    one = head("/livez", *OFFERS["TLS"], method="GET")
    with connected(service) as connection:
        connection.socket.sendall(one * 3000)
        for _ in range(3000):
            assert connection.answer()[0] == 200


def test_an_offer_with_the_connection_s_last_request(service: Service) -> None:
    request = asked("Connection: Upgrade, close", "Upgrade: h2c", f"Content-Type: {NPY}", body=write_npy(SHOWN))
    old = asked(*OFFERS["TLS"], f"Content-Type: {NPY}", body=write_npy(SHOWN), version="1.0")
    for last in (request, old):
        with connected(service) as connection:
            connection.socket.sendall(last)
            check(connection.answer())
            assert connection.stream.read() == b""


def test_an_offer_with_a_body_of_any_length(service: Service) -> None:
    many = np.resize(SHOWN, (3000, *FULL.stimulus))
    request = asked(*OFFERS["Java's HttpClient"], f"Content-Type: {NPY}", body=write_npy(many))
    with connected(service) as connection:
        connection.socket.sendall(request)
        found = read_npy(connection.answer()[2], "responses")
    assert_allclose(found, np.resize(RIGHT, (3000, 7)), rtol=0, atol=1e-5)


def test_a_body_that_is_waited_for_beside_an_offer(service: Service) -> None:
    request = asked(*OFFERS["curl --http2"], "Expect: 100-continue", f"Content-Type: {NPY}", body=write_npy(SHOWN))
    begun, _, body = request.partition(b"\r\n\r\n")
    with connected(service) as connection:
        connection.socket.sendall(begun + b"\r\n\r\n")
        assert connection.stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert connection.stream.readline() == b"\r\n"
        connection.socket.sendall(body)
        check(connection.answer())


def test_a_tunnel_is_refused(service: Service) -> None:
    for target in ("elsewhere:443", "/v1/mice"):
        with connected(service) as connection:
            connection.socket.sendall(head(target, method="CONNECT") + b"\x16\x03\x01")
            assert 400 <= connection.answer()[0] < 500


# The other side closes, wholly or by half


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_caller_that_ends_its_side_after_the_request_is_answered(
    version: str, chunked: bool, service: Service
) -> None:
    with connected(service) as connection:
        request = asked(f"Content-Type: {NPY}", body=write_npy(SHOWN), chunked=chunked, version=version)
        connection.socket.sendall(request)
        connection.socket.shutdown(socket.SHUT_WR)
        check(connection.answer())
        assert connection.stream.read() == b""


def test_all_requests_are_answered_before_the_end(service: Service) -> None:
    with connected(service) as connection:
        request = asked(f"Content-Type: {NPY}", body=write_npy(SHOWN))
        connection.socket.sendall(request * 3 + head("/livez", method="GET"))
        connection.socket.shutdown(socket.SHUT_WR)
        for _ in range(3):
            check(connection.answer())
        assert json.loads(connection.answer()[2]) == {"status": "live"}
        assert connection.stream.read() == b""


@pytest.mark.parametrize("early", ["true", "false"])
def test_a_long_body_whose_caller_ends_its_side(early: str, service: Service) -> None:
    many = np.resize(SHOWN, (3000, *FULL.stimulus))
    with connected(service) as connection:
        request = asked(f"Content-Type: {NPY}", body=write_npy(many), path=f"{PREDICT}?early={early}")
        connection.socket.sendall(request)
        connection.socket.shutdown(socket.SHUT_WR)
        found = read_npy(connection.answer()[2], "responses")
        assert connection.stream.read() == b""
    assert_allclose(found, np.resize(RIGHT, (3000, 7)), rtol=0, atol=1e-5)


def test_a_half_of_a_request_is_a_hang_up(service: Service) -> None:
    request = asked(f"Content-Type: {NPY}", body=write_npy(SHOWN))
    for sent in (b"", request[:30], request[:-1]):
        with connected(service) as connection:
            connection.socket.sendall(sent)
            connection.socket.shutdown(socket.SHUT_WR)
            assert connection.stream.read() == b""


def counted(service: Service, code: str) -> float:
    name = re.escape(f'mousetwin_requests_total{{call="Predict",code="{code}",protocol="rest"}}')
    found = re.search(rf"^{name} (\S+)$", httpx.get(f"{service.http}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("how", ["closes", "ends its side and closes later", "resets"])
def test_work_for_a_caller_who_is_gone_is_dropped(how: str, models: Path) -> None:
    """A caller who closed looks like one who ended its side, until it is written to."""
    # Work for a minute or more.
    body = write_npy(BUSY.inputs(20_000)["images"])
    request = asked(f"Content-Type: {NPY}", f"Accept: {JSON}", body=body, path="/v1/mice/busy/predict?space=model")
    with in_thread(models) as service:
        connection = Connection(service)
        connection.socket.sendall(request)
        until(lambda: 'queued_images{model="linear",mouse="busy"} 0.0' not in httpx.get(f"{service.http}/metrics").text)
        if how == "resets":
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how.startswith("ends"):
            connection.socket.shutdown(socket.SHUT_WR)
            # It is told to continue, which it skips.
            assert connection.stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        connection.close()
        until(lambda: counted(service, "CANCELLED"))
        assert not counted(service, "OK")


def test_a_caller_who_ended_its_side_waits_for_long_work(models: Path) -> None:
    given = BUSY.inputs(2000)
    request = asked(f"Content-Type: {NPY}", f"Accept: {NPZ}", body=write_npy(given["images"]),
                    path="/v1/mice/busy/predict?space=model")  # fmt: skip
    with in_thread(models) as service, connected(service) as connection:
        connection.socket.sendall(request)
        connection.socket.shutdown(socket.SHUT_WR)
        status, _, body = connection.answer()
        assert connection.stream.read() == b""
    assert status == 200
    assert_allclose(np.load(io.BytesIO(body))["responses"], BUSY.respond(**given), rtol=0, atol=2e-6)


# What comes compressed


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP", "compress"])
@pytest.mark.parametrize(
    ("call", "kind", "length"),
    [
        ("predict", JSON, 100),
        ("predict", NPY, 100),
        ("predict", NPZ, 100),
        ("predict", NPY, 3 << 20),
        ("predict", NPZ, 3 << 20),
        ("gradient", JSON, 100),
        ("gradient", NPZ, 100),
        ("score", NPZ, 100),
        ("score", NPZ, 3 << 20),
    ],
)
def test_a_compressed_body_is_refused_by_name(coding: str, call: str, kind: str, length: int, service: Service) -> None:
    headers = {"content-type": kind, "content-encoding": coding}
    answer = httpx.post(f"{service.http}/v1/mice/full/{call}", content=b"\x1f" * length, headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert answer.json()["detail"] == f"content-encoding: {coding.lower()!r}, expected none: send the body as it is"


def test_codings_that_change_nothing_are_taken(service: Service) -> None:
    for coding in ("identity", "Identity", ""):
        headers = {"content-type": NPY, "content-encoding": coding}
        answer = httpx.post(f"{service.http}{PREDICT}", content=write_npy(SHOWN), headers=headers)
        assert answer.status_code == 200


def test_codings_in_several_headers_and_of_the_transfer_are_looked_at(service: Service) -> None:
    with connected(service) as connection:
        several = ("Content-Encoding: identity", "Content-Encoding: gzip")
        connection.socket.sendall(asked(f"Content-Type: {NPY}", *several, body=write_npy(SHOWN)))
        status, _, body = connection.answer()
        assert (status, json.loads(body)["detail"][:37]) == (415, "content-encoding: 'identity, gzip', e")
        compressed = (
            head(PREDICT, f"Content-Type: {NPY}", "Transfer-Encoding: gzip, chunked") + b"3\r\nabc\r\n0\r\n\r\n"
        )
        connection.socket.sendall(compressed)
        status, _, body = connection.answer()
        assert (status, json.loads(body)["detail"]) == (
            501,
            "transfer-encoding: 'gzip, chunked', expected 'chunked' or none",
        )


# Refused while the body is on its way

LARGE = bytes(10 << 20)
# What is asked, the status, and words of the reason.
EARLY: dict[str, tuple[str, str, dict[str, str], int, str]] = {
    "mouse": ("POST", "/v1/mice/nobody/predict", {"Content-Type": NPY}, 404, "nobody"),
    "model": ("POST", "/v1/mice/full/predict?model=x", {"Content-Type": NPY}, 404, "model"),
    "path": ("POST", "/v2/mice", {"Content-Type": NPY}, 404, "Not Found"),
    "method": ("PUT", PREDICT, {"Content-Type": NPY}, 405, "Method Not Allowed"),
    "size": ("POST", PREDICT, {"Content-Type": JSON}, 413, "larger than the limit"),
    "type": ("POST", PREDICT, {"Content-Type": "text/csv"}, 415, "text/csv"),
    "coding": ("POST", PREDICT, {"Content-Type": NPY, "Content-Encoding": "gzip"}, 415, "gzip"),
    "accept": ("POST", PREDICT, {"Content-Type": NPY, "Accept": "text/html"}, 406, "accept"),
    "timeout": ("POST", f"{PREDICT}?timeout=-1", {"Content-Type": NPY}, 400, "timeout"),
    "dtype": ("POST", f"{PREDICT}?dtype=int8", {"Content-Type": NPY}, 400, "dtype"),
    "score": ("POST", "/v1/mice/nobody/score", {"Content-Type": NPZ}, 404, "nobody"),
    "gradient": ("POST", "/v1/mice/full/gradient", {"Content-Type": NPY}, 415, "x-npy"),
    "no npy": ("POST", PREDICT, {"Content-Type": NPY}, 400, "not a .npy"),
}  # fmt: skip


def by_urllib(service: Service, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{service.http}{path}", LARGE, headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    with caught.value as refusal:
        return refusal.code, refusal.read()


def by_http_client(service: Service, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Chunked, and on a connection that is kept."""
    connection = http.client.HTTPConnection(service.http.removeprefix("http://"), timeout=60)
    pieces = (LARGE[start : start + 100_000] for start in range(0, len(LARGE), 100_000))
    connection.request(method, path, pieces, headers, encode_chunked=True)
    refusal = connection.getresponse()
    found = refusal.status, refusal.read()
    connection.request("GET", "/livez")
    assert json.loads(connection.getresponse().read()) == {"status": "live"}
    connection.close()
    return found


def by_socket(
    service: Service, method: str, path: str, headers: dict[str, str], version: str, *extra: str
) -> tuple[int, bytes]:
    with connected(service) as connection:
        lines = [*(f"{name}: {value}" for name, value in headers.items()), f"Content-Length: {len(LARGE)}", *extra]
        connection.socket.sendall(head(path, *lines, method=method, version=version))
        connection.socket.sendall(LARGE)
        status, _, body = connection.answer()
        return status, body


WAYS: dict[str, Any] = {
    "urllib": by_urllib,
    "chunked, kept": by_http_client,
    "HTTP/1.0": lambda *asked: by_socket(*asked, "1.0"),
    "to be closed": lambda *asked: by_socket(*asked, "1.1", "Connection: close"),
    "kept": lambda *asked: by_socket(*asked, "1.1"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refusal", EARLY)
def test_the_reason_of_an_early_refusal_always_arrives(refusal: str, way: str, service: Service) -> None:
    """With callers who send everything before they read anything."""
    method, path, headers, status, told = EARLY[refusal]
    for _ in range(5):
        found, body = WAYS[way](service, method, path, headers)
        assert found == status, body
        assert told in json.loads(body)["detail"]


def test_a_caller_that_waits_to_be_asked_for_its_body_is_not_asked(service: Service) -> None:
    with connected(service) as connection:
        lines = (f"Content-Type: {NPY}", "Expect: 100-continue", f"Content-Length: {len(LARGE)}")
        connection.socket.sendall(head("/v1/mice/nobody/predict", *lines))
        assert connection.stream.readline() == b"HTTP/1.1 404 Not Found\r\n"
        headers = list(iter(connection.stream.readline, b"\r\n"))
        assert b"connection: close\r\n" in headers
        assert b"nobody" in connection.stream.read()


@pytest.mark.parametrize("bound", ["bytes", "seconds"])
def test_a_caller_that_sends_forever_is_cut_off(bound: str, models: Path) -> None:
    limits = Limits(discard_bytes=1 << 20) if bound == "bytes" else Limits(discard_seconds=0.2)
    with in_thread(models, limits=limits) as service, connected(service) as connection:
        connection.socket.sendall(head("/v1/mice/nobody/predict", f"Content-Type: {NPY}", "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):  # noqa: PT012
            while True:
                connection.socket.sendall(chunk)


def test_a_caller_that_never_sends_its_body_is_told_and_let_go(models: Path) -> None:
    with in_thread(models, limits=Limits(discard_seconds=0.2)) as service, connected(service) as connection:
        connection.socket.sendall(head("/v2", f"Content-Length: {len(LARGE)}"))
        assert connection.answer()[0] == 404
        assert connection.stream.read() == b""


def test_a_short_body_that_nobody_asked_for_costs_no_connection(service: Service) -> None:
    with connected(service) as connection:
        for body in (b"", b"{}", bytes(100_000)):
            connection.socket.sendall(asked(body=body, path="/v2"))
            assert connection.answer()[0] == 404
            connection.socket.sendall(head("/livez", method="GET"))
            assert connection.answer()[0] == 200
