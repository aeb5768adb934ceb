"""Ask digital twins of mouse visual cortex.

    import mousetwin

    twins = mousetwin.connect("127.0.0.1:8001")
    mouse = twins["26872-17-20"]
    responses = mouse.predict(images)          # (N, 144, 256) uint8 -> float32 (N, 7776)
    responses, d_images = mouse.gradient(images, cotangent=np.ones(7776))

`connect("local:MODELS")` runs the twins in this process instead (needs the serve extra); `mousetwin.aio` is the same
for asyncio.
"""

from .errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    MousetwinError,
    MousetwinWarning,
    NotFound,
    PayloadTooLarge,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from .frames import Gradient, Responses
from .optimized import Optimized
from .query import GraphReport, Moments, MouseInfo, Space, TwinIdentity, TwinSummary
from .session import Session
from .twins import Mouse, Twins, connect

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "Gradient",
    "GraphReport",
    "Internal",
    "InvalidArgument",
    "Moments",
    "Mouse",
    "MouseInfo",
    "MousetwinError",
    "MousetwinWarning",
    "NotFound",
    "Optimized",
    "PayloadTooLarge",
    "ResourceExhausted",
    "Responses",
    "Session",
    "Space",
    "TwinIdentity",
    "TwinSummary",
    "Twins",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "connect",
]
