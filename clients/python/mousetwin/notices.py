"""Warnings of an answer as Python's own, each kind once."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable

from .errors import MousetwinWarning

_NUMBER = re.compile(r"[-+]?\d[\d.e+-]*")


class Notices:
    """Tells what answers warn of. A loop over many images is told of one mistake once, whatever the numbers are."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, texts: Iterable[str]) -> None:
        """Warn of what was not told before, at the line that called this package."""
        for text in texts:
            # Of a version, numbers and names are what it is about.
            kind = text if text.startswith("version:") else _NUMBER.sub("#", text)
            if kind not in self._told:
                warnings.warn(text, MousetwinWarning, stacklevel=_outside())
                self._told.add(kind)


def _outside() -> int:
    """The `stacklevel`, seen from the caller, of whoever called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    return level
