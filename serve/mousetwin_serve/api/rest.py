"""The REST service, an ASGI app: translates HTTP to queries and back, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mousetwin.errors import Cancelled, InvalidArgument, MousetwinError, PayloadTooLarge
from mousetwin.query import Prediction, PredictQuery
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..service import TwinService
from . import bodies, bulk, media, openapi, parameters, scoring
from .cors import with_cors
from .discard import Discard
from .errors import as_domain_error, http_status, new_request_id

_LARGE_BYTES = 1 << 20
# What is asked of a call: the request, and its query parameters as `parameters.read` gives them.
Endpoint = Callable[[Request, Mapping[str, Any]], Awaitable[Response]]


def build_app(service: TwinService, cors_origins: tuple[str, ...] = ()) -> ASGIApp:
    """The ASGI app of a service.

    Args:
        service: answers.
        cors_origins: of the web pages that may ask, as browsers send them; `*` for all.

    Raises:
        InvalidArgument: an origin that no browser sends.
    """
    rest = _Rest(service)
    app = Starlette(
        routes=[
            Route("/v1/mice", rest.endpoint("listMice", rest.list_mice)),
            Route("/v1/mice/{mouse}", rest.endpoint("getMouse", rest.get_mouse)),
            Route("/v1/mice/{mouse}/predict", rest.endpoint("predict", rest.predict), methods=["POST"]),
            Route("/v1/mice/{mouse}/gradient", rest.endpoint("gradient", rest.gradient), methods=["POST"]),
            Route("/v1/mice/{mouse}/score", rest.endpoint("score", rest.score), methods=["POST"]),
            Route("/livez", rest.live),
            Route("/readyz", rest.is_ready),
            Route("/metrics", rest.metrics),
            Route("/openapi.json", rest.openapi),
            Route("/docs", rest.docs),
            Route("/", rest.root),
        ],
        exception_handlers={HTTPException: _http_problem},
    )
    app.router.redirect_slashes = False
    return Discard(with_cors(app, cors_origins), service.limits)


class _Rest:
    def __init__(self, service: TwinService) -> None:
        self._service = service
        self._document = openapi.document(service.limits)

    def endpoint(self, operation: str, answer: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """`answer` given its query parameters, its errors turned to problems, a request id on each answer, counted."""
        metrics = self._service.metrics
        # As gRPC calls it.
        call = operation[0].upper() + operation[1:]
        seconds = metrics.request_seconds.labels("rest", call)

        async def handle(request: Request) -> Response:
            start = time.perf_counter()
            request_id = new_request_id()
            code = "OK"
            try:
                _check_headers(request)
                asked = parameters.read(request.query_params.multi_items(), operation)
                response = await answer(request, asked)
            except HTTPException as error:
                code = f"HTTP_{error.status_code}"
                response = await _http_problem(request, error)
            except Exception as failure:
                error_ = as_domain_error(failure, request_id)
                code = error_.code
                response = _problem(http_status(error_), str(error_), error_)
            response.headers["X-Request-Id"] = request_id

            def ended(code: str) -> None:
                metrics.requests.labels("rest", call, code).inc()
                seconds.observe(time.perf_counter() - start)

            if isinstance(response, bulk.StreamedAnswer):
                response.on_end = ended
            else:
                ended(code)
            return response

        return handle

    async def list_mice(self, request: Request, asked: Mapping[str, Any]) -> Response:
        return _json({"mice": self._service.list_mice()})

    async def get_mouse(self, request: Request, asked: Mapping[str, Any]) -> Response:
        return _json(self._service.get_mouse(bodies.twin_of(request.path_params["mouse"], asked)))

    async def predict(self, request: Request, asked: Mapping[str, Any]) -> Response:
        types = (bodies.JSON, bodies.NPY, bodies.NPZ)
        sent_as = media.sent_as(request.headers, types)
        if asked.get("early") and sent_as != bodies.NPY:
            raise InvalidArgument(f"early: only the answer to {bodies.NPY} can begin early", field="early")
        if self._is_bulk(request, sent_as, media.answer_as(request.headers, sent_as, types)):
            # Rows that are sent as they are ready are a .npy, whatever came.
            media.answer_as(request.headers, bodies.NPY, (bodies.NPY,))
            return await bulk.answer(request, self._service, sent_as, asked, _deadline(asked))
        return await self._answer(request, types, asked, gradient=False)

    async def score(self, request: Request, asked: Mapping[str, Any]) -> Response:
        media.sent_as(request.headers, (bodies.NPZ,))
        media.answer_as(request.headers, bodies.JSON, (bodies.JSON,))
        return await scoring.score(request, self._service, asked, _deadline(asked))

    def _is_bulk(self, request: Request, sent_as: str, answer_as: str) -> bool:
        """Whether a body is worked on as it comes."""
        if sent_as == bodies.JSON:
            return False
        length = request.headers.get("content-length", "")
        limit = self._service.limits.request_bytes
        if answer_as == bodies.NPY:
            return not length.isdigit() or int(length) > min(limit, _LARGE_BYTES)
        return sent_as == bodies.NPZ and length.isdigit() and int(length) > limit

    async def gradient(self, request: Request, asked: Mapping[str, Any]) -> Response:
        # One .npy has no room for images and cotangent.
        return await self._answer(request, (bodies.JSON, bodies.NPZ), asked, gradient=True)

    async def _answer(
        self, request: Request, types: tuple[str, ...], asked: Mapping[str, Any], *, gradient: bool
    ) -> Response:
        deadline = _deadline(asked)
        sent_as = media.sent_as(request.headers, types)
        answer_as = media.answer_as(request.headers, sent_as, types)
        dtype = bodies.answer_dtype(asked)
        body = await self._body(request)

        def read() -> PredictQuery:
            limit, mouse = self._service.limits.request_bytes, request.path_params["mouse"]
            return bodies.read_query(mouse, sent_as, body, asked, limit, gradient=gradient)

        # Parsing a large body takes long enough to hold up everyone else in the event loop.
        query = await asyncio.to_thread(read) if len(body) > _LARGE_BYTES else read()
        answer = await self._answer_while_connected(request, query, deadline)
        if answer.responses.nbytes > _LARGE_BYTES or gradient:
            content = await asyncio.to_thread(bodies.write_answer, answer, answer_as, dtype)
        else:
            content = bodies.write_answer(answer, answer_as, dtype)
        return Response(content, media_type=answer_as, headers=bodies.headers_of(answer))

    async def _answer_while_connected(
        self, request: Request, query: PredictQuery, deadline: float | None
    ) -> Prediction:
        answer = asyncio.ensure_future(self._service.answer(query, deadline))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Cancelled("the caller hung up")
        finally:
            gone.cancel()
            answer.cancel()

    async def _body(self, request: Request) -> bytes:
        limit = self._service.limits.request_bytes
        too_large = PayloadTooLarge(
            f"body: larger than the limit of {limit} bytes; send fewer images at once", field="body"
        )
        if (
            request.headers.get("content-length", "0").isdigit()
            and int(request.headers.get("content-length", 0)) > limit
        ):
            raise too_large
        chunks, size = [], 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
        except ClientDisconnect:
            raise Cancelled("the caller hung up") from None
        return b"".join(chunks)

    async def live(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def is_ready(self, request: Request) -> Response:
        told = {"not_served": refused} if (refused := self._service.not_served) else {}
        if self._service.ready:
            return _json({"status": "ready", **told})
        return _json({"status": "draining", **told}, status=503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.expose(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        return _json(self._document)

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(openapi.page(self._document))

    async def root(self, request: Request) -> Response:
        return RedirectResponse("/docs")


def _check_headers(request: Request) -> None:
    """Raises InvalidArgument for what only TorchServe takes as headers, and would be ignored here."""
    for name in request.headers:
        if name.startswith(parameters.HEADER_PREFIX):
            raise InvalidArgument(f"{name[:80]}: not a header here, expected a query parameter", field=name[:80])


def _deadline(asked: Mapping[str, Any]) -> float | None:
    return time.monotonic() + asked["timeout"] if "timeout" in asked else None


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(value: Any, status: int = 200) -> Response:
    return Response(bodies.write_json(value), status_code=status, media_type=bodies.JSON)


def _problem(status: int, detail: str, error: MousetwinError | None = None) -> Response:
    return Response(media.problem(status, detail, error), status_code=status, media_type=media.PROBLEM)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _problem(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response
