"""Starting and stopping: every failure is one line and a non-zero exit, and a signal is heard at every moment."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mousetwin
import numpy as np
import pytest
import uvicorn
from bundles import BUSY, IMAGE_ONLY
from mousetwin_serve.device import choose
from mousetwin_serve.hosts.listening import Addresses, HostError
from mousetwin_serve.hosts.standalone import StandaloneServer
from mousetwin_serve.repository import Repository
from mousetwin_serve.service import TwinService
from running import Service, as_command, free_ports, until

SERVE = (sys.executable, "-m", "mousetwin.cli", "serve")
FREE = ("--http-port", "0", "--grpc-port", "0")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small twin."""
    folder = tmp_path_factory.mktemp("one")
    IMAGE_ONLY.write(folder)
    return folder


def refusal(*arguments: str, **options: Any) -> str:
    """The line that `mousetwin serve` ends with, where it cannot start."""
    done = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mousetwin: ")
    return line.removeprefix("mousetwin: ")


@contextmanager
def taken(host: str = "127.0.0.1") -> Iterator[str]:
    """A port on which another process listens."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        yield str(server.getsockname()[1])


# --- what it cannot start with


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
@pytest.mark.parametrize(("theirs", "ours"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::1", "::1")])
def test_a_port_that_another_process_has(one: Path, option: str, theirs: str, ours: str) -> None:
    other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[option]
    with taken(theirs) as port:
        line = refusal("--models", str(one), "--host", ours, option, port, other, "0")
    assert line.startswith(f"{option}: cannot listen on ")
    assert f":{port}: Address already in use" in line


def test_the_same_port_twice(one: Path) -> None:
    (port,) = free_ports(1)
    line = refusal("--models", str(one), "--http-port", str(port), "--grpc-port", str(port))
    assert line == f"--grpc-port: {port} is --http-port as well, expected another"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("nowhere.invalid", "'nowhere.invalid': Name or service not known"),
        ("8.8.8.8", "'8.8.8.8' is no address of this machine"),
        ("2001:4860:4860::8888", "'2001:4860:4860::8888' is no address of this machine"),
        ("", "'', expected a name or an IP address, without brackets or a port"),
        ("[::1]", "'[::1]', expected a name or an IP address, without brackets or a port"),
        ("127.0.0.1:8000", "'127.0.0.1:8000', expected a name or an IP address, without brackets or a port"),
        ("http://127.0.0.1", "'http://127.0.0.1', expected a name or an IP address, without brackets or a port"),
        ("a..b", "'a..b': no host name"),
        ("1:2:3", "'1:2:3': "),
    ],
)
def test_a_host_that_is_not_here(one: Path, host: str, expected: str) -> None:
    assert refusal("--models", str(one), *FREE, f"--host={host}").startswith(f"--host: {expected}")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to drop what lets it listen")
@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_privileged_port(one: Path, option: str) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("every port may be listened on by everyone here")
    other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[option]
    without = ["setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service"]
    command = [*without, *SERVE, "--models", str(one), option, "81", other, "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == f"mousetwin: {option}: cannot listen on 127.0.0.1:81: Permission denied\n"


def test_models_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "empty", "loop", "nothing", "n" * 300, "file/below"):
        line = refusal("--models", str(tmp_path / name), *FREE)
        assert line.startswith(f"{tmp_path / name}: no ")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to be someone else")
def test_models_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", "--reuid", "65534"]
    command = [*without, "--clear-groups", *SERVE, "--models", str(tmp_path / "mine"), *FREE]
    for folder in (tmp_path, *list(tmp_path.parents)[:-1]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o755)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    # ONNX Runtime may have a word of its own where nothing can be written.
    expected = f"mousetwin: {tmp_path / 'mine'}: no such folder of exported twins: Permission denied"
    assert done.stderr.splitlines()[-1] == expected


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("shared", [("--http-port",), ("--grpc-port",), ("--http-port", "--grpc-port")])
def test_of_services_that_race_for_a_port_one_serves(one: Path, shared: Sequence[str]) -> None:
    ports = {option: str(port) for option, port in zip(shared, free_ports(len(shared)), strict=True)}
    given = [part for option in ("--http-port", "--grpc-port") for part in (option, ports.get(option, "0"))]
    racing = [started("--models", str(one), *given) for _ in range(3)]
    try:
        until(lambda: sum(process.poll() is not None for process in racing) == 2, 120)
        for process in list(racing):
            if process.poll() is not None:
                _, err = process.communicate(timeout=60)
                assert process.returncode == 1
                told = [line for line in err.splitlines() if line.startswith("mousetwin: ")]
                assert len(told) == 1
                assert any(f"{option}: cannot listen on 127.0.0.1:{port}" in told[0] for option, port in ports.items())
                racing.remove(process)
        (serving,) = racing
        assert serving.stdout is not None
        printed = ""
        while not (found := re.search(r"gRPC +(\S+)", printed)):
            printed += serving.stdout.readline()
        with mousetwin.connect(found[1], timeout=60) as twins:
            assert list(twins) == ["image-only"]
    finally:
        for process in racing:
            process.terminate()
            process.communicate(timeout=60)


def test_http_that_fails_while_it_starts(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room\nfor it")

    http, grpc = free_ports(2)

    async def start() -> StandaloneServer:
        service = TwinService(Repository.load(one, choose("cpu")))
        server = StandaloneServer(service, Addresses(http_port=http, grpc_port=grpc))
        await server.start()
        return server

    async def serve() -> None:
        await (await start()).stop()

    with monkeypatch.context() as patched:
        patched.setattr(uvicorn.Server, "startup", fail)
        with pytest.raises(HostError, match=rf"^--http-port: HTTP on {http} ended: no room for it$"):
            asyncio.run(start())
    # Both ports are free again.
    asyncio.run(serve())


def test_http_that_ends_while_it_serves(one: Path) -> None:
    script = f"""
