"""A closed loop on one open stream: send an image, get the response, at the pace of the model."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from .build import build_query, with_cotangent
from .errors import Closed, InvalidArgument, MousetwinError, PayloadTooLarge, StreamLost, Unavailable
from .frames import Gradient, Responses, gradient_of, responses_of
from .notices import Notices
from .query import GradientAnswer, MouseInfo, Prediction, PredictQuery, Space
from .transport import FrameStream, Transport

# Frames on their way at once, as many as the service works on side by side.
WINDOW = 8
# How often one frame may end the stream.
LOSSES = 3
_PAUSE_SECONDS = 0.05


class Session:
    """An open stream to one twin. A context manager, for one thread at a time.

        with mouse.session() as session:
            for _ in range(1000):
                image = show_next(session.predict(image, space="model"))

    A frame that is refused raises its error, and the session goes on. Where the service goes away, the session waits
    for it to come back, and asks again what was not answered; so it does where a proxy ends the stream. A frame that
    ends the stream three times raises an error in its turn.
    """

    def __init__(self, transport: Transport, info: MouseInfo, reconnect: float) -> None:
        self._transport = transport
        self._summary = info.summary
        self._reconnect = reconnect
        self._stream: FrameStream | None = None
        self._sent: deque[PredictQuery] = deque()
        # Of those, how many the stream has taken; and how many it has taken in all.
        self._on_way = self._carried = 0
        # How many of them are sent one at a time, since one may have ended the stream; how often the oldest did.
        self._alone = self._losses = 0
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
            Unavailable: the service went away and did not come back, and the message says how many frames were lost;
                or this frame ended the stream three times.
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
        self._drop_stream()

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
        self._open()
        # The caller may use its arrays again before they are answered, or asked about once more.
        own: Any = {name: value.copy() for name, value in vars(query).items() if isinstance(value, np.ndarray)}
        self._sent.append(replace(query, **own))
        self._put()

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
                self._open()
                answer: Prediction | MousetwinError = self._put().receive()
            except Closed:
                self.close()
                raise
            except (StreamLost, PayloadTooLarge) as error:
                if self._stream is not None and not self._stream.broken:
                    answer = error
                elif self._carried > 1:
                    # Which of the frames it was is found by asking for them one by one.
                    self._drop_stream()
                    self._alone = len(self._sent)
                    continue
                elif isinstance(error, PayloadTooLarge):
                    self._drop_stream()
                    answer = error
                else:
                    self._drop_stream()
                    self._losses += 1
                    if self._losses < LOSSES:
                        time.sleep(_PAUSE_SECONDS * self._losses)
                        continue
                    answer = Unavailable(f"the frame is lost, it ended the stream {LOSSES} times: {error}")
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
            self._on_way = max(0, self._on_way - 1)
            self._alone = max(0, self._alone - 1)
            self._losses = 0
            return answer

    def _open(self) -> None:
        # In a forked process the stream is the parent's.
        if self._stream is not None and self._stream.broken:
            self._drop_stream()
        if self._stream is None:
            self._stream = self._transport.open_stream()

    def _put(self) -> FrameStream:
        """The stream, with the frames on their way."""
        assert self._stream is not None
        while self._on_way < (1 if self._alone else len(self._sent)):
            self._stream.send(self._sent[self._on_way])
            self._on_way += 1
            self._carried += 1
        return self._stream

    def _drop_stream(self) -> None:
        self._on_way = self._carried = 0
        if self._stream is not None:
            self._stream.close()
            self._stream = None
