"""The client against the demo mouse, wherever that is served. Imports nothing but what the client itself needs."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import grpc
import mousetwin
import mousetwin.aio
import numpy as np
import pytest
from mousetwin import errors
from mousetwin.transport import open_transport, parse_host_port
from numpy.testing import assert_allclose, assert_array_equal

RNG = np.random.default_rng(0)
SHOWN = RNG.integers(0, 256, (3, 144, 256)).astype(np.uint8)
NATIVE = RNG.integers(0, 256, (5, 36, 64)).astype(np.uint8)
BEHAVIOR = np.array([[40.0, 0.0, 3.0], [55.0, 1.5, 20.0], [25.0, -2.0, 0.0], [30.0, 0.0, 1.0], [48.0, 0.5, 9.0]])
PUPIL = np.array([[100.0, 80.0], [110.0, 70.0], [92.0, 88.0], [100.0, 95.0], [84.0, 80.0]])
NEAR: dict[str, Any] = {"rtol": 0, "atol": 2e-5}


def z(mouse: mousetwin.Mouse, what: str, values: Any) -> Any:
    moments = mouse.info.statistics[what]
    return (np.asarray(values, float) - moments.mean) / np.array(moments.std)


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where something listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# --- connecting


def test_nothing_listens(nobody: str) -> None:
    with mousetwin.connect(nobody, timeout=60) as twins:
        for ask in (twins.mice, lambda: twins["demo"], lambda: list(twins)):
            with pytest.raises(mousetwin.Unavailable) as caught:
                ask()
            assert isinstance(caught.value, ConnectionError)
            assert str(caught.value) == (
                f"no answer from {nobody}: connection refused; is the service running? start it with 'mousetwin serve'"
            )


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "it speaks HTTP and not gRPC"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it speaks no gRPC"),
    ],
)
def test_a_port_that_speaks_something_else(says: bytes, expected: str) -> None:
    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for scheme, hint in (("", "mousetwin is usually 8001"), ("torchserve://", "torchserve is usually 7070")):
            with mousetwin.connect(scheme + address, timeout=60) as twins:
                with pytest.raises(mousetwin.Unavailable) as caught:
                    twins.mice()
                assert str(caught.value) == f"no answer from {address}: {expected}; the gRPC port of {hint}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


ADDRESSES = {
    "": "no host and port",
    "nowhere": "no host and port",
    "8001": "no host and port",
    "host:": "no host and port",
    ":8001": "no host and port",
    "host:port": "no host and port",
    "host:80²": "no host and port",
    "host:-1": "no host and port",
    "host:8001/": "no host and port",
    "host:8001/v1": "no host and port",
    "host/:8001": "no host and port",
    "user@host:8001": "no host and port",
    "a:b:8001": "no host and port",
    "ipv4:127.0.0.1:8001": "no host and port",
    "host:0": "the port 0, expected one from 1 to 65535",
    "host:65536": "the port 65536, expected one from 1 to 65535",
    "127.0.0.1:73537": "the port 73537, expected one from 1 to 65535",
    "[::1]:99999": "the port 99999, expected one from 1 to 65535",
    "host:" + "9" * 5000: "the port 99999999999999999999, expected one from 1 to 65535",
    " 127.0.0.1:8001": "white space",
    "127.0.0.1:8001\n": "white space",
    "127.0.0.1: 8001": "white space",
    "::1:8001": "expected '[::1]:8001'",
    "fe80::1:2:8001": "expected '[fe80::1:2]:8001'",
    "::1": "without brackets, expected '[::1]:8001'",
    "[::1]": "no host and port",
    "[127.0.0.1]:8001": "no IPv6 address in its brackets",
    "[nowhere]:8001": "no IPv6 address in its brackets",
    "http://127.0.0.1:8000": "is an HTTP address, expected that of gRPC",
    "HTTPS://mice.example.org": "is an HTTP address, expected that of gRPC",
    "grpc://127.0.0.1:8001": "the scheme 'grpc'",
    "dns:///host:8001": "the scheme 'dns'",
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(("connect", "scheme"), [("", ""), ("", "torchserve://"), ("aio", "")])
def test_addresses_that_are_none(address: str, connect: str, scheme: str) -> None:
    with pytest.raises(mousetwin.InvalidArgument) as caught:
        (mousetwin.aio if connect else mousetwin).connect(scheme + address)
    assert caught.value.field == "address"
    assert repr(scheme + address) in str(caught.value)
    assert ADDRESSES[address] in str(caught.value)


def test_an_address_that_is_no_text() -> None:
    for connect in (mousetwin.connect, mousetwin.aio.connect):
        with pytest.raises(mousetwin.InvalidArgument, match="address: int, expected"):
            connect(8001)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("127.0.0.1:8001", True),
        ("127.8.9.10:8001", True),
        ("localhost:8001", True),
        ("LocalHost.:8001", True),
        ("box.localhost:8001", True),
        ("[::1]:8001", True),
        ("[::ffff:127.0.0.1]:8001", True),
        ("0.0.0.0:8001", True),
        ("10.0.0.1:8001", False),
        ("[2001:db8::1]:8001", False),
        ("[fe80::1%eth0]:8001", False),
        ("localhost.example.org:8001", False),
        ("127.0.0.1.example.org:8001", False),
        ("gpu_box:8001", False),
        ("bücher.example.org:8001", False),
    ],
)
def test_addresses_of_this_machine(address: str, is_here: bool) -> None:
    found = parse_host_port(address)
    assert str(found) == address
    assert found.is_loopback == is_here


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_is_not_asked_for_this_machine(
    variable: str, server_address: str, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://{nobody}")
    port = server_address.rpartition(":")[2]
    for address in (server_address, f"localhost:{port}"):
        with mousetwin.connect(address, timeout=60) as twins:
            assert "demo" in twins

    async def ask() -> list[mousetwin.TwinSummary]:
        async with mousetwin.aio.connect(server_address, timeout=60) as twins:
            return await twins.mice()

    assert asyncio.run(ask())
    with mousetwin.connect(f"torchserve://{server_address}") as twins, pytest.raises(mousetwin.Unimplemented):
        twins.mice()
    # Elsewhere it is: this name has no address, and only the proxy would find one.
    with mousetwin.connect("mice.invalid:8001", timeout=60) as twins, pytest.raises(mousetwin.Unavailable) as caught:
        twins.mice()
    assert "refused" in str(caught.value)


def test_a_scheme_that_nothing_serves() -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="triton"):
        mousetwin.connect("triton://127.0.0.1:8001")


def test_torchserve_is_asked_for_where_it_is_not(server_address: str, nobody: str) -> None:
    with mousetwin.connect(f"torchserve://{server_address}") as twins, pytest.raises(mousetwin.Unimplemented) as caught:
        twins.mice()
    assert f"{server_address} is another service" in str(caught.value)
    with mousetwin.connect(f"torchserve://{nobody}") as twins, pytest.raises(mousetwin.Unavailable, match=nobody):
        twins.mice()
    for address in ("torchserve:", "torchserve://", "torchserve://host"):
        with pytest.raises(mousetwin.InvalidArgument, match="expected"):
            mousetwin.connect(address)


@pytest.mark.parametrize("address", ["local:", "torchserve://127.0.0.1:7070", "8001", "host:"])
def test_asyncio_speaks_grpc_only(address: str) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="host:port"):
        mousetwin.aio.connect(address)


def test_a_closed_connection_says_so(server_address: str) -> None:
    with mousetwin.connect(server_address, timeout=60) as twins:
        mouse = twins["demo"]
    for ask in (twins.mice, lambda: mouse.predict(NATIVE), lambda: mouse.predict(np.repeat(NATIVE, 30, 0))):
        with pytest.raises(mousetwin.Unavailable, match="closed"):
            ask()
    twins.close()


# --- what is served


def test_the_mice(twins: mousetwin.Twins) -> None:
    (summary,) = twins.mice()
    assert (summary.twin.mouse, summary.synthetic) == ("demo", True)
    assert (summary.native_size, summary.stimulus_size) == ((36, 64), (144, 256))
    assert (len(summary.behavior), len(summary.pupil_center)) == (3, 2)
    assert summary.required == ("images",)
    assert list(twins) == ["demo"]
    assert "demo" in twins
    assert "26872-17-20" not in twins
    assert len(summary.twin.digest) == 64


def test_one_mouse(twins: mousetwin.Twins) -> None:
    mouse = twins["demo"]
    twin = mouse.summary.twin
    for same in (twins.mouse("demo", twin.model), twins.mouse("demo", version=1), twins.mouse("demo", version="1")):
        assert same.summary == mouse.summary
    assert repr(mouse) == f"<Mouse demo {twin.model} v1: {mouse.summary.neurons} neurons, synthetic>"
    info, neurons = mouse.info, mouse.summary.neurons
    assert info.unit_ids is not None
    assert len(set(info.unit_ids.tolist())) == neurons
    assert info.cell_motor_coordinates is not None
    assert info.cell_motor_coordinates.shape == (neurons, 3)
    assert info.truth
    assert all(values.shape == (neurons,) for values in info.truth.values())
    report = info.graphs["forward"]
    assert report.parity_max_abs_error <= report.parity_tolerance
    assert info.licence


@pytest.mark.parametrize(
    ("key", "model", "version", "field"),
    [("nobody", "", None, "mouse"), ("demo", "cnn", None, "model"), ("demo", "", 99, "version")],
)
def test_what_there_is_not(twins: mousetwin.Twins, key: str, model: str, version: int | None, field: str) -> None:
    with pytest.raises(mousetwin.NotFound, match="expected one of") as caught:
        twins.mouse(key, model, version)
    assert caught.value.field == field
    assert caught.value.request_id
    assert isinstance(caught.value, LookupError)


# --- predicting


def test_raw_images_are_normalised_and_shrunk(mouse: mousetwin.Mouse) -> None:
    # To a quarter: the mean of the middle 2×2 of every 4×4 pixels.
    blocks = SHOWN.astype(float).reshape(3, 36, 4, 64, 4)[:, :, 1:3, :, 1:3].mean((2, 4))
    expected = mouse.predict(z(mouse, "images", blocks), space="model")
    assert_allclose(mouse.predict(SHOWN), expected, **NEAR)
    assert_allclose(mouse.predict(SHOWN[:, None].tolist()), expected, **NEAR)
    native = mouse.predict(z(mouse, "images", NATIVE), space=mousetwin.Space.MODEL)
    assert_allclose(mouse.predict(NATIVE), native, **NEAR)
    assert_allclose(mouse.predict(NATIVE.astype(float), space="raw"), native, **NEAR)
    assert native.dtype == np.float32
    assert native.shape == (5, mouse.summary.neurons)
    assert np.ptp(np.asarray(native), axis=0).max() > 0


def test_conditions(mouse: mousetwin.Mouse) -> None:
    images = z(mouse, "images", NATIVE)
    behavior = BEHAVIOR / np.array(mouse.info.statistics["behavior"].std)
    expected = mouse.predict(images, behavior, z(mouse, "pupil_center", PUPIL), space="model")
    found = mouse.predict(NATIVE, BEHAVIOR, PUPIL)
    assert_allclose(found, expected, **NEAR)
    assert found.defaults == ()
    one = mouse.predict(NATIVE, behavior=BEHAVIOR[1], pupil_center=PUPIL[2])
    assert_allclose(one, mouse.predict(NATIVE, BEHAVIOR[[1] * 5], PUPIL[[2] * 5]), **NEAR)
    # Left out, they stand at the training set's mean.
    means = (mouse.info.statistics["behavior"].mean, mouse.info.statistics["pupil_center"].mean)
    silent = mouse.predict(NATIVE)
    assert silent.defaults == ("behavior", "pupil_center")
    assert_allclose(silent, mouse.predict(NATIVE, *means), **NEAR)


def test_chosen_neurons(mouse: mousetwin.Mouse) -> None:
    everything = np.asarray(mouse.predict(NATIVE))
    last = mouse.summary.neurons - 1
    assert_allclose(mouse.predict(NATIVE, neurons=[last, 0, 17]), everything[:, [last, 0, 17]], **NEAR)
    assert_allclose(mouse.predict(NATIVE, neurons=np.array([4], np.uint8)), everything[:, [4]], **NEAR)
    assert mouse.info.unit_ids is not None
    ids = mouse.info.unit_ids[[9, 2]]
    assert_allclose(mouse.predict(NATIVE, unit_ids=ids), everything[:, [9, 2]], **NEAR)


def test_a_batch_larger_than_a_frame(mouse: mousetwin.Mouse) -> None:
    images = RNG.integers(0, 256, (150, 36, 64)).astype(np.uint8)
    behavior, pupil = np.resize(BEHAVIOR, (150, 3)), np.resize(PUPIL, (150, 2))
    heard: list[tuple[int, int]] = []
    found = mouse.predict(images, behavior, pupil, neurons=[3, 1], progress=lambda *far: heard.append(far))
    alone = [mouse.predict(images[[n]], behavior[n], pupil[n])[0, [3, 1]] for n in (0, 63, 64, 100, 149)]
    assert_allclose(np.asarray(found)[[0, 63, 64, 100, 149]], np.stack(alone), **NEAR)
    assert heard[-1] == (150, 150)
    assert heard == sorted(set(heard))
    assert len(heard) > 1
    assert found.twin == mouse.summary.twin


def test_progress_of_a_small_batch(mouse: mousetwin.Mouse) -> None:
    heard: list[tuple[int, int]] = []
    mouse.predict(NATIVE, progress=lambda *far: heard.append(far))
    assert heard == [(5, 5)]


def test_responses_are_an_array_that_remembers(mouse: mousetwin.Mouse) -> None:
    found = mouse.predict(NATIVE)
    again = pickle.loads(pickle.dumps(found))
    assert_array_equal(again, found)
    parts = (found[1:3], found[:, 0], found[2], found * 2, found.copy(), found.T, found.mean(0), found[:0])
    copies = (again, again[1:3], copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(parts[0])))
    for part in (*parts, *copies):
        assert isinstance(part, mousetwin.Responses)
        assert part.twin == mouse.summary.twin
        assert part.defaults == ("behavior", "pupil_center")
    assert_array_equal(np.asarray(found)[1:3], found[1:3])
    found[0, 0] = 7
    assert found[0, 0] == 7


def test_one_number_of_responses_is_a_plain_number(mouse: mousetwin.Mouse) -> None:
    found = mouse.predict(NATIVE)
    plain = np.asarray(found)
    reductions = (np.mean, np.sum, np.max, np.min, np.std, np.var, np.median, np.ptp, np.nanmean, np.linalg.norm)
    for reduce in reductions:
        assert type(reduce(found)) is np.float32
        assert hash(reduce(found)) == hash(reduce(plain))
    numbers = (found.mean(), found.sum(), found.max(), found[0, 0], found[0].mean(), found[1] @ found[1])
    assert {type(number) for number in numbers} == {np.float32}
    assert type((found > 0).all()) is np.bool_
    assert type(found.argmax()) is np.intp
    for kept in (found.mean(keepdims=True), found[:1, :1], found.mean(1)):
        assert isinstance(kept, mousetwin.Responses)


def test_a_gradient_is_the_pair_that_it_unpacks_as(mouse: mousetwin.Mouse) -> None:
    found = mouse.gradient(NATIVE, np.ones(mouse.summary.neurons))
    responses, images = found
    assert responses is found[0] is found[-2] is found.responses
    assert images is found[1] is found[-1] is found.images
    assert len(found) == 2
    assert found[:1] == (responses,)
    assert found[::-1] == (images, responses)
    for beyond in (2, -3):
        with pytest.raises(IndexError):
            found[beyond]
    with pytest.raises(TypeError):
        found["images"]  # type: ignore[call-overload]
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert_array_equal(again[1], images)
        assert_array_equal(again.behavior, found.behavior)
        assert again[0].twin == responses.twin


# --- in other processes


def same(one: mousetwin.Responses, other: mousetwin.Responses) -> None:
    assert_array_equal(one, other)
    assert (one.twin, one.defaults) == (other.twin, other.defaults)


def test_pickles_and_copies_connect_again(server_address: str) -> None:
    with mousetwin.connect(server_address, timeout=60) as twins:
        mouse = twins["demo"]
        right = mouse.predict(NATIVE)
        for again in (pickle.loads(pickle.dumps(mouse)), copy.copy(mouse), copy.deepcopy(mouse)):
            assert again.summary == mouse.summary
            same(again.predict(NATIVE), right)
        other = copy.deepcopy(twins)
        same(other["demo"].predict(NATIVE), right)
        other.close()
        same(mouse.predict(NATIVE), right)
    with pickle.loads(pickle.dumps(twins)) as opened:
        same(opened["demo"].predict(NATIVE), right)
    same(pickle.loads(pickle.dumps(mouse)).predict(NATIVE), right)


def test_unpickling_asks_nobody(nobody: str, mouse: mousetwin.Mouse) -> None:
    away = pickle.loads(pickle.dumps(mousetwin.Mouse(open_transport(nobody), mouse.info, 60)))
    assert away.summary == mouse.summary
    assert_array_equal(away.info.unit_ids, mouse.info.unit_ids)
    with pytest.raises(mousetwin.Unavailable, match=nobody):
        away.predict(NATIVE)


# What Python itself says of forks in a process with threads, which gRPC has.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_mouse_goes_to_other_processes(mouse: mousetwin.Mouse, start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {start} here")
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        asked = [pool.submit(mouse.predict, NATIVE[n : n + 1]) for n in range(5)]
        for n, answer in enumerate(asked):
            same(answer.result(60), mouse.predict(NATIVE[n : n + 1]))


def test_a_session_does_not_pickle(mouse: mousetwin.Mouse) -> None:
    with mouse.session() as session:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a Session is an open stream, which cannot be pickled or copied"):
                attempt(session)
        assert session.predict(NATIVE).shape == (5, mouse.summary.neurons)


def test_what_is_printed_is_one_line(server_address: str, mouse: mousetwin.Mouse) -> None:
    twin = f"demo {mouse.summary.twin.model}"
    with mousetwin.connect(server_address) as twins, mouse.session() as session:
        optimized = mouse.optimize([3, 14], steps=2)
        printed = {
            repr(twins): server_address,
            repr(mouse): f"{twin} v1: {mouse.summary.neurons} neurons, synthetic",
            repr(mouse.info): f"{twin} v1 (synthetic): {mouse.summary.neurons} neurons",
            repr(session): f"{twin} v1 (synthetic): 0 frames waiting",
            repr(optimized): f"{twin} (synthetic): images (2, 36, 64) in model space",
            repr(mouse.gradient(NATIVE, np.ones(mouse.summary.neurons))): "images (5, 36, 64)",
        }
    for line, told in printed.items():
        assert told in line
        assert len(line) < 200
        assert "\n" not in line
        assert " at 0x" not in line


def test_several_threads_share_a_connection(twins: mousetwin.Twins) -> None:
    mouse = twins["demo"]
    expected = np.asarray(mouse.predict(NATIVE))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: mouse.predict(NATIVE[n % 5 : n % 5 + 1]), range(40)))
    for n, answer in enumerate(answers):
        assert_allclose(answer[0], expected[n % 5], **NEAR)


# --- what goes wrong


def test_a_refusal_is_typed_and_names_the_field(mouse: mousetwin.Mouse) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="36×60") as caught:
        mouse.predict(NATIVE[:, :, :60])
    assert caught.value.field == "images"
    assert caught.value.request_id
    assert caught.value.code == "INVALID_ARGUMENT"
    assert isinstance(caught.value, ValueError)
    with pytest.raises(mousetwin.InvalidArgument, match="'rgb', expected 'raw' or 'model'"):
        mouse.predict(NATIVE, space="rgb")
    with pytest.raises(mousetwin.InvalidArgument, match="images"):
        mouse.predict([[1, 2], [3]])
    for single in (SHOWN[0], NATIVE[0], np.zeros((1440, 256), np.uint8), SHOWN[0].tolist()):
        told = rf"shape \({len(single)}, {len(single[0])}\) is one image, expected \(N, H, W\).*images\[None\]"
        with pytest.raises(mousetwin.InvalidArgument, match=told) as caught:
            mouse.predict(single)
        assert caught.value.field == "images"
    with pytest.raises(mousetwin.InvalidArgument, match=r"\(150, 36, 64\).*|3 rows|\(3, 3\)") as caught:
        mouse.predict(np.repeat(NATIVE, 30, axis=0), behavior=BEHAVIOR[:3])
    assert caught.value.field == "behavior"


# One frame and several, either far more than a moment's work.
@pytest.mark.parametrize("shape", [(50, 144, 256), (1500, 36, 64)])
def test_a_deadline_that_passes(mouse: mousetwin.Mouse, shape: tuple[int, ...]) -> None:
    with pytest.raises(mousetwin.DeadlineExceeded) as caught:
        mouse.predict(np.zeros(shape, np.uint8), timeout=1e-6)
    assert isinstance(caught.value, TimeoutError)
    assert mouse.predict(NATIVE).shape == (5, mouse.summary.neurons)


def test_a_service_that_does_not_answer(silent: str) -> None:
    with mousetwin.connect(silent, timeout=0.2) as twins:
        for ask in (twins.mice, lambda: twins["demo"], lambda: twins.mice(timeout=0.1)):
            with pytest.raises(mousetwin.DeadlineExceeded):
                ask()


def test_a_progress_callback_that_raises_ends_the_call_and_nothing_else(mouse: mousetwin.Mouse) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        mouse.predict(np.zeros((500, 36, 64), np.uint8), progress=stop)
    assert mouse.predict(NATIVE).shape == (5, mouse.summary.neurons)


@pytest.mark.parametrize("code", [cls.code for cls in errors._BY_CODE.values()])
def test_every_status_has_its_exception(code: str) -> None:
    error = errors.from_code(code, "text", field="images", request_id="1")
    assert type(error) is not mousetwin.MousetwinError
    assert (error.code, error.field, error.request_id, str(error)) == (code, "images", "1", "text")
    assert type(error).__name__ in mousetwin.__all__
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (again.code, again.field, again.request_id, str(again)) == (code, "images", "1", "text")


def test_the_client_for_asyncio_where_nothing_listens(nobody: str) -> None:
    async def ask() -> None:
        async with mousetwin.aio.connect(nobody, timeout=60) as twins:
            await twins.mice()

    with pytest.raises(mousetwin.Unavailable, match=nobody):
        asyncio.run(ask())


# --- forked processes

# Before, gRPC's own fork handlers are no help, and are left off.
FORKS = tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 80)
IN_VAIN = "this process was forked while gRPC was in use, and GRPC_ENABLE_FORK_SUPPORT is off: "
FORKED = """
import multiprocessing, os, sys
import mousetwin, numpy as np

