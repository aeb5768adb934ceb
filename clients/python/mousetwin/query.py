"""What is asked of a twin and what comes back, free of any protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument


class Space(str, Enum):
    """What the numbers of images, behavior and pupil center mean.

    RAW: images are gray level 0-255 at the stimulus or the native size, behavior and pupil center are as recorded.
    MODEL: exactly what the network takes.
    """

    RAW = "raw"
    MODEL = "model"


def space_of(space: Space | str | None, field: str = "space") -> Space | None:
    """The space of that name. Raises InvalidArgument, naming `field`, for any other word."""
    try:
        return None if space is None else Space(space)
    except ValueError:
        raise InvalidArgument(f"{field}: {str(space)[:80]!r}, expected 'raw' or 'model'", field=field) from None


@dataclass(frozen=True)
class TwinRef:
    """Which twin. An empty model means the mouse's only one; an empty version means the newest."""

    mouse: str
    model: str = ""
    version: str = ""


@dataclass(frozen=True)
class TwinIdentity:
    """The twin that answered. `digest` (sha256 of the bundle's manifest) traces a figure to the weights."""

    mouse: str
    model: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.mouse} {self.model} v{self.version}"


@dataclass(frozen=True)
class PredictQuery:
    """One batch for one twin.

    Attributes:
        images: (N, H, W) or (N, 1, H, W); integers are RAW, floats need `space`.
        behavior: (N, B), or (B,) for all images.
        pupil_center: (N, 2), or (2,) for all images: horizontal, vertical.
        neurons: 0-based columns (K,), or (N, 1) for one an image.
        unit_ids: the recording's own ids, likewise; not together with `neurons`.
        condition_space: of behavior and pupil center; None: that of the images.
    """

    twin: TwinRef
    images: NDArray[Any]
    behavior: NDArray[Any] | None = None
    pupil_center: NDArray[Any] | None = None
    space: Space | None = None
    neurons: NDArray[Any] | None = None
    unit_ids: NDArray[Any] | None = None
    condition_space: Space | None = None


@dataclass(frozen=True)
class GradientQuery(PredictQuery):
    """The same, and what to differentiate.

    Attributes:
        cotangent: (N, K), or (K,) for all images: what each response counts for in the sum whose gradient is asked for.
    """

    cotangent: NDArray[Any] = field(kw_only=True)


@dataclass(frozen=True)
class Prediction:
    """The answer to a `PredictQuery`.

    Attributes:
        responses: float32 (N, K).
        twin: that answered.
        defaults: inputs that were not sent and stood at the training set's mean.
        warnings: a line for each thing that was taken and is nearly always a mistake.
    """

    responses: NDArray[np.float32]
    twin: TwinIdentity
    defaults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class GradientAnswer(Prediction):
    """The answer to a `GradientQuery`: gradients of Σ cotangent · responses, float32, in the units that were sent.

    Attributes:
        images: in the shape that was sent.
        behavior, pupil_center: (N, B) and (N, 2); None where the twin takes none, or its raw units are not known.
    """

    images: NDArray[np.float32] = field(kw_only=True)
    behavior: NDArray[np.float32] | None = field(default=None, kw_only=True)
    pupil_center: NDArray[np.float32] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class TwinSummary:
    """What `mice()` tells of a twin. Sizes are (height, width) in pixels.

    takes_raw: whether image statistics are known, so that RAW images are taken. required: inputs that must be sent,
    having no default. no_gradient: why the twin has no gradient; empty where it has. newer_refused: versions of the
    model that are newer and that the service found and refused; this one answers in their place.
    """

    twin: TwinIdentity
    description: str
    synthetic: bool
    neurons: int
    native_size: tuple[int, int]
    stimulus_size: tuple[int, int]
    behavior: tuple[str, ...]
    pupil_center: tuple[str, ...]
    takes_raw: bool
    graphs: tuple[str, ...]
    device: str
    required: tuple[str, ...]
    no_gradient: str = ""
    newer_refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.twin}{' (synthetic)' if self.synthetic else ''}"


def stand_in_warning(summary: TwinSummary) -> str:
    """What to tell of a twin that was meant without a version and is not the newest; empty where it is."""
    if not summary.newer_refused:
        return ""
    twin, newer = summary.twin, ", ".join(summary.newer_refused)
    return (
        f"version: {twin.mouse}/{twin.model} {newer} was found and does not verify, version {twin.version} answers in "
        "its place: the service's log says why; name the version to use it without this warning"
    )


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per channel, in the data set's units; empty where not known."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class GraphReport:
    """Measured errors of one graph: parity at export against the float64 model, replay on the serving device.

    Of responses absolute, of a gradient relative to its norm. What is of the replay is None until the graph is first
    asked for. not_on_device: nodes of the graph that ran on the CPU though the twin is on a GPU.
    """

    opset: int
    parity_max_abs_error: float
    parity_tolerance: float
    replay_error: float | None = None
    parity_gradient_error: float | None = None
    parity_gradient_tolerance: float | None = None
    replay_tolerance: float | None = None
    replay_gradient_tolerance: float | None = None
    not_on_device: tuple[str, ...] = ()


_PER_NEURON = ("unit_ids", "cell_motor_coordinates", "receptive_field_center")


@dataclass(frozen=True)
class MouseInfo:
    """Everything a twin's bundle tells; None where not known.

    Attributes:
        unit_ids: int64 (K,).
        cell_motor_coordinates: float32 (K, 3), µm.
        receptive_field_center: float32 (K, 2), x and y in native pixels with the pupil at its mean.
        receptive_field_size: (height, width) of native pixels that can reach one neuron.
        statistics: by variable: images, behavior, pupil_center, responses.
        truth: synthetic mice only: what each neuron was built from, float64 (K,) each.
    """

    summary: TwinSummary
    unit_ids: NDArray[np.int64] | None
    cell_motor_coordinates: NDArray[np.float32] | None
    receptive_field_center: NDArray[np.float32] | None
    receptive_field_size: tuple[int, int] | None
    statistics: Mapping[str, Moments]
    output_units: str
    graphs: Mapping[str, GraphReport]
    source: str
    source_sha256: str
    licence: str
    built_with: Mapping[str, str]
    truth: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __repr__(self) -> str:
        known = [name for name in _PER_NEURON if getattr(self, name) is not None]
        known += [f"statistics of {', '.join(self.statistics)}"] if self.statistics else []
        about = "".join(f", {word}" for word in known)
        return f"<MouseInfo of {self.summary}: {self.summary.neurons} neurons{about}>"
