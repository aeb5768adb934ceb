"""What can go wrong, the same on every transport.

    MousetwinError
    ├── InvalidArgument (ValueError)        a field is malformed, out of range, missing or unwanted
    ├── NotFound (LookupError)              no such mouse, model or version
    ├── ResourceExhausted                   over a size limit, or the service's queue is full
    ├── DeadlineExceeded (TimeoutError)     the deadline passed before the answer
    ├── Cancelled                           the caller gave up
    ├── Unauthenticated (PermissionError)   no valid credentials
    ├── Unimplemented                       this host cannot do that
    ├── Unavailable (ConnectionError)       no service there, or it is shutting down
    └── Internal                            the service failed; its log has the request id

The service raises the same classes as the client does; `code` is the gRPC status's name. What is answered and is nearly
always a mistake, such as gray levels from 0 to 1, is told as a `MousetwinWarning` (UserWarning).
"""

from __future__ import annotations


class MousetwinError(Exception):
    """Base of all errors.

    Attributes:
        field: the request's field at fault, "" where none is.
        request_id: the service's id for the request, "" where there is none; quote it to whoever runs the service.
    """

    code = "UNKNOWN"

    def __init__(self, message: str, *, field: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.request_id = request_id


class MousetwinWarning(UserWarning):
    """What was asked was answered, and is nearly always a mistake."""


class InvalidArgument(MousetwinError, ValueError):
    """A field is malformed, out of range, missing or unwanted."""

    code = "INVALID_ARGUMENT"


class NotFound(MousetwinError, LookupError):
    """No such mouse, model or version."""

    code = "NOT_FOUND"


class ResourceExhausted(MousetwinError):
    """The request is over a size limit, or the service's queue is full."""

    code = "RESOURCE_EXHAUSTED"


class PayloadTooLarge(ResourceExhausted):
    """The request itself is over a size limit: sending it again will not help, sending less will."""


class DeadlineExceeded(MousetwinError, TimeoutError):
    """The deadline passed before the answer."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(MousetwinError):
    """The caller gave up."""

    code = "CANCELLED"


class Unauthenticated(MousetwinError, PermissionError):
    """No valid credentials."""

    code = "UNAUTHENTICATED"


class Unimplemented(MousetwinError, NotImplementedError):
    """This host cannot do that."""

    code = "UNIMPLEMENTED"


class Unavailable(MousetwinError, ConnectionError):
    """No service there, or it is shutting down."""

    code = "UNAVAILABLE"


class StreamLost(Unavailable):
    """The connection or its stream ended, by what lies between or by what it carried: asking again may help."""


class Closed(Unavailable):
    """The caller closed the connection: asking again will not help."""


class Internal(MousetwinError):
    """The service failed; its log has the request id."""

    code = "INTERNAL"


_BY_CODE: dict[str, type[MousetwinError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        Unimplemented,
        Unavailable,
        Internal,
    )
}


def from_code(code: str, message: str, *, field: str = "", request_id: str = "") -> MousetwinError:
    """The exception for a gRPC status name; `MousetwinError` itself for a name this client does not know."""
    return _BY_CODE.get(code, MousetwinError)(message, field=field, request_id=request_id)
