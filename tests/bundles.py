"""Tiny twins for tests: graphs whose right answer is a line of numpy, written as real bundles without torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mousetwin_serve import bundle
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skimage.transform import resize

# Model-space images with a pixel above this make a fragile twin's graph fail.
BREAKS_ABOVE = 1000.0


@dataclass(frozen=True)
class TinyTwin:
    """responses = images · W (+ behavior · B) (+ pupil_center · P) + c, all float32.

    has_gradient: whether the bundle holds a graph of it. fragile: the graph fails at run time where a pixel is above
    `BREAKS_ABOVE`. work: matrix products that change nothing and take time.
    """

    mouse: str = "full"
    model: str = "linear"
    version: str = "1"
    neurons: int = 7
    native: tuple[int, int] = (6, 8)
    stimulus: tuple[int, int] = (24, 32)
    behavior: tuple[str, ...] = ("pupil dilation", "its derivative", "running")
    pupil_center: tuple[str, ...] = ("horizontal", "vertical")
    statistics: bool = True
    behavior_statistics: bool = True
    unit_ids: tuple[int, ...] | None = None
    has_gradient: bool = True
    fragile: bool = False
    work: int = 0
    seed: int = 0

    image_mean, image_std = 113.0, 59.0
    behavior_mean, behavior_std = (4.0, 0.5, 9.0), (2.0, 0.25, 3.0)
    pupil_mean, pupil_std = (10.0, -3.0), (5.0, 1.5)

    def weights(self, what: str) -> NDArray[np.float32]:
        height, width = self.native
        rows = {"W": height * width, "B": len(self.behavior), "P": len(self.pupil_center), "c": 1}[what]
        rng = np.random.default_rng([self.seed, ord(what)])
        return (rng.normal(size=(rows, self.neurons)) / np.sqrt(rows)).astype(np.float32)

    def respond(self, images: Any, behavior: Any = None, pupil_center: Any = None) -> NDArray[np.float64]:
        """The right answer to model-space inputs, in float64."""
        count = len(images)
        answer = np.asarray(images, np.float64).reshape(count, -1) @ self.weights("W").astype(np.float64)
        if self.behavior:
            answer = answer + np.asarray(behavior, np.float64) @ self.weights("B").astype(np.float64)
        if self.pupil_center:
            given = np.zeros(2) if pupil_center is None else np.asarray(pupil_center, np.float64)
            answer = answer + given @ self.weights("P").astype(np.float64)
        return answer + self.weights("c").astype(np.float64)

    def gradient(self, cotangent: Any) -> dict[str, NDArray[np.float64]]:
        """The gradient of Σ cotangent · responses in model space, by input."""
        weights = {"images": "W"}
        weights |= {"behavior": "B"} if self.behavior else {}
        weights |= {"pupil_center": "P"} if self.pupil_center else {}
        back = {name: np.asarray(cotangent, np.float64) @ self.weights(w).T for name, w in weights.items()}
        return {**back, "images": back["images"].reshape(-1, 1, *self.native)}

    def respond_raw(self, images: Any, behavior: Any = None, pupil_center: Any = None) -> NDArray[np.float64]:
        """The right answer to raw inputs: the training loader's steps, its rescaling by scikit-image."""
        stack = np.asarray(images, np.float64)
        stack = stack.reshape(len(stack), *stack.shape[-2:])
        stack = (stack - self.image_mean) / self.image_std
        if stack.shape[1:] != self.native:
            stack = np.stack([resize(i, self.native, order=1, mode="reflect", anti_aliasing=False) for i in stack])
        moved = np.asarray(self.behavior_mean if behavior is None else behavior, np.float64) / self.behavior_std
        looked = None if pupil_center is None else (np.asarray(pupil_center) - self.pupil_mean) / self.pupil_std
        return self.respond(stack, moved, looked)

    def graph(self, *, gradient: bool = False) -> bytes:
        nodes, constants = [], []

        def constant(name: str, values: NDArray[Any]) -> str:
            constants.append(numpy_helper.from_array(values, name))
            return name

        def node(kind: str, *inputs: str, **attributes: Any) -> str:
            name = f"n{len(nodes)}"
            nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
            return name

        total = node("Add", node("MatMul", node("Flatten", "images"), constant("W", self.weights("W"))), "c")
        constant("c", self.weights("c"))
        inputs = [_value("images", 1, *self.native)]
        for name, letter in (("behavior", "B"), ("pupil_center", "P")):
            if width := len(getattr(self, name)):
                inputs.append(_value(name, width))
                total = node("Add", total, node("MatMul", name, constant(letter, self.weights(letter))))
        if self.fragile:
            over = node(
                "Relu", node("Sub", node("ReduceMax", "images", keepdims=0), constant("limit", _f(BREAKS_ABOVE)))
            )
            index = node("Cast", node("Ceil", over), to=TensorProto.INT64)
            total = node("Add", total, node("Gather", constant("table", np.zeros(1, np.float32)), index))
        if self.work:
            constant("wide", np.zeros((self.neurons, 1024), np.float32))
            constant("square", np.full((1024, 1024), 1 / 1024, np.float32))
            busy = node("MatMul", total, "wide")
            for _ in range(self.work):
                busy = node("Tanh", node("MatMul", busy, "square"))
            total = node("Add", total, node("ReduceMean", busy, keepdims=1, axes=[1]))
        nodes.append(helper.make_node("Identity", [total], ["responses"]))
        outputs = [_value("responses", self.neurons)]
        if gradient:
            inputs.append(_value("cotangent", self.neurons))
            constant("size", np.array([-1, 1, *self.native]))
            for name, letter in (("images", "W"), ("behavior", "B"), ("pupil_center", "P")):
                if name == "images" or getattr(self, name):
                    shape = (1, *self.native) if name == "images" else (len(getattr(self, name)),)
                    turned = constant(f"{letter}T", np.ascontiguousarray(self.weights(letter).T))
                    back = node("MatMul", "cotangent", turned)
                    back = node("Reshape", back, "size") if name == "images" else back
                    nodes.append(helper.make_node("Identity", [back], [f"d_{name}"]))
                    outputs.append(_value(f"d_{name}", *shape))
        graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
        opset = 13
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    def inputs(self, count: int, seed: int = 1) -> dict[str, NDArray[np.float32]]:
        """Model-space inputs, those the twin takes."""
        rng = np.random.default_rng(seed)
        found = {"images": rng.normal(size=(count, 1, *self.native))}
        if self.behavior:
            found["behavior"] = rng.normal(size=(count, len(self.behavior)))
        if self.pupil_center:
            found["pupil_center"] = rng.normal(size=(count, 2))
        return {name: values.astype(np.float32) for name, values in found.items()}

    def files(self) -> tuple[bundle.Manifest, dict[str, bytes]]:
        graphs = {"forward": self.graph()}
        given = self.inputs(3)
        vectors = {**given, "responses": self.respond(**given)}
        if self.has_gradient:
            graphs["gradient"] = self.graph(gradient=True)
            vectors["cotangent"] = np.random.default_rng(5).normal(size=(3, self.neurons)).astype(np.float32)
            vectors["neurons"] = np.arange(3) % self.neurons
            for kind, cotangent in (("", vectors["cotangent"]), ("each_", np.eye(self.neurons)[vectors["neurons"]])):
                vectors |= {f"{kind}d_{name}": values for name, values in self.gradient(cotangent).items()}
        stream = io.BytesIO()
        np.savez(stream, **vectors)
        replay = stream.getvalue()
        known = self.statistics
        manifest = bundle.Manifest(
            schema=bundle.SCHEMA,
            mouse=self.mouse,
            model=self.model,
            version=self.version,
            description="a tiny linear twin",
            synthetic=True,
            neurons=bundle.Neurons(count=self.neurons, unit_ids=self.unit_ids),
            inputs=bundle.Inputs(
                native_size=bundle.Size(height=self.native[0], width=self.native[1]),
                stimulus_size=bundle.Size(height=self.stimulus[0], width=self.stimulus[1]),
                behavior=self.behavior,
                pupil_center=self.pupil_center,
            ),
            statistics=bundle.Statistics(
                images=_moments(known, (self.image_mean,), (self.image_std,)),
                behavior=_moments(
                    known and self.behavior_statistics and bool(self.behavior), self.behavior_mean, self.behavior_std
                ),
                pupil_center=_moments(known and bool(self.pupil_center), self.pupil_mean, self.pupil_std),
            ),
            output_units="standard deviations",
            graphs={
                name: bundle.Graph(
                    file=f"{name}.onnx",
                    sha256=bundle.sha256(graph),
                    opset=13,
                    inputs=(),
                    outputs=tuple(_output(value) for value in onnx.load_from_string(graph).graph.output),
                    parity=bundle.Parity(max_abs_error=1e-6, tolerance=1e-5, cases=("tiny",)),
                )
                for name, graph in graphs.items()
            },
            no_gradient="" if self.has_gradient else "made without one, for a test",
            replay=bundle.Replay(file="replay.npz", sha256=bundle.sha256(replay), tolerance=1e-4),
            source=bundle.Source(description="made for a test", sha256="", licence="MIT"),
            built_with={"numpy": np.__version__},
        )
        return manifest, {**{f"{name}.onnx": graph for name, graph in graphs.items()}, "replay.npz": replay}

    def write(self, models: Path) -> Path:
        manifest, files = self.files()
        return bundle.write(models, manifest, files)


