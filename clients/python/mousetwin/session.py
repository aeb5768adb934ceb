"""A closed loop on one open stream: send an image, get the response, at the pace of the model."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import NoReturn

from numpy.typing import ArrayLike

from .build import build_query, with_cotangent
from .errors import InvalidArgument, MousetwinError, Unavailable
from .frames import Gradient, Responses, gradient_of, responses_of
from .notices import Notices
from .query import GradientAnswer, MouseInfo, Prediction, PredictQuery, Space
from .transport import FrameStream, Transport

# Frames on their way at once, as many as the service works on side by side.
WINDOW = 8
_PAUSE_SECONDS = 0.05


class Session:
    """An open stream to one twin. A context manager, for one thread at a time.

        with mouse.session() as session:
            for _ in range(1000):
                image = show_next(session.predict(image, space="model"))

    A frame that is refused raises its error, and the session goes on. Where the service goes away, the session waits
    for it to come back, and asks again what was not answered.
    """

    def __init__(self, transport: Transport, info: MouseInfo, reconnect: float) -> None:
        self._transport = transport
        self._summary = info.summary
        self._reconnect = reconnect
        self._stream: FrameStream | None = None
        self._sent: deque[PredictQuery] = deque()
        self._answered: deque[Prediction | MousetwinError] = deque()
        self._closed = False
        self._notices = Notices()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.waiting} frames waiting"
        return f"<Session of {self._summary}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session is an open stream, which cannot be pickled or copied: pickle its Mouse instead")

    @property
    def waiting(self) -> int:
        """Frames that were sent and whose answers were not received yet."""
        return len(self._sent) + len(self._answered)

    def predict(
        self,
        images: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
    ) -> Responses:
        """As `Mouse.predict`, in one frame: as many images as a request may hold.

        Raises:
            InvalidArgument: also where answers to earlier frames were not received yet.
            Unavailable: the service went away and did not come back; the message says how many frames were lost.
        """
        self._check_none_waiting()
        self.send_predict(images, behavior, pupil_center, neurons, unit_ids, space, condition_space=condition_space)
        answer = self._receive()
        self._notices.tell(answer.warnings)
        return responses_of(answer)

    def gradient(
        self,
        images: ArrayLike,
        cotangent: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
    ) -> Gradient:
        """As `Mouse.gradient`, in one frame. Raises as `predict`."""
        self._check_none_waiting()
        self.send_gradient(
            images, cotangent, behavior, pupil_center, neurons, unit_ids, space, condition_space=condition_space
        )
        answer = self._receive()
        self._notices.tell(answer.warnings)
        return gradient_of(answer)

    def send_predict(
        self,
        images: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
    ) -> None:
        """Send a frame without waiting for its answer, which `receive` gives. Arguments as for `predict`."""
        self._send(
            build_query(self._summary, images, behavior, pupil_center, neurons, unit_ids, space, condition_space)
        )

    def send_gradient(
        self,
        images: ArrayLike,
        cotangent: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
    ) -> None:
        """Send a gradient's frame without waiting for its answer. Arguments as for `gradient`."""
        query = build_query(self._summary, images, behavior, pupil_center, neurons, unit_ids, space, condition_space)
        self._send(with_cotangent(query, cotangent))

    def receive(self) -> Responses | Gradient:
        """The answer to the oldest frame that was sent and not received. Raises as `predict`."""
        if not self.waiting:
            raise InvalidArgument("receive: no frame is waiting for its answer", field="receive")
        answer = self._receive()
        self._notices.tell(answer.warnings)
        return gradient_of(answer) if isinstance(answer, GradientAnswer) else responses_of(answer)

    def close(self) -> None:
        """End the stream; answers not received are dropped."""
        self._closed = True
        self._sent.clear()
        self._answered.clear()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_none_waiting(self) -> None:
        if self.waiting:
            raise InvalidArgument(
                f"predict: {self.waiting} frames wait for their answers: receive them first", field=""
            )

    def _send(self, query: PredictQuery) -> None:
        if self._closed:
            raise Unavailable("the session is closed")
        # Answers are taken in here where too many frames are on their way, or neither end would go on.
        while len(self._sent) >= WINDOW:
            self._answered.append(self._next())
        if self._stream is None:
            self._stream = self._transport.open_stream(0)
        self._stream.send(query)
        self._sent.append(query)

    def _receive(self) -> Prediction:
        answer = self._answered.popleft() if self._answered else self._next()
        if isinstance(answer, MousetwinError):
            raise answer
        return answer

    def _next(self) -> Prediction | MousetwinError:
        """The answer to the oldest frame on its way, or its error; the session's own failures are raised."""
        give_up = 0.0
        while True:
            try:
                if self._stream is None:
                    self._open_again(give_up)
                assert self._stream is not None
                answer: Prediction | MousetwinError = self._stream.receive()
            except Unavailable as error:
                # A service that is shutting down refuses frames; one that is gone breaks the stream. Predictions change
                # nothing, so they can be asked for again.
                now = time.monotonic()
                give_up = give_up or now + self._reconnect
                self._drop_stream()
                if now >= give_up:
                    lost = len(self._sent)
                    self.close()
                    raise Unavailable(f"the session is lost, {lost} frames were not answered: {error}") from None
                time.sleep(min(_PAUSE_SECONDS, give_up - now))
                continue
            except MousetwinError as error:
                if self._stream is None or self._stream.broken:
                    self.close()
                    raise
                answer = error
            self._sent.popleft()
            return answer

    def _open_again(self, give_up: float) -> None:
        self._stream = self._transport.open_stream(max(0.0, give_up - time.monotonic()))
        for query in self._sent:
            self._stream.send(query)

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
