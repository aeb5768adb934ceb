"""A zarr array as it is written by default, read by the version of zarr that most have, and that MATLAB and R equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import FULL
from mousetwin.cli import main
from running import Service

OLD = ["zarr==2.18.3", "numcodecs==0.15.2", "numpy==2.4.6"]
READ = """
import sys, numpy, zarr
assert zarr.__version__.startswith("2."), zarr.__version__
array = zarr.open("r.zarr", mode="r")
assert isinstance(array, zarr.core.Array)
numpy.save("read.npy", array[:])
"""


@pytest.mark.interpreters
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_zarr_2_reads_what_is_written(
    dtype: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    # More than two chunks, and not a whole number of them.
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (600, *FULL.stimulus)).astype(np.uint8))
    command = ["predict", "images.npy", "--mouse", "full", "--server", service.grpc, "--dtype", dtype]
    assert main([*command, "--out", "r.zarr"]) == 0
    assert main([*command, "--out", "r.npy"]) == 0
    # No filter, no compressor: nothing that a reader could be without.
    metadata = json.loads(Path("r.zarr/.zarray").read_text())
    assert (metadata["zarr_format"], metadata["compressor"], metadata["filters"]) == (2, None, None)
    subprocess.run([sys.executable, "-m", "venv", "old"], check=True)
    pip = ["old/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *OLD], check=True)
    done = subprocess.run(["old/bin/python", "-c", READ], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("read.npy").read_bytes() == Path("r.npy").read_bytes()
