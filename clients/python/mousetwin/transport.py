"""How a client reaches twins: one small interface, so that a notebook moves from a laptop without a server to the
lab's GPU box by changing one string."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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

    broken: bool

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

    def open_stream(self, wait: float) -> FrameStream:
        """A stream of frames, after waiting up to so many seconds for the service to be there."""
        ...

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        """Reports, then the result. Closing the iterator ends the optimisation."""
        ...

    def close(self) -> None: ...


_EXPECTED = "'host:port', 'local:MODELS' or 'torchserve://host:port'"


def is_host_and_port(address: str) -> bool:
    """Whether an address is our own gRPC's."""
    _, _, rest = address.partition(":")
    return rest.rpartition(":")[2].isdigit() and not rest.startswith("//")


def open_transport(address: str) -> Transport:
    """The transport for "host:port" (gRPC) or "<scheme>:…", found by its entry point in `mousetwin.transports`.

    Ours are "local:MODELS" and "torchserve://host:port"; other packages may bring more.

    Raises:
        InvalidArgument: the address is neither, or nothing installed serves the scheme.
        Unimplemented: what serves the scheme lacks a package.
    """
    if is_host_and_port(address):
        from .grpc_transport import GrpcTransport

        return GrpcTransport(address)
    scheme = address.partition(":")[0]
    found = {entry_point.value: entry_point for entry_point in entry_points(group="mousetwin.transports", name=scheme)}
    if len(found) > 1:
        # Which of them comes first is how the folder of packages happens to be listed.
        raise InvalidArgument(f"address: {scheme} is served by {' and by '.join(sorted(found))}", field="address")
    for entry_point in found.values():
        try:
            opener = entry_point.load()
        except ModuleNotFoundError as error:
            raise Unimplemented(
                f"{address}: {scheme} twins need {error.name}; pip install 'mousetwin[serve]'", field="address"
            ) from error
        transport: Transport = opener(address)
        return transport
    raise InvalidArgument(f"address: {address!r}, expected {_EXPECTED}", field="address")


def shared_transport(address: str, twin: TwinIdentity) -> Transport:
    """As `open_transport`, for whoever asks one twin and never closes it: the same again while it is the same twin."""
    return _shared(address, twin, os.getpid())


# No connection outlives a fork; and what is in a folder may have changed since another twin was asked for.
@lru_cache(maxsize=8)
def _shared(address: str, twin: TwinIdentity, process: int) -> Transport:
    return open_transport(address)
