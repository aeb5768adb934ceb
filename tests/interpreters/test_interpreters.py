"""The client on every Python and protobuf runtime it promises, with nothing but its three dependencies installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The oldest versions that pyproject.toml admits, then one of each later protobuf major.
ENVIRONMENTS = {
    "3.10": ["numpy==1.26.0", "grpcio==1.68.1", "protobuf==5.26.1"],
    "3.12": ["numpy==2.1.3", "grpcio==1.71.0", "protobuf==6.33.0"],
    "3.13": ["numpy==2.4.6", "grpcio==1.85.1", "protobuf==7.36.2"],
}


def find_interpreter(version: str) -> str | None:
    """A Python of this version: on PATH, or beside the running one under pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        probe = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        # A pyenv shim is on PATH even where its version is not selected; it then fails to start.
        found = subprocess.run(probe, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() == version:
            return str(candidate)
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("mousetwin-*.whl")
    return built


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "mousetwin.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("gRPC"))
        yield address
        process.terminate()


@pytest.mark.interpreters
@pytest.mark.parametrize("version", ENVIRONMENTS)
def test_the_client_passes_its_tests(version: str, wheel: Path, server: str, tmp_path: Path) -> None:
    interpreter = find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([interpreter, "-m", "venv", str(tmp_path)], check=True)
    python = str(tmp_path / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel), "pytest==9.0.0", *ENVIRONMENTS[version]], check=True)
    result = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "client")],
        env={**os.environ, "MOUSETWIN_TEST_SERVER": server},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    installed = subprocess.run([*pip[:3], "freeze"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in installed
    assert "onnxruntime" not in installed
