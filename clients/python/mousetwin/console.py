"""What commands print. Whoever read it may be gone."""

from __future__ import annotations

import contextlib
import os
import sys


def say(text: str) -> None:
    """Print at once. Where nobody reads it any more, that is no error, now or at exit."""
    try:
        print(text, flush=True)
    except OSError:
        discard_output()


def warn(text: str) -> None:
    """As `say`, on standard error."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def discard_output() -> None:
    """Drop what was printed and could not be written, and all that is printed from now on."""
    # Otherwise Python tries again at exit, and tells of an exception that it ignores.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