import sys, uvicorn
async def main_loop(self):
    raise RuntimeError("gone")
uvicorn.Server.main_loop = main_loop
from mousetwin.cli import main
sys.exit(main(["serve", "--models", {str(one)!r}, *{FREE!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"mousetwin: --http-port: HTTP on \d+ ended: gone\n", done.stderr)


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_are_read(tmp_path: Path, number: signal.Signals) -> None:
    manifest = IMAGE_ONLY.write(tmp_path) / "bundle.json"
    manifest.unlink()
    os.mkfifo(manifest)
    process = started("--models", str(tmp_path), *FREE)

    def read() -> int | None:
        try:
            return os.open(manifest, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert process.poll() is None, process.communicate()
            return None

    writing = until(read, 120)
    process.send_signal(number)
    # A signal that comes just before the system is asked to read is heard when that has read.
    os.close(writing)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (out, err) == ("", f"mousetwin: stopped by {number.name}\n")


def test_a_second_signal_does_not_wait_for_what_was_taken(models: Path) -> None:
    given = BUSY.inputs(4000)
    with (
        as_command("--models", str(models), "--device", "cpu") as command,
        mousetwin.connect(command.service.grpc) as twins,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(twins["busy"].predict, **given, space="model")
        metrics = f"{command.service.http}/metrics"
        until(lambda: re.search(r"^mousetwin_queued_images\S+ [1-9]", httpx.get(metrics).text, re.M))
        command.process.send_signal(signal.SIGTERM)
        assert command.process.stdout is not None
        while command.process.stdout.readline() != "mousetwin: draining\n":
            assert command.process.poll() is None
        command.process.send_signal(signal.SIGTERM)
        _, err = command.process.communicate(timeout=60)
        assert isinstance(answer.exception(60), mousetwin.Unavailable)
    assert command.process.returncode == 128 + signal.SIGTERM
    assert err == "mousetwin: stopped by SIGTERM\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_that_takes_no_signals(one: Path, number: signal.Signals) -> None:
    """As on Windows."""
    script = f"""
import asyncio, sys
class Loop(asyncio.SelectorEventLoop):
    def add_signal_handler(self, *_):
        raise NotImplementedError
class Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return Loop()
asyncio.set_event_loop_policy(Policy())
from mousetwin.cli import main
sys.exit(main(["serve", "--models", {str(one)!r}, *{FREE!r}]))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while ".predict(" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert (out, err) == ("mousetwin: draining\n", "")


# --- what it prints


@pytest.mark.parametrize(
    ("host", "http", "everywhere"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("localhost", "localhost", False),
        ("::1", "[::1]", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "[::1]", True),
    ],
)
def test_every_host_is_printed_as_it_is_reached(one: Path, host: str, http: str, everywhere: bool) -> None:
    with as_command("--models", str(one), "--host", host, "--device", "cpu") as command:
        assert command.process.stdout is not None
        assert command.welcome.startswith("mousetwin is ready on the CPU\n")
        assert command.service.http.startswith(f"http://{http}:")
        assert command.service.grpc.startswith(f"{http}:")
        rest = ""
        while ".predict(" not in rest:
            line = command.process.stdout.readline()
            assert line
            rest += line
        assert (f"On all interfaces ({host})" in rest) == everywhere
        assert httpx.get(f"{command.service.http}/readyz").status_code == 200
        done = subprocess.run(rest.splitlines()[-1], shell=True, capture_output=True, text=True, check=True)
        gray = IMAGE_ONLY.respond_raw(np.full((1, 9, 5), 128))
        np.testing.assert_allclose(np.array(done.stdout.strip(" []\n").split(), float), gray[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lines", [0, 1])
def test_nobody_reads_what_it_prints(one: Path, lines: int) -> None:
    """As with `| head -1`, and with a reader that is gone before."""
    http, _ = ports = free_ports(2)
    process = started("--models", str(one), "--http-port", str(http), "--grpc-port", str(ports[1]))
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline() == "mousetwin is ready on the CPU\n"
    process.stdout.close()

    def is_ready() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{http}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    until(is_ready, 120)
    with mousetwin.connect(f"127.0.0.1:{ports[1]}", timeout=60) as twins:
        assert list(twins) == ["image-only"]
    process.terminate()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait(60) == 0


@pytest.mark.parametrize("arguments", [["mice"], ["--help"], ["predict", "--help"]])
def test_other_commands_whose_output_nobody_reads(arguments: list[str], service: Service) -> None:
    read, write = os.pipe()
    os.close(read)
    server = ["--server", service.grpc] if arguments == ["mice"] else []
    command = [sys.executable, "-m", "mousetwin.cli", *arguments, *server]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(write)
    assert done.stderr == ""
    # argparse itself says nothing of a page that nobody reads, in some versions.
    assert done.returncode in ([141] if server else [0, 141])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_output_that_cannot_be_written_is_one_line(service: Service) -> None:
    command = [sys.executable, "-m", "mousetwin.cli", "mice", "--server", service.grpc]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "mousetwin: standard output: No space left on device\n")
