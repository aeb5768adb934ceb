"""The default host: grpc.aio and uvicorn in one process, the engine inside."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc_health.v1.health as health
import grpc_reflection.v1alpha.reflection as reflection
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mousetwin.cli import describe
from mousetwin.errors import MousetwinError
from mousetwin.query import TwinSummary
from mousetwin.wire import SERVICE

from ..api.grpc_service import DigitalTwinServicer
from ..api.rest import build_app
from ..device import Device
from ..optimizer.run import warm_up
from ..repository import Repository
from ..service import TwinService
from .http_protocol import HttpProtocol


class HostError(MousetwinError):
    """The service cannot start; the message says why in one line."""


@dataclass(frozen=True)
class Addresses:
    """Where to listen; port 0 takes a free one. cors_origins: of web pages that may ask, as browsers send them."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    cors_origins: tuple[str, ...] = ()


class StandaloneServer:
    """A service on two ports.

    Attributes:
        http_port, grpc_port: where it listens, once started.
    """

    def __init__(self, service: TwinService, addresses: Addresses) -> None:
        self._service = service
        self._addresses = addresses
        self._health = health.aio.HealthServicer()
        self._grpc = self._build_grpc()
        config = uvicorn.Config(
            build_app(service, addresses.cors_origins),
            log_config=None,
            access_log=False,
            lifespan="off",
            http=HttpProtocol,
            ws="none",
            server_header=False,
        )
        self._http = _Uvicorn(config)
        self.http_port = 0
        self.grpc_port = 0

    async def start(self) -> None:
        """Listen on both ports.

        Raises:
            HostError: a port cannot be had.
        """
        host = self._addresses.host
        http_socket = _listen(host, self._addresses.http_port)
        self.http_port = http_socket.getsockname()[1]
        try:
            bracketed = f"[{host}]" if ":" in host else host
            self.grpc_port = self._grpc.add_insecure_port(f"{bracketed}:{self._addresses.grpc_port}")
        except RuntimeError:
            http_socket.close()
            raise HostError(
                f"--grpc-port: cannot listen on {host}:{self._addresses.grpc_port}; is another service there?"
            ) from None
        await self._grpc.start()
        self._http_task = asyncio.create_task(self._http.serve([http_socket]))
        await self._http.listening.wait()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: float = 30.0) -> None:
        """Drain: say not ready, finish what was taken for up to `grace` seconds, close both ports."""
        self._service.ready = False
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._service.drain(), grace)
        await self._grpc.stop(min(grace, 1.0))
        self._http.should_exit = True
        await self._http_task

    def _build_grpc(self) -> grpc.aio.Server:
        limits = self._service.limits
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.request_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second service on the same port starts without a word and takes half the calls.
                ("grpc.so_reuseport", 0),
            ]
        )
        DigitalTwinServicer(self._service).add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # One process, two servers: signals are the host's business.
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only on sockets that say they are TCP; with it, answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise HostError(f"--http-port: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


async def serve(service: TwinService, addresses: Addresses, devices: Sequence[Device]) -> None:
    """Serve until SIGINT or SIGTERM, then drain.

    Raises:
        HostError: a port cannot be had.
    """
    warm_up(service.repository.twins.values())
    server = StandaloneServer(service, addresses)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    print(welcome(service.repository, server, addresses.host, devices), flush=True)
    await stop.wait()
    # Whoever read what it prints may be gone.
    with contextlib.suppress(OSError):
        print("mousetwin: draining", flush=True)
    await server.stop()


def welcome(repository: Repository, server: StandaloneServer, host: str, devices: Sequence[Device]) -> str:
    """What the service prints once it is ready: devices, mice, where it listens, and a line to paste."""
    twins = list(repository.twins.values())
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):
        python = python.relative_to(Path.cwd())
    address = f"{host}:{server.grpc_port}"
    lines = [
        f"mousetwin is ready on {devices[0].kind}: {', '.join(device.why for device in devices)}",
        *(f"  {describe(twin.summary)}" for twin in twins),
        f"HTTP  http://{host}:{server.http_port}  (API at /docs)",
        f"gRPC  {address}",
        "Paste this for a first prediction:",
        f'  {python} -c "import mousetwin, numpy as np; '
        f"print(mousetwin.connect('{address}').{_example(twins[0].summary)})\"",
    ]
    return "\n".join(lines)


def _example(summary: TwinSummary) -> str:
    """A call that works on the twin: gray images, and what else has no default."""
    height, width = summary.native_size
    mouse = f"mouse('{summary.twin.mouse}', '{summary.twin.model}')"
    if "behavior" not in summary.required and summary.takes_raw:
        return f"{mouse}.predict(np.full((1, {height}, {width}), 128, np.uint8))"
    behavior = f"behavior=np.zeros({len(summary.behavior)}), " if "behavior" in summary.required else ""
    return f"{mouse}.predict(np.zeros((1, {height}, {width})), {behavior}space='model')"
