"""Services for tests to ask: one in a thread of this process, one as the command users start."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What one request to the suite's service may hold, and its answer: low enough to run into.
REQUEST_BYTES, RESPONSE_BYTES = 256 << 10, 100_000


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.005)
    return found


@dataclass(frozen=True)
class Service:
    """Where a running service listens."""

    grpc: str
    http: str


@contextmanager
def in_thread(models: Path, **options: Any) -> Iterator[Service]:
    """The standalone host on free ports, in a thread with an event loop of its own."""
    from mousetwin_serve.device import choose
    from mousetwin_serve.hosts.standalone import Addresses, StandaloneServer
    from mousetwin_serve.repository import Repository
    from mousetwin_serve.service import TwinService

    repository = Repository.load(models, choose("cpu"), options.get("limits"))
    assert not repository.refused
    started: Future[tuple[Service, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        try:
            server = StandaloneServer(TwinService(repository, **options), Addresses(http_port=0, grpc_port=0))
            await server.start()
        except BaseException as error:
            started.set_exception(error)
            raise
        stop = asyncio.Event()
        service = Service(f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.http_port}")
        started.set_result((service, asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="service")
    thread.start()
    try:
        service, loop, stop = started.result(60)
        yield service
        loop.call_soon_threadsafe(stop.set)
    finally:
        if started.done() and not started.exception():
            loop.call_soon_threadsafe(stop.set)
        thread.join(60)
    assert not thread.is_alive()


@dataclass(frozen=True)
class Command:
    """`mousetwin serve`, running. welcome: what it printed until it listened."""

    process: subprocess.Popen[str]
    service: Service
    welcome: str


@contextmanager
def as_command(*arguments: str, **environment: str) -> Iterator[Command]:
    """`mousetwin serve` on free ports, as a user starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mousetwin.cli", "serve", "--http-port", "0", "--grpc-port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        printed = ""
        while not (found := re.search(r"HTTP +(http://\S+).*\ngRPC +(\S+)", printed)):
            line = process.stdout.readline()
            assert line, f"mousetwin serve stopped: {printed}{process.stderr.read()}"
            printed += line
        yield Command(process, Service(found[2], found[1]), printed)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except ValueError:
            process.wait(60)
