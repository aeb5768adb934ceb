"""From a checkpoint to a bundle."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
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
from .forward import ForwardGraph, map_size

STIMULUS_SIZE = (144, 256)
BEHAVIOR = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
PUPIL_CENTER = ("horizontal", "vertical")
OUTPUT_UNITS = "standard deviations of each neuron's response"
REPLAY_TOLERANCE = 1e-4

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
    rewritten = ForwardGraph(twin, contract.native_size)
    return write_module(
        twin, rewritten, family_shape(twin, config, contract.native_size), contract, models, tolerance, say
    )


def write_module(
    exact: nn.Module,
    rewritten: nn.Module,
    shape: Shape,
    contract: Contract,
    models: Path,
    tolerance: float,
    say: Say,
) -> Path:
    """Trace `rewritten`, measure it against `exact` run in float64, and write the bundle.

    Both are called with `images`, and `behavior` and `pupil_center` where `shape` names them, and answer responses
    (N, K).
    """
    shapes: dict[str, tuple[int, ...]] = {"images": (1, *contract.native_size)}
    shapes |= {"behavior": (len(shape.behavior),)} if shape.behavior else {}
    shapes |= {"pupil_center": (len(shape.pupil_center),)} if shape.pupil_center else {}
    say("tracing the forward graph")
    forward = graph.to_onnx(rewritten, {name: torch.zeros(2, *dims) for name, dims in shapes.items()})
    measured: dict[str, float] = {}
    for case, inputs in parity.cases(shapes):
        measured[case] = parity.measure(forward, inputs, parity.reference(exact, inputs))
        say(f"  parity, {case}: max abs error {measured[case]:.2g} (tolerance {tolerance:.2g})")
    record = parity.worst(measured, tolerance)
    # Written so that a NaN fails too.
    if not record.max_abs_error <= tolerance:
        raise ExportError(
            f"parity: the graph is off by {record.max_abs_error:.2g} from the float64 model, tolerance "
            f"{tolerance:.2g}; nothing was written"
        )
    replay = _replay(exact, shapes)
    inputs_, outputs = graph.describe(forward)
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
        graphs={
            "forward": bundle.Graph(
                file="forward.onnx",
                sha256=bundle.sha256(forward),
                opset=graph.OPSET,
                inputs=inputs_,
                outputs=outputs,
                parity=record,
            )
        },
        replay=bundle.Replay(file=bundle.REPLAY, sha256=bundle.sha256(replay), tolerance=REPLAY_TOLERANCE),
        source=contract.source,
        built_with={name: version(name) for name in ("mousetwin", "torch", "onnx")},
        truth=dict(contract.truth),
    )
    try:
        folder = bundle.write(models, manifest, {"forward.onnx": forward, bundle.REPLAY: replay})
    except bundle.BundleError as error:
        raise ExportError(str(error)) from None
    except OSError as error:
        raise ExportError(f"{models}: cannot be written: {error.strerror}") from None
    say(f"{folder}: {shape.neurons} neurons, {(len(forward) + len(replay)) / 1e6:.1f} MB")
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


def _replay(exact: nn.Module, shapes: dict[str, tuple[int, ...]]) -> bytes:
    rng = np.random.default_rng(144256)
    inputs = {name: rng.normal(size=(4, *dims)).astype(np.float32) for name, dims in shapes.items()}
    responses = parity.reference(exact, inputs).astype(np.float32)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **inputs, responses=responses)
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
