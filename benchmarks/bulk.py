"""A large batch over REST: its rate beside the bare engine's, the service's memory, and what others notice of it.

    python benchmarks/bulk.py --models MODELS --mouse KEY [--images 5000] [--rounds 3]

Images are raw 144×256 gray levels where the twin takes them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
from latency import start
from mousetwin.arrays import npy_header
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import choose
from mousetwin_serve.repository import Repository
from numpy.typing import NDArray

_PIECE = 1 << 20


def megabytes(pid: int, what: str) -> float:
    """Of a process, VmRSS or VmHWM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def post(http: str, path: str, images: NDArray[Any]) -> tuple[float, float]:
    """Send images and read the answer side by side, as curl does: seconds to the first byte and to the last."""
    host, _, port = http.partition(":")
    header, body = npy_header(images.shape, images.dtype), memoryview(images.data).cast("B")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-npy\r\n"
    begun = time.perf_counter()
    with socket.create_connection((host, int(port))) as connection, ThreadPoolExecutor(1) as pool:

        def send() -> None:
            connection.sendall(f"{head}Content-Length: {len(header) + len(body)}\r\n\r\n".encode() + header)
            connection.sendall(body)

        sent = pool.submit(send)
        with connection.makefile("rb") as stream:
            status = stream.readline()
            assert status.split()[1] == b"200", status
            first = time.perf_counter() - begun
            lines = [line.lower() for line in iter(stream.readline, b"\r\n")]
            left = int(next(line for line in lines if line.startswith(b"content-length")).split()[1])
            while left and (data := stream.read(min(_PIECE, left))):
                left -= len(data)
        sent.result()
        assert not left
        return first, time.perf_counter() - begun


def keep_posting(http: str, path: str, images: NDArray[Any]) -> None:
    """One batch after the other, until the process ends."""
    while True:
        post(http, path, images)


def latencies(ask: Callable[[], object], seconds: float) -> NDArray[np.float64]:
    """Milliseconds of calls one after the other."""
    times, end = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        ask()
        times.append((time.perf_counter() - begun) * 1e3)
    return np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--mouse", required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of interactive requests, idle and under load")
    args = parser.parse_args()
    twin = next(
        t for t in Repository.load(args.models, choose("auto")).twins.values() if t.identity.mouse == args.mouse
    )
    summary, rng = twin.summary, np.random.default_rng(0)
    model = rng.normal(size=(1024, 1, *summary.native_size)).astype(np.float32)
    given: dict[str, Any] = {"behavior": np.ones((1024, len(summary.behavior)), np.float32)} if summary.behavior else {}
    given |= {"pupil_center": np.zeros((1024, 2), np.float32)} if summary.pupil_center else {}
    bare = Batch(model, **given)
    raw = rng.integers(0, 256, (args.images, *summary.stimulus_size)).astype(np.uint8)
    images, space = (raw, "raw") if summary.takes_raw else (np.resize(model, (args.images, *model.shape[1:])), "model")
    path = f"/v1/mice/{args.mouse}/predict?space={space}&model={summary.twin.model}&early=true"
    process, grpc, http, _ = start(args.models)
    try:
        post(http, path, images[:256])
        before = megabytes(process.pid, "VmRSS")
        twin.engine.answer(bare)
        what = f"{args.images} {space} images {images.shape[1:]}, {summary.neurons} neurons"
        print(f"{args.mouse}: {what}, {summary.device}")
        ratios = []
        for _ in range(args.rounds):
            begun = time.perf_counter()
            twin.engine.answer(bare)
            engine = len(bare) / (time.perf_counter() - begun)
            first, last = post(http, path, images)
            begun = time.perf_counter()
            twin.engine.answer(bare)
            engine = (engine + len(bare) / (time.perf_counter() - begun)) / 2
            ratios.append(args.images / last / engine)
            rates = f"{args.images / last:6.0f} images/s over REST, {engine:6.0f} bare: {ratios[-1]:.2f}"
            print(f"  {rates}; first byte {first:.2f} s")
        peak = megabytes(process.pid, "VmHWM")
        print(f"  median ratio {np.median(ratios):.2f}; the service grew by {peak - before:.0f} MB at its peak")

        with mousetwin.connect(grpc) as twins:
            mouse = twins.mouse(args.mouse, summary.twin.model)
            one = {name: values[0] for name, values in given.items()}

            def ask() -> object:
                return mouse.predict(model[:1], **one, space="model")

            latencies(ask, 2)
            idle = latencies(ask, args.seconds)
            load = multiprocessing.get_context("spawn").Process(target=keep_posting, args=(http, path, images))
            load.start()
            latencies(ask, 5)
            loaded = latencies(ask, args.seconds)
            load.terminate()
            load.join()
        for label, times in (("idle", idle), ("beside a batch", loaded)):
            print(f"  one image {label:<15} median {np.median(times):6.2f} ms   p99 {np.percentile(times, 99):6.2f} ms")
        print(f"  p99 beside a batch / idle {np.percentile(loaded, 99) / np.percentile(idle, 99):.1f}")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
