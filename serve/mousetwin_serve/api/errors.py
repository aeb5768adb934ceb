"""Errors to statuses, for both protocols, in this one place."""

from __future__ import annotations

import asyncio
import logging
import secrets

import grpc
from mousetwin.errors import Cancelled, Internal, MousetwinError, PayloadTooLarge

log = logging.getLogger(__name__)

# As google.rpc.Code maps them; 499 is nginx's "client closed request".
_HTTP = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def new_request_id() -> str:
    return secrets.token_hex(8)


def as_domain_error(error: BaseException, request_id: str) -> MousetwinError:
    """The error a client is told of. What is not ours is logged in full and reaches the client without detail."""
    if isinstance(error, MousetwinError):
        error.request_id = request_id
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled("the caller gave up", request_id=request_id)
    log.error("request %s failed", request_id, exc_info=error)
    return Internal("internal error; the service's log has the request id", request_id=request_id)


def grpc_status(error: MousetwinError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code]


def http_status(error: MousetwinError) -> int:
    return 413 if isinstance(error, PayloadTooLarge) else _HTTP[error.code]
