"""The client's closed loop: the same answers as single calls, in order, whatever happens to the service meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
from bundles import BUSY, FULL
from numpy.testing import assert_allclose
from running import Service, as_command

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
