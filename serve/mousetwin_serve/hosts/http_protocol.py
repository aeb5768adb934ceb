"""HTTP/1 as uvicorn speaks it, mended where a request's body or its answer would be lost."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A caller that closed looks like one that only sends no more, until something is written to it.
_PROBE_SECONDS = 1.0
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    A request that offers another protocol (`Upgrade`) is read and answered like any other: the offer is declined by
    saying nothing of it. A caller that shuts down its sending side after whole requests gets their answers. A
    connection is not kept where a request's body was not read to its end.
    """

    _probe: asyncio.TimerHandle | None = None
    _in_head = True

    def data_received(self, data: bytes) -> None:
        while True:
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                if not self._declines():
                    # CONNECT: it is refused, and what follows it is no HTTP.
                    self.cycle.keep_alive = False
                    return
                # The parser stops where the other protocol would begin. It is told of the request anew, without the
                # offer, and goes on with the body and whatever else came.
                data = self._head_without_offer() + data[stopped.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                message = "Invalid HTTP request received."
                self.logger.warning(message)
                self.send_400_response(message)
                return
            else:
                return

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers say nothing of what has been read by then.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.get_http_version() == "1.0":
            # Nobody may be told to continue who does not know what that is.
            self.expect_100_continue = False
        if not self._declines():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._declines():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        cycle = self.cycle
        if cycle.response_complete and cycle.more_body:
            # What is left of the body could be of any length, or never come.
            self.transport.close()
        super().on_response_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        if self._probe is None:
            self._probe = self.loop.call_later(_PROBE_SECONDS, self._look_for_caller)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._probe is not None:
            self._probe.cancel()
        super().connection_lost(exc)

    def _look_for_caller(self) -> None:
        """Write what every client must skip: where nobody is left, the next write fails and the work is dropped."""
        cycle = self.cycle
        if not (self.pipeline or cycle.response_started or cycle.scope["http_version"] == "1.0"):
            self.transport.write(_PROBE)
        self._probe = self.loop.call_later(_PROBE_SECONDS, self._look_for_caller)

    def _declines(self) -> bool:
        """Whether the parser is at a request that offers another protocol."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() != b"upgrade")
            if name != b"upgrade" and (value or name != b"connection"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])
