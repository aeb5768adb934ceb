"""One served twin: its bundle, its engine, and what it tells about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mousetwin.errors import InvalidArgument
from mousetwin.query import (
    GradientAnswer,
    GraphReport,
    Moments,
    MouseInfo,
    Prediction,
    TwinIdentity,
    TwinSummary,
)
from numpy.typing import NDArray

from .batch import Answer
from .bundle import Bundle, Manifest, Size
from .device import Device
from .engine import Engine, why_no_gradient
from .limits import Limits
from .stimulus import Stimulus, StimulusReader


class Twin:
    """A loaded bundle.

    Attributes:
        identity, summary: what clients are told.
        stimulus: turns queries into what the engine takes.
        engine: runs them.
    """

    def __init__(self, bundle: Bundle, devices: Sequence[Device], limits: Limits) -> None:
        manifest = bundle.manifest
        self.stimulus = StimulusReader(manifest, limits)
        self.engine = Engine(bundle, devices)
        self.summary = summarize(manifest, bundle.digest, devices[0].kind)
        self.identity = self.summary.twin
        self._info = self._tell(bundle)

    @property
    def info(self) -> MouseInfo:
        """Everything clients are told, the replays of the graphs that were loaded until now among it."""
        graphs = dict(self._info.graphs)
        for name, replay in self.engine.replays.items():
            graphs[name] = replace(
                graphs[name],
                replay_error=replay.error,
                replay_tolerance=replay.tolerance,
                replay_gradient_tolerance=replay.gradient_tolerance if name.startswith("gradient") else None,
                not_on_device=replay.elsewhere,
            )
        return replace(self._info, graphs=graphs)

    def answer(self, stimulus: Stimulus, answer: Answer) -> Prediction:
        """What a caller is told: a `GradientAnswer` where a gradient was asked for.

        Raises:
            InvalidArgument: a response or a gradient is not finite.
        """
        defaults, warnings = stimulus.conditions.defaults, stimulus.warnings
        check_finite("responses", answer.responses)
        if stimulus.batch.cotangent is None:
            return Prediction(answer.responses, self.identity, defaults, warnings)
        gradient = self.stimulus.pull_back(stimulus, answer.gradient)
        for name, values in gradient.items():
            check_finite(f"the gradient of {name}", values, "cotangent")
        return GradientAnswer(answer.responses, self.identity, defaults, warnings, **gradient)

    def stands_in_for(self, newer_refused: tuple[str, ...]) -> None:
        """Say that these newer versions of the model were found and are not served."""
        self.summary = replace(self.summary, newer_refused=newer_refused)
        self._info = replace(self._info, summary=self.summary)

    def _tell(self, bundle: Bundle) -> MouseInfo:
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
                    parity_gradient_error=graph.parity.gradient_error,
                    parity_gradient_tolerance=graph.parity.gradient_tolerance,
                )
                for name, graph in manifest.graphs.items()
            },
            source=manifest.source.description,
            source_sha256=manifest.source.sha256,
            licence=manifest.source.licence,
            built_with=manifest.built_with,
            truth={name: np.asarray(values, np.float64) for name, values in manifest.truth.items()},
        )


def check_finite(what: str, values: NDArray[Any], field: str = "images") -> None:
    """Raises InvalidArgument, naming `field`, where what was computed from the caller's values is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InvalidArgument(
            f"{field}: {what} at {where} came out as {values[where]}: what was sent is beyond what the twin computes "
            "in float32, expected values near those it was trained on",
            field=field,
        )


def summarize(manifest: Manifest, digest: str, device: str) -> TwinSummary:
    """What clients are told of a twin on a device of that kind."""
    inputs, stimulus = manifest.inputs, StimulusReader(manifest, Limits())
    return TwinSummary(
        twin=TwinIdentity(manifest.mouse, manifest.model, manifest.version, digest),
        description=manifest.description,
        synthetic=manifest.synthetic,
        neurons=manifest.neurons.count,
        native_size=_pair(inputs.native_size),
        stimulus_size=_pair(inputs.stimulus_size),
        behavior=inputs.behavior,
        pupil_center=inputs.pupil_center,
        takes_raw=stimulus.takes_raw,
        graphs=tuple(manifest.graphs),
        device=device,
        required=stimulus.required,
        no_gradient=why_no_gradient(manifest),
    )


def _pair(size: Size) -> tuple[int, int]:
    return (size.height, size.width)


def _array(values: Any, dtype: type[np.generic]) -> NDArray[Any] | None:
    return None if values is None else np.asarray(values, dtype)
