from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HOSTS, ClientHost, Host, open_host
from running import Service


@pytest.fixture(scope="session", params=HOSTS)
def host(request: pytest.FixtureRequest, service: Service, models: Path) -> Iterator[Host]:
    """The service, by every way there is to ask it."""
    if request.param == "torchserve":
        opened: Host = ClientHost(f"torchserve://{request.getfixturevalue('torchserve').grpc}")
    else:
        opened = open_host(request.param, service, models)
    yield opened
    opened.close()
