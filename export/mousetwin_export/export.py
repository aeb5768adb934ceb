"""From a checkpoint to a bundle."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from mousetwin_serve import bundle
from torch import nn

from . import graph, parity
from .checkpoint import Checkpoint, build_twin
from .config import ModelConfig
from .errors import ExportError
from .family import Twin
from .forward import Forms, map_size
from .variants import Variant, compile_variants
from .weights import Shared, share

STIMULUS_SIZE = (144, 256)
BEHAVIOR = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
PUPIL_CENTER = ("horizontal", "vertical")
OUTPUT_UNITS = "standard deviations of each neuron's response"
REPLAY_TOLERANCE = 1e-4
REPLAYED = 4

Say = Callable[[str], None]


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Contract:
    """What of a bundle does not follow from the weights."""

    mouse: str
    model: str
    native_size: tuple[int, int]
    source: bundle.Source
    version: str = ""
    description: str = ""
    synthetic: bool = False
    statistics: bundle.Statistics = field(default_factory=bundle.Statistics)
    unit_ids: tuple[int, ...] | None = None
    cell_motor_coordinates: tuple[tuple[float, float, float], ...] | None = None
    truth: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """What a module takes and answers, and where its neurons look."""

    neurons: int
    behavior: tuple[str, ...]
    pupil_center: tuple[str, ...]
    receptive_field_center: tuple[tuple[float, float], ...]
    receptive_field_size: tuple[int, int]


def export_twin(
    checkpoint: Checkpoint,
    config: ModelConfig,
    contract: Contract,
    models: Path,
    *,
    tolerance: float = parity.TOLERANCE,
    gradient: bool = True,
    say: Say = say_on_stderr,
) -> Path:
    """Export one mouse of a checkpoint and return the bundle's folder.

    Raises:
        ExportError: the checkpoint does not fit the config, the input is too small for the core, or parity is over the
            tolerance; nothing is written then.
    """
    say(f"{checkpoint.name}: building {contract.mouse}")
    twin = build_twin(checkpoint, config, contract.mouse)
    _check_size(config, contract.native_size)
    forms = Forms(twin, contract.native_size)
    variants = [Variant("", forms.all), Variant("_chosen", forms.chosen, "neurons")]
    variants += [Variant("_each", forms.each, "batch")] if forms.each is not None else []
    table = {name: values.numpy() for name, values in forms.table.items()}
    shape = family_shape(twin, config, contract.native_size)
    return write_module(twin, variants, table, shape, contract, models, tolerance, gradient=gradient, say=say)


def write_module(
    exact: nn.Module,
    variants: Sequence[Variant],
    table: parity.Arrays,
    shape: Shape,
    contract: Contract,
    models: Path,
    tolerance: float,
    *,
    gradient: bool = True,
    say: Say,
) -> Path:
    """Trace a twin's variants, measure them against `exact` run in float64, and write the bundle.

    All are called with `images`, and `behavior` and `pupil_center` where `shape` names them; variants with `rows` also
    with rows of `table`. They answer responses.
    """
    shapes: dict[str, tuple[int, ...]] = {"images": (1, *contract.native_size)}
    shapes |= {"behavior": (len(shape.behavior),)} if shape.behavior else {}
    shapes |= {"pupil_center": (len(shape.pupil_center),)} if shape.pupil_center else {}
    built = compile_variants(exact, variants, table, shapes, shape.neurons, tolerance, gradient=gradient, say=say)
    shared = share(built.graphs, table if any(variant.rows for variant in variants) else {}, bundle.WEIGHTS)
    replay = _replay(exact, shapes, with_gradient="gradient" in built.graphs)
    manifest = bundle.Manifest(
        schema=bundle.SCHEMA,
        mouse=contract.mouse,
        model=contract.model,
        version=contract.version,
        description=contract.description,
        synthetic=contract.synthetic,
        neurons=bundle.Neurons(
            count=shape.neurons,
            unit_ids=contract.unit_ids,
            cell_motor_coordinates=contract.cell_motor_coordinates,
            receptive_field_center=shape.receptive_field_center,
            receptive_field_size=_size(shape.receptive_field_size),
        ),
        inputs=bundle.Inputs(
            native_size=_size(contract.native_size),
            stimulus_size=_size(STIMULUS_SIZE),
            behavior=shape.behavior,
            pupil_center=shape.pupil_center,
        ),
        statistics=_taken(contract.statistics, shape),
        output_units=OUTPUT_UNITS,
        graphs={name: _describe(name, data, shared, built.parity[name]) for name, data in shared.graphs.items()},
        weights=bundle.Weights(file=bundle.WEIGHTS, sha256=bundle.sha256(shared.npz)),
        replay=bundle.Replay(file=bundle.REPLAY, sha256=bundle.sha256(replay), tolerance=REPLAY_TOLERANCE),
        source=contract.source,
        built_with={name: version(name) for name in ("mousetwin", "torch", "onnx")},
        no_gradient=built.no_gradient,
        truth=dict(contract.truth),
    )
    files = {f"{name}.onnx": data for name, data in shared.graphs.items()}
    files |= {bundle.WEIGHTS: shared.npz, bundle.REPLAY: replay}
    try:
        folder = bundle.write(models, manifest, files)
    except bundle.BundleError as error:
        raise ExportError(str(error)) from None
    except OSError as error:
        raise ExportError(f"{models}: cannot be written: {error.strerror}") from None
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"{folder}: {shape.neurons} neurons, {', '.join(shared.graphs)}, {size / 1e6:.1f} MB")
    return folder


def family_shape(twin: Twin, config: ModelConfig, native_size: tuple[int, int]) -> Shape:
    """Inputs and receptive fields of a twin of the family.

    A neuron's centre is the native pixel under its position on the core's map, with the pupil at its mean; its field is
    what the chain of kernels can see from one bilinear sample.
    """
    height, width = map_size(twin, native_size)
    with torch.no_grad():
        positions = twin.readout.double().positions()
        if twin.shifter is not None:
            positions = positions + twin.shifter.double()(torch.zeros(1, 2, dtype=torch.float64))
    twin.float()
    pixels = (positions.numpy() + 1) / 2 * np.array([width - 1, height - 1])
    # Unpadded convolutions shrink the map evenly on both sides, padded ones not at all.
    pixels = pixels + np.array([native_size[1] - width, native_size[0] - height]) / 2
    reach = config.input_kern + sum((kernel - 1) * config.hidden_dilation for kernel in config.hidden_kerns) + 1
    behavior = twin.core.input_channels - 1
    return Shape(
        neurons=len(pixels),
        behavior=BEHAVIOR if behavior == len(BEHAVIOR) else tuple(f"behavior_{i}" for i in range(behavior)),
        pupil_center=() if twin.shifter is None else PUPIL_CENTER,
        receptive_field_center=tuple((round(float(x), 4), round(float(y), 4)) for x, y in pixels),
        receptive_field_size=(min(reach, native_size[0]), min(reach, native_size[1])),
    )


def _describe(name: str, data: bytes, shared: Shared, record: bundle.Parity) -> bundle.Graph:
    inputs, outputs = graph.describe(data)
    return bundle.Graph(
        file=f"{name}.onnx",
        sha256=bundle.sha256(data),
        opset=graph.OPSET,
        inputs=inputs,
        outputs=outputs,
        parity=record,
        weights=shared.names[name],
    )


def _replay(exact: nn.Module, shapes: dict[str, tuple[int, ...]], *, with_gradient: bool) -> bytes:
    rng = np.random.default_rng(144256)
    inputs = {name: rng.normal(size=(REPLAYED, *dims)).astype(np.float32) for name, dims in shapes.items()}
    arrays: parity.Arrays = {**inputs, "responses": parity.reference(exact, inputs).responses}
    if with_gradient:
        count = arrays["responses"].shape[1]
        cotangent = rng.choice([-1.0, 1.0], (REPLAYED, count))
        neurons = rng.integers(0, count, REPLAYED)
        for kind, weights in (("", cotangent), ("each_", np.eye(count)[neurons])):
            gradients = parity.reference(exact, inputs, weights).gradients
            arrays |= {f"{kind}d_{name}": values for name, values in gradients.items()}
        arrays |= {"cotangent": cotangent, "neurons": neurons}
    stream = io.BytesIO()
    np.savez(
        stream, allow_pickle=False, **{n: v.astype(np.float32) if v.dtype == float else v for n, v in arrays.items()}
    )
    return stream.getvalue()


def _taken(statistics: bundle.Statistics, shape: Shape) -> bundle.Statistics:
    # A data set has statistics of behavior and pupil for an image-only twin too, which has no use for them.
    nothing = bundle.Moments()
    return msgspec.structs.replace(
        statistics,
        behavior=statistics.behavior if shape.behavior else nothing,
        pupil_center=statistics.pupil_center if shape.pupil_center else nothing,
    )


def _check_size(config: ModelConfig, size: tuple[int, int]) -> None:
    shrink = sum(
        (kernel - 1) * config.hidden_dilation - 2 * config.effective_hidden_padding for kernel in config.hidden_kerns
    )
    smallest = 1 + (0 if config.pad_input else config.input_kern - 1) + max(shrink, 0)
    if min(size) < smallest:
        raise ExportError(f"--input-size {size[0]}x{size[1]}: the core needs at least {smallest}x{smallest}")


def _size(size: tuple[int, int]) -> bundle.Size:
    return bundle.Size(height=size[0], width=size[1])
