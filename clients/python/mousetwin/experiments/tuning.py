"""Tuning to gratings: preferred orientation and spatial frequency, selectivity, simple or complex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import from_nested
from ..conditions import in_model_space
from .results import Axis, Experiment, Float, neuron_axis
from .stimuli import gratings

if TYPE_CHECKING:
    from ..twins import Mouse


ORIENTATIONS = tuple(np.arange(0, 180, 22.5).tolist())
PHASES = tuple(np.linspace(0, 2 * np.pi, 8, endpoint=False).tolist())


@dataclass(frozen=True, eq=False, repr=False)
class GratingTuning(Experiment):
    """Responses (orientation, spatial_frequency, phase, neuron)."""

    def preferred(self, axis: str) -> Axis:
        """(K,): where along "orientation" or "spatial_frequency" each neuron's curve is highest."""
        curve = self.curve(axis)
        return np.asarray(self.axes[axis][curve.argmax(0)])

    @property
    def orientation_selectivity(self) -> Float:
        """(K,): |Σ r exp(2iθ)| / Σ r at the preferred frequency: 1 - circular variance (Ringach et al. 2002)."""
        means = self.responses.mean(2)
        best = self.curve("spatial_frequency").argmax(0)
        curves = means[:, best, np.arange(means.shape[2])]
        angles = np.radians(self.axes["orientation"])[:, None]
        return np.asarray(np.abs((curves * np.exp(2j * angles)).sum(0)) / np.abs(curves).sum(0), np.float32)

    @property
    def modulation_ratio(self) -> Float:
        """(K,): F1/F0 over phase at the preferred grating, above 1 for simple cells (Skottun et al. 1991).

        Phases are to be evenly spaced over a cycle, as they are by default.
        """
        orientation = self.curve("orientation").argmax(0)
        means = self.responses.mean(2)
        columns = np.arange(means.shape[2])
        frequency = means[orientation, :, columns].argmax(1)
        cycle = self.responses[orientation, frequency, :, columns]
        f1 = 2 * np.abs((cycle * np.exp(1j * self.axes["phase"])).mean(1))
        return np.asarray(f1 / cycle.mean(1), np.float32)


def grating_tuning(
    mouse: Mouse,
    orientations: ArrayLike = ORIENTATIONS,
    spatial_frequencies: ArrayLike = (0.04, 0.08, 0.12, 0.17),
    phases: ArrayLike = PHASES,
    *,
    contrast: float = 1.0,
    center: tuple[float, float] | None = None,
    diameter: float | None = None,
    **asked: Any,
) -> GratingTuning:
    """Responses to gratings of every orientation, spatial frequency and phase.

    Args:
        mouse: the twin.
        orientations: degrees, of the wave; see `stimuli`.
        spatial_frequencies: cycles a pixel of the native size.
        phases: radians.
        contrast, center, diameter: as for `stimuli.gratings`.
        asked: as for `Mouse.predict`; behavior and pupil_center say their `condition_space` where it matters.
    """
    axes = {
        "orientation": from_nested(orientations, "orientations").astype(np.float64),
        "spatial_frequency": from_nested(spatial_frequencies, "spatial_frequencies").astype(np.float64),
        "phase": from_nested(phases, "phases").astype(np.float64),
    }
    angle, frequency, phase = (values.ravel() for values in np.meshgrid(*axes.values(), indexing="ij"))
    stimuli = gratings(mouse.summary.native_size, angle, frequency, phase, contrast, center, diameter)
    responses = np.asarray(mouse.predict(stimuli, **in_model_space(mouse.info, asked)))
    neurons = neuron_axis(mouse, asked)
    shape = [len(values) for values in axes.values()]
    return GratingTuning(responses.reshape(*shape, len(neurons)), {**axes, "neuron": neurons}, mouse.summary)
