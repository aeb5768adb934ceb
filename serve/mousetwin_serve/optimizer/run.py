"""An optimisation from the query to its result, wherever it runs: reports on the way, a record in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from mousetwin.optimization import OptimizeProgress, OptimizeQuery, OptimizeResult

from ..stimulus import Limits
from ..twin import Twin
from .ascent import Found, Step, ascend
from .objective import Ask
from .request import Request, read

# Larger arrays stand in a record as their sha256.
_IN_FULL = 4096


def optimize(
    query: OptimizeQuery, twins: Sequence[Twin], limits: Limits, ask: Ask
) -> Iterator[OptimizeProgress | OptimizeResult]:
    """Reports, then the result.

    Args:
        query: as the caller sent it; all checks happen before the first step.
        twins: what `query.twins` means.
        limits: how much one request may ask for.
        ask: answers batches; what it raises ends the optimisation.

    Raises:
        MousetwinError: as `request.read` says.
    """
    request = read(query, twins, limits)
    steps = query.ascent.steps
    for event in ascend(request.plan, ask):
        if isinstance(event, Found):
            yield _result(query, request, twins, event)
        elif event.number % query.report_every == 0 or event.number == steps:
            yield _report(query, request, event)


def _report(query: OptimizeQuery, request: Request, step: Step) -> OptimizeProgress:
    images = request.returned(step.images) if query.report_images else None
    return OptimizeProgress(step.number, query.ascent.steps, step.values.astype(np.float32), images)


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
    return OptimizeResult(
        images=request.returned(found.images),
        responses=found.responses.astype(np.float32),
        values=found.values.astype(np.float32),
        trace=found.trace.astype(np.float32),
        twins=identities,
        defaults=request.defaults,
        record=json.dumps(record),
    )


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
