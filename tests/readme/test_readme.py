"""The README's commands, run as written; only ports and the interpreter are this machine's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Ports:
    http: str
    grpc: str

    def put_into(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", self.http).replace("127.0.0.1:8001", self.grpc)


@dataclass(frozen=True)
class Serving:
    lines: list[str]
    ports: Ports


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    """What `make serve` runs, on free ports, and what it prints until it is ready."""
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if len(lines) > 1 and lines[-2].startswith("Paste this"):
                break
        http = next(line.split("//")[1].split()[0] for line in lines if line.startswith("HTTP"))
        grpc = next(line.split()[1] for line in lines if line.startswith("gRPC"))
        yield Serving(lines, Ports(http, grpc))
        process.terminate()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


def run(command: str | list[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def same(found: str, expected: str) -> None:
    """The same text, and the same numbers to what another processor may round away."""
    assert NUMBER.sub("#", found.strip()) == NUMBER.sub("#", expected.strip())
    numbers = [np.array(NUMBER.findall(text), float) for text in (found, expected)]
    np.testing.assert_allclose(*numbers, atol=2e-3)


def test_the_first_prediction_in_python(serving: Serving, tmp_path: Path) -> None:
    (script,), (expected,) = blocks("python"), blocks("text")
    same(run([sys.executable, "-c", serving.ports.put_into(script)], tmp_path), expected)


def test_the_first_prediction_with_curl(serving: Serving, tmp_path: Path) -> None:
    block = next(block for block in blocks("console") if "curl" in block)
    commands, expected = re.findall(r"^\$ (.*)$", block, re.M), re.findall(r"^[^$].*$", block, re.M)
    assert len(commands) == 2
    found = run(serving.ports.put_into(" && ".join(commands)), tmp_path)
    same(found, "\n".join(expected))


def test_the_commands_on_files(serving: Serving, tmp_path: Path) -> None:
    block = next(block for block in blocks("console") if "mousetwin mice" in block)
    np.save(tmp_path / "images.npy", np.zeros((70, 36, 64), np.uint8))
    for command in re.findall(r"^\$ (.*)$", block, re.M):
        output = run(f"{command} --server {serving.ports.grpc}", tmp_path)
        assert "demo" in output
    assert np.load(tmp_path / "responses.npy").shape == (70, 320)


def test_large_sets(serving: Serving, tmp_path: Path) -> None:
    block = next(block for block in blocks("console") if "-X POST" in block)
    images = np.random.default_rng(0).integers(0, 256, (700, 36, 64)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    predict, curl = re.findall(r"^\$ (.*)$", block, re.M)
    run(f"{predict} --server {serving.ports.grpc}", tmp_path)
    run(serving.ports.put_into(curl), tmp_path)
    found, half = np.loadtxt(tmp_path / "three.csv", delimiter=",", skiprows=1), np.load(tmp_path / "float16.npy")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half[:, [3, 14, 15]], found, rtol=1e-3, atol=1e-3)


def test_json_as_matlab_writes_it(serving: Serving) -> None:
    # What jsonencode makes of a 1×36×64 double array: numbers without a point where they are whole.
    body = b'{"images":[[' + b",".join([b"[" + b",".join([b"128"] * 64) + b"]"] * 36) + b"]]}"
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    assert "webwrite('http://127.0.0.1:8000/v1/mice/demo/predict', struct('images', images)" in README
    request = urllib.request.Request(f"http://{serving.ports.http}/v1/mice/demo/predict", body, headers)
    with urllib.request.urlopen(request) as answer:
        assert np.array(json.load(answer)["responses"]).shape == (1, 320)


def test_the_line_to_paste(serving: Serving) -> None:
    assert any("SYNTHETIC" in line for line in serving.lines)
    assert run(serving.lines[-1].strip(), ROOT).startswith("[[")


@pytest.mark.parametrize("target", ["serve", "test"])
def test_the_two_commands_are_real(target: str) -> None:
    assert f"make {target}" in README
    assert run(["make", "--dry-run", target], ROOT)


def test_ci_runs_the_readmes_own_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
