"""What a body is sent as and answered as, and problems: REST as far as it is the same on every server."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from mousetwin.errors import MousetwinError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from .bodies import write_json

PROBLEM = "application/problem+json"


def sent_as(headers: Mapping[str, str], types: tuple[str, ...]) -> str:
    """The type of a body.

    Raises:
        HTTPException: it is none of `types` or comes compressed (415), or in a transfer coding that is not known (501).
    """
    _check_codings(headers)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in types:
        raise HTTPException(415, f"content-type: {media_type[:80]!r}, expected {_any_of(types)}")
    return media_type


def answer_as(headers: Mapping[str, str], sent: str, types: tuple[str, ...]) -> str:
    """The best of what the caller accepts; where anything goes, what was sent. Raises HTTPException (406) for none."""
    accepted: dict[str, float] = {}
    for part in headers.get("accept", "*/*").split(","):
        media_range, *options = (piece.strip().lower() for piece in part.split(";"))
        quality = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            accepted[media_range] = float(quality)
        except ValueError:
            accepted[media_range] = 0.0
    wildcard = max(accepted.get("*/*", 0), accepted.get("application/*", 0))
    offers = sorted(types, key=lambda offer: offer != sent)
    best = max(offers, key=lambda offer: accepted.get(offer, wildcard))
    if accepted.get(best, wildcard) <= 0:
        raise HTTPException(406, f"accept: expected {_any_of(types)}")
    return best


def problem(status: int, detail: str, error: MousetwinError | None = None) -> bytes:
    """RFC 9457 problem details; `code`, `field` and `request_id` are ours."""
    told: dict[str, Any] = {"type": "about:blank", "title": _title(status), "status": status, "detail": detail}
    if error is not None:
        told |= {"code": error.code, "field": error.field, "request_id": error.request_id}
    return write_json(told)


def _check_codings(headers: Mapping[str, str]) -> None:
    codings = _listed(headers, "content-encoding")
    if set(codings) - {"identity"}:
        came = ", ".join(codings)[:80]
        raise HTTPException(
            415,
            f"content-encoding: {came!r}, expected none: send the body as it is",
            {"Accept-Encoding": "identity"},
        )
    codings = _listed(headers, "transfer-encoding")
    if set(codings) - {"chunked"}:
        raise HTTPException(501, f"transfer-encoding: {', '.join(codings)[:80]!r}, expected 'chunked' or none")


def _listed(headers: Mapping[str, str], name: str) -> list[str]:
    """What a header lists, which may come several times."""
    values = headers.getlist(name) if isinstance(headers, Headers) else [headers.get(name, "")]
    return [part.strip().lower() for value in values for part in value.split(",") if part.strip()]


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"


def _any_of(types: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(types[:-1]), types[-1])))
