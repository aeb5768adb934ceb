"""The walk through experiments, run from top to bottom as a newcomer would; only the port is this machine's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WALK = ROOT / "docs" / "experiments" / "README.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.S)
NUMBER = re.compile(r"-?\d+\.\d*")
MARK = "<end of a block>"


def test_the_walk_prints_and_draws_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    blocks = BLOCK.findall(WALK.read_text())
    script = "".join(f"{text}\nprint({MARK!r})\n" for kind, text in blocks if kind == "python")
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        address = next(line.split()[1] for line in service.stdout if line.startswith("gRPC"))
        run = subprocess.run(
            [sys.executable, "-c", script.replace("127.0.0.1:8001", address)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        service.terminate()
    assert run.returncode == 0, run.stderr
    printed = iter(run.stdout.split(f"{MARK}\n"))
    shown = ""
    for (kind, _), (after, text) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "python":
            shown = next(printed)
            same(shown, text if after == "text" else "")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", WALK.read_text()):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert (WALK.parent / picture).exists()


def same(found: str, expected: str) -> None:
    """The same text, and the same numbers to what another processor may round away."""
    assert NUMBER.sub("#", " ".join(found.split())) == NUMBER.sub("#", " ".join(expected.split()))
    numbers = [np.array(NUMBER.findall(text), float) for text in (found, expected)]
    np.testing.assert_allclose(*numbers, atol=0.11)
