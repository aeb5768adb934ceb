"""Which web pages may ask: cross-origin resource sharing (CORS)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mousetwin.errors import InvalidArgument
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

ANY = "*"
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_LEFT_OUT = {"http": "80", "https": "443"}
_TOLD = ("Twin", "Digest", "Defaults", "Warnings")


def check_origins(origins: Iterable[str]) -> None:
    """Raises InvalidArgument for one that is written as no browser sends it, and so would never match."""
    for origin in origins:
        found = _ORIGIN.fullmatch(origin)
        if origin != ANY and not (found and found[3] != _LEFT_OUT[found[1]] and _is_port(found[3])):
            raise InvalidArgument(
                f"--cors-origin: {origin[:80]!r}, expected an origin as browsers send it, https://lab.example or "
                "http://127.0.0.1:3000 (in lower case, no usual port, nothing behind it), or *",
                field="--cors-origin",
            )


def with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """`app`, with all its answers, errors too, readable to pages of `origins`. Without any, as it is.

    Raises InvalidArgument as `check_origins`.
    """
    check_origins(origins)
    if not origins:
        return app
    exposed = ["X-Request-Id", *(f"X-Mousetwin-{name}" for name in _TOLD)]
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Accept", "Content-Type"),
        expose_headers=exposed,
    )


def _is_port(text: str | None) -> bool:
    return text is None or (text[0] != "0" and int(text) <= 65535)
