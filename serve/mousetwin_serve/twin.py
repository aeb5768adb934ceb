"""One served twin: its bundle, its engine, and what it tells about itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from mousetwin.query import GraphReport, Moments, MouseInfo, TwinIdentity, TwinSummary
from numpy.typing import NDArray

from .bundle import Bundle, Size
from .device import Device
from .engine import Engine
from .stimulus import Limits, StimulusReader


class Twin:
    """A loaded bundle.

    Attributes:
        identity, summary, info: what clients are told.
        stimulus: turns queries into what the engine takes.
        engine: runs them.
    """

    def __init__(self, bundle: Bundle, device: Device, limits: Limits, threads: int = 0) -> None:
        manifest = bundle.manifest
        self.identity = TwinIdentity(manifest.mouse, manifest.model, manifest.version, bundle.digest)
        self.stimulus = StimulusReader(manifest, limits)
        self.engine = Engine(bundle, device, threads)
        self.summary = self._summary(bundle, device)
        self.info = self._info(bundle)

    def _summary(self, bundle: Bundle, device: Device) -> TwinSummary:
        manifest, inputs = bundle.manifest, bundle.manifest.inputs
        return TwinSummary(
            twin=self.identity,
            description=manifest.description,
            synthetic=manifest.synthetic,
            neurons=manifest.neurons.count,
            native_size=_pair(inputs.native_size),
            stimulus_size=_pair(inputs.stimulus_size),
            behavior=inputs.behavior,
            pupil_center=inputs.pupil_center,
            takes_raw=self.stimulus.takes_raw,
            graphs=tuple(manifest.graphs),
            device=device.kind,
            required=self.stimulus.required,
        )

    def _info(self, bundle: Bundle) -> MouseInfo:
        manifest, neurons, statistics = bundle.manifest, bundle.manifest.neurons, bundle.manifest.statistics
        return MouseInfo(
            summary=self.summary,
            unit_ids=_array(neurons.unit_ids, np.int64),
            cell_motor_coordinates=_array(neurons.cell_motor_coordinates, np.float32),
            receptive_field_center=_array(neurons.receptive_field_center, np.float32),
            receptive_field_size=_pair(neurons.receptive_field_size) if neurons.receptive_field_size else None,
            statistics={
                name: Moments(moments.mean, moments.std)
                for name in ("images", "behavior", "pupil_center", "responses")
                if (moments := getattr(statistics, name)) is not None
            },
            output_units=manifest.output_units,
            graphs={
                name: GraphReport(
                    opset=graph.opset,
                    parity_max_abs_error=graph.parity.max_abs_error,
                    parity_tolerance=graph.parity.tolerance,
                    replay_max_abs_error=self.engine.replay_error,
                )
                for name, graph in manifest.graphs.items()
            },
            source=manifest.source.description,
            source_sha256=manifest.source.sha256,
            licence=manifest.source.licence,
            built_with=manifest.built_with,
            truth={name: np.asarray(values, np.float64) for name, values in manifest.truth.items()},
        )


def _pair(size: Size) -> tuple[int, int]:
    return (size.height, size.width)


def _array(values: Any, dtype: type[np.generic]) -> NDArray[Any] | None:
    return None if values is None else np.asarray(values, dtype)
