"""The client's closed loop: the same answers as single calls, in order, whatever happens to the service meanwhile."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import mousetwin
import mousetwin.aio
import numpy as np
import pytest
from between import Proxy, proxy, relay
from bundles import BUSY, FULL
from mousetwin import wire
from mousetwin.grpc_transport import Stubs
from mousetwin.query import PredictQuery, Space
from numpy.testing import assert_allclose
from running import REQUEST_BYTES, Service, as_command

NEAR = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(params=["gRPC", "local"])
def twins(request: pytest.FixtureRequest, service: Service, models: Path) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(service.grpc if request.param == "gRPC" else f"local:{models}") as opened:
        yield opened


def test_a_session_answers_as_single_calls_do(twins: mousetwin.Twins) -> None:
    mouse, given = twins["full"], FULL.inputs(3)
    cotangent = np.arange(7.0)
    with mouse.session() as session:
        assert_allclose(session.predict(**given, space="model"), FULL.respond(**given), **NEAR)
        chosen = session.predict(**given, neurons=[5, 1], space="model")
        assert_allclose(chosen, FULL.respond(**given)[:, [5, 1]], **NEAR)
        assert chosen.twin == mouse.summary.twin
        responses, images = session.gradient(cotangent=cotangent, **given, space="model")
        assert_allclose(responses, FULL.respond(**given), **NEAR)
        assert_allclose(images, FULL.gradient(np.broadcast_to(cotangent, (3, 7)))["images"], **NEAR)
        raw = np.full((1, *FULL.stimulus), 100, np.uint8)
        assert_allclose(session.predict(raw), FULL.respond_raw(raw), rtol=0, atol=1e-5)


def test_frames_on_their_way_are_answered_in_order(twins: mousetwin.Twins) -> None:
    """More of them than either end holds at once, and nobody waits for the other."""
    inputs = [FULL.inputs(1, seed=n) for n in range(50)]
    with twins["full"].session() as session:
        for n, given in enumerate(inputs):
            if n % 2:
                session.send_predict(**given, space="model")
            else:
                session.send_gradient(cotangent=np.ones(7), **given, space="model")
        assert session.waiting == 50
        with pytest.raises(mousetwin.InvalidArgument, match="50 frames wait"):
            session.predict(**inputs[0], space="model")
        for n, given in enumerate(inputs):
            answer = session.receive()
            assert isinstance(answer, mousetwin.Responses if n % 2 else mousetwin.Gradient)
            found = answer if n % 2 else answer.responses
            assert_allclose(found, FULL.respond(**given), **NEAR)
        with pytest.raises(mousetwin.InvalidArgument, match="no frame"):
            session.receive()


def test_a_refused_frame_raises_in_its_turn_and_the_session_goes_on(twins: mousetwin.Twins) -> None:
    given = FULL.inputs(1)
    with twins["full"].session() as session:
        session.send_predict(**given, space="model")
        session.send_predict(np.full((1, 6, 8), np.nan), given["behavior"], space="model")
        session.send_predict(**given, space="model")
        assert_allclose(session.receive(), FULL.respond(**given), **NEAR)
        with pytest.raises(mousetwin.InvalidArgument, match="finite") as caught:
            session.receive()
        assert caught.value.field == "images"
        assert_allclose(session.receive(), FULL.respond(**given), **NEAR)
        with pytest.raises(mousetwin.InvalidArgument, match="neurons"):
            session.predict(**given, neurons=[9], space="model")
        assert_allclose(session.predict(**given, space="model"), FULL.respond(**given), **NEAR)


def test_a_closed_session_says_so_and_leaves_no_thread(service: Service) -> None:
    with mousetwin.connect(service.grpc) as opened:
        mouse, before = opened["full"], threading.active_count()
        session = mouse.session()
        session.predict(**FULL.inputs(1), space="model")
        session.send_predict(**FULL.inputs(1), space="model")
        session.close()
        with pytest.raises(mousetwin.Unavailable, match="closed"):
            session.predict(**FULL.inputs(1), space="model")
        # The mouse is still there to be asked.
        assert mouse.predict(**FULL.inputs(1), space="model").shape == (1, 7)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "consum" in thread.name:
            thread.join(30)
            assert not thread.is_alive()
    assert threading.active_count() <= before + 1


def test_it_survives_a_restart(models: Path) -> None:
    given = BUSY.inputs(1)
    right = BUSY.respond(**given)
    with as_command("--models", str(models)) as first:
        address = first.service.grpc
        opened = mousetwin.connect(address)
        session = opened["busy"].session(reconnect=60)
        assert_allclose(session.predict(**given, space="model"), right, rtol=0, atol=1e-5)
        for _ in range(5):
            session.send_predict(**given, space="model")
        first.process.kill()
        first.process.wait(60)
    with as_command("--models", str(models), "--grpc-port", address.rpartition(":")[2]):
        for _ in range(5):
            assert_allclose(session.receive(), right, rtol=0, atol=1e-5)
        assert_allclose(session.predict(**given, space="model"), right, rtol=0, atol=1e-5)
        session.close()
        opened.close()


def test_where_the_service_stays_away_it_says_what_was_lost(models: Path) -> None:
    given: Any = BUSY.inputs(1)
    with as_command("--models", str(models)) as command, mousetwin.connect(command.service.grpc) as opened:
        session = opened["busy"].session(reconnect=0.2)
        session.predict(**given, space="model")
        command.process.kill()
        command.process.wait(60)
        for _ in range(3):
            session.send_predict(**given, space="model")
        with pytest.raises(mousetwin.Unavailable, match="the session is lost, 3 frames were not answered"):
            session.receive()
        with pytest.raises(mousetwin.Unavailable, match="closed"):
            session.predict(**given, space="model")


# --- what lies between


@pytest.fixture
def between(service: Service) -> Iterator[tuple[Proxy, mousetwin.Mouse]]:
    """A proxy of the service, and a mouse behind it."""
    with proxy(service.grpc) as handler, mousetwin.connect(handler.address) as opened:
        yield handler, opened["full"]


# As nginx, haproxy, envoy and gRPC itself end a stream that waits, or whose connection they end.
ENDS = [
    (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 500"),
    (grpc.StatusCode.CANCELLED, "Received RST_STREAM with error code 8"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received RST_STREAM with error code 11"),
    (grpc.StatusCode.UNAVAILABLE, "Too many pings"),
    (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 502"),
]


@pytest.mark.parametrize("end", ENDS)
def test_a_stream_that_a_proxy_ends_is_begun_again(
    between: tuple[Proxy, mousetwin.Mouse], end: tuple[grpc.StatusCode, str]
) -> None:
    handler, mouse = between
    inputs = [FULL.inputs(1, seed=n) for n in range(6)]
    with mouse.session() as session:
        for _ in range(2):
            handler.ends = [end, end]
            for given in inputs:
                session.send_predict(**given, space="model")
            for given in inputs:
                assert_allclose(session.receive(), FULL.respond(**given), **NEAR)


def test_a_session_whose_connection_is_cut_while_it_waits(service: Service) -> None:
    given = FULL.inputs(1)
    with (
        relay(service.grpc) as between,
        mousetwin.connect(between.address) as opened,
        opened["full"].session() as session,
    ):
        for _ in range(3):
            assert_allclose(session.predict(**given, space="model"), FULL.respond(**given), **NEAR)
            between.cut()
        between.lose()
        assert_allclose(session.predict(**given, space="model"), FULL.respond(**given), **NEAR)


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_frame_that_ends_the_stream_each_time_is_lost_alone(
    between: tuple[Proxy, mousetwin.Mouse], place: int
) -> None:
    handler, mouse = between
    handler.poison = lambda frame: len(frame) > 5_000
    counts = [1] * 6
    counts[place] = 100
    inputs = [FULL.inputs(count, seed=n) for n, count in enumerate(counts)]
    with mouse.session() as session:
        for given in inputs:
            session.send_predict(**given, space="model")
        for number, given in enumerate(inputs):
            if number == place:
                with pytest.raises(
                    mousetwin.Unavailable, match=r"the frame is lost, it ended the stream 3 times: .*INTERNAL"
                ):
                    session.receive()
            else:
                assert_allclose(session.receive(), FULL.respond(**given), **NEAR)
        assert_allclose(session.predict(**inputs[place - 1], space="model"), FULL.respond(**inputs[place - 1]), **NEAR)
    assert handler.streams <= 7


@pytest.mark.parametrize("place", [0, 3])
def test_a_frame_that_is_too_large_for_grpc_is_refused_alone(service: Service, place: int) -> None:
    counts = [1] * 5
    counts[place] = REQUEST_BYTES // (6 * 8) + 1
    inputs = [FULL.inputs(count, seed=n) for n, count in enumerate(counts)]
    with mousetwin.connect(service.grpc) as opened, opened["full"].session() as session:
        for given in inputs:
            session.send_predict(**given, space="model")
        for number, given in enumerate(inputs):
            if number == place:
                with pytest.raises(mousetwin.PayloadTooLarge, match=f"more than {service.grpc} takes"):
                    session.receive()
            else:
                assert_allclose(session.receive(), FULL.respond(**given), **NEAR)
        assert_allclose(session.predict(**inputs[place - 1], space="model"), FULL.respond(**inputs[place - 1]), **NEAR)


def test_a_session_whose_connection_the_caller_closed(service: Service) -> None:
    opened = mousetwin.connect(service.grpc)
    session = opened["full"].session(reconnect=3600)
    session.predict(**FULL.inputs(1), space="model")
    opened.close()
    with pytest.raises(mousetwin.Unavailable, match="closed"):
        session.predict(**FULL.inputs(1), space="model")


def test_a_client_that_pings_often_keeps_its_session(service: Service) -> None:
    """As others' keepalive of 10 s does in a wait of a minute: gRPC's own limit is met at the third ping."""
    options = [("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0)]
    given = FULL.inputs(1)
    query = PredictQuery(wire.ref_from_proto(wire.pb.TwinRef(mouse="full")), space=Space.MODEL, **given)
    frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpc.insecure_channel(service.grpc, options=options) as channel:
        call = Stubs(channel).session(iter(frames.get, None))
        frames.put(wire.frame_to_proto(0, query))
        next(call)
        ended = threading.Event()
        call.add_callback(ended.set)
        # gRPC sends no more than one ping a second.
        assert not ended.wait(8), call.details()
        frames.put(wire.frame_to_proto(1, query))
        assert_allclose(wire.answer_from_proto(next(call)).responses, FULL.respond(**given), **NEAR)
        frames.put(None)


# --- single calls


def test_a_call_whose_connection_was_lost_is_asked_again(service: Service) -> None:
    given = FULL.inputs(1)
    right = FULL.respond(**given)
    with relay(service.grpc) as between, mousetwin.connect(between.address) as opened:
        mouse = opened["full"]
        for lose in (between.lose, between.cut, lambda: between.lose(2)):
            lose()
            assert_allclose(mouse.predict(**given, space="model"), right, **NEAR)
            lose()
            assert_allclose(mouse.gradient(cotangent=np.ones(7), **given, space="model").responses, right, **NEAR)
            lose()
            assert "full" in opened
        # Once more, not for ever.
        between.lose(10**6)
        with pytest.raises(mousetwin.Unavailable, match=f"no answer from {between.address}"):
            mouse.predict(**given, space="model")
        with pytest.raises((mousetwin.Unavailable, mousetwin.DeadlineExceeded)):
            mouse.predict(**given, space="model", timeout=0.1)
        between.lose(0)
        between.close()
        with pytest.raises(mousetwin.Unavailable, match="connection refused"):
            mouse.predict(**given, space="model")


@pytest.mark.parametrize("end", ENDS)
def test_a_batch_that_a_proxy_ends_says_so(
    between: tuple[Proxy, mousetwin.Mouse], end: tuple[grpc.StatusCode, str]
) -> None:
    handler, mouse = between
    handler.ends = [end]
    many = FULL.inputs(500)
    with pytest.raises(mousetwin.Unavailable) as caught:
        mouse.predict(**many, space="model")
    assert end[1] in str(caught.value)
    assert_allclose(mouse.predict(**many, space="model"), FULL.respond(**many), **NEAR)


def test_a_call_by_asyncio_is_asked_again_too(service: Service) -> None:
    given = FULL.inputs(1)
    right = FULL.respond(**given)

    async def ask() -> None:
        with relay(service.grpc) as between:
            async with mousetwin.aio.connect(between.address) as opened:
                mouse = await opened.mouse("full")
                for lose in (between.lose, between.cut, lambda: between.lose(2)):
                    lose()
                    assert_allclose(await mouse.predict(**given, space="model"), right, **NEAR)
                between.lose(10**6)
                with pytest.raises(mousetwin.Unavailable, match=f"no answer from {between.address}"):
                    await mouse.predict(**given, space="model")

    asyncio.run(ask())


@pytest.mark.parametrize("end", ENDS)
def test_a_batch_by_asyncio_says_so_too(
    between: tuple[Proxy, mousetwin.Mouse], end: tuple[grpc.StatusCode, str]
) -> None:
    handler, _ = between
    many = FULL.inputs(500)

    async def ask() -> None:
        async with mousetwin.aio.connect(handler.address) as opened:
            mouse = await opened.mouse("full")
            handler.ends = [end]
            with pytest.raises(mousetwin.Unavailable) as caught:
                await mouse.predict(**many, space="model")
            # grpc.aio forgets why a call ended where it was sending.
            assert end[1] in str(caught.value) or "was lost while a frame was sent" in str(caught.value)
            assert_allclose(await mouse.predict(**many, space="model"), FULL.respond(**many), **NEAR)

    asyncio.run(ask())
