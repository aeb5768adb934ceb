"""What may lie between a client and the service: a relay that loses connections, and a proxy that ends streams."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc


class Relay:
    """TCP connections handed on to `target`. address: where it listens."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        self._open: list[socket.socket] = []
        self._lose = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Close what is open, as a restart does."""
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def lose(self, times: int = 1) -> None:
        """Close connections on the next bytes that a client sends on them, so many times."""
        self._lose = times

    def close(self) -> None:
        # Closing alone would not wake who accepts.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._hand_on, args=(client, socket.create_connection(self._target)))
            self._threads.append(thread)
            thread.start()

    def _hand_on(self, client: socket.socket, service: socket.socket) -> None:
        other = {client: service, service: client}
        self._open += other
        with client, service, contextlib.suppress(OSError):
            while True:
                for source in select.select(list(other), [], [])[0]:
                    data = source.recv(1 << 16)
                    if source is client and self._lose:
                        self._lose -= 1
                        return
                    if not data:
                        return
                    other[source].sendall(data)


@contextmanager
def relay(target: str) -> Iterator[Relay]:
    opened = Relay(target)
    try:
        yield opened
    finally:
        opened.close()


class Proxy(grpc.GenericRpcHandler):
    """Calls handed on to a service, but for the streams that it ends by itself.

    Attributes:
        ends: what the next streams end with on their first frame, status and details.
        poison: which frames end their stream, with `ends_with`.
        streams: how many were opened.
        address: where it listens.
    """

    ends_with = (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)])
        self.ends: list[tuple[grpc.StatusCode, str]] = []
        self.poison: Callable[[bytes], bool] = lambda frame: False
        self.streams = 0
        self.address = ""

    def close(self) -> None:
        self._channel.close()

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        def one(request: bytes, context: Any) -> bytes:
            ask: Any = self._channel.unary_unary(method)
            response, call = ask.with_call(request)
            context.set_trailing_metadata(call.trailing_metadata())
            return bytes(response)

        def many(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            self.streams += 1
            if self.ends:
                next(requests)
                context.abort(*self.ends.pop(0))
            poisoned = False

            def frames() -> Iterator[bytes]:
                nonlocal poisoned
                for request in requests:
                    if poisoned := self.poison(request):
                        return
                    yield request

            stream: Any = self._channel.stream_stream(method)
            yield from stream(frames())
            if poisoned:
                context.abort(*self.ends_with)

        if method.endswith("/Session"):
            return grpc.stream_stream_rpc_method_handler(many)
        return grpc.unary_unary_rpc_method_handler(one)


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    handler = Proxy(target)
    options = [("grpc.max_receive_message_length", -1)]
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, handlers=[handler], options=options)
        handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield handler
        finally:
            server.stop(None).wait()
    handler.close()
