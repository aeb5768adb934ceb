"""`mousetwin fetch` against a local server standing in for the public repository."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mousetwin
import numpy as np
import pytest
from checkpoints import CHECKPOINTS, real_checkpoint
from mousetwin.cli import main


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A base URL, and the folder behind it."""
    folder = tmp_path / "public"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_real_mouse_in_one_command(
    repository: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = repository
    checkpoint, _, mouse = real_checkpoint("sensorium_plus")
    (folder / checkpoint.name).symlink_to(checkpoint)
    out = tmp_path / "models"
    command = ["fetch", "--mouse", mouse, "--model", "cnn", "--no-gradient", "--out", str(out), "--base-url", url]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert str(out / mouse / "cnn" / "1") in printed.out
    assert f"{checkpoint.stat().st_size}/{checkpoint.stat().st_size} bytes" in printed.err
    with mousetwin.connect(f"local:{out}") as twins:
        twin = twins[mouse]
        assert twin.summary.neurons == 7538
        assert twin.summary.takes_raw
        assert twin.info.licence == "MIT"
        assert "sinzlab/sensorium" in twin.info.source
        assert not twin.summary.synthetic
        assert twin.predict(np.zeros((1, 36, 64)), behavior=[1, 0, 1], space="model").shape == (1, 7538)


def test_a_file_that_is_not_what_was_published(
    repository: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = repository
    (folder / "sensorium_sota_model.pth").write_bytes(b"something else")
    out = tmp_path / "models"
    assert main(["fetch", "--mouse", "26872-17-20", "--model", "cnn", "--out", str(out), "--base-url", url]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sensorium_sota_model.pth" in line
    assert "sha256" in line
    assert not out.exists()


def test_a_file_that_is_not_there(
    repository: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = repository
    assert main(["fetch", "--out", str(tmp_path / "models"), "--base-url", url]) == 1
    error = capsys.readouterr().err
    assert error == f"mousetwin: {url}/sensorium_sota_model.pth: the server answered 404 File not found\n"


def test_a_network_that_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert main(["fetch", "--out", str(tmp_path / "models"), "--base-url", url]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert url in error
    assert "cannot be reached" in error


@pytest.mark.parametrize(
    "answer",
    [
        b"hello there\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    ],
)
def test_a_server_that_breaks_off_or_speaks_no_http(
    answer: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert main(["fetch", "--out", str(tmp_path / "models"), "--base-url", url]) == 1
        thread.join()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"mousetwin: {url}")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:80/a b", "http://127.0.0.1:port", "nonsense"])
def test_an_address_that_is_none(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--out", str(tmp_path / "models"), "--base-url", url]) == 1
    assert capsys.readouterr().err.startswith(f"mousetwin: {url}")


def test_a_mouse_that_was_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--mouse", "1-2-3", "--out", str(tmp_path / "models")]) == 1
    error = capsys.readouterr().err
    assert "1-2-3" in error
    assert "26872-17-20 cnn" in error


def test_the_published_hashes_are_those_of_the_readme_beside_the_checkpoints() -> None:
    from mousetwin_export.fetch import BASE_URL, BASELINES, COMMIT

    real_checkpoint("sensorium")
    document = (CHECKPOINTS / "README.md").read_text()
    assert COMMIT in document
    assert COMMIT in BASE_URL
    for baseline in BASELINES:
        assert baseline.file in document
        assert baseline.sha256 in document
        assert baseline.mouse in document
