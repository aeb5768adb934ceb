"""From what a caller sends to what the network takes: every input check with its message, and raw → model space.

The order is the training loader's (sinzlab/sensorium, `datasets/mouse_loaders.py`): images `(x - mean) / std` with
scalar statistics, then rescaled; behavior divided by its std without subtracting the mean; pupil center z-scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mousetwin.conditions import condition_space
from mousetwin.errors import InvalidArgument, PayloadTooLarge
from mousetwin.query import GradientQuery, PredictQuery, Space
from numpy.typing import NDArray

from . import plausibility
from .batch import Batch, Float
from .bundle import Inputs, Manifest, Moments
from .limits import Limits
from .rescale import rescale, rescale_back

_SUPPLY = "export the twin again with --statistics or --dataset"


@dataclass(frozen=True)
class Stimulus:
    """A query, checked.

    Attributes:
        batch: in model space.
        conditions: where its behavior and pupil center come from.
        space: what the numbers of the images meant.
        shape: of the images as they were sent, with a row an answer.
        warnings: what is nearly always a mistake.
    """

    batch: Batch
    conditions: Conditions
    space: Space
    shape: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Conditions:
    """Behavior (N, B) and pupil center (N, 2) as the network takes them, where it takes them.

    Attributes:
        behavior, pupil_center: float32.
        space: what the numbers that were sent meant.
        defaults: which of the two stand at the training set's mean.
        warnings: what is nearly always a mistake.
    """

    behavior: Float | None
    pupil_center: Float | None
    space: Space
    defaults: tuple[str, ...]
    warnings: tuple[str, ...]


class StimulusReader:
    """Checks and converts queries for one twin."""

    def __init__(self, manifest: Manifest, limits: Limits) -> None:
        self._inputs: Inputs = manifest.inputs
        self._statistics = manifest.statistics
        self._neurons = manifest.neurons.count
        self._limits = limits
        native, shown = manifest.inputs.native_size, manifest.inputs.stimulus_size
        self._native = (native.height, native.width)
        self._shown = (shown.height, shown.width)
        ids = manifest.neurons.unit_ids
        self._column_of = None if ids is None else {unit_id: column for column, unit_id in enumerate(ids)}

    @property
    def takes_raw(self) -> bool:
        """Whether the statistics that raw images need are known."""
        moments = self._statistics.images
        return bool(moments.mean and moments.std)

    @property
    def gray_levels(self) -> tuple[float, float]:
        """Mean and standard deviation of raw images; known where `takes_raw`."""
        moments = self._statistics.images
        return moments.mean[0], moments.std[0]

    @property
    def required(self) -> tuple[str, ...]:
        """Inputs that must be sent, having no default."""
        return ("images", *(("behavior",) if self._inputs.behavior and not self._has_default_behavior else ()))

    @property
    def _has_default_behavior(self) -> bool:
        moments = self._statistics.behavior
        return bool(moments.mean and moments.std)

    def read(self, query: PredictQuery) -> Stimulus:
        """The query as the network takes it.

        Raises:
            InvalidArgument: a field is not as the twin's contract says; the message names it, what came and what was
                expected.
            PayloadTooLarge: the answer would be over the limit.
        """
        count = self._count(query.images)
        count = self._rows(query) if count == 1 else count
        columns = None
        # A single number is one neuron.
        neurons, unit_ids = (None if n is None else np.atleast_1d(n) for n in (query.neurons, query.unit_ids))
        if neurons is not None or unit_ids is not None:
            _check_once_each(neurons, "neurons", count)
            _check_once_each(unit_ids, "unit_ids", count)
            columns = self.columns(neurons, unit_ids)
        space = self._space(query)
        answered = self._neurons if columns is None else columns.shape[-1]
        with_gradient = isinstance(query, GradientQuery)
        self._check_answer_size(count, answered, query.images[0].size if with_gradient else 0)
        cotangent = _cotangent(query.cotangent, count, answered) if isinstance(query, GradientQuery) else None
        images = self.images(query.images, space)
        images = np.repeat(images, count, 0) if len(images) < count else images
        given = self.conditions(query.behavior, query.pupil_center, query.condition_space or space, count)
        batch = Batch(images, given.behavior, given.pupil_center, columns, cotangent)
        told = (*plausibility.of_images(query.images, space), *given.warnings)
        return Stimulus(batch, given, space, (count, *query.images.shape[1:]), told)

    def pull_back(self, stimulus: Stimulus, gradient: Mapping[str, Float]) -> dict[str, Float]:
        """Gradients with respect to what was sent, from those with respect to what the network takes.

        Args:
            stimulus: what was read.
            gradient: by input, in model space.

        Returns:
            The same in the units of the query, and the images' in their shape. What is not known in those units, the
            pupil center's where its statistics are missing, is left out.
        """
        sent: dict[str, Float] = {}
        for name, values in gradient.items():
            space = stimulus.space if name == "images" else stimulus.conditions.space
            moments: Moments = getattr(self._statistics, name)
            if space is Space.MODEL:
                sent[name] = values
            elif moments.std:
                std: Float = np.asarray(moments.std, np.float32)
                sent[name] = values / (std.reshape(-1, 1, 1) if name == "images" else std)
        if stimulus.space is Space.RAW:
            sent["images"] = rescale_back(sent["images"], (stimulus.shape[-2], stimulus.shape[-1]))
        return {**sent, "images": sent["images"].reshape(stimulus.shape)}

    def _space(self, query: PredictQuery) -> Space:
        if query.space is not None:
            return query.space
        if query.images.dtype.kind in "ui":
            return Space.RAW
        raise InvalidArgument(
            f"space: {query.images.dtype.name} images must say whether they are 'raw' (gray level 0-255) or 'model' "
            "(as the network takes them)",
            field="space",
        )

    def _count(self, images: NDArray[Any]) -> int:
        height, width = self._native
        if images.ndim == 2:
            raise InvalidArgument(
                f"images: shape {images.shape} is one image, expected (N, H, W): give it a leading axis, images[None]",
                field="images",
            )
        if images.ndim not in (3, 4):
            raise InvalidArgument(
                f"images: shape {images.shape} has rank {images.ndim}, expected (N, {height}, {width}) or "
                f"(N, 1, {height}, {width})",
                field="images",
            )
        if images.ndim == 4 and images.shape[1] != self._inputs.channels:
            raise InvalidArgument(
                f"images: shape {images.shape} has {images.shape[1]} channels, expected {self._inputs.channels}",
                field="images",
            )
        if images.shape[0] == 0:
            raise InvalidArgument("images: there are none, expected at least one", field="images")
        return len(images)

    def _rows(self, query: PredictQuery) -> int:
        """How many conditions one image is sent with."""
        given = [c for c in (query.behavior, query.pupil_center) if c is not None and c.ndim == 2]
        rows = max([1, *(len(c) for c in given)])
        most = max(1, self._limits.request_bytes // (4 * self._native[0] * self._native[1]))
        if rows > most:
            raise PayloadTooLarge(
                f"behavior: one image under {rows} conditions, at most {most} at once", field="behavior"
            )
        return rows

    def images(self, images: NDArray[Any], space: Space) -> Float:
        """Images (N, H, W) or (N, 1, H, W) as the network takes them, (N, 1, H, W). Raises InvalidArgument."""
        size = images.shape[-2:]
        accepted = {self._native, self._shown} if space is Space.RAW else {self._native}
        if size not in accepted:
            sizes = " or ".join(f"{height}×{width}" for height, width in sorted(accepted))
            raise InvalidArgument(
                f"images: {size[0]}×{size[1]} (height × width) in {space.value} space, expected {sizes}",
                field="images",
            )
        # Whole numbers are finite, and become floats more cheaply once they are rescaled.
        whole = images.dtype.kind in "ui" and space is Space.RAW
        values = images if whole else _finite(images, "images")
        values = values.reshape(len(images), self._inputs.channels, *size)
        if space is Space.MODEL:
            return values
        self.check_takes_raw()
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 255:
            raise InvalidArgument(
                f"images: raw gray levels run from {low:g} to {high:g}, expected 0 to 255", field="images"
            )
        rescaled = rescale(values, self._native).astype(np.float32, copy=False)
        return _normalise(rescaled, self._statistics.images, subtract_mean=True)

    def check_takes_raw(self) -> None:
        """Raises InvalidArgument where the statistics that raw images need are not known."""
        if not self.takes_raw:
            raise InvalidArgument(
                f"space: raw images need the twin's image statistics, which its bundle lacks; {_SUPPLY}, or send "
                "space 'model'",
                field="space",
            )

    def conditions(
        self, behavior: NDArray[Any] | None, pupil_center: NDArray[Any] | None, said: Space | None, count: int
    ) -> Conditions:
        """Behavior and pupil center, `count` rows of each, as the network takes them.

        Args:
            behavior, pupil_center: as they were sent; None: the training set's mean.
            said: what their numbers mean; None where the caller did not say.
            count: of images, or of conditions.

        Raises:
            InvalidArgument: of another shape, not finite, unwanted, missing without a default, or of a space that
                nobody said.
        """
        given = {"behavior": behavior, "pupil_center": pupil_center}
        # What the twin does not take is refused below, whatever its space.
        taken = {name: values for name, values in given.items() if getattr(self._inputs, name)}
        space = condition_space(said, taken, {name: getattr(self._statistics, name) for name in taken})
        moved, default_behavior = self._behavior(behavior, space, count)
        looked, default_pupil = self._pupil_center(pupil_center, space, count)
        defaults = (*(("behavior",) if default_behavior else ()), *(("pupil_center",) if default_pupil else ()))
        warnings: list[str] = []
        if moved is not None and not default_behavior:
            warnings += plausibility.of_behavior(moved, self._inputs.behavior, self._statistics.behavior)
        if looked is not None and not default_pupil:
            warnings += plausibility.of_pupil_center(looked, self._inputs.pupil_center)
        return Conditions(moved, looked, space, defaults, tuple(warnings))

    def _behavior(self, given: NDArray[Any] | None, space: Space, count: int) -> tuple[Float | None, bool]:
        names, moments = self._inputs.behavior, self._statistics.behavior
        if given is None and names:
            if not self._has_default_behavior:
                raise InvalidArgument(
                    f"behavior: missing; the twin takes {', '.join(names)} and its bundle does not hold their means, "
                    f"so there is no default: send (N, {len(names)}), or {_SUPPLY}",
                    field="behavior",
                )
            mean = np.asarray(moments.mean, np.float32)
            return _per_image(_normalise(mean, moments, subtract_mean=False), count), True
        values = self._condition("behavior", given, names, count)
        if values is None or space is Space.MODEL:
            return values, False
        self._require_statistics("behavior", bool(moments.std))
        return _normalise(values, moments, subtract_mean=False), False

    def _pupil_center(self, given: NDArray[Any] | None, space: Space, count: int) -> tuple[Float | None, bool]:
        names, moments = self._inputs.pupil_center, self._statistics.pupil_center
        if given is None and names:
            # The z-scored mean is 0 whatever the statistics are, so this default is always known.
            return np.zeros((count, len(names)), np.float32), True
        values = self._condition("pupil_center", given, names, count)
        if values is None or space is Space.MODEL:
            return values, False
        self._require_statistics("pupil_center", bool(moments.mean and moments.std))
        return _normalise(values, moments, subtract_mean=True), False

    def _condition(self, field: str, given: NDArray[Any] | None, names: tuple[str, ...], count: int) -> Float | None:
        if given is None:
            return None
        if not names:
            raise InvalidArgument(f"{field}: this twin takes none, leave it out", field=field)
        width = len(names)
        if given.shape not in ((width,), (count, width)):
            raise InvalidArgument(
                f"{field}: shape {given.shape}, expected ({count}, {width}), or ({width},) for all images: "
                f"{', '.join(names)}",
                field=field,
            )
        return _per_image(_finite(given, field), count)

    def _require_statistics(self, field: str, known: bool) -> None:
        if not known:
            raise InvalidArgument(
                f"{field}: raw values need the twin's {field} statistics, which its bundle lacks; {_SUPPLY}, or send "
                "them in model units with condition_space 'model'",
                field=field,
            )

    def columns(self, neurons: NDArray[Any] | None, unit_ids: NDArray[Any] | None) -> NDArray[np.intp]:
        """The columns that neurons or unit ids of any shape mean; one of the two is given. Raises InvalidArgument."""
        if neurons is not None and unit_ids is not None:
            raise InvalidArgument("unit_ids: given together with neurons, expected one of the two", field="unit_ids")
        if neurons is None:
            assert unit_ids is not None
            return self._columns_of_units(_integers(unit_ids, "unit_ids"))
        neurons = _integers(neurons, "neurons")
        wrong = neurons[(neurons < 0) | (neurons >= self._neurons)]
        if wrong.size:
            raise InvalidArgument(f"neurons: {wrong[0]}, expected 0 to {self._neurons - 1}", field="neurons")
        return neurons.astype(np.intp)

    def _columns_of_units(self, unit_ids: NDArray[Any]) -> NDArray[np.intp]:
        if self._column_of is None:
            raise InvalidArgument(
                "unit_ids: this twin's bundle does not hold them; use neurons, or export it again with --dataset",
                field="unit_ids",
            )
        unknown = [unit_id for unit_id in unit_ids.ravel().tolist() if unit_id not in self._column_of]
        if unknown:
            raise InvalidArgument(
                f"unit_ids: {unknown[0]} is not among the twin's {self._neurons} unit ids", field="unit_ids"
            )
        columns = np.array([self._column_of[unit_id] for unit_id in unit_ids.ravel().tolist()], np.intp)
        return columns.reshape(unit_ids.shape)

    def _check_answer_size(self, count: int, columns: int, pixels: int) -> None:
        each = (columns + pixels) * 4
        if count * each > self._limits.response_bytes:
            what = f"{columns} neurons" + (f" and gradients of {pixels} pixels" if pixels else "")
            raise PayloadTooLarge(
                f"images: {count} images × {what} answer {count * each} bytes, the limit is "
                f"{self._limits.response_bytes}: send at most {self._limits.response_bytes // each} images at once, or "
                "choose neurons",
                field="images",
            )


def _normalise(values: Float, moments: Moments, *, subtract_mean: bool) -> Float:
    mean: Float = np.asarray(moments.mean if subtract_mean else 0, np.float32)
    std: Float = np.asarray(moments.std, np.float32)
    scaled: Float = (values - mean) / std
    return scaled


def _per_image(values: Float, count: int) -> Float:
    return np.broadcast_to(values, (count, values.shape[-1]))


def _finite(values: NDArray[Any], field: str) -> Float:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    finite = np.isfinite(single)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InvalidArgument(
            f"{field}: {values[where]} at {where}, expected finite numbers within float32", field=field
        )
    return np.ascontiguousarray(single)


def _cotangent(given: NDArray[Any], count: int, answered: int) -> Float:
    if given.shape not in ((answered,), (count, answered)):
        raise InvalidArgument(
            f"cotangent: shape {given.shape}, expected ({count}, {answered}), or ({answered},) for all images: a "
            "number a response",
            field="cotangent",
        )
    return _per_image(_finite(given, "cotangent"), count)


def _integers(values: NDArray[Any], field: str) -> NDArray[Any]:
    if values.dtype.kind not in "ui":
        raise InvalidArgument(f"{field}: dtype is {values.dtype.name}, expected whole numbers", field=field)
    return values


def _check_once_each(values: NDArray[Any] | None, field: str, count: int) -> None:
    """That neurons or unit ids are (K,) without repetition, or (N, 1)."""
    if values is None:
        return
    each = values.ndim == 2
    if values.size == 0 or not (values.ndim == 1 or values.shape == (count, 1)):
        raise InvalidArgument(
            f"{field}: shape {values.shape}, expected a list of at least one, or ({count}, 1) for one an image",
            field=field,
        )
    unique, counts = np.unique(values, return_counts=True)
    if (counts > 1).any() and not each:
        raise InvalidArgument(f"{field}: {unique[counts > 1][0]} is repeated, expected each once", field=field)
