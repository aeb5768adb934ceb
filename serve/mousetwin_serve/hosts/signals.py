"""SIGINT and SIGTERM, at every moment of a service's life."""

from __future__ import annotations

import asyncio
import os
import signal
from types import FrameType

from mousetwin.console import warn

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """The process was told to stop at once; the exit status is a shell's for the signal."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        super().__init__(self.status)
        self.name = signal.Signals(number).name


def stop_at_once() -> None:
    """From now on a signal raises `Stopped`, wherever the main thread is.

    Needed for SIGTERM too: nothing happens by default in a container's first process.
    """
    for number in NUMBERS:
        signal.signal(number, _raise)


def stop_in_turn(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """From now on the first signal sets `stop`; a second one of the kind ends the process, whatever it is doing."""

    def first(number: int) -> None:
        stop.set()
        signal.signal(number, _leave)

    def first_in_loop(number: int) -> None:
        loop.remove_signal_handler(number)
        first(number)

    def first_outside(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(first, number)

    for number in NUMBERS:
        try:
            loop.add_signal_handler(number, first_in_loop, number)
        except NotImplementedError:
            # On Windows, and in loops of other packages there.
            signal.signal(number, first_outside)


def _leave(number: int, frame: FrameType | None) -> None:
    warn(f"mousetwin: stopped by {signal.Signals(number).name}")
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    # The next one ends the process, whatever it is doing.
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)
