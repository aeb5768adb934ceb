"""How a client reaches twins: one small interface, so that a notebook moves from a laptop without a server to the
lab's GPU box by changing one string."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Protocol

from .errors import InvalidArgument, Unimplemented
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .query import MouseInfo, Prediction, PredictQuery, TwinIdentity, TwinRef, TwinSummary


class FrameStream(Protocol):
    """One open stream of a transport.

    Attributes:
        broken: whether the stream itself failed: no frame on its way will be answered.
    """

    @property
    def broken(self) -> bool: ...

    def send(self, query: PredictQuery) -> None: ...

    def receive(self) -> Prediction:
        """The answer to the oldest frame that has none. Raises the frame's error, or the stream's."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    """What a transport does; `timeout` is in seconds, None for no limit. Raises only `MousetwinError`s.

    Attributes:
        address: what `open_transport` opens the same by, in this process or another one of the machine.
    """

    @property
    def address(self) -> str: ...

    def list_mice(self, timeout: float | None) -> list[TwinSummary]: ...

    def get_mouse(self, ref: TwinRef, timeout: float | None) -> MouseInfo: ...

    def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        """The answer; a `GradientAnswer` to a `GradientQuery`."""
        ...

    def ask_frames(self, queries: Iterable[PredictQuery], timeout: float | None) -> Iterator[Prediction]:
        """Answers in the order of `queries`, the next ones sent while earlier ones are computed."""
        ...

    def open_stream(self) -> FrameStream:
        """A stream of frames. Where nobody is there, its first `receive` says so."""
        ...

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        """Reports, then the result. Closing the iterator ends the optimisation."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class HostPort:
    """Where a service listens. host: without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        """As gRPC, URLs and people write it: an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        name = self.host.lower().rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        # A connection to "any address" is one to this machine.
        return address.is_loopback or address.is_unspecified


def parse_host_port(text: str, expected: str = "'host:port'", prefix: str = "") -> HostPort:
    """What "host:port" means: a name, an IPv4 address, or an IPv6 address in brackets, and a port from 1 to 65535.

    Args:
        text: as it was written, after
        prefix: such as "torchserve://".
        expected: what the message says was expected.

    Raises:
        InvalidArgument: it is not of that form.
    """

    if not isinstance(text, str):
        raise InvalidArgument(f"address: {type(text).__name__}, expected {expected}", field="address")

    def wrong(why: str) -> InvalidArgument:
        return InvalidArgument(f"address: {prefix + text!r} {why}", field="address")

    if "://" in text:
        scheme = text.partition(":")[0].lower()
        if scheme in ("http", "https"):
            raise wrong(f"is an HTTP address, expected that of gRPC, {expected}, such as '127.0.0.1:8001'")
        raise wrong(f"has the scheme {scheme!r}, expected {expected}")
    if any(character.isspace() for character in text):
        raise wrong(f"has white space in it, expected {expected}")
    if found := re.fullmatch(r"\[([^\[\]]*)\]:([0-9]+)", text):
        if not _is_ipv6(found[1]):
            raise wrong(f"has no IPv6 address in its brackets, expected {expected}")
    elif _is_ipv6(text) or (text.count(":") > 1 and _is_ipv6(text.rpartition(":")[0])):
        host, _, port = text.rpartition(":")
        suggested = f"'[{host}]:{port}'" if _is_ipv6(host) else f"'[{text}]:8001'"
        raise wrong(f"has an IPv6 address without brackets, expected {suggested}")
    elif not (found := re.fullmatch(r"([^\s:/?#@,\[\]]+):([0-9]+)", text)):
        raise wrong(f"is no host and port, expected {expected}")
    # Not more digits than a port has are read: int() takes no longer than that.
    if len(found[2]) > 9 or not 1 <= int(found[2]) <= 65535:
        raise wrong(f"has the port {found[2][:20]}, expected one from 1 to 65535")
    return HostPort(found[1], int(found[2]))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def open_transport(address: str) -> Transport:
    """The transport for "host:port" (gRPC) or "<scheme>:…", found by its entry point in `mousetwin.transports`.

    Ours are "local:MODELS" and "torchserve://host:port"; other packages may bring more.

    Raises:
        InvalidArgument: the address is neither, or nothing installed serves the scheme.
        Unimplemented: what serves the scheme lacks a package.
    """
    scheme, _, rest = str(address).partition(":")
    # What ends in a colon and a number alone is a host and a port, whatever the host is called.
    if not re.fullmatch("[0-9]+", rest):
        named = {one.value: one for one in entry_points(group="mousetwin.transports", name=scheme)}
        if len(named) > 1:
            # Which of them comes first is how the folder of packages happens to be listed.
            raise InvalidArgument(f"address: {scheme} is served by {' and by '.join(sorted(named))}", field="address")
        for entry_point in named.values():
            try:
                opener = entry_point.load()
            except ModuleNotFoundError as error:
                raise Unimplemented(
                    f"{address}: {scheme} twins need {error.name}; pip install 'mousetwin[serve]'", field="address"
                ) from error
            transport: Transport = opener(address)
            return transport
    found = parse_host_port(address, _EXPECTED)
    from .grpc_transport import GrpcTransport

    return GrpcTransport(found)


_EXPECTED = "'host:port', 'local:MODELS' or 'torchserve://host:port'"


def shared_transport(address: str, twin: TwinIdentity) -> Transport:
    """As `open_transport`, for whoever asks one twin and never closes it: the same again while it is the same twin."""
    return _shared(address, twin, os.getpid())


# No connection outlives a fork; and what is in a folder may have changed since another twin was asked for.
@lru_cache(maxsize=8)
def _shared(address: str, twin: TwinIdentity, process: int) -> Transport:
    return open_transport(address)
