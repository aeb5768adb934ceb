"""gRPC channels: their options, what is left of them after a fork, and what their failures mean."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from .errors import Closed, MousetwinError, PayloadTooLarge, StreamLost, Unavailable, from_code
from .transport import HostPort

# A forked process can use gRPC only with gRPC's own fork handlers, of which it is told by the environment. Without them
# the child waits for threads that it does not have, whatever the timeout; with those of before 1.80, either may end.
_FORKS = hasattr(os, "fork") and tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 80)
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1" if _FORKS else "0")

# For how long a call is asked again where the connection was lost.
AGAIN_SECONDS = 2.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.25


@dataclass(frozen=True)
class Host:
    """What is expected at an address.

    Attributes:
        start: the command that starts it.
        port: where it usually listens for gRPC.
        request_ids: whether every failure of its own carries a request id.
        keepalive: whether it takes pings while a call waits.
    """

    start: str
    port: int
    request_ids: bool
    keepalive: bool


MOUSETWIN = Host("mousetwin serve", 8001, request_ids=True, keepalive=True)
# Java's gRPC ends the connection of whoever pings more often than every 5 minutes.
TORCHSERVE = Host("torchserve --start", 7070, request_ids=False, keepalive=False)


def channel_options(address: HostPort, host: Host = MOUSETWIN) -> list[tuple[str, int]]:
    """The options of a channel, plain or asyncio."""
    options = [
        # Sizes are bounded by the service and by how the client frames a batch, not by gRPC's 4 MB default.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A service that comes back is found at once, not after the two minutes that gRPC works up to.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A forked process would otherwise be given its parent's connections.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if host.keepalive:
        options += [
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 0),
            # A session may wait for its caller for hours.
            ("grpc.http2.max_pings_without_data", 0),
        ]
    if address.is_loopback:
        # http_proxy and its like are for what is elsewhere.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def translate(error: grpc.RpcError, address: HostPort, host: Host = MOUSETWIN) -> MousetwinError:
    """The client's exception for a failed call.

    What the service itself says carries a request id. A failure without one is the connection's or a proxy's:
    `StreamLost`, and `Unavailable` where nobody was reached; `PayloadTooLarge` where gRPC takes no such message.
    """
    call: Any = error
    code: grpc.StatusCode = call.code()
    # Pairs first: grpc.aio's metadata looks like a mapping, and older versions of it are not quite one.
    trailing = dict(tuple(call.trailing_metadata() or ()))
    message = " ".join((call.details() or code.name).split())
    if "request-id" not in trailing:
        if code is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(_nobody(message, address, host))
        if code is grpc.StatusCode.UNIMPLEMENTED:
            message = (
                f"{address} is another service ({message}): expected mousetwin serve at 'host:port' "
                "or TorchServe at 'torchserve://host:port'"
            )
        elif _TOO_LARGE.search(message):
            return PayloadTooLarge(f"one message is more than {address} takes: {message}")
        elif host.request_ids and code in _OF_THE_STREAM:
            if message == ENDED_IN_A_WRITE:
                return StreamLost(f"the connection to {address} was lost while a frame was sent")
            return StreamLost(f"the connection to {address} was lost: {code.name}: {message}")
    return from_code(
        code.name,
        message,
        field=str(trailing.get("error-field", "")),
        request_id=str(trailing.get("request-id", "")),
    )


# What grpc.aio tells of a call that ends while it sends or opens, in place of why it ended.
ENDED_IN_A_WRITE = "Internal error from Core"
# What proxies make of a time-out, a restart or an HTTP status, and HTTP/2 of a stream or connection that it ends.
_OF_THE_STREAM = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# gRPC's own limits, in C and in Java, and a proxy's.
_TOO_LARGE = re.compile("larger than max|exceeds maximum size|http2 header with status: 413")
# As gRPC tells of an answer that does not begin as HTTP/2 does.
_NOT_GRPC = re.compile(r"Failed parsing HTTP/2|http1\.x server|Expected SETTINGS frame")


def _nobody(message: str, address: HostPort, host: Host) -> str:
    if _NOT_GRPC.search(message):
        what = "HTTP and not gRPC" if "http1.x" in message else "no gRPC"
        message = f"it speaks {what}; the gRPC port of {host.start.split()[0]} is usually {host.port}"
    elif "refused" in message:
        message = f"connection refused; is the service running? start it with {host.start!r}"
    return f"no answer from {address}: {message}"


S = TypeVar("S")


class Connection(Generic[S]):
    """A channel to one address, and a new one in a forked process. Safe to use from several threads.

    Attributes:
        address: where it leads.
    """

    def __init__(self, address: HostPort, host: Host, stubs: Callable[[grpc.Channel], S]) -> None:
        self.address = address
        self._host = host
        self._make_stubs = stubs
        self._lock = threading.Lock()
        self._calls: weakref.WeakSet[Any] = weakref.WeakSet()
        self._opened: tuple[grpc.Channel, S] | None = None
        self._closed = False
        self._reached = False
        process.connections.add(self)

    @property
    def stubs(self) -> S:
        """The calls. Raises Closed after `close`."""
        return self._open()[1]

    @contextlib.contextmanager
    def begun(self, call: Any) -> Iterator[Any]:
        """A call that is under way for longer, and ended in the end."""
        self._calls.add(call)
        with process.calling():
            try:
                yield call
            finally:
                # Not that of a parent.
                if call in self._calls:
                    call.cancel()

    def translate(self, error: grpc.RpcError) -> MousetwinError:
        """The client's exception for a failed call."""
        # gRPC ends calls that are under way with a word of its own.
        return self._closed_error() if self._closed else translate(error, self.address, self._host)

    def ask(self, call: Callable[[S], Any], request: Any, timeout: float | None) -> Any:
        """One question and its answer, for calls that change nothing.

        It is asked again, for a moment, where the connection was there before and is lost, as after a restart or fork.

        Args:
            call: which of the calls.
        """
        attempts = Attempts(timeout)
        while True:
            try:
                return self._ask(call, request, attempts.left)
            except Unavailable as error:
                if not self._reached or not attempts.may_follow(error):
                    raise
            time.sleep(attempts.pause)

    def close(self) -> None:
        self._closed = True
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()

    def forked(self) -> Any:
        """Called in a new process: what the parent had open, which may be neither used nor closed here."""
        self._lock = threading.Lock()
        left = self._opened, list(self._calls)
        self._opened = None
        self._calls.clear()
        return left

    def _open(self) -> tuple[grpc.Channel, S]:
        with self._lock:
            # gRPC itself answers with a bare ValueError.
            if self._closed:
                raise self._closed_error()
            if self._opened is None:
                process.check_fork()
                channel = grpc.insecure_channel(str(self.address), options=channel_options(self.address, self._host))
                self._opened = channel, self._make_stubs(channel)
            return self._opened

    def _closed_error(self) -> Closed:
        return Closed(f"the connection to {self.address} is closed")

    def _ask(self, call: Callable[[S], Any], request: Any, timeout: float | None) -> Any:
        stub = call(self.stubs)
        with process.calling():
            try:
                answer = stub(request, timeout=timeout)
            except grpc.RpcError as error:
                told = self.translate(error)
                self._reached = self._reached or not isinstance(told, Unavailable)
                raise told from None
        self._reached = True
        return answer


