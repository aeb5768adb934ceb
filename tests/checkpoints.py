"""Where the real checkpoints are, and synthetic ones of the same family."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKPOINTS = Path(os.environ.get("MOUSETWIN_CHECKPOINTS", ROOT.parent / "shared" / "checkpoints"))

# File, config, data_key.
REAL = {
    "sensorium": ("sensorium_sota_model.pth", "sensorium.yaml", "26872-17-20"),
    "sensorium_plus": ("sensorium_p_sota_model.pth", "sensorium_plus.yaml", "27204-5-13"),
}


def real_checkpoint(name: str) -> tuple[Path, Path, str]:
    """Checkpoint, config and mouse; skips the test where the real checkpoints are absent."""
    file, config, mouse = REAL[name]
    if not (CHECKPOINTS / file).is_file():
        pytest.skip(f"real checkpoints are not at {CHECKPOINTS} (set MOUSETWIN_CHECKPOINTS)")
    return CHECKPOINTS / file, CHECKPOINTS / config, mouse
