"""From what a caller asks for to a plan: every check of an optimisation with its message, before any step is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from mousetwin import optimization as asked
from mousetwin.errors import InvalidArgument, PayloadTooLarge, Unimplemented
from mousetwin.query import Space
from numpy.typing import NDArray

from .. import plausibility
from ..batch import Float
from ..limits import Limits
from ..memory import on_host
from ..twin import Twin
from .ascent import Plan
from .constraints import Constraints, Double, Put
from .objective import Objective, Seen

DEFAULT_NORM = 10.0
_LEAST_WEIGHT = 1e-6
# Beyond these nothing but the penalty, or the lowest frequency, is left of a gradient.
_LARGEST_PENALTY = 1e6
_STEEPEST = 8.0
_SIZES = ("norm", "max_norm", "std", "max_std")
_OPTIMIZERS = ("ascent", "adam")
_STARTS = ("noise", "gray")


@dataclass(frozen=True)
class Request:
    """A checked optimisation.

    Attributes:
        plan: in model units.
        defaults: inputs that stand at the training set's mean.
        warnings: what is nearly always a mistake.
        size: the field that says how large images are, "images" where none was given.
        offset, scale: what turns model units into the caller's: `offset` + `scale` · x.
    """

    plan: Plan
    defaults: tuple[str, ...]
    warnings: tuple[str, ...]
    size: str
    offset: float
    scale: float

    def returned(self, images: Double) -> Float:
        """Images in the caller's units."""
        # What is beyond float32 is told by whoever checks the result.
        with np.errstate(over="ignore", invalid="ignore"):
            return (self.offset + self.scale * images).astype(np.float32)


