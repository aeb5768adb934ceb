"""Answers to requests whose bodies have not been read to their end."""

from __future__ import annotations

import asyncio
import contextlib
import math

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..limits import Limits

_WAITING_SECONDS = 1.0


class Discard:
    """An ASGI app whose answers reach callers who send everything before they read anything.

    Such a caller is still sending when it is refused. Were the connection closed then, what it sends would be answered
    with a reset, which takes the answer with it. So what is on its way is read and dropped first, within
    `Limits.discard_bytes` and `Limits.discard_seconds`.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _has_body(headers := Headers(scope=scope)):
            # A caller that expects to be asked for its body would be asked by reading it.
            waits = headers.get("expect", "").strip().lower() == "100-continue" and scope["http_version"] != "1.0"
            exchange = _Exchange(receive, send, self._limits, waits)
            await self._app(scope, exchange.receive, exchange.send)
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """waits: whether the caller sends its body only once it is asked for."""

    def __init__(self, receive: Receive, send: Send, limits: Limits, waits: bool) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._waits = waits
        self._ended = False

    async def receive(self) -> Message:
        self._waits = False
        message = await self._receive()
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._waits:
            MutableHeaders(scope=message)["Connection"] = "close"
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and not self._ended:
            await self._send({**message, "more_body": True})
            # Who waits to be asked may also not wait for long. Once the answer has begun, nobody is asked any more.
            seconds = min(self._limits.discard_seconds, _WAITING_SECONDS if self._waits else math.inf)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drop(), seconds)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drop(self) -> None:
        dropped = 0
        while not self._ended and dropped <= self._limits.discard_bytes:
            dropped += len((await self.receive()).get("body", b""))


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
