"""Services for tests to ask: one in a thread of this process, one as the command users start."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
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


def limited(command: list[str], size: int) -> list[str]:
    """`command`, where no file may grow over `size` bytes: a disk that is full."""
    # Not preexec_fn: it forks this process, and gRPC's threads do not outlive that.
    limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
    return [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])", *command]


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


@dataclass(frozen=True)
class TorchServe:
    """TorchServe, running. folder: where it writes its logs; process: of its own group."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    management: str
    folder: Path

    def workers(self, name: str) -> list[dict[str, Any]]:
        """What its management tells of a model's workers."""
        with urllib.request.urlopen(f"{self.management}/models/{name}", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)[0]["workers"]
        return found

    def is_ready(self, name: str) -> bool:
        try:
            return any(worker["status"] == "READY" for worker in self.workers(name))
        except OSError:
            assert self.process.poll() is None, (self.folder / "out.log").read_text()[-3000:]
            return False


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def as_torchserve(models: Path, folder: Path, **settings: Any) -> Iterator[TorchServe]:
    """A real TorchServe of `models` on free ports, started with the documented command."""
    from mousetwin_serve.hosts.torchserve_archive import CATALOG, write_store
    from mousetwin_serve.hosts.torchserve_settings import Settings

    ports = free_ports(5)
    names = write_store(models, folder / "store", Settings(*ports, **settings))
    # Two instances on one machine would otherwise share their sockets.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["torchserve", "--start", "--foreground", "--ncs", "--ts-config", "store/config.properties"]
    with (folder / "out.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    http, management = (f"http://127.0.0.1:{port}" for port in ports[:2])
    served = TorchServe(process, f"127.0.0.1:{ports[3]}", http, management, folder)
    try:
        for name in (CATALOG, *names):
            until(lambda name=name: served.is_ready(name), 300)
        yield served
    finally:
        # It leaves its Java process to itself where only the command is told to stop.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        until(lambda: not _group_lives(process.pid), 60)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
