"""What serving adds to the engine: one image beside a bare socket, eight clients at once, the way to ready.

    python benchmarks/latency.py [--models MODELS] [--seconds 5]

Prints a table a twin; every row is measured against the same started service.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
from mousetwin.arrays import write_npy
from mousetwin.query import TwinRef
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine
from mousetwin_serve.repository import DEMO_MODELS, Repository
from numpy.typing import NDArray

CLIENTS = 8
BARE, SOCKET = "bare engine", "bare socket around it"
Times = NDArray[np.float64]


def start(models: Path, *options: str) -> tuple[subprocess.Popen[str], str, str, float]:
    """A service of `models` on free ports: the process, its gRPC and HTTP addresses, and seconds until it was ready."""
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--models", str(models), *options]
    begun = time.perf_counter()
    process = subprocess.Popen([*command, "--http-port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready, http_address = 0.0, ""
    for line in process.stdout:
        ready = ready or time.perf_counter() - begun
        if line.startswith("HTTP"):
            http_address = line.split("//")[1].split()[0]
        if line.startswith("gRPC"):
            return process, line.split()[1], http_address, ready
    raise SystemExit("the service did not start")


def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Milliseconds of each call, all of them in turns of 20, so that what slows the machine down slows all of them."""
    times: dict[str, list[float]] = {label: [] for label in calls}
    for call in calls.values():
        for _ in range(20):
            call()
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for label, call in calls.items():
            call()
            for _ in range(20):
                begun = time.perf_counter()
                call()
                times[label].append((time.perf_counter() - begun) * 1e3)
    return {label: np.array(values) for label, values in times.items()}


def answer_on_socket(models: Path, twin: tuple[str, str, str], batch: Batch, port: Connection) -> None:
    """The least that serving costs: the same run, behind a bare socket. For a process of its own."""
    repository = Repository.load(models, choose("auto"))
    engine = repository.find(TwinRef(*twin)).engine
    size = sum(values.nbytes for values in arrays_of(batch))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port.send(listener.getsockname()[1])
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while receive(connection, size):
            answer = engine.answer(batch)
            connection.sendall(b"".join(values.tobytes() for values in (answer.responses, *answer.gradient.values())))


def receive(connection: socket.socket, size: int) -> bytearray:
    """So many bytes; none where the other side has gone."""
    data = bytearray()
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data if len(data) == size else bytearray()


def arrays_of(batch: Batch) -> list[NDArray[Any]]:
    return [v for v in (batch.images, batch.behavior, batch.pupil_center, batch.cotangent) if v is not None]


