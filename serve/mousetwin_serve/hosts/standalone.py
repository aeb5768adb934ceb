"""The default host: grpc.aio and uvicorn in one process, the engine inside."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import grpc_health.v1.health as health
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mousetwin.cli import describe
from mousetwin.console import say
from mousetwin.query import TwinSummary
from mousetwin.v1 import digital_twin_pb2
from mousetwin.wire import SERVICE

from ..api.grpc_service import DigitalTwinServicer
from ..api.reflection import add_reflection
from ..api.rest import build_app
from ..device import Device, told
from ..optimizer.run import warm_up
from ..repository import Repository
from ..service import TwinService
from .http_protocol import HttpProtocol
from .listening import Addresses, HostError
from .signals import stop_in_turn


class StandaloneServer:
    """A service on two ports.

    Attributes:
        http_port, grpc_port: where it listens, once started.
    """

    def __init__(self, service: TwinService, addresses: Addresses, cors_origins: tuple[str, ...] = ()) -> None:
        self._service = service
        self._addresses = addresses
        self._health = health.aio.HealthServicer()
        self._grpc = self._build_grpc()
        config = uvicorn.Config(
            build_app(service, cors_origins),
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
            HostError: it cannot start; nothing listens then.
        """
        self._addresses.check()
        async with contextlib.AsyncExitStack() as undo:
            http_socket = undo.enter_context(self._addresses.listen())
            self.http_port = http_socket.getsockname()[1]
            self.grpc_port = self._addresses.listen_by(self._grpc.add_insecure_port)
            await self._grpc.start()
            undo.push_async_callback(self._grpc.stop, None)
            self._http_task = asyncio.create_task(self._http.serve([http_socket]))
            listening = asyncio.create_task(self._http.listening.wait())
            await asyncio.wait({listening, self._http_task}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                listening.cancel()
                raise self._http_failure()
            undo.pop_all()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def until(self, stop: asyncio.Event) -> None:
        """Until `stop` is set.

        Raises:
            HostError: HTTP ended before.
        """
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, self._http_task}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            stopping.cancel()
            raise self._http_failure()

    async def stop(self, grace: float = 30.0) -> None:
        """Drain: say not ready, finish what was taken for up to `grace` seconds, close both ports."""
        self._service.ready = False
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._service.drain(), grace)
        await self._grpc.stop(min(grace, 1.0))
        self._http.should_exit = True
        # How it ended is told by `until`, if it was not for this.
        await asyncio.wait({self._http_task})

    def _http_failure(self) -> HostError:
        error = self._http_task.exception()
        why = " ".join(str(error).split()) or type(error).__name__
        return HostError(f"--http-port: HTTP on {self.http_port} ended: {why}")

    def _build_grpc(self) -> grpc.aio.Server:
        limits = self._service.limits
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.request_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second service on the same port starts without a word and takes half the calls.
                ("grpc.so_reuseport", 0),
                # Clients may ping as often as they like, in calls that wait and without: it costs next to nothing, and
                # gRPC's own limit ends the sessions of those whose keepalive is shorter than 5 minutes.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),
            ]
        )
        DigitalTwinServicer(self._service).add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection(server, (digital_twin_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR))
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


async def serve(
    service: TwinService, addresses: Addresses, devices: Sequence[Device], cors_origins: tuple[str, ...] = ()
) -> None:
    """Serve until SIGINT or SIGTERM, then drain.

    Args:
        service: what answers.
        addresses: where to listen.
        devices: that it runs on.
        cors_origins: of web pages that may ask, as browsers send them.

    Raises:
        HostError: it cannot start, or HTTP ended by itself.
    """
    warm_up(service.repository.twins.values())
    server = StandaloneServer(service, addresses, cors_origins)
    stop = asyncio.Event()
    stop_in_turn(asyncio.get_running_loop(), stop)
    await server.start()
    say(welcome(service.repository, server, addresses, devices))
    try:
        await server.until(stop)
    finally:
        say("mousetwin: draining")
        await server.stop()


def welcome(repository: Repository, server: StandaloneServer, addresses: Addresses, devices: Sequence[Device]) -> str:
    """What the service prints once it is ready: devices, mice, where it listens, and a line to paste."""
    twins = list(repository.twins.values())
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):
        python = python.relative_to(Path.cwd())
    address = addresses.reached_at(server.grpc_port)
    everywhere = f"On all interfaces ({addresses.host}): from elsewhere, by this machine's name or address"
    lines = [
        f"mousetwin is ready on {told(devices)}",
        *(f"  {describe(twin.summary)}" for twin in twins),
        f"HTTP  http://{addresses.reached_at(server.http_port)}  (API at /docs)",
        f"gRPC  {address}",
        *([everywhere] if addresses.is_everywhere else []),
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