images = np.random.default_rng(0).integers(0, 256, (70, 36, 64)).astype(np.uint8)
twins = mousetwin.connect(sys.argv[1], timeout=60)
mouse = twins["demo"]
right = mouse.predict(images)

def is_right(answer):
    return np.allclose(answer, right[: len(answer)], atol=1e-5)

def in_child(ask):
    if not (child := os.fork()):
        try:
            print(ask(), flush=True)
        except mousetwin.MousetwinError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""
FORKED_POOL = """
def ask(number):
    with mousetwin.connect(sys.argv[1], timeout=60) as own:
        answers = [mouse.predict(images[:3]), mouse.predict(images), own["demo"].predict(images[:3])]
    twins.close()
    return all(map(is_right, answers))

with multiprocessing.get_context("fork").Pool(3) as pool:
    print(pool.map(ask, range(3), 1))
assert is_right(mouse.predict(images))
"""
# What the parent waits for, its child may ask for again.
FORKED_SESSION = """
session = mouse.session()
session.send_predict(images[:1])

def ask():
    answers = [session.receive(), session.predict(images[:2]), mouse.predict(images[:3])]
    session.close()
    return all(map(is_right, answers))

in_child(ask)
assert is_right(session.receive())
for _ in range(3):
    assert is_right(session.predict(images[:2]))
    in_child(lambda: is_right(session.predict(images[:1])))
session.close()
"""
FORKED_IN_A_CALL = """
def fork(report):
    in_child(lambda: mouse.predict(images[:1]))

assert mouse.optimize([0], steps=1, on_report=fork).images.shape == (1, 36, 64)
"""

