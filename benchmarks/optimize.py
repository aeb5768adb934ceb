"""Most-exciting images against the field's tool (sinzlab/mei) on the original models, in one run.

    pip install --no-deps neuro-mei
    python benchmarks/optimize.py --models MODELS [--checkpoints ../shared/checkpoints] [--neurons 20] [--all]

For each published model in MODELS: 20 neurons, norm 10, 100 steps. The peer runs its quickstart's recipe (random normal
start, SGD, norm held after each step) on the original model, image by image; ours is `mouse.optimize` with
its defaults, one at a time and in batches. Responses are all the original's in float64; the best of four starts × 400
steps of ours is the yardstick. `--all` times the MEIs of every neuron of each mouse.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import mousetwin
import numpy as np
import torch
import yaml
from mousetwin.progress import ProgressBar
from mousetwin_export import checkpoint

ROOT = Path(__file__).parents[1]
# The original library needs shims to be imported, which the reference tests have.
sys.path.insert(0, str(ROOT / "tests" / "reference"))
import original  # noqa: E402

STEPS, NORM, BATCH = 100, 10.0, 64
# Of its readme, its quickstart, and the examples that hold a norm.
RATES = (0.1, 1, 10)
PUBLISHED = (
    ("26872-17-20", "sensorium_sota_model.pth", "sensorium.yaml"),
    ("27204-5-13", "sensorium_p_sota_model.pth", "sensorium_plus.yaml"),
)
BEHAVIOR = torch.tensor([[1.0, 0.0, 0.5]])


class OneNeuron(torch.nn.Module):
    """What the peer optimises: the response of one neuron, as a number."""

    def __init__(self, model: torch.nn.Module, mouse: str, neuron: int, behavior: torch.Tensor | None) -> None:
        super().__init__()
        self.model, self.mouse, self.neuron, self.behavior = model, mouse, neuron, behavior
        self.forward_kwargs = {"data_key": mouse}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pupil = None if self.behavior is None else torch.zeros(1, 2)
        return original.respond(self.model, self.mouse, images, self.behavior, pupil)[:, self.neuron].squeeze()


class HeldNorm:
    """The peer's `ChangeNorm`, which its package on PyPI leaves out."""

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def __call__(self, images: torch.Tensor, iteration: int | None = None) -> torch.Tensor:
        held: torch.Tensor = images * (self.norm / torch.linalg.vector_norm(images.flatten(1), dim=1).view(-1, 1, 1, 1))
        return held


def peer() -> Any:
    """sinzlab/mei's `gradient_ascent`, without the database library that its package imports and this does not use."""
    helpers = {
        "split_module_name": lambda path: tuple(path.rsplit(".", 1)),
        "dynamic_import": lambda module, name: getattr(importlib.import_module(module), name),
        "make_hash": hash,
        "set_random_seed": torch.manual_seed,
        "get_dims_for_loader_dict": None,
    }
    for name in ("", ".utility", ".utility.nnf_helper", ".utility.nn_helpers", ".utility.dj_helpers"):
        module = ModuleType(f"nnfabrik{name}")
        vars(module).update(helpers, __path__=[])
        sys.modules[module.__name__] = module
    return importlib.import_module("mei.methods").gradient_ascent


def peers_image(ascend: Any, model: torch.nn.Module, rate: float, seed: int) -> np.ndarray:
    config = {
        "initial": {"path": "mei.initial.RandomNormal"},
        "optimizer": {"path": "torch.optim.SGD", "kwargs": {"lr": rate}},
        "stopper": {"path": "mei.stoppers.NumIterations", "kwargs": {"num_iterations": STEPS}},
        "postprocessing": {"path": "__main__.HeldNorm", "kwargs": {"norm": NORM}},
        "device": "cpu",
    }
    sizes = {"any": {"inputs": (1, 1, 36, 64)}}
    image, _, _ = ascend({"train": {}}, model, config, seed, get_dims=lambda loaders: sizes)
    return np.asarray(image[0, 0])


