"""An optimisation from the query to its result, wherever it runs: reports on the way, a record in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from mousetwin.errors import InvalidArgument
from mousetwin.optimization import Ascent, OptimizeProgress, OptimizeQuery, OptimizeResult, Target
from mousetwin.query import Space, TwinRef, stand_in_warning
from numpy.typing import NDArray

from .. import plausibility
from ..device import Device
from ..limits import Limits
from ..memory import on_host
from ..twin import Twin, check_finite
from .ascent import Found, Step, ascend
from .objective import Ask
from .request import Request, read

# Larger arrays stand in a record as their sha256.
_IN_FULL = 4096
# Enough for each kind of step to be taken.
_WARM_UP_STEPS = 12
# A neuron whose mean response to an image made for it is less, in standard deviations, does not respond to it.
_NO_RESPONSE = 0.01


def optimize(
    query: OptimizeQuery, twins: Sequence[Twin], limits: Limits, ask: Ask, device: Device
) -> Iterator[OptimizeProgress | OptimizeResult]:
    """Reports, then the result.

    Args:
        query: as the caller sent it; all checks happen before the first step.
        twins: what `query.twins` means.
        limits: how much one request may ask for.
        ask: answers batches; what it raises ends the optimisation.
        device: whose memory the images stay in from step to step; best one that `ask` runs on.

    Raises:
        MousetwinError: as `request.read` says.
        InvalidArgument: images of the size that was asked for overflow the twin.
    """
    with device.current():
        request = read(query, twins, limits, device.put)
    events = ascend(request.plan, ask)
    while True:
        # Anew for each step: it may be taken in another thread.
        # What overflows on the way is told by the first report.
        with device.current(), np.errstate(over="ignore", invalid="ignore"):
            event = next(events)
            if isinstance(event, Found):
                reported: OptimizeProgress | OptimizeResult = _result(query, request, twins, event)
            elif event.number % query.report_every == 0 or event.number == query.ascent.steps:
                reported = _report(query, request, event)
            else:
                continue
        yield reported
        if isinstance(reported, OptimizeResult):
            return


def warm_up(twins: Iterable[Twin]) -> None:
    """Optimise an image on each device that has memory of its own, so that nobody waits for what is compiled for it.

    A GPU's libraries compile an operation when it is first asked for: seconds for all of an optimisation's.

    Args:
        twins: on the same devices; what is compiled for one serves all.
    """
    twin = next((twin for twin in twins if not twin.engine.no_gradient), None)
    if twin is None:
        return
    name, summary = twin.identity, twin.summary
    for device in twin.engine.devices:
        if not device.own_memory:
            continue
        query = OptimizeQuery(
            (TwinRef(name.mouse, name.model, name.version),),
            Target(neurons=np.zeros((1, 1), np.int64)),
            behavior=np.zeros(len(summary.behavior)) if summary.behavior else None,
            pupil_center=np.zeros(2) if summary.pupil_center else None,
            condition_space=Space.MODEL,
            ascent=Ascent(steps=_WARM_UP_STEPS),
        )
        for _ in optimize(query, [twin], Limits(), lambda _, batch: twin.engine.answer(batch), device):
            pass


def _report(query: OptimizeQuery, request: Request, step: Step) -> OptimizeProgress:
    images = request.returned(on_host(step.images)) if query.report_images else None
    values = _single(on_host(step.values))
    check_finite("the objective", values, request.size)
    return OptimizeProgress(step.number, query.ascent.steps, values, images)


def _result(query: OptimizeQuery, request: Request, twins: Sequence[Twin], found: Found) -> OptimizeResult:
    identities = tuple(twin.identity for twin in twins)
    record = {
        "request": _plain(asdict(query)),
        "twins": [asdict(identity) for identity in identities],
        "defaults": request.defaults,
        "device": twins[0].summary.device,
        "steps_taken": len(found.trace) - 1,
        "stopped": found.stopped,
        "versions": {name: version(name) for name in ("mousetwin", "numpy")} | {"onnxruntime": _onnxruntime()},
    }
    arrays = {
        "images": request.returned(on_host(found.images)),
        "responses": _single(on_host(found.responses)),
        "values": _single(on_host(found.values)),
        "trace": _single(on_host(found.trace)),
    }
    for name, values in arrays.items():
        check_finite(name, values, request.size)
    lost = np.flatnonzero(~on_host(found.kept))
    if lost.size:
        held = request.size if request.size != "images" else "norm"
        raise InvalidArgument(
            f"{held}: image {lost[0]} has not the size that is held: it is blank, where no gradient leads on, or the "
            "pixel range or mask leaves no room; start from noise, or widen them",
            field=held,
        )
    told = [*request.warnings, *plausibility.of_images(arrays["images"], query.space or Space.MODEL)]
    told += [
        warning
        for ref, twin in zip(query.twins, twins, strict=True)
        if not ref.version and (warning := stand_in_warning(twin.summary))
    ]
    return OptimizeResult(
        **arrays,
        twins=identities,
        defaults=request.defaults,
        record=json.dumps(record),
        warnings=tuple(dict.fromkeys([*told, *_silent(query.target, arrays["responses"])])),
    )


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _silent(target: Target, responses: NDArray[np.float32]) -> list[str]:
    """A warning where neurons that were to be driven up do not respond to the images found for them."""
    named = target.neurons if target.neurons is not None else target.unit_ids
    assert named is not None
    weights = np.ones(named.shape) if target.weights is None else np.broadcast_to(target.weights, named.shape)
    driven = (weights > 0).all(1)
    silent = np.flatnonzero(driven & (np.abs(responses[:, : named.shape[1]]).max(1) < _NO_RESPONSE))
    if not silent.size:
        return []
    field = "neurons" if target.neurons is not None else "unit_ids"
    which = ", ".join(str(named[n, 0]) for n in silent[:5]) + (" and more" if len(silent) > 5 else "")
    return [
        f"{field}: {len(silent)} of {len(named)} do not respond to the best image found for them ({which}; below "
        f"{_NO_RESPONSE:g} standard deviations): is the condition one that the animal was recorded in?"
    ]


def _onnxruntime() -> str:
    # Asked of the module: its distribution is called otherwise where it is built for GPUs.
    import onnxruntime

    return str(onnxruntime.__version__)


def _plain(value: Any) -> Any:
    """Values as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.size <= _IN_FULL:
        return value.tolist()
    told = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return {"shape": value.shape, "dtype": value.dtype.name, "sha256": told}
