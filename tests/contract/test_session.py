"""One open stream: answers in the order asked, errors in their place, and nothing left behind."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import mousetwin
import numpy as np
import pytest
from bundles import BREAKS_ABOVE, BUSY, FRAGILE, FULL
from mousetwin import arrays
from mousetwin.v1 import digital_twin_pb2 as pb
from numpy.testing import assert_allclose
from running import Service, until

NEAR = {"rtol": 0, "atol": 2e-6}
ENOUGH = 60


class Session:
    """A stream of bytes both ways, as any language would have it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = self._channel.stream_stream("/mousetwin.v1.DigitalTwin/Session")
        self.call: Any = call(iter(self._asked.get, None), timeout=ENOUGH)

    def send(self, *frames: pb.SessionRequest | bytes) -> None:
        for frame in frames:
            self._asked.put(frame if isinstance(frame, bytes) else frame.SerializeToString())

    def receive(self) -> pb.SessionResponse:
        return pb.SessionResponse.FromString(next(self.call))

    def end(self) -> None:
        self._asked.put(None)

    def close(self) -> None:
        self.end()
        self.call.cancel()
        self._channel.close()


@pytest.fixture
def session(service: Service) -> Iterator[Session]:
    opened = Session(service.grpc)
    yield opened
    opened.close()


def frame(number: int, mouse: str, **given: np.ndarray) -> pb.SessionRequest:
    inputs = {name: arrays.to_proto(values) for name, values in given.items()}
    request = pb.PredictRequest(twin=pb.TwinRef(mouse=mouse), space=pb.SPACE_MODEL, **inputs)
    return pb.SessionRequest(id=number, predict=request)


def responses(answer: pb.SessionResponse) -> np.ndarray:
    assert answer.WhichOneof("frame") == "predict", answer
    return arrays.from_proto(answer.predict.responses, "responses")


def test_answers_come_in_the_order_of_the_frames(session: Session) -> None:
    # Large frames and small ones, quick twins and slow: the small ones are done first and still wait their turn.
    asked = [
        (1000 - n, twin, twin.inputs(count, seed=n))
        for n, (twin, count) in enumerate([(BUSY, 60), (FULL, 1), (FULL, 40), (BUSY, 1), *[(FULL, 2)] * 20])
    ]
    session.send(*(frame(number, twin.mouse, **given) for number, twin, given in asked))
    for number, twin, given in asked:
        answer = session.receive()
        assert answer.id == number
        assert_allclose(responses(answer), twin.respond(**given), **NEAR)
        assert answer.predict.twin.mouse == twin.mouse
    session.end()
    with pytest.raises(StopIteration):
        session.receive()


def test_gradients_and_predictions_share_the_stream(session: Session) -> None:
    given, cotangent = FULL.inputs(2), np.array([1.0, -2, 0, 0.5, 0, 3, 0], np.float32)
    asked = frame(1, "full", **given)
    gradient = pb.GradientRequest(predict=asked.predict, cotangent=arrays.to_proto(cotangent))
    malformed = pb.GradientRequest(predict=asked.predict, cotangent=arrays.to_proto(cotangent[:3]))
    session.send(asked, pb.SessionRequest(id=2, gradient=gradient), pb.SessionRequest(id=3, gradient=malformed), asked)
    assert_allclose(responses(session.receive()), FULL.respond(**given), **NEAR)
    answer = session.receive()
    assert (answer.id, answer.WhichOneof("frame")) == (2, "gradient")
    assert_allclose(arrays.from_proto(answer.gradient.predict.responses, ""), FULL.respond(**given), **NEAR)
    for name, expected in FULL.gradient(np.broadcast_to(cotangent, (2, 7))).items():
        assert_allclose(arrays.from_proto(getattr(answer.gradient, name), name), expected, **NEAR)
    refused = session.receive()
    assert (refused.id, refused.error.code, refused.error.field) == (3, "INVALID_ARGUMENT", "cotangent")
    assert_allclose(responses(session.receive()), FULL.respond(**given), **NEAR)


