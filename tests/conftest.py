"""Fixtures for the whole suite. Nothing heavy is imported here: tests/client runs where only the client is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from running import Service, TorchServe

# Every core has a worker of its own: torch's threads beside them, in all of them, only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny twin of `bundles.ALL`."""
    from bundles import ALL

    folder = tmp_path_factory.mktemp("models")
    for twin in ALL:
        twin.write(folder)
    return folder


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[Service]:
    """A service of `models`, with limits low enough to run into."""
    from mousetwin_serve.limits import Limits
    from running import REQUEST_BYTES, RESPONSE_BYTES, in_thread

    with in_thread(models, limits=Limits(REQUEST_BYTES, RESPONSE_BYTES)) as running:
        yield running


@pytest.fixture(scope="session")
def torchserve(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A real TorchServe of `models`."""
    from running import as_torchserve

    if not shutil.which("java"):
        pytest.skip("TorchServe needs Java 17, which is not installed")
    with as_torchserve(models, tmp_path_factory.mktemp("torchserve")) as running:
        yield running
