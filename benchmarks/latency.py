"""What serving adds to the engine: one image at a time, eight clients at once, and the way to ready.

    python benchmarks/latency.py [--models MODELS] [--seconds 5]

Prints a table a twin; every row is measured against the same started service.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
from mousetwin.arrays import write_npy
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine
from mousetwin_serve.repository import DEMO_MODELS, Repository

CLIENTS = 8


def start(models: Path) -> tuple[subprocess.Popen[str], str, str, float]:
    """A service of `models` on free ports: the process, its gRPC and HTTP addresses, and seconds until it was ready."""
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--models", str(models)]
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


def median_ms(call: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call, after a warm-up."""
    for _ in range(5):
        call()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times) * 1e3)


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


def measure(engine: Engine, mouse: mousetwin.Mouse, grpc: str, http_address: str, seconds: float) -> None:
    """Print one twin's table."""
    summary = mouse.summary
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 1, *summary.native_size)).astype(np.float32)
    conditions = {
        "behavior": np.ones((1, len(summary.behavior)), np.float32) if summary.behavior else None,
        "pupil_center": np.zeros((1, 2), np.float32) if summary.pupil_center else None,
    }
    given = {name: values for name, values in conditions.items() if values is not None}

    def ask(one: mousetwin.Mouse) -> Callable[[], object]:
        return lambda: one.predict(image, **given, space="model")  # type: ignore[arg-type]

    single = Batch(image, **given)
    bare = median_ms(lambda: engine.answer(single), seconds)
    rows = [("bare engine, 1 image", bare)]
    many = Batch(**{name: np.repeat(values, 64, 0) for name, values in {"images": image, **given}.items()})
    rows.append(("bare engine, 64 images, each", median_ms(lambda: engine.answer(many), seconds) / 64))
    alone = threads_rate(lambda: engine.answer(single), engine.runs, seconds)
    rows.append((f"bare engine, 1 image on each of {engine.runs} cores, each", 1e3 / alone))
    rows.append(("gRPC unary, 1 image", median_ms(ask(mouse), seconds)))
    if not summary.no_gradient:
        cotangent = np.ones((1, summary.neurons), np.float32)
        pulled = Batch(image, **given, cotangent=cotangent)
        rows.append(("bare engine, gradient of 1 image", median_ms(lambda: engine.answer(pulled), seconds)))
        rows.append(
            (
                "gRPC unary, gradient of 1 image",
                median_ms(lambda: mouse.gradient(image, cotangent, **given, space="model"), seconds),  # type: ignore[arg-type]
            )
        )
    if "behavior" not in summary.required:
        connection = http.client.HTTPConnection(http_address)
        path = f"/v1/mice/{summary.twin.mouse}/predict?space=model&model={summary.twin.model}"
        body = write_npy(image)

        def post() -> None:
            connection.request("POST", path, body, {"content-type": "application/x-npy"})
            connection.getresponse().read()

        rows.append(("REST .npy, 1 image", median_ms(post, seconds)))
    twin = (summary.twin.mouse, summary.twin.model)
    per_second = clients_rate(grpc, twin, {"images": image, **given}, seconds)
    rows.append((f"gRPC unary, {CLIENTS} clients at once, each image", 1e3 / per_second))
    print(f"\n{summary.twin.mouse} {summary.twin.model}, {summary.neurons} neurons, on {summary.device}")
    for label, milliseconds in rows:
        print(f"  {label:<50} {milliseconds:8.3f} ms   {milliseconds / bare:5.2f} × bare")
    print(f"  {CLIENTS} clients reach {per_second / alone:.2f} of the rate of the bare engine on all cores")


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
            measure(twin.engine, mouse, grpc, http_address, args.seconds)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
