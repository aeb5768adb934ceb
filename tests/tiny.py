"""Twins small enough to check by hand: linear in image, behavior and pupil center."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mousetwin_serve import bundle
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]
FULL = bundle.Statistics(
    images=bundle.Moments(mean=(110.0,), std=(60.0,)),
    behavior=bundle.Moments(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0)),
    pupil_center=bundle.Moments(mean=(100.0, 80.0), std=(10.0, 5.0)),
)


@dataclass(frozen=True)
class TinyTwin:
    """responses = images · image_weights + behavior · behavior_weights + pupil_center · pupil_weights.

    With `fragile`, ONNX Runtime fails on an image whose first pixel is above 100.
    """

    mouse: str = "linear"
    model: str = "a"
    version: str = "1"
    native: tuple[int, int] = (36, 64)
    stimulus: tuple[int, int] = (144, 256)
    neurons: int = 12
    behavior: int = 3
    pupil: bool = True
    statistics: bundle.Statistics = field(default_factory=lambda: FULL)
    unit_ids: tuple[int, ...] | None = None
    fragile: bool = False

    @property
    def weights(self) -> dict[str, Array]:
        rng = np.random.default_rng(len(self.mouse) + 7 * int(self.version))
        shapes = {"images": self.native[0] * self.native[1]}
        shapes |= {"behavior": self.behavior} if self.behavior else {}
        shapes |= {"pupil_center": 2} if self.pupil else {}
        return {
            name: (rng.normal(size=(size, self.neurons)) / np.sqrt(size)).astype(np.float32)
            for name, size in shapes.items()
        }

    def respond(self, images: NDArray[Any], **others: NDArray[Any]) -> Array:
        """The right answer (N, K) to inputs in model space."""
        total = np.asarray(images, np.float64).reshape(len(images), -1) @ self.weights["images"]
        for name, weights in self.weights.items():
            if name != "images":
                total = total + np.asarray(others[name], np.float64) @ weights
        return total.astype(np.float32)

    def graph(self) -> bytes:
        """The ONNX model."""
        inputs = [_value("images", ["batch", 1, *self.native])]
        nodes = [helper.make_node("Flatten", ["images"], ["flat"])]
        nodes.append(helper.make_node("MatMul", ["flat", "images_weights"], ["sum0"]))
        last = "sum0"
        for name in self.weights:
            if name == "images":
                continue
            inputs.append(_value(name, ["batch", len(self.weights[name])]))
            nodes.append(helper.make_node("MatMul", [name, f"{name}_weights"], [f"{name}_part"]))
            nodes.append(helper.make_node("Add", [last, f"{name}_part"], [f"{last}_{name}"]))
            last = f"{last}_{name}"
        constants = {f"{name}_weights": values for name, values in self.weights.items()}
        if self.fragile:
            constants |= {"zeros": np.zeros(101, np.float32), "first": np.array([0]), "axis": np.array([1])}
            nodes.append(helper.make_node("Gather", ["flat", "first"], ["pixel"], axis=1))
            nodes.append(helper.make_node("Abs", ["pixel"], ["size"]))
            nodes.append(helper.make_node("Cast", ["size"], ["index"], to=TensorProto.INT64))
            nodes.append(helper.make_node("Gather", ["zeros", "index"], ["nothing"]))
            nodes.append(helper.make_node("Add", [last, "nothing"], ["guarded"]))
            last = "guarded"
        nodes.append(helper.make_node("Identity", [last], ["responses"]))
        outputs = [_value("responses", ["batch", self.neurons])]
        initializers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
        graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        data: bytes = model.SerializeToString()
        return data

    def manifest_and_files(self) -> tuple[bundle.Manifest, dict[str, bytes]]:
        """What `bundle.write` takes."""
        graph = self.graph()
        rng = np.random.default_rng(0)
        inputs = {"images": rng.normal(size=(4, 1, *self.native)).astype(np.float32)}
        inputs |= {n: rng.normal(size=(4, len(w))).astype(np.float32) for n, w in self.weights.items() if n != "images"}
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **inputs, responses=self.respond(**inputs))
        replay = stream.getvalue()
        manifest = bundle.Manifest(
            schema=bundle.SCHEMA,
            mouse=self.mouse,
            model=self.model,
            version=self.version,
            description="a linear twin for tests",
            synthetic=True,
            neurons=bundle.Neurons(count=self.neurons, unit_ids=self.unit_ids),
            inputs=bundle.Inputs(
                native_size=bundle.Size(height=self.native[0], width=self.native[1]),
                stimulus_size=bundle.Size(height=self.stimulus[0], width=self.stimulus[1]),
                behavior=("dilation", "derivative", "speed")[: self.behavior],
                pupil_center=("horizontal", "vertical") if self.pupil else (),
            ),
            statistics=self.statistics,
            output_units="arbitrary",
            graphs={
                "forward": bundle.Graph(
                    file="forward.onnx",
                    sha256=bundle.sha256(graph),
                    opset=18,
                    inputs=(),
                    outputs=(),
                    parity=bundle.Parity(max_abs_error=0.0, tolerance=1e-5, cases=()),
                )
            },
            replay=bundle.Replay(file=bundle.REPLAY, sha256=bundle.sha256(replay), tolerance=1e-4),
            source=bundle.Source(description="tests", sha256="", licence="MIT"),
            built_with={},
        )
        return manifest, {"forward.onnx": graph, bundle.REPLAY: replay}

    def write(self, models: Path) -> Path:
        return bundle.write(models, *self.manifest_and_files())


def _value(name: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


IMAGES_ONLY = bundle.Statistics(images=FULL.images)
UNIT_IDS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
LINEAR = TinyTwin(unit_ids=UNIT_IDS)
BARE = TinyTwin("bare", native=(20, 30), stimulus=(40, 60), behavior=0, pupil=False, statistics=bundle.Statistics())
CONDITION = TinyTwin("condition", statistics=IMAGES_ONLY)
FRAGILE = TinyTwin("fragile", behavior=0, pupil=False, statistics=IMAGES_ONLY, fragile=True)
TWO_MODELS = (TinyTwin("twice", "a"), TinyTwin("twice", "b"))
VERSIONS = tuple(TinyTwin("versions", version=v) for v in ("2", "9", "10"))
ALL = (LINEAR, BARE, CONDITION, FRAGILE, *TWO_MODELS, *VERSIONS)
