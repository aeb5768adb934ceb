"""The two hosts side by side, the same twins behind both: one image, eight clients, a large batch.

    python benchmarks/hosts.py [--models MODELS] [--images 5000] [--seconds 5]

Needs `pip install 'mousetwin[torchserve]'`, Java 17 and TorchServe's usual ports. Everything is measured in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
from latency import BARE, CLIENTS, clients_rate, interleaved, start
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine
from mousetwin_serve.hosts.torchserve_archive import CATALOG, write_store
from mousetwin_serve.hosts.torchserve_settings import Settings
from mousetwin_serve.repository import DEMO_MODELS, Repository

ROUNDS = 3


@contextlib.contextmanager
def torchserve(models: Path, settings: Settings) -> Iterator[tuple[str, float]]:
    """TorchServe of `models`: the client's address, and seconds until every twin was ready."""
    with tempfile.TemporaryDirectory() as folder:
        names = write_store(models, Path(folder) / "store", settings)
        command = ["torchserve", "--start", "--foreground", "--ncs", "--ts-config", "store/config.properties"]
        environment = {**os.environ, "TMPDIR": folder, "TEMP": folder}
        begun = time.perf_counter()
        with (Path(folder) / "out.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            for name in (CATALOG, *names):
                while not ready(settings.management_port, name):
                    if process.poll() is not None:
                        raise SystemExit((Path(folder) / "out.log").read_text()[-2000:])
                    time.sleep(0.05)
            yield f"torchserve://127.0.0.1:{settings.grpc_port}", time.perf_counter() - begun
        finally:
            # Its Java process is left to itself where only the command is told to stop.
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def ready(port: int, name: str) -> bool:
    """Whether a worker of the model is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/models/{name}", timeout=5) as answer:
            return any(worker["status"] == "READY" for worker in json.load(answer)[0]["workers"])
    except OSError:
        return False


def measure(engine: Engine, mice: dict[str, mousetwin.Mouse], addresses: dict[str, str], args: Any) -> None:
    """Print one twin's tables."""
    summary = next(iter(mice.values())).summary
    images = np.random.default_rng(0).normal(size=(args.images, 1, *summary.native_size)).astype(np.float32)
    given: dict[str, Any] = {"behavior": np.ones(len(summary.behavior), np.float32)} if summary.behavior else {}
    given |= {"pupil_center": np.zeros(2, np.float32)} if summary.pupil_center else {}
    given["space"] = "model"
    single = Batch(images[:1], **{name: values[None] for name, values in given.items() if name != "space"})
    print(f"\n{summary.twin.mouse} {summary.twin.model}, {summary.neurons} neurons, on {summary.device}")

    calls = {label: lambda mouse=mouse: mouse.predict(images[:1], **given) for label, mouse in mice.items()}
    times = interleaved({BARE: lambda: engine.answer(single), **calls}, args.seconds)
    print("  one image                     median      p99     adds")
    for label, values in times.items():
        added = "" if label == BARE else f"{np.median(values) - np.median(times[BARE]):9.3f}"
        print(f"    {label:<24} {np.median(values):8.3f} {np.percentile(values, 99):8.3f}{added}")

    one = {"images": images[:1], **{name: values for name, values in given.items() if name != "space"}}
    rates: dict[str, list[float]] = {label: [] for label in mice}
    whole: dict[str, list[float]] = {label: [] for label in mice}
    for _ in range(ROUNDS):
        for label, mouse in mice.items():
            rates[label].append(
                clients_rate(addresses[label], (summary.twin.mouse, summary.twin.model), one, args.seconds)
            )
            begun = time.perf_counter()
            mouse.predict(images, **given)
            whole[label].append(time.perf_counter() - begun)
    print(f"  median of {ROUNDS} rounds    {CLIENTS} clients, images/s    {args.images} images, s")
    for label in mice:
        print(f"    {label:<24} {np.median(rates[label]):14.0f} {np.median(whole[label]):18.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=DEMO_MODELS)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=5.0, help="per row")
    args = parser.parse_args()
    repository = Repository.load(args.models, choose("auto"))
    settings = Settings(workers=os.cpu_count() or 1)
    process, grpc, _, standalone_ready = start(args.models)
    try:
        with torchserve(args.models, settings) as (address, torchserve_ready):
            print(f"start to ready: standalone {standalone_ready:.2f} s, TorchServe {torchserve_ready:.2f} s")
            addresses = {"standalone, gRPC": grpc, "TorchServe, gRPC": address}
            with contextlib.ExitStack() as stack:
                twins = {label: stack.enter_context(mousetwin.connect(where)) for label, where in addresses.items()}
                for twin in repository.twins.values():
                    name = (twin.identity.mouse, twin.identity.model, twin.identity.version)
                    mice = {label: connected.mouse(*name) for label, connected in twins.items()}
                    measure(twin.engine, mice, addresses, args)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
