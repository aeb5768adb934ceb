"""The forward graph against the original model in torch eager and against a plain export, in one run.

    python benchmarks/forward.py [--checkpoints ../shared/checkpoints] [--threads 1]

For each real checkpoint, thread count and batch: milliseconds an image of the original library in torch eager, of its
plain ONNX export (GridSample) and of ours; how many times faster ours is than eager; the largest error against float64;
and the floor, our multiply-adds at the matrix-product speed that this machine shows in the same run. With several
threads torch's and ONNX Runtime's spin against each other in this one process: take those rows with care.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import yaml
from mousetwin_export import checkpoint, config, graph, parity
from mousetwin_export.family import Twin
from mousetwin_export.forward import ForwardGraph
from torch import nn

ROOT = Path(__file__).parents[1]
# The original library needs shims to be imported, which the reference tests have.
sys.path.insert(0, str(ROOT / "tests" / "reference"))
import original  # noqa: E402

SIZE = (36, 64)
REAL = (
    ("sensorium_sota_model.pth", "sensorium.yaml", "26872-17-20"),
    ("sensorium_p_sota_model.pth", "sensorium_plus.yaml", "27204-5-13"),
)


def median_ms(run: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call, after a warm-up."""
    run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return float(np.median(times) * 1e3)


def gemm_flops(seconds: float) -> float:
    """Multiply-adds a second of a large float32 matrix product, with torch's current threads."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 1024**3 / (median_ms(lambda: a @ b, seconds) / 1e3)


def multiply_adds(module: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Of one image through the convolutions and tiles of a rewritten forward."""
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output[0].numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d)]
    module(**{name: values[:1] for name, values in inputs.items()})
    for hook in hooks:
        hook.remove()
    tiles = getattr(module.readout, "tiles", None)
    if tiles is not None:
        total += tiles.features.numel() * (4 if "pupil_center" not in inputs else 9)
    return total


def session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(twin: Twin, eager: nn.Module, mouse: str, threads: list[int], batches: list[int], seconds: float) -> None:
    """Print one checkpoint's rows."""
    behavior = twin.core.input_channels - 1
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"images": (1, *SIZE)}
    shapes |= {"behavior": (behavior,)} if behavior else {}
    shapes |= {"pupil_center": (2,)} if twin.shifter is not None else {}
    examples = {name: torch.zeros(2, *dims) for name, dims in shapes.items()}
    rewritten = ForwardGraph(twin, SIZE)
    plain, ours = graph.to_onnx(twin, examples), graph.to_onnx(rewritten, examples)
    work = multiply_adds(rewritten, examples)
    print(f"\n{mouse}: {len(twin.readout.positions())} neurons, {work / 1e6:.1f} M multiply-adds an image")
    print("threads batch   eager    plain     ours   eager/ours      error    floor  ours/floor")
    for count in threads:
        torch.set_num_threads(count)
        speed = gemm_flops(seconds)
        sessions = [session(model, count) for model in (plain, ours)]
        for batch in batches:
            inputs = {name: rng.normal(size=(batch, *dims)).astype(np.float32) for name, dims in shapes.items()}
            tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
            each = [median_ms(lambda: original.predict(eager, mouse, **tensors), seconds) / batch]  # noqa: B023
            each += [median_ms(lambda: s.run(None, inputs), seconds) / batch for s in sessions]  # noqa: B023
            error = np.abs(sessions[1].run(None, inputs)[0] - parity.reference(twin, inputs)).max()
            floor = work / speed * 1e3
            print(
                f"{count:7d} {batch:5d} {each[0]:7.2f}  {each[1]:7.2f}  {each[2]:7.3f}  {each[0] / each[2]:9.1f} ×  "
                f"{error:9.1e}  {floor:7.3f}  {each[2] / floor:8.1f} ×"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=ROOT.parent / "shared" / "checkpoints")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    args = parser.parse_args()
    for file, yaml_file, mouse in REAL:
        read = checkpoint.read_checkpoint(args.checkpoints / file)
        model_config = yaml.safe_load((args.checkpoints / yaml_file).read_text())["model_config"]
        twin = checkpoint.build_twin(read, config.parse_config(model_config), mouse)
        eager = original.build_original(
            model_config, {mouse: read.neurons(mouse)}, SIZE, behavior=twin.core.input_channels - 1
        )
        eager.load_state_dict(dict(read.tensors), strict=True)
        measure(twin, eager, mouse, args.threads, args.batches, args.seconds)


if __name__ == "__main__":
    main()