class Attempts:
    """When a call is asked again, and with what timeout.

    Attributes:
        pause: seconds before it is.
    """

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._give_up = 0.0
        self.pause = _PAUSE_SECONDS / 2

    @property
    def left(self) -> float | None:
        """Seconds until the deadline of all of them."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def may_follow(self, error: Unavailable) -> bool:
        """Whether there may be another after one that failed."""
        now = time.monotonic()
        self._give_up = self._give_up or now + AGAIN_SECONDS
        self.pause = min(2 * self.pause, _LONGEST_PAUSE_SECONDS)
        end = self._give_up if self._deadline is None else min(self._give_up, self._deadline)
        # What carries an id is the service's own word: it is shutting down.
        return not error.request_id and not isinstance(error, Closed) and now + self.pause < end


class _Process:
    """What this process does with gRPC.

    Attributes:
        connections: those that it has, of both kinds.
        asyncio_channels: those that are not gone, closed or not.
        streams: those that are ended before a fork, and begun again by whoever uses them.
    """

    def __init__(self) -> None:
        self.connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self.asyncio_channels: weakref.WeakSet[grpc.aio.Channel] = weakref.WeakSet()
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._calls: set[object] = set()
        self._used = self._inherited = self._inherited_asyncio = self._inherited_calls = False
        # What parents had open. When such a thing is collected, gRPC ends it, on the parent's connection.
        self._parents: list[Any] = []

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around what may keep a thread in gRPC."""
        call = object()
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)

    def forks(self) -> None:
        """Called in a process that is about to be forked."""
        for stream in list(self.streams) if _FORKS else []:
            stream.interrupt()

    def forked(self) -> None:
        """Called in a new process."""
        for stream in self.streams:
            self._parents.append(stream.leave())
        self._inherited_calls |= len(self._calls) > 0
        self._calls.clear()
        self._inherited |= self._used
        # Their thread, which all of them share, is not here.
        self._inherited_asyncio |= len(self.asyncio_channels) > 0
        for connection in self.connections:
            self._parents.append(connection.forked())

    def check_fork(self, *, asyncio: bool = False) -> None:
        """Called before a channel is opened.

        Raises:
            MousetwinError: gRPC would wait for ever, whatever the timeout.
        """
        self._used = True
        if self._inherited and os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() not in _TRUE:
            raise MousetwinError(
                "this process was forked while gRPC was in use, and GRPC_ENABLE_FORK_SUPPORT is off: unset it and "
                "install grpcio 1.80 or newer, or use multiprocessing's 'spawn'"
            )
        if self._inherited_calls:
            raise MousetwinError(
                "this process was forked while a call was under way: fork when there is none, or use "
                "multiprocessing's 'spawn'"
            )
        if asyncio and self._inherited_asyncio:
            raise MousetwinError(
                "this process was forked while an asyncio client was there: fork before it is made, use "
                "multiprocessing's 'spawn', or mousetwin.connect"
            )


# As gRPC reads it.
_TRUE = ("1", "t", "true", "y", "yes")
process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=process.forks, after_in_child=process.forked)
