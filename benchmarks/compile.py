"""The compiled twins against the original model in torch eager and its plain ONNX export: forward and gradient.

    python benchmarks/compile.py [--checkpoints ../shared/checkpoints] [--threads 1 2] [--ln CHECKPOINT]

One table: for both real checkpoints and an LN (a synthetic one of the same shape unless --ln names a real one), for
each number of CPU threads and each batch, milliseconds an image of the original library in torch eager, of its plain
ONNX export (GridSample) and of ours, the largest error against float64, and the floor: our multiply-adds at the speed
of matrix products that this machine shows in the same run. torch and ONNX Runtime are measured in processes of their
own, since each one's idle threads spin and take the other's cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mousetwin_export import checkpoint, config, graph, parity
from mousetwin_export.config import ModelConfig
from mousetwin_export.export import Contract, export_twin
from mousetwin_export.forward import Forms
from mousetwin_serve import bundle
from mousetwin_serve.batch import Batch
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine
from timing import median_ms

ROOT = Path(__file__).parents[1]
# The original library needs shims to be imported, which the reference tests have.
sys.path.insert(0, str(ROOT / "tests" / "reference"))
import original  # noqa: E402

SIZE = (36, 64)
HEAD = (
    "twin              what      threads batch    eager    plain     ours   eager/ours     error    floor  ours/floor"
)


@dataclass(frozen=True)
class Subject:
    """A model to measure. weights: its state dict; None for random ones."""

    name: str
    mouse: str
    config: dict[str, Any]
    weights: Path | None

    def load(self) -> tuple[checkpoint.Checkpoint, ModelConfig, torch.nn.Module, int]:
        """The checkpoint, its config, the original model, and how many behavior variables it takes."""
        if self.weights is not None:
            read = checkpoint.read_checkpoint(self.weights)
            behavior = read.tensors["core.features.layer0.conv.weight"].shape[1] - 1
            model = original.build_original(self.config, {self.mouse: read.neurons(self.mouse)}, SIZE, behavior)
            model.load_state_dict(dict(read.tensors), strict=True)
            return read, config.parse_config(self.config), model, behavior
        model = original.build_original(self.config, {self.mouse: 7776}, SIZE, 0)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / "synthetic.pth")
            read = checkpoint.read_checkpoint(Path(folder) / "synthetic.pth")
        return read, config.parse_config(self.config), model, 0


def subjects(checkpoints: Path, ln: Path | None) -> list[Subject]:
    """Both real models, and an LN."""
    found = []
    for file, yaml_file, mouse in (
        ("sensorium_sota_model.pth", "sensorium.yaml", "26872-17-20"),
        ("sensorium_p_sota_model.pth", "sensorium_plus.yaml", "27204-5-13"),
    ):
        model_config = yaml.safe_load((checkpoints / yaml_file).read_text())["model_config"]
        found.append(Subject(mouse, mouse, model_config, checkpoints / file))
    model_config = {**found[0].config, "linear": True, "layers": 3}
    found.append(Subject("LN" if ln else "LN (synthetic)", found[0].mouse, model_config, ln))
    return found


def stimulus(batch: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(batch)
    return {name: rng.normal(size=(batch, *dims)).astype(np.float32) for name, dims in shapes.items()}


def in_torch(subject: Subject, shapes: Any, neurons: int, threads: int, batches: list[int], seconds: float) -> Any:
    """Milliseconds an image by what and batch, and multiply-adds a second of matrix products."""
    torch.set_num_threads(threads)
    _, _, model, _ = subject.load()
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    found: dict[str, float] = {"speed": 1024**3 / (median_ms(lambda: a @ b, seconds) / 1e3)}
    for batch in batches:
        given = {name: torch.from_numpy(values) for name, values in stimulus(batch, shapes).items()}
        found[f"forward {batch}"] = median_ms(lambda: original.predict(model, subject.mouse, **given), seconds) / batch  # noqa: B023
        for values in given.values():
            values.requires_grad_()
        cotangent = torch.ones(batch, neurons)

        def gradient(given: Any = given, cotangent: torch.Tensor = cotangent) -> Any:
            responses = original.respond(model, subject.mouse, **given)
            return torch.autograd.grad(responses, list(given.values()), cotangent)

        found[f"gradient {batch}"] = median_ms(gradient, seconds) / batch
    return found


def plain_onnx(path: str, shapes: Any, threads: int, batches: list[int], seconds: float) -> Any:
    """Milliseconds an image of the plain export."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    each = {batch: stimulus(batch, shapes) for batch in batches}
    return {f"forward {n}": median_ms(lambda: session.run(None, each[n]), seconds) / n for n in batches}  # noqa: B023