@contextlib.contextmanager
def behind_socket(
    models: Path, twin: tuple[str, str, str], batch: Batch, answered: int
) -> Iterator[Callable[[], None]]:
    """A call of `answer_on_socket`, whose answers are of so many bytes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer_on_socket, args=(models, twin, batch, there), daemon=True)
    process.start()
    request = b"".join(values.tobytes() for values in arrays_of(batch))
    with socket.create_connection(("127.0.0.1", here.recv())) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> None:
            connection.sendall(request)
            receive(connection, answered)

        yield call
    process.join()


def repeat(call: Callable[[], object], seconds: float) -> int:
    """How many calls were answered in that time, after a warm-up."""
    for _ in range(20):
        call()
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()
        done += 1
    return done


def threads_rate(call: Callable[[], object], callers: int, seconds: float) -> float:
    """Calls a second of several threads."""
    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(lambda _: repeat(call, seconds), range(callers))) / seconds


def one_client(grpc: str, twin: tuple[str, str], given: dict[str, Any], seconds: float) -> int:
    """What a client in a process of its own does."""
    with mousetwin.connect(grpc) as twins:
        mouse = twins.mouse(*twin)
        return repeat(lambda: mouse.predict(**given, space="model"), seconds)


def clients_rate(grpc: str, twin: tuple[str, str], given: dict[str, Any], seconds: float) -> float:
    """Calls a second of CLIENTS clients, each a process as clients are."""
    with ProcessPoolExecutor(CLIENTS, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(one_client, grpc, twin, given, seconds) for _ in range(CLIENTS)]
        return sum(done.result() for done in running) / seconds


def measure(engine: Engine, mouse: mousetwin.Mouse, grpc: str, http_address: str, models: Path, seconds: float) -> None:
    """Print one twin's tables."""
    summary = mouse.summary
    image = np.random.default_rng(0).normal(size=(1, 1, *summary.native_size)).astype(np.float32)
    given: dict[str, Any] = {"images": image}
    if summary.behavior:
        given["behavior"] = np.ones((1, len(summary.behavior)), np.float32)
    if summary.pupil_center:
        given["pupil_center"] = np.zeros((1, 2), np.float32)
    single = Batch(**given)
    print(f"\n{summary.twin.mouse} {summary.twin.model}, {summary.neurons} neurons, on {summary.device}")

    name = (summary.twin.mouse, summary.twin.model, summary.twin.version)
    with mouse.session() as session, behind_socket(models, name, single, 4 * summary.neurons) as on_socket:
        calls: dict[str, Callable[[], object]] = {
            BARE: lambda: engine.answer(single),
            SOCKET: on_socket,
            "session": lambda: session.predict(**given, space="model"),
            "gRPC unary": lambda: mouse.predict(**given, space="model"),
        }
        if "behavior" not in summary.required:
            calls["REST .npy"] = rest_call(mouse, http_address, image)
        show("one image", interleaved(calls, seconds))
    if not summary.no_gradient:
        cotangent = np.ones((1, summary.neurons), np.float32)
        pulled = Batch(**given, cotangent=cotangent)
        size = 4 * summary.neurons + sum(values.nbytes for values in given.values())
        with mouse.session() as session, behind_socket(models, name, pulled, size) as on_socket:
            calls = {
                BARE: lambda: engine.answer(pulled),
                SOCKET: on_socket,
                "session": lambda: session.gradient(**given, cotangent=cotangent, space="model"),
                "gRPC unary": lambda: mouse.gradient(**given, cotangent=cotangent, space="model"),
            }
            show("gradient of one image", interleaved(calls, seconds))

    alone = threads_rate(lambda: engine.answer(single), engine.runs, seconds)
    per_second = clients_rate(grpc, name[:2], given, seconds)
    many = Batch(**{name: np.repeat(values, 64, 0) for name, values in given.items()})
    batches = threads_rate(lambda: engine.run([engine.plan(many)]), engine.runs, seconds) * 64
    print("  images a second")
    print(f"    bare engine, one at a time on {engine.runs} cores    {alone:7.0f}")
    print(f"    bare engine, batches of 64 on {engine.runs} cores    {batches:7.0f}")
    share = f"{per_second / alone:.2f} × the first"
    print(f"    {CLIENTS} clients, gRPC unary, one a call       {per_second:7.0f}   {share}")


def rest_call(mouse: mousetwin.Mouse, http_address: str, image: NDArray[np.float32]) -> Callable[[], object]:
    """A POST of `image` on a connection kept open."""
    connection = http.client.HTTPConnection(http_address)
    twin = mouse.summary.twin
    path = f"/v1/mice/{twin.mouse}/predict?space=model&model={twin.model}"
    body = write_npy(image)

    def post() -> bytes:
        connection.request("POST", path, body, {"content-type": "application/x-npy"})
        return connection.getresponse().read()

    return post


def show(title: str, times: dict[str, Times]) -> None:
    """What each way of serving adds to the bare run, and how many times what the socket adds."""
    bare = np.median(times[BARE])
    print(f"  {title:<28}  median      p99     adds   × socket's")
    for label, values in times.items():
        added, socket_added = np.median(values) - bare, np.median(times[SOCKET]) - bare
        beside = "" if label == BARE else f" {added:8.3f} {added / socket_added:8.1f} ×"
        print(f"    {label:<24} {np.median(values):8.3f} {np.percentile(values, 99):8.3f}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=DEMO_MODELS)
    parser.add_argument("--seconds", type=float, default=5.0, help="per row")
    args = parser.parse_args()
    repository = Repository.load(args.models, choose("auto"))
    process, grpc, http_address, ready = start(args.models)
    try:
        print(f"process start to ready: {ready:.2f} s, {len(repository.twins)} twins")
        twins = mousetwin.connect(grpc)
        for twin in repository.twins.values():
            mouse = twins.mouse(twin.identity.mouse, twin.identity.model, twin.identity.version)
            measure(twin.engine, mouse, grpc, http_address, args.models, args.seconds)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