def compare(folder: Path, checkpoints: Path, mouse: str, file: str, config: str, count: int, every: bool) -> None:
    """Print one mouse's table."""
    with mousetwin.connect(f"local:{folder}") as twins:
        twin = twins.mouse(mouse, "cnn")
        model_units = {"behavior": BEHAVIOR[0], "pupil_center": [0, 0], "condition_space": "model"}
        given: dict[str, Any] = model_units if twin.summary.behavior else {}
        read = checkpoint.read_checkpoint(checkpoints / file)
        described = yaml.safe_load((checkpoints / config).read_text())["model_config"]
        model = original.build_original(described, {mouse: twin.summary.neurons}, (36, 64), 3 if given else 0)
        model.load_state_dict(dict(read.tensors), strict=True)
        model.requires_grad_(False)
        neurons = np.random.default_rng(0).choice(twin.summary.neurons, count, replace=False)
        behavior = BEHAVIOR if given else None

        def exact(images: Any) -> np.ndarray:
            rows = torch.tensor(np.asarray(images)[:, None], dtype=torch.float64)
            repeated = None if behavior is None else behavior.double().expand(len(rows), -1)
            pupil = None if behavior is None else torch.zeros(len(rows), 2, dtype=torch.float64)
            responses = original.predict(model.double(), mouse, rows, repeated, pupil)
            model.float()
            return responses[np.arange(len(rows)), neurons]

        twin.optimize(neurons[:1], steps=2, **given)
        begun = time.perf_counter()
        ours = twin.optimize(neurons, norm=NORM, steps=STEPS, **given).images
        together = (time.perf_counter() - begun) / count
        begun = time.perf_counter()
        for neuron in neurons[:5]:
            twin.optimize([neuron], norm=NORM, steps=STEPS, **given)
        single = (time.perf_counter() - begun) / 5
        many = np.resize(neurons, BATCH)
        begun = time.perf_counter()
        twin.optimize(many, norm=NORM, steps=STEPS, **given)
        batched = (time.perf_counter() - begun) / BATCH
        longer = [twin.optimize(neurons, norm=NORM, steps=400, seed=seed, trials=1, **given) for seed in (1, 2, 3, 4)]
        best = np.max([exact(found.images) for found in longer], 0)
        ascend, found, peers = peer(), exact(ours), {}
        for rate in RATES:
            bar, images = ProgressBar(f"{mouse} sinzlab/mei, lr {rate}", unit="images"), []
            begun = time.perf_counter()
            for number, neuron in enumerate(neurons):
                images.append(peers_image(ascend, OneNeuron(model, mouse, int(neuron), behavior), rate, number))
                bar(number + 1, count)
            slow = (time.perf_counter() - begun) / count
            peers[rate] = found / exact(images)
        print(f"\n{mouse}: {count} neurons, norm {NORM:g}, {STEPS} steps, responses of the original model in float64")
        for rate, ratios in peers.items():
            print(
                f"  ours / sinzlab/mei, lr {rate:<6} {ratios.mean():.2f} mean, {ratios.min():.2f} least of the ratios"
            )
        print(f"  ours / best of 4 starts × 400 {np.mean(found / best):.3f} mean, {np.min(found / best):.3f} least")
        print(f"  an image: sinzlab/mei         {slow * 1e3:.0f} ms")
        for label, seconds in (("one alone", single), (f"of {count}", together), (f"of {BATCH}", batched)):
            print(f"    ours, {label:<23} {seconds * 1e3:.0f} ms, {slow / seconds:.0f} × faster")
        if every:
            begun = time.perf_counter()
            bar = ProgressBar(mouse, unit="steps")
            twin.optimize(np.arange(twin.summary.neurons), norm=NORM, steps=STEPS, progress=bar, **given)
            print(f"  all {twin.summary.neurons} neurons: {(time.perf_counter() - begun) / 60:.1f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=ROOT.parent / "shared" / "checkpoints")
    parser.add_argument("--neurons", type=int, default=20)
    parser.add_argument("--all", action="store_true", help="also every neuron of each mouse: minutes")
    args = parser.parse_args()
    for mouse, file, config in PUBLISHED:
        compare(args.models, args.checkpoints, mouse, file, config, args.neurons, args.all)


if __name__ == "__main__":
    main()
