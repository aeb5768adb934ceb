"""How much one caller may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    response_bytes bounds responses and gradients; request_bytes bounds the encoded request and what it expands to;
    optimize_images the images × conditions × twins of an optimisation's step, optimize_steps its steps. A streamed
    batch may be of any length; its caller may keep the service waiting for stall_seconds. Of a request that is answered
    before its body is in, what is still on its way is read and dropped up to discard_bytes and discard_seconds.
    """

    request_bytes: int = 64 << 20
    response_bytes: int = 256 << 20
    optimize_images: int = 1024
    optimize_steps: int = 10_000
    stall_seconds: float = 60.0
    discard_bytes: int = 256 << 20
    discard_seconds: float = 10.0