def test_each_frame_is_answered_while_the_stream_stays_open(session: Session) -> None:
    for number in range(5):
        given = FULL.inputs(1, seed=number)
        session.send(frame(number, "full", **given))
        assert_allclose(responses(session.receive()), FULL.respond(**given), **NEAR)


def test_a_bad_frame_is_answered_in_its_place_and_the_stream_goes_on(session: Session) -> None:
    good, fragile = FULL.inputs(2), FRAGILE.inputs(1)
    breaking = {"images": np.full_like(fragile["images"], BREAKS_ABOVE + 5)}
    session.send(
        frame(1, "full", **good),
        frame(2, "nobody", **good),
        frame(3, "full", **good),
        frame(4, "full", images=good["images"][:, :, :5]),
        pb.SessionRequest(id=5),
        b"\xff\xff not a message",
        frame(7, "fragile", **breaking),
        frame(8, "fragile", **fragile),
        frame(9, "full", **good),
    )
    answers = [session.receive() for _ in range(9)]
    refused = {
        n: (answers[n].id, answers[n].error.code, answers[n].error.field)
        for n in range(9)
        if answers[n].WhichOneof("frame") == "error"
    }
    assert refused == {
        1: (2, "NOT_FOUND", "mouse"),
        3: (4, "INVALID_ARGUMENT", "images"),
        4: (5, "INVALID_ARGUMENT", "frame"),
        5: (0, "INVALID_ARGUMENT", "request"),
        6: (7, "INTERNAL", ""),
    }
    ids = [answers[n].error.request_id for n in refused]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    assert "5×8" in answers[3].error.message
    assert "6×8" in answers[3].error.message
    for n in (0, 2, 8):
        assert_allclose(responses(answers[n]), FULL.respond(**good), **NEAR)
    assert_allclose(responses(answers[7]), FRAGILE.respond(**fragile), **NEAR)


def test_cancelling_mid_stream_leaves_the_service_healthy(service: Service) -> None:
    abandoned = Session(service.grpc)
    abandoned.send(*(frame(n, "busy", **BUSY.inputs(64, seed=n)) for n in range(30)))
    abandoned.receive()
    abandoned.close()
    # The work of the abandoned stream leaves the queue, and the service answers as before.
    until(lambda: 'queued_images{model="linear",mouse="busy"} 0.0' in httpx.get(f"{service.http}/metrics").text)
    with mousetwin.connect(service.grpc, timeout=ENOUGH) as twins:
        given = BUSY.inputs(3)
        assert_allclose(twins["busy"].predict(**given, space="model"), BUSY.respond(**given), **NEAR)


def test_the_client_splits_a_large_batch_and_tells_how_far_it_is(service: Service) -> None:
    given = FULL.inputs(300)
    heard: list[tuple[int, int]] = []
    with mousetwin.connect(service.grpc, timeout=ENOUGH) as twins:
        mouse = twins["full"]
        found = mouse.predict(**given, space="model", progress=lambda done, total: heard.append((done, total)))
        alone = [mouse.predict(**{name: v[n : n + 1] for name, v in given.items()}, space="model") for n in range(300)]
    assert_allclose(found, FULL.respond(**given), **NEAR)
    assert_allclose(found, np.concatenate(alone), rtol=0, atol=1e-6)
    assert heard[-1] == (300, 300)
    assert len(heard) > 1
    assert heard == sorted(set(heard))


def test_a_fault_deep_in_a_large_batch_is_located(service: Service) -> None:
    images = FULL.inputs(300)["images"]
    images[200, 0, 2, 3] = np.nan
    with mousetwin.connect(service.grpc, timeout=ENOUGH) as twins:
        mouse = twins["full"]
        with pytest.raises(mousetwin.InvalidArgument, match=r"nan at \(8, 0, 2, 3\).*begins at image 192") as caught:
            mouse.predict(images, space="model")
        assert caught.value.field == "images"
        assert caught.value.request_id
        good = FULL.inputs(2)
        assert_allclose(mouse.predict(**good, space="model"), FULL.respond(**good), **NEAR)
