"""Twins in the caller's own process: `mousetwin.connect("local:MODELS")`."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from mousetwin.errors import Internal, MousetwinError, NotFound
from mousetwin.optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from mousetwin.query import MouseInfo, Prediction, PredictQuery, TwinRef, TwinSummary

from .device import CPU, choose
from .limits import Limits
from .optimizer.run import optimize
from .repository import DEMO_MODELS, Repository


def open_local(address: str) -> LocalTransport:
    """The twins in the folder behind "local:"; "local:" alone is the built-in demo mouse.

    Raises:
        NotFound: no such folder, or no bundle in it can be served; the message says why.
    """
    name = address.removeprefix("local:")
    folder = Path(name) if name else DEMO_MODELS
    with _in_our_words():
        repository = Repository.load(folder, choose("auto"))
    if not repository.twins and repository.refused:
        raise NotFound(f"address: {next(iter(repository.refused.values()))}", field="address")
    # Whoever opens it again may stand in another folder.
    return LocalTransport(repository, f"local:{folder.absolute()}" if name else address)


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """What the engine raises as an `Internal` that says why: there is no log of a service to look into."""
    try:
        yield
    except MousetwinError:
        raise
    except Exception as error:  # ONNX Runtime has no base class for what it raises
        raise Internal(f"the engine failed: {' '.join(str(error).split())}") from error


class LocalTransport:
    """A repository behind the client's transport interface. Timeouts do not apply: nobody else is waited for."""

    def __init__(self, repository: Repository, address: str) -> None:
        self.address = address
        self._repository = repository

    def list_mice(self, timeout: float | None) -> list[TwinSummary]:
        return [twin.summary for twin in self._repository.twins.values()]

    def get_mouse(self, ref: TwinRef, timeout: float | None) -> MouseInfo:
        return self._repository.find(ref).info

    def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        twin = self._repository.find(query.twin)
        stimulus = twin.stimulus.read(query)
        with _in_our_words():
            answer = twin.engine.answer(stimulus.batch)
        return self._repository.with_stand_in(twin.answer(stimulus, answer), query.twin)

    def ask_frames(self, queries: Iterable[PredictQuery], timeout: float | None) -> Iterator[Prediction]:
        return (self.ask(query, timeout) for query in queries)

    def open_stream(self) -> LocalStream:
        return LocalStream(self)

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        twins = [self._repository.find(twin) for twin in query.twins]
        device = twins[0].engine.devices[0] if twins else CPU
        with _in_our_words():
            yield from optimize(
                query, twins, Limits(), lambda number, batch: twins[number].engine.answer(batch), device
            )

    def close(self) -> None:
        """Nothing to close."""


class LocalStream:
    """Frames that are answered when their answers are asked for."""

    broken = False

    def __init__(self, transport: LocalTransport) -> None:
        self._transport = transport
        self._frames: deque[PredictQuery] = deque()

    def send(self, query: PredictQuery) -> None:
        self._frames.append(query)

    def receive(self) -> Prediction:
        return self._transport.ask(self._frames.popleft(), None)

    def close(self) -> None:
        self._frames.clear()
