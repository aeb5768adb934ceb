"""How long a call takes, for the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def median_ms(run: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call, after a warm-up.

    Args:
        run: the call.
        seconds: to go on for; a few calls at the least.
    """
    # A captured CUDA graph is whole after the third.
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return float(np.median(times) * 1e3)