def read(query: asked.OptimizeQuery, twins: Sequence[Twin], limits: Limits, put: Put = on_host) -> Request:
    """The query as a plan.

    Args:
        query: as the caller sent it.
        twins: what `query.twins` means.
        limits: how much one request may ask for.
        put: copies what the steps work on to the device that takes them.

    Raises:
        InvalidArgument: a field is not as it should be; the message names it, what came and what was expected.
        PayloadTooLarge: more images or steps than one request may ask for.
        Unimplemented: a twin has no gradient.
    """
    _check_twins(twins)
    reader = twins[0].stimulus
    native = twins[0].summary.native_size
    if query.space is None and query.start.images is not None and query.start.images.dtype.kind in "ui":
        raise InvalidArgument(
            f"space: {query.start.images.dtype.name} images to start from must say whether they are 'raw' (gray level "
            "0-255) or 'model' (as the network takes them)",
            field="space",
        )
    space = query.space or Space.MODEL
    if space is Space.RAW:
        _check_gray_levels(twins)
    offset, scale = reader.gray_levels if space is Space.RAW else (0.0, 1.0)
    columns, weights = _target(query.target, twins[0])
    count = len(columns)
    conditions = _conditions(query)
    if (runs := count * conditions * len(twins)) > limits.optimize_images:
        raise PayloadTooLarge(
            f"neurons: {count} images × {conditions} conditions × {len(twins)} twins are {runs} a step, the limit is "
            f"{limits.optimize_images}: send fewer at once",
            field="neurons",
        )
    seen, defaults, warnings = [], dict[str, None](), dict[str, None]()
    for twin in twins:
        told = twin.stimulus.conditions(
            query.behavior, query.pupil_center, query.condition_space or query.space, conditions
        )
        own = columns if query.target.unit_ids is None else _target(query.target, twin)[0]
        seen.append(Seen(own, told.behavior, told.pupil_center))
        defaults |= dict.fromkeys(told.defaults)
        warnings |= dict.fromkeys(told.warnings)
    _check_used(query)
    constraints = _constraints(query.constraints, native, space, offset, scale)
    constraints.check()
    _check_ascent(query.ascent, native, limits)
    _whole("report_every", query.report_every, 1, limits.optimize_steps)
    first = query.start.first_image
    for name in ("seed", "first_image"):
        _whole(name, getattr(query.start, name), 0, 2**63)
    _whole("trials", query.start.trials, 1, limits.optimize_images)
    _whole("trial_steps", query.start.trial_steps, 0, limits.optimize_steps)
    trial_steps = min(query.start.trial_steps, query.ascent.steps // 2) if _is_noise(query.start) else 0
    trials = query.start.trials if trial_steps else 1
    plan = Plan(
        Objective(seen, weights, _number("temperature", query.target.temperature, 1e-3, 1e3), conditions, put),
        constraints.moved(put),
        query.ascent,
        put(_start(query.start, twins[0], space, count, trials)),
        trials,
        trial_steps,
        [np.random.default_rng([query.start.seed, first + n, 1]) for n in range(count)],
        _group(query.diversity, count),
        _number("min_share", query.diversity.min_share, 0, 1),
    )
    if query.start.images is not None:
        warnings |= dict.fromkeys(plausibility.of_images(query.start.images, space))
    size = next((name for name in (*_SIZES, "mean") if getattr(query.constraints, name) is not None), "images")
    return Request(plan, tuple(defaults), tuple(warnings), size, offset, scale)


def _check_twins(twins: Sequence[Twin]) -> None:
    if not twins:
        raise InvalidArgument("twins: there are none, expected at least one", field="twins")
    first = twins[0].summary
    for n, twin in enumerate(twins):
        if any(twin is other for other in twins[:n]):
            raise InvalidArgument(f"twins: {twin.identity.model} is repeated, expected each once", field="twins")
        if twin.summary.no_gradient:
            raise Unimplemented(
                f"twins: {twin.identity.model} has no gradient: {twin.summary.no_gradient}", field="twins"
            )
        same = (twin.identity.mouse, twin.summary.neurons, twin.summary.native_size)
        if same != (first.twin.mouse, first.neurons, first.native_size):
            raise InvalidArgument(
                f"twins: {twin.identity.mouse} {twin.identity.model} and {first.twin.mouse} {first.twin.model} are not "
                "of the same neurons, expected several models of one mouse",
                field="twins",
            )


def _check_gray_levels(twins: Sequence[Twin]) -> None:
    """Raises InvalidArgument where raw images are not known to mean the same to all of the twins."""
    for twin in twins:
        twin.stimulus.check_takes_raw()
        levels, first = twin.stimulus.gray_levels, twins[0].stimulus.gray_levels
        if not np.allclose(levels, first, rtol=1e-6):
            raise InvalidArgument(
                f"space: gray levels have mean and standard deviation {levels} for {twin.identity.model}, {first} for "
                f"{twins[0].identity.model}, expected the same for all, or space 'model'",
                field="space",
            )


def _target(target: asked.Target, twin: Twin) -> tuple[NDArray[np.intp], Double]:
    """Columns (N, K + M) and the weights (N, K) of the first K."""
    field = "neurons" if target.unit_ids is None else "unit_ids"
    given = getattr(target, field)
    if given is None:
        raise InvalidArgument("neurons: missing, expected (N, K): what each image is to drive", field="neurons")
    columns = twin.stimulus.columns(target.neurons, target.unit_ids)
    if columns.ndim != 2 or not columns.size:
        raise InvalidArgument(
            f"{field}: shape {given.shape}, expected (N, K): what each image is to drive", field=field
        )
    weights = np.full(columns.shape, 1 / columns.shape[1])
    if target.weights is not None:
        weights = np.asarray(target.weights, np.float64)
        if weights.shape not in (columns.shape, columns.shape[1:]):
            raise InvalidArgument(
                f"weights: shape {weights.shape}, expected {columns.shape}, or {columns.shape[1:]} for all images",
                field="weights",
            )
        weights = np.array(np.broadcast_to(weights, columns.shape))
        sizes = np.abs(weights)
        # Beyond, float32 has no room for their products with gradients. Written so that a NaN fails too.
        fit = (sizes == 0) | ((sizes >= _LEAST_WEIGHT) & (sizes <= 1 / _LEAST_WEIGHT))
        if not fit.all() or not sizes.any(1).all():
            raise InvalidArgument(
                f"weights: expected 0 or finite numbers of {_LEAST_WEIGHT:g} to {1 / _LEAST_WEIGHT:g} in size, and one "
                "that is not 0 an image",
                field="weights",
            )
    if target.against is not None:
        ids = (None, target.against) if field == "unit_ids" else (target.against, None)
        against = twin.stimulus.columns(*ids)
        if against.ndim != 2 or len(against) != len(columns) or not against.size:
            raise InvalidArgument(
                f"against: shape {target.against.shape}, expected ({len(columns)}, M): a row an image", field="against"
            )
        columns = np.concatenate([columns, against], 1)
    for n, row in enumerate(columns):
        if len(np.unique(row)) < len(row):
            raise InvalidArgument(f"{field}: image {n} names a neuron twice, expected each once", field=field)
    return columns, weights


def _conditions(query: asked.OptimizeQuery) -> int:
    """How many conditions there are; that their shapes fit the twin is the stimulus reader's to say."""
    rows = {
        name: len(given)
        for name in ("behavior", "pupil_center")
        if (given := getattr(query, name)) is not None and given.ndim == 2
    }
    if len(set(rows.values())) > 1 or 0 in rows.values():
        told = " and ".join(f"{count} of {name}" for name, count in rows.items())
        raise InvalidArgument(f"behavior: {told}, expected as many conditions of both", field="behavior")
    return next(iter(rows.values()), 1)


def _constraints(
    given: asked.Constraints, native: tuple[int, int], space: Space, offset: float, scale: float
) -> Constraints:
    named = [name for name in _SIZES if getattr(given, name) is not None]
    if len(named) > 1:
        raise InvalidArgument(f"{named[1]}: given together with {named[0]}, expected one of them", field=named[1])
    size, name = DEFAULT_NORM, named[0] if named else "norm"
    if named:
        size = _number(name, getattr(given, name), 1e-9) / scale
    low, high = (
        None if value is None else (_number(field, value, -math.inf) - offset) / scale
        for field, value in (("low", given.low), ("high", given.high))
    )
    if space is Space.RAW:
        black, white = -offset / scale, (255 - offset) / scale
        low, high = (max(black, black if low is None else low), min(white, white if high is None else high))
    mask = _plane("mask", given.mask, native, np.ones(native))
    if mask.min() < 0 or mask.max() > 1:
        raise InvalidArgument(f"mask: runs from {mask.min():g} to {mask.max():g}, expected 0 to 1", field="mask")
    background = _plane("background", given.background, native, np.full(native, offset))
    return Constraints(
        size=size,
        is_norm=name.endswith("norm"),
        capped=name.startswith("max"),
        mean=None if given.mean is None else (_number("mean", given.mean, -math.inf) - offset) / scale,
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        mask=mask,
        background=(background - offset) / scale,
    )


def _is_noise(start: asked.Start) -> bool:
    return start.images is None and start.kind == "noise"


def _start(start: asked.Start, twin: Twin, space: Space, count: int, trials: int) -> Double:
    native = twin.summary.native_size
    if start.images is not None:
        if start.images.shape not in ((count, *native), (count, 1, *native)):
            raise InvalidArgument(
                f"images: shape {start.images.shape}, expected ({count}, {native[0]}, {native[1]}): one a target",
                field="images",
            )
        return twin.stimulus.images(start.images, space)[:, 0].astype(np.float64)
    if start.kind not in _STARTS:
        raise InvalidArgument(f"start: {start.kind!r}, expected one of {', '.join(_STARTS)}", field="start")
    if start.kind == "gray":
        return np.zeros((count, *native))
    generators = [np.random.default_rng([start.seed, start.first_image + n]) for n in range(count)]
    return np.concatenate([generator.normal(size=(trials, *native)) for generator in generators])


def _group(diversity: asked.Diversity, count: int) -> NDArray[np.intp] | None:
    given = diversity.group
    if given is None:
        return None
    if given.shape != (count,) or given.dtype.kind not in "ui":
        raise InvalidArgument(
            f"group: {given.dtype.name} {given.shape}, expected whole numbers ({count},): the group of each image",
            field="group",
        )
    return given.astype(np.intp)


def _check_used(query: asked.OptimizeQuery) -> None:
    """Raises InvalidArgument for an option that would change nothing, since what it belongs to was not asked for."""
    target, constraints, ascent = query.target, query.constraints, query.ascent
    alone: dict[str, tuple[Any, str, bool]] = {
        "temperature": (target, "against", target.against is None),
        "min_share": (query.diversity, "images_each (a group)", query.diversity.group is None),
        "background": (constraints, "a mask", constraints.mask is None),
        "tolerance": (ascent, "patience", not ascent.patience),
        "momentum": (ascent, "optimizer 'ascent'", ascent.optimizer != "ascent"),
        "kind": (query.start, "noise or gray to start from: images are given", query.start.images is not None),
        "trials": (query.start, "start 'noise'", not _is_noise(query.start)),
        "trial_steps": (query.start, "start 'noise'", not _is_noise(query.start)),
    }
    for name, (part, needed, is_alone) in alone.items():
        default = next(field.default for field in fields(part) if field.name == name)
        value = getattr(part, name)
        if is_alone and (isinstance(value, np.ndarray) or value != default):
            raise InvalidArgument(f"{name}: changes nothing without {needed}", field=name)


def _check_ascent(ascent: asked.Ascent, native: tuple[int, int], limits: Limits) -> None:
    if ascent.optimizer not in _OPTIMIZERS:
        raise InvalidArgument(
            f"optimizer: {ascent.optimizer!r}, expected one of {', '.join(_OPTIMIZERS)}", field="optimizer"
        )
    _whole("steps", ascent.steps, 1, limits.optimize_steps)
    _whole("patience", ascent.patience, 0, limits.optimize_steps)
    _whole("jitter", ascent.jitter, 0, min(native) // 2)
    for name in ("step_size", "step_size_end", "tolerance"):
        _number(name, getattr(ascent, name), 0)
    for name in ("total_variation", "l2"):
        _number(name, getattr(ascent, name), 0, _LARGEST_PENALTY)
    _number("fourier", ascent.fourier, 0, _STEEPEST)
    for name in ("blur", "blur_end"):
        _number(name, getattr(ascent, name), 0, max(native))
    _number("momentum", ascent.momentum, 0, 0.999)


def _plane(field: str, given: NDArray[Any] | None, native: tuple[int, int], default: Double) -> Double:
    if given is None:
        return default
    if given.shape != native:
        raise InvalidArgument(f"{field}: shape {given.shape}, expected {native}", field=field)
    if not np.isfinite(given).all():
        raise InvalidArgument(f"{field}: holds NaN or infinity, expected finite numbers", field=field)
    return given.astype(np.float64)


def _number(field: str, value: float, low: float, high: float = math.inf) -> float:
    # Written so that a NaN fails too; infinity is no number to work with.
    if not (low <= value <= high and math.isfinite(value)):
        wanted = "a finite number" if math.isinf(low) else f"a finite number of at least {low:g}"
        wanted += "" if math.isinf(high) else f" and at most {high:g}"
        raise InvalidArgument(f"{field}: {value}, expected {wanted}", field=field)
    return float(value)


def _whole(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgument(f"{field}: {value}, expected a whole number from {low} to {high}", field=field)
