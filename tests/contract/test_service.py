"""What whoever runs the service sees: health, reflection, metrics, pages, starting and stopping."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import mousetwin
import numpy as np
import pytest
from bundles import BUSY, FULL, IMAGE_ONLY
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from mousetwin.cli import main
from mousetwin.v1 import digital_twin_pb2 as pb
from numpy.testing import assert_allclose
from running import Service, as_command, until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SHOWN = np.random.default_rng(0).integers(0, 256, (2, *FULL.stimulus)).astype(np.uint8)


def npy(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, images)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["", "mousetwin.v1.DigitalTwin"])
def test_health(service: Service, name: str) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_tells_the_contract(service: Service, version: str) -> None:
    with grpc.insecure_channel(service.grpc) as channel:
        # The two versions differ in this name alone.
        reflection: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )

        def ask(**question: str) -> Any:
            return next(reflection(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=30))

        names = {s.name for s in ask(list_services="").list_services_response.service}
        ours = {"mousetwin.v1.DigitalTwin", "grpc.health.v1.Health"}
        assert names == ours | {f"grpc.reflection.{either}.ServerReflection" for either in ("v1alpha", "v1")}
        # Whatever is listed can be described, as grpcurl and grpcui do: the files make up a whole.
        for name in names:
            answer = ask(file_containing_symbol=name).file_descriptor_response
            pool = DescriptorPool()
            for data in reversed(answer.file_descriptor_proto):
                pool.AddSerializedFile(data)
            assert pool.FindServiceByName(name).methods
        assert ask(file_containing_symbol="mousetwin.v1.Nothing").error_response.error_code == 5
        found = ask(file_containing_symbol="mousetwin.v1.DigitalTwin").file_descriptor_response.file_descriptor_proto
        files = [FileDescriptorProto.FromString(data) for data in found]
        methods = {m.name for f in files for s in f.service for m in s.method}
        assert methods == {"ListMice", "GetMouse", "Predict", "Gradient", "Session", "Optimize"}


def test_pages_and_probes(service: Service) -> None:
    with httpx.Client(base_url=service.http) as http:
        assert http.get("/livez").json() == {"status": "live"}
        assert http.get("/readyz").json() == {"status": "ready"}
        assert http.get("/").headers["location"] == "/docs"
        document = http.get("/openapi.json").json()
        page = http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        # Every call is on the page, and nothing on it needs the internet.
        assert all(path in page.text for path in document["paths"])
        assert "://" not in page.text
        assert http.head("/livez").status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/mice", 404), ("DELETE", "/v1/mice", 405)])
def test_paths_and_methods_there_are_none_of(service: Service, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{service.http}{path}")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert ("allow" in response.headers) == (status == 405)


def metric(service: Service, name: str) -> float:
    lines = httpx.get(f"{service.http}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_metrics_count_what_was_asked(service: Service) -> None:
    names = {
        "answered over rest": 'mousetwin_requests_total{call="Predict",code="OK",protocol="rest"}',
        "refused over rest": 'mousetwin_requests_total{call="Predict",code="NOT_FOUND",protocol="rest"}',
        "answered over grpc": 'mousetwin_requests_total{call="Predict",code="OK",protocol="grpc"}',
        "images": 'mousetwin_images_total{model="linear",mouse="full"}',
    }
    before = {what: metric(service, name) for what, name in names.items()}
    for mouse in ("full", "nobody"):
        httpx.post(
            f"{service.http}/v1/mice/{mouse}/predict",
            content=npy(SHOWN),
            headers={"content-type": "application/x-npy"},
        )
    with mousetwin.connect(service.grpc) as twins:
        twins["full"].predict(SHOWN)
    after = {what: metric(service, name) for what, name in names.items()}
    assert {what: after[what] - before[what] for what in names} == {
        "answered over rest": 1,
        "refused over rest": 1,
        "answered over grpc": 1,
        "images": 4,
    }


def test_every_answer_carries_a_request_id(service: Service) -> None:
    stub: Any
    with grpc.insecure_channel(service.grpc) as channel:
        stub = channel.unary_unary("/mousetwin.v1.DigitalTwin/ListMice")
        _, call = stub.with_call(pb.ListMiceRequest().SerializeToString())
        ids = [dict(call.trailing_metadata())["request-id"]]
    with httpx.Client(base_url=service.http) as http:
        ids += [http.get(path).headers["x-request-id"] for path in ("/v1/mice", "/v1/mice/full", "/v1/mice/nobody")]
    assert all(ids)
    assert len(set(ids)) == 4


def test_a_deadline_that_has_passed(service: Service) -> None:
    # Slow work in front, so that the deadline is over before the twin could have run.
    with mousetwin.connect(service.grpc) as twins, ThreadPoolExecutor(1) as pool:
        busy, given = twins["busy"], BUSY.inputs(500)
        work = pool.submit(busy.predict, **given, space="model")
        until(lambda: metric(service, 'mousetwin_queued_images{model="linear",mouse="busy"') > 0)
        response = httpx.post(
            f"{service.http}/v1/mice/busy/predict",
            params={"timeout": "0.000001"},
            content=npy(SHOWN),
            headers={"content-type": "application/x-npy"},
        )
        with pytest.raises(mousetwin.DeadlineExceeded):
            busy.predict(SHOWN, timeout=1e-6)
        assert_allclose(work.result(60), BUSY.respond(**given), rtol=0, atol=2e-6)
    assert response.status_code == 504
    assert response.json()["code"] == "DEADLINE_EXCEEDED"


def test_drain_finishes_what_was_taken(models: Path) -> None:
    given = BUSY.inputs(2000)
    with as_command("--models", str(models), "--device", "cpu") as command, ThreadPoolExecutor(1) as pool:
        service = command.service
        channel = grpc.insecure_channel(service.grpc)
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        answer = pool.submit(
            httpx.post,
            f"{service.http}/v1/mice/busy/predict",
            params={"space": "model"},
            content=npy(given["images"]),
            headers={"content-type": "application/x-npy"},
            timeout=60,
        )
        until(lambda: metric(service, "mousetwin_queued_images") > 0)
        command.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        # It still works on what it took, and takes nothing new.
        assert not answer.done()
        with mousetwin.connect(service.grpc) as twins, pytest.raises(mousetwin.Unavailable):
            twins["full"].predict(SHOWN)
        response = answer.result(60)
        watch.cancel()
        channel.close()
        out, err = command.process.communicate(timeout=60)
    assert response.status_code == 200
    assert_allclose(np.load(io.BytesIO(response.content)), BUSY.respond(**given), rtol=0, atol=2e-6)
    assert command.process.returncode == 0, err
    assert "draining" in out
    assert "Traceback" not in err


def test_the_welcome_says_what_is_served_and_its_line_can_be_pasted(tmp_path: Path) -> None:
    IMAGE_ONLY.write(tmp_path / "good")
    with as_command("--models", str(tmp_path / "good")) as command:
        assert command.process.stdout is not None
        assert "image-only  linear v1  4 neurons  9x5  takes images  on cpu" in command.welcome
        assert "SYNTHETIC" in command.welcome
        while not (line := command.process.stdout.readline()).startswith("  "):
            assert line
        done = subprocess.run(line.strip(), shell=True, capture_output=True, text=True, check=True)
        gray = IMAGE_ONLY.respond_raw(np.full((1, 9, 5), 128))
        printed = np.array(done.stdout.strip(" []\n").split(), float)
        assert_allclose(printed, gray[0], rtol=1e-4, atol=1e-5)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(30) == 0


def test_damaged_bundles_are_reported_and_the_others_served(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    graph = IMAGE_ONLY.write(tmp_path) / "forward.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with as_command("--models", str(tmp_path)) as command:
        with mousetwin.connect(command.service.grpc) as twins:
            assert list(twins) == ["full"]
            assert_allclose(twins["full"].predict(SHOWN), FULL.respond_raw(SHOWN), rtol=0, atol=2e-6)
        command.process.send_signal(signal.SIGTERM)
        _, err = command.process.communicate(timeout=60)
    refusals = [line for line in err.splitlines() if "not served: " in line]
    assert len(refusals) == 1
    assert str(graph) in refusals[0]
    assert "sha256" in refusals[0]


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mousetwin.cli", "serve", *arguments]
    # No GPU, on whatever machine this runs.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("which", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_one_line(models: Path, which: str) -> None:
    other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[which]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_serve("--models", str(models), which, port, other, "0")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("mousetwin: ")]
    assert len(errors) == 1, done.stderr
    assert which in errors[0]
    assert port in errors[0]
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there_is_one_line(models: Path) -> None:
    done = run_serve("--models", str(models), "--http-port", "0", "--grpc-port", "0", "--device", "cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("mousetwin: --device cuda: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_models_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        done = run_serve("--models", str(folder), "--http-port", "0", "--grpc-port", "0")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert str(folder) in done.stderr
    damaged = FULL.write(tmp_path)
    shutil.rmtree(damaged)
    damaged.mkdir()
    done = run_serve("--models", str(tmp_path), "--http-port", "0", "--grpc-port", "0")
    assert done.returncode == 1
    assert "bundle.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--http-port", "70000", "from 0 to 65535"),
        ("--grpc-port", "-1", "from 0 to 65535"),
        ("--threads", "-1", "from 0 to 1024"),
        ("--max-batch", "0", "from 1 to 1000000"),
        ("--max-queue", "many", "from 1 to 1000000"),
        ("--max-request-mb", "2048", "from 1 to 2047"),
    ],
)
def test_a_number_it_could_not_serve_with_is_refused(
    option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}: '{value}', expected a whole number {expected}" in capsys.readouterr().err
