"""Warnings of an answer as Python's own, each kind once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

from .errors import MousetwinWarning

_NUMBER = re.compile(r"[-+]?\d[\d.e+-]*")


class Notices:
    """Tells what answers warn of. A loop over many images is told of one mistake once, whatever the numbers are."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, texts: Iterable[str], *, stacklevel: int = 3) -> None:
        """Warn of what was not told before.

        Args:
            texts: a line each.
            stacklevel: as of `warnings.warn`, seen from here: 3 is the caller of whoever calls this.
        """
        for text in texts:
            kind = _NUMBER.sub("#", text)
            if kind not in self._told:
                self._told.add(kind)
                warnings.warn(text, MousetwinWarning, stacklevel=stacklevel)
