"""The client's tests need mousetwin, pytest, and the address of a service of the demo mouse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import mousetwin
import pytest


@pytest.fixture(scope="session")
def server_address() -> Iterator[str]:
    """`MOUSETWIN_TEST_SERVER`, or a service started here."""
    if address := os.environ.get("MOUSETWIN_TEST_SERVER"):
        yield address
        return
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("gRPC"))
        process.terminate()


@pytest.fixture
def twins(server_address: str) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(server_address, timeout=60) as connected:
        yield connected


@pytest.fixture
def mouse(twins: mousetwin.Twins) -> mousetwin.Mouse:
    return twins["demo"]
