"""Predictions for a body of any length: images in, rows of responses out, as `.npy`.

Images are worked on as they come. The answer begins when all have come, since proxies stop forwarding a body once its
answer begins, or at once where the caller says that it reads while it sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from mousetwin import arrays
from mousetwin.errors import Cancelled, DeadlineExceeded, InvalidArgument, PayloadTooLarge, ResourceExhausted
from mousetwin.npy_rows import NpyRows
from mousetwin.query import Prediction, PredictQuery
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..service import TwinService
from ..spool import Spool, open_temporary, write
from . import bodies
from .errors import as_domain_error

log = logging.getLogger(__name__)

# Images that are asked about at once: enough to fill a run on every core.
_BLOCK = 64
_PIECE = 1 << 20


class StreamedAnswer(Response):
    """Sends responses as they are ready. Ends the connection before the announced length where something fails.

    Attributes:
        on_end: called with the outcome's code.
    """

    def __init__(self, upload: Upload, answers: AsyncGenerator[Prediction, None], first: Prediction) -> None:
        super().__init__()
        self.on_end: Callable[[str], None] = lambda code: None
        self._upload = upload
        self._answers = answers
        self._ready = Spool("answer")
        shape = (upload.count, first.responses.shape[1])
        header = arrays.npy_header(shape, upload.dtype)
        self._length = len(header) + math.prod(shape) * upload.dtype.itemsize
        self._ready.put(header)
        self._keep(first)
        self.headers["content-type"] = bodies.NPY
        self.headers["content-length"] = str(self._length)
        self.headers.update(bodies.headers_of(first))

    async def hold(self) -> None:
        """Keep what is ready until the whole body is in. Raises what is found to be wrong meanwhile."""
        while not self._upload.whole:
            self._keep(await anext(self._answers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        code, sent = "OK", 0
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self._all():
                await self._send(send, data)
                sent += len(data)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as failure:
            # The status has been sent: all that is left is to end before the length that was announced, which every
            # HTTP client tells of.
            request_id = self.headers.get("x-request-id", "")
            error = as_domain_error(failure, request_id)
            code = error.code
            log.warning("request %s ended after %d of %d bytes: %s", request_id, sent, self._length, error)
        finally:
            await self.close()
            self.on_end(code)

    async def close(self) -> None:
        """Stop what is under way."""
        await self._answers.aclose()
        await self._upload.close()
        self._ready.close()

    def _keep(self, answer: Prediction) -> None:
        self._ready.put(bytes(self._encoded(answer)))

    async def _all(self) -> AsyncIterator[bytes | memoryview]:
        while data := self._ready.get():
            yield data
        async for answer in self._answers:
            yield self._encoded(answer)

    def _encoded(self, answer: Prediction) -> memoryview:
        return np.ascontiguousarray(bodies.encode(answer.responses, self._upload.dtype)).data.cast("B")

    async def _send(self, send: Send, data: bytes | memoryview) -> None:
        message = {"type": "http.response.body", "body": data, "more_body": True}
        try:
            with self._upload.sending():
                await asyncio.wait_for(send(message), self._upload.stall_seconds)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"the caller read nothing for {self._upload.stall_seconds:g} s") from None


async def answer(
    request: Request, service: TwinService, sent_as: str, asked: Mapping[str, Any], deadline: float | None
) -> StreamedAnswer:
    """The answer to a large request.

    Args:
        request: its body is not read yet.
        service: answers.
        sent_as: the body's type.
        asked: the query parameters, as `parameters.read` gives them; with `early`, the answer begins with the first
            rows, and else once the whole body is in.
        deadline: for each part of it, on `time.monotonic()`'s clock.

    Raises:
        MousetwinError: what is wrong with the request as far as is known when the answer begins.
    """
    upload = Upload(request, service, sent_as, asked)
    answers = service.answer_stream(upload.queries(), deadline)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(upload.close)
        stack.push_async_callback(answers.aclose)
        streamed = StreamedAnswer(upload, answers, await anext(answers))
        stack.push_async_callback(streamed.close)
        if not asked.get("early", False):
            await streamed.hold()
        stack.pop_all()
    return streamed


class Upload:
    """A large request's body, read as it comes.

    Attributes:
        count: images in all, known with the first query.
        neurons: that the twin has.
        limit: what is held of it in memory, in bytes.
        dtype: of the answer.
        stall_seconds: for how long neither side may keep the other waiting.
        whole: whether all of it is in, as far as is known.
    """

    def __init__(self, request: Request, service: TwinService, sent_as: str, asked: Mapping[str, Any]) -> None:
        """asked: with `early`, the answer begins, and the caller reads it, before all is in."""
        self.count = self._done = 0
        self.dtype = bodies.answer_dtype(asked)
        self.stall_seconds = service.limits.stall_seconds
        self._mouse: str = request.path_params["mouse"]
        self._asked = asked
        self.limit = service.limits.request_bytes
        self._answers_limit = service.limits.response_bytes
        self.neurons = service.repository.find(bodies.twin_of(self._mouse, asked)).summary.neurons
        self._sent_as = sent_as
        length = request.headers.get("content-length", "")
        self._length = int(length) if length.isdigit() else None
        self._spool = Spool("body")
        self._opened = contextlib.ExitStack()
        self.whole = self._gone = self._sending = False
        # What an .npz holds is never told before all of it is in, so that its caller is never kept waiting either.
        self._in_step = asked.get("early", False) or sent_as == bodies.NPZ
        self._came = 0
        self._expected: int | None = None
        self._moved = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read(request.receive))

    async def queries(self) -> AsyncIterator[PredictQuery]:
        """Some images at a time, with what goes with them; the last ones once all has come as announced."""
        if self._sent_as == bodies.NPZ:
            beside, images = await self._open_npz()
            async for query in self._queries(beside, lambda: asyncio.to_thread(images.read, _PIECE), None):
                yield query
        else:
            async for query in self._queries({}, self._get, self._length):
                yield query

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """While a part of the answer waits to be read. Raises Cancelled where the caller hung up."""
        if self._gone:
            raise Cancelled("the caller hung up")
        self._sending = True
        self._moved.set()
        try:
            yield
        finally:
            self._sending = False

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._spool.close()
        self._opened.close()

    async def _queries(
        self, beside: dict[str, NDArray[Any]], get: Callable[[], Any], length: int | None
    ) -> AsyncIterator[PredictQuery]:
        rows = NpyRows("images")
        block = _BLOCK
        begun = ended = False
        while True:
            images = rows.ready(block)
            if images is None and not ended:
                data = await get()
                rows.feed(data)
                ended = not data
                if rows.shape is not None and not begun:
                    begun = True
                    block = self._begin(rows, beside, length)
                continue
            if images is None:
                rows.check_ended()
                # There are none: what to say to that is not decided here.
                if rows.shape is not None and rows.shape[0] == 0:
                    yield self._query(beside, np.empty(rows.shape, rows.dtype), 0)
                return
            start = self._done
            self._done += len(images)
            if self._done == self.count:
                while data := await get():
                    rows.feed(data)
                ended = True
            yield self._query(beside, images, start)

    def _begin(self, rows: NpyRows, beside: dict[str, NDArray[Any]], length: int | None) -> int:
        """Check what the header says; how many images to take at once."""
        assert rows.shape is not None
        self.count = rows.shape[0]
        if length is not None and length != rows.bytes_in_all:
            raise _wrong_length(rows.bytes_in_all, f"{length} are announced")
        if self._sent_as == bodies.NPY:
            self._expected = rows.bytes_in_all
            self._check_length()
        for name, values in beside.items():
            if values.ndim == 2 and len(values) != self.count:
                raise InvalidArgument(
                    f"{name}: {len(values)} rows, expected one for each of {self.count} images", field=name
                )
        self.check_count()
        if rows.row_bytes > self.limit:
            raise PayloadTooLarge(f"images: {rows.row_bytes} bytes each, the limit is {self.limit}", field="images")
        # What is no set of images is looked at in one piece, so that what is said of it is about all of it.
        block = _BLOCK if len(rows.shape) > 2 else max(1, self.count)
        return max(1, min(block, self.limit // max(1, rows.row_bytes), self._answers_limit // (4 * self.neurons)))

    def _query(self, beside: dict[str, NDArray[Any]], images: NDArray[Any], start: int) -> PredictQuery:
        stop = start + len(images)
        found = {name: values[start:stop] if values.ndim == 2 else values for name, values in beside.items()}
        return bodies.build_query(self._mouse, {**found, "images": images}, self._asked)

    async def _open_npz(self) -> tuple[dict[str, NDArray[Any]], BinaryIO]:
        """What is beside the images, and the images' `.npy`. Where it is in the archive is told only by its end."""
        file = self._opened.enter_context(open_temporary("body"))
        while data := await self._get():
            await asyncio.to_thread(write, file, data, "body")
        return await asyncio.to_thread(self.read_npz, self._opened, file)

    def read_npz(self, stack: contextlib.ExitStack, file: BinaryIO) -> tuple[dict[str, NDArray[Any]], BinaryIO]:
        """What goes with the images in a whole `.npz`, and the images' `.npy`. Called in a thread, before any query.

        Args:
            stack: closes what is opened, with the upload.
        """
        return arrays.open_npz(stack, file, "images", bodies.ARRAYS, self.limit)

    def check_count(self) -> None:
        """Called once `count` is known, before any query. Raises InvalidArgument where it is not as expected."""

    async def _get(self) -> bytes:
        """What came next; empty at the end."""
        while (data := self._spool.get()) is None:
            try:
                await asyncio.wait_for(self._spool.changed(), self.stall_seconds)
            except asyncio.TimeoutError:
                raise DeadlineExceeded(f"the caller sent nothing for {self.stall_seconds:g} s") from None
        self._moved.set()
        return data

    async def _read(self, receive: Receive) -> None:
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self._gone = True
                    self._spool.fail(Cancelled("the caller hung up"))
                    return
                data = message.get("body", b"")
                self._spool.put(data)
                self._came += len(data)
                ended = not self.whole and not message.get("more_body", False)
                self.whole = self.whole or ended
                self._check_length()
                if ended:
                    self._spool.end()
                # A caller who reads what is answered can wait with sending; one who does not read sends first.
                while self._in_step and not self.whole and self._spool.full and not self._sending:
                    self._moved.clear()
                    await self._moved.wait()
        except InvalidArgument as error:
            self.whole = False
            self._spool.fail(error)
        except ResourceExhausted as error:
            self._spool.fail(error)

    def _check_length(self) -> None:
        """Raises InvalidArgument where more came than the `.npy`'s header says, or less in all."""
        if self._expected is None:
            return
        if self._came > self._expected:
            raise _wrong_length(self._expected, "more came")
        if self.whole and self._came < self._expected:
            raise _wrong_length(self._expected, f"{self._came} came")


def _wrong_length(expected: int, came: str) -> InvalidArgument:
    return InvalidArgument(f"images: by its header the .npy has {expected} bytes, {came}", field="images")
