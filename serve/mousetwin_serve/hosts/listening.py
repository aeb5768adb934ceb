"""Where a service listens: its host and ports, checked and written; what is wrong is told by its option in one line."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mousetwin.errors import MousetwinError
from mousetwin.transport import HostPort


class HostError(MousetwinError):
    """The service cannot start; the message says why in one line."""


@dataclass(frozen=True)
class Addresses:
    """Where to listen; port 0 takes a free one."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001

    def check(self) -> None:
        """See whether both ports can be had now, without listening.

        Raises:
            HostError: as `listen` and `listen_by` say; or both ports are the same one.
        """
        if self.http_port == self.grpc_port != 0:
            raise HostError(
                f"--grpc-port: {self.grpc_port} is --http-port as well, expected another", field="grpc_port"
            )
        for option in ("--http-port", "--grpc-port"):
            self._bind(option).close()

    def listen(self) -> socket.socket:
        """A socket that listens on the HTTP port.

        Raises:
            HostError: there is no such host, it is not this machine, or the port cannot be had.
        """
        listener = self._bind("--http-port")
        try:
            # At once: two sockets may both be bound to a port, and only one may listen.
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise self._refused("--http-port", error) from None
        return listener

    def listen_by(self, add_port: Callable[[str], int]) -> int:
        """The gRPC port, on which gRPC listens.

        Args:
            add_port: takes "host:port", returns the port, and raises RuntimeError where gRPC cannot have it.

        Raises:
            HostError: as `listen`.
        """
        # gRPC tells less of why, and tells it on standard error too.
        self._bind("--grpc-port").close()
        try:
            return add_port(str(HostPort(self.numeric, self.grpc_port)))
        except RuntimeError:
            raise self._refused("--grpc-port", OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))) from None

    @property
    def numeric(self) -> str:
        """The IP address of the host."""
        return str(self._resolve()[1][0])

    @property
    def is_everywhere(self) -> bool:
        """Whether it listens on all of the machine's addresses."""
        return self.numeric in _LOOPBACK

    def reached_at(self, port: int) -> HostPort:
        """What someone on this machine connects to."""
        numeric = self.numeric
        if numeric in _LOOPBACK:
            return HostPort(_LOOPBACK[numeric], port)
        is_name = ":" not in self.host and any(character.isalpha() for character in self.host)
        return HostPort(self.host if is_name else numeric, port)

    def _resolve(self) -> tuple[socket.AddressFamily, Any]:
        """The family and the address to bind to, with the port 0."""
        if not self.host.strip() or any(character in self.host for character in "[]/") or self.host.count(":") == 1:
            raise HostError(
                f"--host: {self.host!r}, expected a name or an IP address, without brackets or a port", field="host"
            )
        try:
            found = socket.getaddrinfo(self.host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # UnicodeError: a part of the name is empty or too long.
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "no host name"
            raise HostError(f"--host: {self.host!r}: {why}", field="host") from None
        # A name that has both is listened to where most look for it.
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return family, address

    def _bind(self, option: str) -> socket.socket:
        port = self.http_port if option == "--http-port" else self.grpc_port
        family, (numeric, _, *rest) = self._resolve()
        try:
            # asyncio turns Nagle's algorithm off only on sockets that say they are TCP; with it, answers wait 40 ms.
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError as error:
            raise HostError(f"--host: {self.host!r}: {error.strerror}", field="host") from None
        try:
            if os.name == "posix":
                # Past connections may still be closing. Elsewhere it would let two listen.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and numeric == "::":
                # IPv4 as well, as gRPC does.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((numeric, port, *rest))
        except OSError as error:
            listener.close()
            raise self._refused(option, error) from None
        return listener

    def _refused(self, option: str, error: OSError) -> HostError:
        if error.errno == errno.EADDRNOTAVAIL:
            return HostError(f"--host: {self.host!r} is no address of this machine", field="host")
        port = self.http_port if option == "--http-port" else self.grpc_port
        hint = "; is another service there?" if error.errno == errno.EADDRINUSE else ""
        return HostError(
            f"{option}: cannot listen on {HostPort(self.host, port)}: {error.strerror}{hint}",
            field=option.strip("-").replace("-", "_"),
        )


# As uvicorn's.
_BACKLOG = 2048
# By the address that means all of them.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
