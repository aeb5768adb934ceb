"""Scores of a recording of any length: what came and what was predicted wait on disk until both are whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from mousetwin import arrays, scores
from mousetwin.errors import InvalidArgument
from mousetwin.npy_rows import NpyRows
from mousetwin.query import Prediction, Space
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from ..service import TwinService
from ..table import Table
from . import bodies
from .bulk import Upload

_CONDITIONS = ("behavior", "pupil_center")
_ALLOWED = ("images", *_CONDITIONS, "responses", "image_ids")
_PIECE = 1 << 20


async def score(request: Request, service: TwinService, asked: Mapping[str, Any], deadline: float | None) -> Response:
    """How well the twin predicts the responses beside the images.

    Args:
        asked: the query parameters, as `parameters.read` gives them. `space` is also that of the responses: raw ones
            (the default) are as recorded, model ones divided by each neuron's standard deviation.

    Raises:
        MousetwinError: as `bulk.answer`, and where the responses are not as `scores.score` takes them.
    """
    std = None
    if asked.get("space") is not Space.MODEL:
        std = service.response_std(bodies.twin_of(request.path_params["mouse"], asked))
    upload = _Recording(request, service, asked, std)
    try:
        first: Prediction | None = None
        warnings: dict[str, None] = {}
        async with contextlib.aclosing(service.answer_stream(upload.queries(), deadline)) as answers:
            async for found in answers:
                first = first or found
                warnings |= dict.fromkeys(found.warnings)
                await asyncio.to_thread(upload.add, found.responses)
        assert first is not None
        report = (await asyncio.to_thread(upload.scores)).report()
    finally:
        await upload.close()
    whole = replace(first, warnings=tuple(warnings))
    told = {**vars(whole.twin), "defaults": whole.defaults, "warnings": whole.warnings, **report}
    return Response(bodies.write_json(told), media_type=bodies.JSON, headers=bodies.headers_of(whole))


class _Recording(Upload):
    """An `.npz` with images, and what was recorded while they were shown."""

    def __init__(
        self, request: Request, service: TwinService, asked: Mapping[str, Any], std: NDArray[np.float64] | None
    ) -> None:
        super().__init__(request, service, bodies.NPZ, asked)
        self._std = std
        self._trials = 0
        self._image_ids: NDArray[Any] = np.empty(0)
        self._recorded: Table | None = None
        self._predicted: Table | None = None

    def read_npz(self, stack: contextlib.ExitStack, file: BinaryIO) -> tuple[dict[str, NDArray[Any]], BinaryIO]:
        npz = stack.enter_context(arrays.Npz(file, _ALLOWED, self.limit, ("images", "responses")))
        beside = {name: npz.read(name) for name in _CONDITIONS if name in npz.names}
        self._image_ids = npz.read("image_ids")
        images = stack.enter_context(npz.open("images"))
        with npz.open("responses") as responses:
            self._read_responses(responses, stack)
        self._predicted = self._table(np.dtype(np.float32), stack)
        return beside, images

    def check_count(self) -> None:
        if self._trials != self.count:
            raise InvalidArgument(
                f"responses: {self._trials} rows, expected one for each of {self.count} images", field="responses"
            )
        scores.check_image_ids(self._image_ids, self.count)

    def add(self, predictions: NDArray[np.float32]) -> None:
        """Keep what was predicted. Raises ResourceExhausted where the disk is full."""
        scores.check_numbers(predictions, "predictions")
        assert self._predicted is not None
        self._predicted.append(predictions)

    def scores(self) -> scores.Scores:
        """Once all has been added."""
        return scores.score_blocks(self._blocks(), self._image_ids)

    def _blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        assert self._recorded is not None
        assert self._predicted is not None
        start = 0
        for recorded, predicted in zip(self._recorded.blocks(), self._predicted.blocks(), strict=True):
            stop = start + recorded.shape[1]
            yield recorded if self._std is None else recorded / self._std[start:stop], predicted
            start = stop

    def _read_responses(self, stream: BinaryIO, stack: contextlib.ExitStack) -> None:
        rows = NpyRows("responses", any_order=True)
        any_response = False
        while data := stream.read(_PIECE):
            rows.feed(data)
            if rows.shape is not None and self._recorded is None:
                self._begin_responses(rows, stack)
            while (block := rows.ready(max(1, _PIECE // max(1, rows.row_bytes)))) is not None:
                scores.check_numbers(block, "responses")
                any_response = any_response or bool(block.any())
                assert self._recorded is not None
                self._recorded.append(block)
        rows.check_ended()
        scores.check_recorded(any_response)

    def _begin_responses(self, rows: NpyRows, stack: contextlib.ExitStack) -> None:
        assert rows.shape is not None
        shape = rows.shape[::-1] if rows.transposed else rows.shape
        if len(shape) != 2 or shape[1] != self.neurons or not shape[0]:
            raise InvalidArgument(
                f"responses: shape {shape}, expected (N, {self.neurons}): a row an image, a column a neuron",
                field="responses",
            )
        self._trials = shape[0]
        self._recorded = self._table(rows.dtype.newbyteorder("="), stack, transposed=rows.transposed)

    def _table(self, dtype: np.dtype[Any], stack: contextlib.ExitStack, *, transposed: bool = False) -> Table:
        width = scores.block_width(self._trials)
        table = Table((self._trials, self.neurons), dtype, width, transposed=transposed)
        return stack.enter_context(contextlib.closing(table))