def _value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _output(value: onnx.ValueInfoProto) -> bundle.Tensor:
    sizes = value.type.tensor_type.shape.dim
    return bundle.Tensor(name=value.name, dtype="float32", shape=tuple(d.dim_param or d.dim_value for d in sizes))


def _f(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def _moments(known: bool, mean: tuple[float, ...], std: tuple[float, ...]) -> bundle.Moments:
    return bundle.Moments(mean=mean, std=std) if known else bundle.Moments()


UNIT_IDS = (11, 7, 30, 5, 1002, 64, 8)
FULL = TinyTwin("full", unit_ids=UNIT_IDS)
# Another native size, and a stimulus that is no whole multiple of it.
IMAGE_ONLY = TinyTwin("image-only", native=(9, 5), stimulus=(21, 13), behavior=(), pupil_center=(), neurons=4, seed=2)
BARE = TinyTwin("bare", statistics=False, seed=3)
NO_BEHAVIOR_STATISTICS = TinyTwin("no-behavior-statistics", behavior_statistics=False, has_gradient=False, seed=8)
FRAGILE = TinyTwin("fragile", behavior=(), pupil_center=(), fragile=True, seed=4)
BUSY = TinyTwin("busy", behavior=(), pupil_center=(), work=40, seed=5)
TWO_MODELS = (TinyTwin("two-models", "cnn", seed=6), TinyTwin("two-models", "ln", seed=7))
VERSIONS = tuple(TinyTwin("versions", "linear", version, seed=int(version)) for version in ("9", "10"))
# Much in, more out: what streams are tried on.
WIDE = TinyTwin("wide", native=(12, 16), stimulus=(48, 64), behavior=(), pupil_center=(), neurons=4000, seed=9)
ALL = (FULL, IMAGE_ONLY, BARE, NO_BEHAVIOR_STATISTICS, FRAGILE, BUSY, *TWO_MODELS, *VERSIONS, WIDE)