def ours(folder: str, shapes: Any, threads: int, batches: list[int], seconds: float) -> Any:
    """Milliseconds an image of the served engine, by what and batch."""
    engine = Engine(bundle.read(Path(folder)), choose("cpu", threads))
    found = {}
    for batch in batches:
        given = stimulus(batch, shapes)
        cotangent = np.ones((batch, engine.neurons), np.float32)
        own = np.random.default_rng(0).integers(0, engine.neurons, (batch, 1))
        one = np.ones((batch, 1), np.float32)
        for what, asked in (
            ("forward", Batch(**given)),
            ("gradient", Batch(**given, cotangent=cotangent)),
            ("forward, one neuron", Batch(**given, columns=own)),
            ("gradient, one neuron", Batch(**given, columns=own, cotangent=one)),
        ):
            found[f"{what} {batch}"] = median_ms(lambda: engine.answer(asked), seconds) / batch  # noqa: B023
    return found


def apart(args: argparse.Namespace, what: str, *arguments: Any) -> Any:
    """One of the functions above in a process of its own."""
    told = json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])
    command = [sys.executable, __file__, "--checkpoints", str(args.checkpoints), "--apart", what, told]
    command += ["--ln", str(args.ln)] if args.ln else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(number: int, subject: Subject, folder: Path, args: argparse.Namespace) -> None:
    """Print one model's rows."""
    read, parsed, _, behavior = subject.load()
    twin = checkpoint.build_twin(read, parsed, subject.mouse)
    shapes: dict[str, tuple[int, ...]] = {"images": (1, *SIZE)}
    shapes |= {"behavior": (behavior,)} if behavior else {}
    shapes |= {"pupil_center": (2,)} if twin.shifter is not None else {}
    inputs = [bundle.Tensor(name=n, dtype="float32", shape=("batch", *dims)) for n, dims in shapes.items()]
    work, neurons = Forms(twin, SIZE).all.multiply_adds, read.neurons(subject.mouse)
    plain = folder / f"plain_{number}.onnx"
    plain.write_bytes(graph.to_onnx(graph.export_program(twin.requires_grad_(False), inputs), inputs, ["responses"]))
    source = bundle.Source(description=read.name, sha256="", licence="")
    contract = Contract(mouse=subject.mouse, model=f"m{number}", native_size=SIZE, source=source)
    place = export_twin(read, parsed, contract, folder, say=lambda line: None)
    for threads in args.threads:
        eager = apart(args, "in_torch", number, shapes, neurons, threads, args.batches, args.seconds)
        naive = apart(args, "plain_onnx", plain, shapes, threads, args.batches, args.seconds)
        mine = apart(args, "ours", place, shapes, threads, args.batches, args.seconds)
        # A gradient has the forward's multiply-adds, and about as many on the way back.
        floors = {"forward": work / eager["speed"] * 1e3, "gradient": 2 * work / eager["speed"] * 1e3}
        engine = Engine(bundle.read(place), choose("cpu", threads))
        for what in ("forward", "gradient"):
            for batch in args.batches:
                given = stimulus(batch, shapes)
                cotangent = np.ones((batch, neurons), np.float32) if what == "gradient" else None
                answer, exact = (
                    engine.answer(Batch(**given, cotangent=cotangent)),
                    parity.reference(twin, given, cotangent),
                )
                error = np.abs(answer.responses - exact.responses).max()
                if what == "gradient":
                    off = answer.gradient["images"] - exact.gradients["images"]
                    error = np.linalg.norm(off) / np.linalg.norm(exact.gradients["images"])
                key = f"{what} {batch}"
                told = f"{naive[key]:8.2f}" if key in naive else " " * 8
                faster, above = eager[key] / mine[key], mine[key] / floors[what]
                print(
                    f"{subject.name:17} {what:9} {threads:7d} {batch:5d} {eager[key]:8.2f} {told} {mine[key]:8.3f}  "
                    f"{faster:9.1f} ×  {error:8.1e}  {floors[what]:7.3f}  {above:8.1f} ×",
                    flush=True,
                )
        for what in ("forward, one neuron", "gradient, one neuron"):
            times = ", ".join(f"{mine[f'{what} {batch}']:.3f} at batch {batch}" for batch in args.batches)
            print(f"{subject.name:17} {what} an image, threads {threads}: {times}", flush=True)
    begun = time.perf_counter()
    Engine(bundle.read(place), choose("cpu", 1))
    loaded = (time.perf_counter() - begun) * 1e3
    size = sum(path.stat().st_size for path in place.iterdir()) / 1e6
    print(
        f"{subject.name:17} bundle {size:.1f} MB, loaded in {loaded:.0f} ms; {work / 1e6:.1f} M multiply-adds an image"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=ROOT.parent / "shared" / "checkpoints")
    parser.add_argument("--ln", type=Path, help="a real LN checkpoint of mouse 26872-17-20")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    every = subjects(args.checkpoints, args.ln)
    if args.apart:
        what, arguments = args.apart[0], json.loads(args.apart[1])
        if what == "in_torch":
            arguments[0] = every[arguments[0]]
        measures: dict[str, Callable[..., object]] = {"in_torch": in_torch, "plain_onnx": plain_onnx, "ours": ours}
        print(json.dumps(measures[what](*arguments)))
        return
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for number, subject in enumerate(every):
            measure(number, subject, Path(folder), args)


if __name__ == "__main__":
    main()
