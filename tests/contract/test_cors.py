"""Web pages of other origins: what a browser asks for them, and what it lets them read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bundles import FULL
from mousetwin.arrays import write_npy
from mousetwin_serve.api.cors import check_origins
from running import Service, as_command

LAB, RIG, ELSEWHERE = "https://lab.example", "http://127.0.0.1:3000", "https://elsewhere.example"
NPY = "application/x-npy"
SHOWN = np.random.default_rng(0).integers(0, 256, (2, *FULL.stimulus)).astype(np.uint8)


@pytest.fixture(scope="module")
def open_to_some(models: Path) -> Iterator[Service]:
    with as_command("--models", str(models), "--device", "cpu", "--cors-origin", LAB, "--cors-origin", RIG) as command:
        yield command.service


@pytest.fixture(scope="module")
def open_to_all(models: Path) -> Iterator[Service]:
    with as_command("--models", str(models), "--device", "cpu", "--cors-origin=*") as command:
        yield command.service


def preflight(service: Service, origin: str, path: str = "/v1/mice/full/predict", **asked: str) -> httpx.Response:
    wanted = {"method": "POST", "headers": "content-type", **asked}
    headers = {f"Access-Control-Request-{name}": value for name, value in wanted.items()}
    return httpx.options(f"{service.http}{path}", headers={"Origin": origin, **headers})


def asked(service: Service, origin: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Origin": origin, **options.pop("headers", {})}
    return httpx.request(options.pop("method", "POST"), f"{service.http}{path}", headers=headers, **options)


def listed(response: httpx.Response, name: str) -> set[str]:
    return {part.strip().lower() for part in response.headers.get(name, "").split(",")}


@pytest.mark.parametrize("origin", [LAB, RIG])
def test_a_preflight_is_answered(origin: str, open_to_some: Service) -> None:
    for path in ("/v1/mice", "/v1/mice/full/predict", "/v1/mice/full/gradient", "/v1/mice/full/score"):
        for wanted in ("content-type", "accept", "content-type,accept"):
            answer = preflight(open_to_some, origin, path, headers=wanted)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert listed(answer, "access-control-allow-methods") == {"get", "post"}
            assert {"content-type", "accept"} <= listed(answer, "access-control-allow-headers")
            assert "origin" in listed(answer, "vary")
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "wanted"), [(ELSEWHERE, {}), (LAB, {"method": "DELETE"}), (LAB, {"headers": "x-secret"})]
)
def test_a_preflight_for_what_is_not_allowed_is_refused(
    origin: str, wanted: dict[str, str], open_to_some: Service
) -> None:
    answer = preflight(open_to_some, origin, **wanted)
    assert answer.status_code == 400
    assert answer.headers.get("access-control-allow-origin") != ELSEWHERE


def test_a_page_reads_answers_and_what_their_headers_tell(open_to_some: Service) -> None:
    answer = asked(open_to_some, LAB, "/v1/mice/full/predict", content=write_npy(SHOWN), headers={"content-type": NPY})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == LAB
    ours = {name for name in answer.headers if name.startswith("x-")}
    assert {"x-mousetwin-twin", "x-request-id"} <= ours <= listed(answer, "access-control-expose-headers")
    many = write_npy(np.resize(SHOWN, (3000, *FULL.stimulus)))
    streamed = asked(open_to_some, RIG, "/v1/mice/full/predict", content=many, headers={"content-type": NPY})
    assert streamed.status_code == 200
    assert streamed.headers["access-control-allow-origin"] == RIG
    assert asked(open_to_some, LAB, "/v1/mice", method="GET").headers["access-control-allow-origin"] == LAB


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/mice/nobody/predict", {"content": bytes(10 << 20), "headers": {"content-type": NPY}}, 404),
        ("/v2", {}, 404),
        ("/v1/mice", {"method": "DELETE"}, 405),
        ("/v1/mice/full/predict", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ("/v1/mice/full/predict", {"content": b"a,b", "headers": {"content-type": "text/csv"}}, 415),
        ("/v1/mice/full/predict?timeout=1e-9", {"content": write_npy(SHOWN), "headers": {"content-type": NPY}}, 504),
    ],
)
def test_a_page_reads_why_it_was_refused(
    path: str, options: dict[str, Any], status: int, open_to_some: Service
) -> None:
    answer = asked(open_to_some, LAB, path, **options)
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert answer.headers["access-control-allow-origin"] == LAB
    assert "access-control-allow-origin" not in asked(open_to_some, ELSEWHERE, path, **options).headers


def test_all_pages_only_where_that_is_said(open_to_all: Service, open_to_some: Service, service: Service) -> None:
    assert preflight(open_to_all, ELSEWHERE).headers["access-control-allow-origin"] == "*"
    assert asked(open_to_all, "null", "/v1/mice", method="GET").headers["access-control-allow-origin"] == "*"
    for origin in (ELSEWHERE, "null", "https://lab.example.org", "http://lab.example", "https://lab.example:8443"):
        answer = asked(open_to_some, origin, "/v1/mice", method="GET")
        assert "access-control-allow-origin" not in answer.headers
    # Without the option nothing is said of it at all.
    assert preflight(service, LAB).status_code == 405
    assert not [n for n in asked(service, LAB, "/v1/mice", method="GET").headers if n.startswith("access-control")]


@pytest.mark.parametrize(
    "origin",
    [
        "lab.example",
        "https://lab.example/",
        "https://lab.example/page",
        "https://lab.example?a",
        "https://lab.example#a",
        "https://LAB.example",
        "HTTPS://lab.example",
        "https://lab.example:443",
        "http://lab.example:80",
        "http://lab.example:0080",
        "http://lab.example:70000",
        "http://lab.example:",
        "https://me@lab.example",
        "https://*.lab.example",
        "https://lab.example,https://rig.example",
        "ftp://lab.example",
        "https://",
        "null",
        "",
        "https://lab.example\n",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_in_one_line(origin: str, models: Path) -> None:
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--models", str(models), f"--cors-origin={origin}"]
    done = subprocess.run(
        [*command, "--http-port=0", "--grpc-port=0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mousetwin: --cors-origin: {origin!r}, expected an origin")


@pytest.mark.parametrize("origin", ["http://[::1]:3000", "http://localhost", "https://xn--bcher-kva.example:8443", "*"])
def test_origins_that_browsers_send(origin: str) -> None:
    check_origins([origin])
