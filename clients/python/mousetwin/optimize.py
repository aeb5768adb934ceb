"""From `mouse.optimize(...)` to requests of a size that the service takes, and their answers put together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import arrays
from .build import named_array, optional_array
from .errors import Internal, InvalidArgument
from .optimization import (
    Ascent,
    Constraints,
    Diversity,
    OptimizeProgress,
    OptimizeQuery,
    OptimizeResult,
    Start,
    Target,
)
from .optimized import Optimized
from .query import MouseInfo, Space, TwinRef, space_of

# Images × conditions × twins in one request: enough to fill the engine, few enough to be told of progress.
_RUNS = 128
_CONSTRAINTS = frozenset(field.name for field in fields(Constraints))
_ASCENT = frozenset(field.name for field in fields(Ascent))
_START = frozenset({"trials", "trial_steps"})


def build(
    info: MouseInfo,
    neurons: ArrayLike | None = None,
    unit_ids: ArrayLike | None = None,
    *,
    models: Iterable[str] = (),
    weights: ArrayLike | None = None,
    against: ArrayLike | None = None,
    temperature: float = 1.0,
    behavior: ArrayLike | None = None,
    pupil_center: ArrayLike | None = None,
    space: Space | str | None = None,
    condition_space: Space | str | None = None,
    start: str | ArrayLike = "noise",
    seed: int = 0,
    images_each: int = 1,
    min_share: float = 0.9,
    report_every: int = 10,
    report_images: bool = False,
    **options: Any,
) -> OptimizeQuery:
    """The query of an `optimize` call, however many images it is of. Raises InvalidArgument for what cannot be read."""
    images_each = arrays.from_number(images_each, "images_each")
    if not isinstance(images_each, int) or images_each < 1:
        raise InvalidArgument(f"images_each: {images_each}, expected a whole number from 1", field="images_each")
    twin = info.summary.twin
    models = [models] if isinstance(models, str) else models
    target = Target(
        neurons=_rows(neurons, "neurons", images_each),
        unit_ids=_rows(unit_ids, "unit_ids", images_each),
        weights=optional_array(weights, "weights"),
        against=_rows(against, "against", images_each),
        temperature=arrays.from_number(temperature, "temperature"),
    )
    unknown = options.keys() - _CONSTRAINTS - _ASCENT - _START
    if unknown:
        known = ", ".join(sorted(_CONSTRAINTS | _ASCENT | _START))
        raise InvalidArgument(f"{min(unknown)}: not known, expected one of {known}", field=min(unknown))
    given = {name: _option(value, name) for name, value in options.items()}
    named = target.neurons if target.neurons is not None else target.unit_ids
    count = 0 if named is None else len(named)
    return OptimizeQuery(
        twins=(
            TwinRef(twin.mouse, twin.model, twin.version),
            *(TwinRef(twin.mouse, model) for model in models if model != twin.model),
        ),
        target=target,
        behavior=named_array(behavior, "behavior", info.summary.behavior),
        pupil_center=named_array(pupil_center, "pupil_center", info.summary.pupil_center),
        space=space_of(space),
        condition_space=space_of(condition_space, "condition_space"),
        constraints=Constraints(**{n: v for n, v in given.items() if n in _CONSTRAINTS}),
        start=Start(
            kind=start if isinstance(start, str) else Start.kind,
            images=None if isinstance(start, str) else arrays.from_nested(start, "start"),
            seed=arrays.from_number(seed, "seed"),
            **{n: v for n, v in given.items() if n in _START},
        ),
        ascent=Ascent(**{n: v for n, v in given.items() if n in _ASCENT}),
        diversity=Diversity(
            np.arange(count) // images_each if images_each > 1 else None, arrays.from_number(min_share, "min_share")
        ),
        report_every=arrays.from_number(report_every, "report_every"),
        report_images=report_images,
    )


class Requests:
    """The requests that a query of any number of images is sent as, one after the other, and what comes of them.

    Attributes:
        queries: the requests.
    """

    def __init__(
        self,
        info: MouseInfo,
        query: OptimizeQuery,
        progress: Callable[[int, int], None] | None = None,
        on_report: Callable[[OptimizeProgress], None] | None = None,
    ) -> None:
        """
        Args:
            info: of the twin.
            query: of any number of images.
            progress: called with (steps done, steps in all), over all requests.
            on_report: called with each report; its images and values are of the request it is about.
        """
        self.queries = split(query)
        self._info = info
        self._query = query
        self._progress = progress
        self._on_report = on_report
        self._results: list[OptimizeResult] = []

    def take(self, event: OptimizeProgress | OptimizeResult) -> None:
        """What the service tells of the request that is under way."""
        steps, done = self._query.ascent.steps, len(self._results)
        if isinstance(event, OptimizeResult):
            self._results.append(event)
            self._tell((done + 1) * steps)
            return
        if event.step < steps:
            self._tell(done * steps + event.step)
        if self._on_report is not None:
            self._on_report(event)

    def found(self) -> Optimized:
        """Everything, put together."""
        if len(self._results) != len(self.queries):
            raise Internal("the service ended an optimisation without a result")
        return _together(self._info, self._query, self._results)

    def _tell(self, steps: int) -> None:
        if self._progress is not None:
            self._progress(steps, len(self.queries) * self._query.ascent.steps)


def split(query: OptimizeQuery) -> list[OptimizeQuery]:
    """Requests of a size that the service takes; the query itself where it is one, or is not for us to read."""
    target = query.target
    rows = target.neurons if target.neurons is not None else target.unit_ids
    conditions = max(len(c) if c is not None and c.ndim == 2 else 1 for c in (query.behavior, query.pupil_center))
    size = max(1, _RUNS // max(1, conditions * len(query.twins)))
    if rows is None or rows.ndim != 2 or len(rows) <= size:
        return [query]
    group = query.diversity.group
    if group is not None:
        # A group stays together.
        each = int((group == group[0]).sum())
        size = max(each, size // each * each)
    return [_part(query, i, min(i + size, len(rows)), len(rows)) for i in range(0, len(rows), size)]


def _part(query: OptimizeQuery, start: int, stop: int, count: int) -> OptimizeQuery:
    def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
        return values[start:stop] if values is not None and values.ndim > 1 and len(values) == count else values

    rows: Any = {n: cut(getattr(query.target, n)) for n in ("neurons", "unit_ids", "weights", "against")}
    target = replace(query.target, **rows)
    group = query.diversity.group
    return replace(
        query,
        target=target,
        start=replace(query.start, images=cut(query.start.images), first_image=query.start.first_image + start),
        diversity=replace(query.diversity, group=None if group is None else group[start:stop]),
    )


def _together(info: MouseInfo, query: OptimizeQuery, results: list[OptimizeResult]) -> Optimized:
    longest = max(len(result.trace) for result in results)
    trace = [
        np.pad(result.trace, ((0, longest - len(result.trace)), (0, 0)), constant_values=np.nan) for result in results
    ]
    target = query.target
    named = target.neurons if target.neurons is not None else target.unit_ids
    assert named is not None
    return Optimized(
        images=np.concatenate([result.images for result in results]),
        responses=np.concatenate([result.responses for result in results]),
        values=np.concatenate([result.values for result in results]),
        trace=np.concatenate(trace, 1),
        neurons=named.astype(np.int64),
        space=query.space or Space.MODEL,
        records=tuple(json.loads(result.record) for result in results),
        synthetic=info.summary.synthetic,
        warnings=tuple(dict.fromkeys(warning for result in results for warning in result.warnings)),
        field_center=_centers(info, named[:, 0], by_unit=target.neurons is None),
        field_size=info.receptive_field_size,
    )


def _centers(info: MouseInfo, named: NDArray[Any], *, by_unit: bool) -> NDArray[np.float32]:
    if info.receptive_field_center is None:
        return np.full((len(named), 2), np.nan, np.float32)
    columns = named
    if by_unit:
        assert info.unit_ids is not None
        order = np.argsort(info.unit_ids)
        columns = order[np.searchsorted(info.unit_ids, named, sorter=order)]
    return np.asarray(info.receptive_field_center[columns], np.float32)


def _option(value: Any, name: str) -> Any:
    if value is None or name == "optimizer":
        return value
    return arrays.from_nested(value, name) if name in ("mask", "background") else arrays.from_number(value, name)


def _rows(values: ArrayLike | None, field: str, each: int) -> NDArray[Any] | None:
    """A row an image: single numbers are one neuron an image."""
    found = optional_array(values, field)
    if found is None:
        return None
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    return np.repeat(found, each, 0)
