from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HOSTS, Host, open_host
from running import Service


@pytest.fixture(scope="session", params=HOSTS)
def host(request: pytest.FixtureRequest, service: Service, models: Path) -> Iterator[Host]:
    """The service, by every way there is to ask it."""
    opened = open_host(request.param, service, models)
    yield opened
    opened.close()
