"""A progress bar for the terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class ProgressBar:
    """Draws `label  [#####     ]  done/total  rate  time left` on one line; call it with (done, total).

    Where the stream is no terminal it writes one line at the end instead.
    """

    def __init__(self, label: str, unit: str = "images", stream: TextIO | None = None, start: int = 0) -> None:
        self._label = label
        self._unit = unit
        self._stream = stream if stream is not None else sys.stderr
        self._start = time.monotonic()
        # What was done before says nothing about the rate.
        self._before = start
        self._drawn = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        finished = done >= total
        if not finished and (not self._stream.isatty() or now - self._drawn < 0.1):
            return
        self._drawn = now
        elapsed = max(now - self._start, 1e-9)
        rate = (done - self._before) / elapsed
        bar = "#" * round(24 * done / max(total, 1))
        left = f"{elapsed:.1f} s" if finished else f"{(total - done) / max(rate, 1e-9):.0f} s left"
        line = f"{self._label} [{bar:<24}] {done}/{total} {self._unit}  {rate:.0f}/s  {left}"
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if finished else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