FORKED_ASYNCIO = """
import asyncio, os, sys
import mousetwin, mousetwin.aio

async def mice(twins):
    return len(await twins.mice())

async def once():
    async with mousetwin.aio.connect(sys.argv[1], timeout=60) as twins:
        return await mice(twins)

def in_child(ask):
    if not (child := os.fork()):
        try:
            print(asyncio.run(ask), flush=True)
        except mousetwin.MousetwinError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    ask.close()
    os.waitpid(child, 0)

twins = mousetwin.aio.connect(sys.argv[1], timeout=60)
in_child(mice(twins))
assert asyncio.run(once()) == 1
in_child(mice(twins))
assert asyncio.run(mice(twins)) == 1
in_child(mice(twins))
assert asyncio.run(mice(twins)) == 1
"""


def forked(script: str, address: str, **environment: str) -> list[str]:
    """What a script prints; its exit is a failure of the test."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, address]
    surroundings = {**os.environ, **environment}
    if not environment:
        surroundings.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_asks_too(server_address: str) -> None:
    if FORKS:
        assert forked(FORKED + FORKED_POOL, server_address) == ["[True, True, True]"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_goes_on_with_a_session(server_address: str) -> None:
    lines = forked(FORKED + FORKED_SESSION, server_address)
    assert len(lines) == 4
    assert all(line == "True" if FORKS else line.startswith(IN_VAIN) for line in lines)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_says_where_it_could_only_wait(server_address: str) -> None:
    script = f"{FORKED}\nin_child(lambda: mouse.predict(images[:1]))"
    (line,) = forked(script, server_address, GRPC_ENABLE_FORK_SUPPORT="0")
    assert line.startswith(IN_VAIN)
    script = f"{FORKED}{FORKED_IN_A_CALL}"
    lines = forked(script, server_address)
    assert lines
    for line in lines:
        assert line.startswith("this process was forked while a call was under way: " if FORKS else IN_VAIN)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_asks_by_asyncio_too(server_address: str) -> None:
    before, between, after = forked(FORKED_ASYNCIO, server_address)
    assert before == "1"
    assert between == "1" if FORKS else between.startswith(IN_VAIN)
    assert after.startswith("this process was forked while an asyncio client was there" if FORKS else IN_VAIN)
