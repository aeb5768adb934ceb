"""Behind nginx and HAProxy: the real programs, with the configuration of docs/deploying.md."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import mousetwin
import numpy as np
import pytest
from bundles import FULL, TinyTwin
from mousetwin.arrays import read_npy, write_npy
from numpy.testing import assert_allclose
from running import Service, free_ports, in_thread, until

NPY = "application/x-npy"
PAGE = (Path(__file__).parents[2] / "docs/deploying.md").read_text()
SHOWN = np.random.default_rng(0).integers(0, 256, (2, *FULL.stimulus)).astype(np.uint8)
# As large as what is shown on the monitor: 57 MB in, 13 MB out.
LARGE = TinyTwin("large", native=(36, 64), stimulus=(144, 256), behavior=(), pupil_center=(), neurons=2000, seed=10)
MANY = np.random.default_rng(1).integers(0, 256, (1600, *LARGE.stimulus)).astype(np.uint8)


def recipe(language: str, service: Service, ports: list[int]) -> str:
    """The page's configuration for this service, on other ports."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found = found.replace("127.0.0.1:8000", service.http.removeprefix("http://"))
    found = found.replace("127.0.0.1:8001", service.grpc)
    for port, usual in zip(ports, (80, 81), strict=True):
        found, count = re.subn(rf"(listen |bind :){usual}\b", lambda m: f"{m[1]}{port}", found)  # noqa: B023
        assert count == 1
    return found


NGINX = """
user root;
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


def nginx(folder: Path, service: Service, ports: list[int], buffering: str) -> list[str]:
    servers, count = re.subn(r"(proxy_request_buffering) \w+;", rf"\1 {buffering};", recipe("nginx", service, ports))
    assert count == 1
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers))
    return ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def haproxy(folder: Path, service: Service, ports: list[int]) -> list[str]:
    (folder / "haproxy.cfg").write_text(recipe("haproxy", service, ports))
    return ["-db", "-f", str(folder / "haproxy.cfg")]


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = tmp_path_factory.mktemp("models")
    for twin in (FULL, LARGE):
        twin.write(models)
    with in_thread(models) as service:
        yield service


@pytest.fixture(scope="module", params=["nginx off", "nginx on", "haproxy"])
def proxied(
    request: pytest.FixtureRequest, direct: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    program, *buffering = request.param.split()
    # Debian keeps them where only root looks.
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed (apt-get install {program})")
    folder = tmp_path_factory.mktemp(program)
    ports = free_ports(2)
    options = nginx(folder, direct, ports, *buffering) if program == "nginx" else haproxy(folder, direct, ports)
    with (folder / "out.log").open("wb") as out:
        process = subprocess.Popen([found, *options], stdout=out, stderr=out)
    try:
        proxy = Service(f"127.0.0.1:{ports[1]}", f"http://127.0.0.1:{ports[0]}")

        def is_up() -> bool:
            assert process.poll() is None, (folder / "out.log").read_text()
            try:
                return httpx.get(f"{proxy.http}/livez").status_code == 200
            except httpx.TransportError:
                return False

        until(is_up)
        yield proxy
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_of_any_length(chunked: bool, proxied: Service) -> None:
    body = write_npy(MANY)
    pieces = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    answer = httpx.post(
        f"{proxied.http}/v1/mice/large/predict",
        content=pieces if chunked else body,
        headers={"content-type": NPY},
        timeout=50,
    )
    assert answer.status_code == 200, answer.content
    found = read_npy(answer.content, "responses")
    assert found.shape == (1600, 2000)
    for rows in (slice(0, 100), slice(-100, None)):
        assert_allclose(found[rows], LARGE.respond_raw(MANY[rows]), rtol=0, atol=1e-4)


EARLY = {
    "mouse": ("/v1/mice/nobody/predict", NPY, 404, "nobody"),
    "type": ("/v1/mice/full/predict", "text/csv", 415, "text/csv"),
    "parameter": ("/v1/mice/full/predict?timeout=no", NPY, 400, "timeout"),
    "body": ("/v1/mice/full/predict", NPY, 400, "not a .npy"),
}


@pytest.mark.parametrize("refusal", EARLY)
def test_the_reason_of_an_early_refusal_arrives(refusal: str, proxied: Service) -> None:
    path, kind, status, told = EARLY[refusal]
    for _ in range(10):
        request = urllib.request.Request(f"{proxied.http}{path}", bytes(10 << 20), {"Content-Type": kind})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=50)
        with caught.value as refused:
            assert refused.code == status
            assert told in json.loads(refused.read())["detail"]


def test_a_request_that_offers_another_protocol(proxied: Service) -> None:
    headers = {
        "content-type": NPY,
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2-settings": "AAEAAEAA",
    }
    connection = http.client.HTTPConnection(proxied.http.removeprefix("http://"), timeout=50)
    for _ in range(3):
        connection.request("POST", "/v1/mice/full/predict", write_npy(SHOWN), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        assert_allclose(read_npy(answer.read(), "responses"), FULL.respond_raw(SHOWN), rtol=0, atol=1e-5)
    connection.close()


def test_grpc(proxied: Service) -> None:
    with mousetwin.connect(proxied.grpc, timeout=50) as twins:
        assert sorted(twins) == ["full", "large"]
        assert_allclose(twins["full"].predict(SHOWN), FULL.respond_raw(SHOWN), rtol=0, atol=1e-5)
        found = twins["large"].predict(MANY)
        assert_allclose(found[-100:], LARGE.respond_raw(MANY[-100:]), rtol=0, atol=1e-4)
        with pytest.raises(mousetwin.InvalidArgument) as caught:
            twins["full"].predict(SHOWN, neurons=[7])
        assert caught.value.field == "neurons"
        with twins["full"].session() as session:
            for _ in range(20):
                assert_allclose(session.predict(SHOWN), FULL.respond_raw(SHOWN), rtol=0, atol=1e-5)
