"""One service with tiny twins, for all contract tests; every question is put to it over gRPC and over REST."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from serving import Caller, GrpcCaller, RestCaller, Served, serve


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for twin in tiny.ALL:
        twin.write(folder)
    return folder


@pytest.fixture(scope="session")
def served(models: Path) -> Iterator[Served]:
    with serve(models) as running:
        yield running


@pytest.fixture(params=[GrpcCaller, RestCaller], ids=["grpc", "rest"])
def caller(request: pytest.FixtureRequest, served: Served) -> Iterator[Caller]:
    asked: Caller = request.param(served)
    yield asked
    asked.close()


@pytest.fixture
def rest(served: Served) -> Iterator[RestCaller]:
    asked = RestCaller(served)
    yield asked
    asked.close()


@pytest.fixture
def over_grpc(served: Served) -> Iterator[GrpcCaller]:
    asked = GrpcCaller(served)
    yield asked
    asked.close()
