"""On a GPU: forward and gradient beside torch eager, torch.compile and CUDA graphs, all MEIs of a mouse, images served.

    python benchmarks/gpu.py --models MODELS [--checkpoints ../shared/checkpoints] [--device cuda] [--steps 100]

Needs a GPU and `pip install 'mousetwin[gpu]'`; `make gpu MODELS=MODELS` sets that up. The torch columns are the
published model, rebuilt by the exporter in plain torch, TF32 off as in ours; they are left out where torch has no CUDA,
or the checkpoint is not there. Our times include the way of the images to the device and of the answers back, torch's
do not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
from bulk import post
from cuda_graphs import capture
from latency import start
from mousetwin.optimization import Ascent, OptimizeQuery, OptimizeResult, Target
from mousetwin.query import Space, TwinRef
from mousetwin_serve import bundle
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import DeviceError, choose
from mousetwin_serve.limits import Limits
from mousetwin_serve.optimizer.run import optimize
from mousetwin_serve.repository import Repository
from mousetwin_serve.twin import Twin
from timing import median_ms

ROOT = Path(__file__).parents[1]
PUBLISHED = {
    "26872-17-20": ("sensorium_sota_model.pth", "sensorium.yaml"),
    "27204-5-13": ("sensorium_p_sota_model.pth", "sensorium_plus.yaml"),
}
Given = dict[str, np.ndarray[Any, Any]]


def stimulus(twin: Twin, count: int) -> Given:
    """Images, and what else the twin takes."""
    rng, summary = np.random.default_rng(count), twin.summary
    given = {"images": rng.normal(size=(count, 1, *summary.native_size))}
    given |= {"behavior": np.ones((count, len(summary.behavior)))} if summary.behavior else {}
    given |= {"pupil_center": np.zeros((count, 2))} if summary.pupil_center else {}
    return {name: values.astype(np.float32) for name, values in given.items()}


def in_torch(twin: Twin, checkpoints: Path, device: str) -> dict[str, Any]:
    """The published model on the GPU, as it is and compiled; nothing where it cannot be had."""
    file, config_file = PUBLISHED.get(twin.identity.mouse, ("", ""))
    if twin.identity.model != "cnn" or not file or not (checkpoints / file).is_file() or find_spec("torch") is None:
        return {}
    import torch
    import yaml
    from mousetwin_export import checkpoint, config

    if not torch.cuda.is_available():
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    parsed = config.parse_config(yaml.safe_load((checkpoints / config_file).read_text())["model_config"])
    model = checkpoint.build_twin(checkpoint.read_checkpoint(checkpoints / file), parsed, twin.identity.mouse)
    model = model.to(device).requires_grad_(False)
    return {"eager": model, "compile": torch.compile(model)}


def torch_call(model: Any, given: Given, neurons: int, device: str, *, gradient: bool) -> Callable[[], object]:
    """One forward, or forward and gradient, to its end."""
    import torch

    there = {name: torch.from_numpy(values).to(device).requires_grad_(gradient) for name, values in given.items()}
    cotangent = torch.ones(len(given["images"]), neurons, device=device)

    def call() -> object:
        if gradient:
            found = torch.autograd.grad(model(**there), list(there.values()), cotangent)
        else:
            with torch.no_grad():
                found = model(**there)
        torch.cuda.synchronize()
        return found

    return call


def ours(twin: Twin, asked: Batch) -> object:
    """One run, from the host and back."""
    return twin.engine.run([twin.engine.plan(asked)])


def compute(twin: Twin, checkpoints: Path, device: str, batches: list[int], seconds: float) -> None:
    """Print forward and gradient, milliseconds a batch."""
    models = in_torch(twin, checkpoints, device)
    neurons = twin.summary.neurons
    print("  what      batch       ours   images/s   torch eager   torch.compile   eager/ours   compile/ours")
    for what in ("forward", "gradient"):
        if what == "gradient" and twin.summary.no_gradient:
            continue
        for batch in batches:
            given = stimulus(twin, batch)
            asked = Batch(**given, cotangent=np.ones((batch, neurons), np.float32) if what == "gradient" else None)
            calls: dict[str, Callable[[], object]] = {"ours": partial(ours, twin, asked)}
            for name, model in models.items():
                calls[name] = torch_call(model, given, neurons, device, gradient=what == "gradient")
            times = {name: median_ms(call, seconds) for name, call in calls.items()}
            told = "".join(f"{times[name]:{width}.3f}" for name, width in (("eager", 14), ("compile", 16)) if models)
            ratio = "".join(f"{times[name] / times['ours']:13.1f}" for name in ("eager", "compile") if models)
            rate = batch / times["ours"] * 1e3
            print(f"  {what:9}{batch:6d}{times['ours']:11.3f}{rate:11.0f}{told}{ratio}", flush=True)


def graphs(twin: Twin, models: Path, batches: list[int], seconds: float) -> None:
    """Print what a CUDA graph of each run would save, images and answers staying on the device."""
    name, device = twin.identity, twin.engine.devices[0]
    read = bundle.read(models / name.mouse / name.model / name.version)
    for what in ("forward", "gradient"):
        if what not in read.manifest.graphs:
            continue
        for batch in batches:
            given = stimulus(twin, batch)
            if what == "gradient":
                given["cotangent"] = np.ones((batch, twin.summary.neurons), np.float32)
            told = capture(read, device, what, given, seconds)
            print(f"  CUDA graph of {what}, batch {batch}: {told}", flush=True)


def meis(twin: Twin, steps: int, batch: int) -> None:
    """Print how long the MEIs of all neurons take."""
    summary, engine = twin.summary, twin.engine
    behavior = np.ones(len(summary.behavior), np.float32) if summary.behavior else None
    name = TwinRef(summary.twin.mouse, summary.twin.model, summary.twin.version)

    def found(neurons: Any) -> OptimizeResult:
        query = OptimizeQuery(
            (name,),
            Target(neurons=neurons[:, None]),
            behavior=behavior,
            condition_space=Space.MODEL,
            ascent=Ascent(steps=steps),
        )
        *_, result = optimize(query, [twin], Limits(), lambda _, asked: engine.answer(asked), engine.devices[0])
        assert isinstance(result, OptimizeResult)
        return result

    every = np.arange(summary.neurons)
    found(every[:batch])
    begun = time.perf_counter()
    values = []
    for first in range(0, len(every), batch):
        values.append(found(every[first : first + batch]).values)
        print(f"\r  MEIs {min(first + batch, len(every))}/{len(every)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    taken = time.perf_counter() - begun
    print(
        f"  all {len(every)} MEIs, {steps} steps, in batches of {batch}: {taken:.1f} s, {len(every) / taken:.0f} a "
        f"second, mean response {np.concatenate(values).mean():.3f}",
        flush=True,
    )


def served(twin: Twin, models: Path, device: str, images: int) -> None:
    """Print images a second over gRPC and REST, the client's work included."""
    given = stimulus(twin, images)
    name = (twin.identity.mouse, twin.identity.model, twin.identity.version)
    process, grpc, http, ready = start(models, "--device", device)
    try:
        with mousetwin.connect(grpc) as twins:
            mouse = twins.mouse(*name)
            asked: Any = {**given, "space": "model"}
            taken = median_ms(lambda: mouse.predict(**asked), 5) / 1e3
            one: Any = {**{key: values[:1] for key, values in given.items()}, "space": "model"}
            alone = median_ms(lambda: mouse.predict(**one), 3)
        print(f"  ready {ready:.1f} s after the start; one image over gRPC {alone:.2f} ms")
        print(f"  {images} images over gRPC: {images / taken:.0f} a second")
        if "behavior" not in twin.summary.required:
            path = f"/v1/mice/{name[0]}/predict?space=model&model={name[1]}"
            taken = median_ms(lambda: post(http, path, given["images"]), 5) / 1e3
            print(f"  {images} images over REST: {images / taken:.0f} a second", flush=True)
    finally:
        process.terminate()
        process.wait()


def card() -> str:
    """What the driver says of the card."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no nvidia-smi"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=ROOT.parent / "shared" / "checkpoints")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--mei-batch", type=int, default=512)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    args = parser.parse_args()
    try:
        devices = choose(args.device)
    except DeviceError as error:
        raise SystemExit(f"not measured: {error}") from None
    print(f"{devices[0].kind}: {', '.join(device.why for device in devices)}; {card()}")
    for twin in Repository.load(args.models, devices).twins.values():
        summary = twin.summary
        print(f"\n{summary.twin.mouse} {summary.twin.model}, {summary.neurons} neurons")
        for name, replay in twin.engine.replays.items():
            where = f"; not on the device: {', '.join(replay.elsewhere)}" if replay.elsewhere else ""
            print(f"  {name}: replay off by {replay.error:.1e}{where}")
        print(f"  batches of {twin.engine.best_batch} in one run")
        compute(twin, args.checkpoints, args.device, args.batches, args.seconds)
        if devices[0].kind == "cuda":
            graphs(twin, args.models, args.batches, args.seconds)
        if not summary.no_gradient:
            meis(twin, args.steps, args.mei_batch)
        served(twin, args.models, args.device, args.images)


if __name__ == "__main__":
    main()
