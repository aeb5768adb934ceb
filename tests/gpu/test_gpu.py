"""On a real GPU: the same answers as on the CPU, everything on the device, and served from end to end.

    pytest -m gpu tests/gpu

Twins are the demo mouse and, where MOUSETWIN_MODELS names a folder of exported ones, those.
"""

from __future__ import annotations

import http.client
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
from mousetwin.arrays import write_npz
from mousetwin.optimization import Ascent, OptimizeQuery, OptimizeResult, Target
from mousetwin.query import Space, TwinRef
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from running import as_command

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpus() -> list[str]:
    """Names of the GPUs; skips the tests where there is none to be used."""
    device = pytest.importorskip("mousetwin_serve.device")
    try:
        names: list[str] = device.usable_gpus()
    except device.DeviceError as error:
        pytest.skip(str(error))
    return names


def folders() -> list[Path]:
    demo = Path(__file__).parents[2] / "serve" / "mousetwin_serve" / "demo"
    given = os.environ.get("MOUSETWIN_MODELS")
    return [demo, *([Path(given)] if given else [])]


def twins_on(device: str, **options: Any) -> dict[tuple[str, str, str], Any]:
    from mousetwin_serve.device import choose
    from mousetwin_serve.repository import Repository

    found: dict[tuple[str, str, str], Any] = {}
    for folder in folders():
        repository = Repository.load(folder, choose(device, **options))
        assert not repository.refused
        found |= repository.twins
    return found


@pytest.fixture(scope="module")
def on_gpu(gpus: list[str]) -> dict[tuple[str, str, str], Any]:
    return twins_on("cuda")


@pytest.fixture(scope="module")
def on_cpu(gpus: list[str]) -> dict[tuple[str, str, str], Any]:
    return twins_on("cpu")


def stimulus(twin: Any, count: int) -> dict[str, NDArray[np.float32]]:
    rng, summary = np.random.default_rng(count), twin.summary
    given = {"images": rng.normal(size=(count, 1, *summary.native_size))}
    if summary.behavior:
        given["behavior"] = rng.normal(1, 1, (count, len(summary.behavior)))
    if summary.pupil_center:
        given["pupil_center"] = rng.normal(size=(count, 2))
    return {name: values.astype(np.float32) for name, values in given.items()}


def batches(twin: Any, count: int) -> Iterator[Any]:
    """All neurons, chosen ones and one an image, each with and without its gradient."""
    from mousetwin_serve.batch import Batch

    rng, neurons = np.random.default_rng(0), twin.summary.neurons
    for columns in (None, rng.permutation(neurons)[:20], rng.integers(0, neurons, (count, 1))):
        asked = neurons if columns is None else 20 if columns.ndim == 1 else 1
        yield Batch(**stimulus(twin, count), columns=columns)
        if not twin.summary.no_gradient:
            cotangent = rng.normal(size=(count, asked)).astype(np.float32)
            yield Batch(**stimulus(twin, count), columns=columns, cotangent=cotangent)


@pytest.mark.parametrize("count", [1, 7, 64, 300])
def test_as_the_cpu_answers(count: int, on_gpu: dict[Any, Any], on_cpu: dict[Any, Any]) -> None:
    for key, twin in on_gpu.items():
        for batch in batches(twin, count):
            found, expected = twin.engine.answer(batch), on_cpu[key].engine.answer(batch)
            assert_allclose(found.responses, expected.responses, atol=4e-5, rtol=0)
            for name, values in expected.gradient.items():
                allowed = 2e-5 if name == "images" else 1e-3
                assert np.linalg.norm(found.gradient[name] - values) <= allowed * np.linalg.norm(values) + 1e-6


def test_alone_as_in_a_batch(on_gpu: dict[Any, Any]) -> None:
    from mousetwin_serve.batch import Batch

    for twin in on_gpu.values():
        given = stimulus(twin, 64)
        whole = twin.engine.answer(Batch(**given)).responses
        for n in (0, 63):
            alone = twin.engine.answer(Batch(**{name: values[n : n + 1] for name, values in given.items()})).responses
            assert_allclose(alone[0], whole[n], atol=1e-5, rtol=0)


def test_every_node_is_on_the_device_and_every_replay_holds(on_gpu: dict[Any, Any]) -> None:
    for twin in on_gpu.values():
        assert twin.summary.device == "cuda"
        for name, report in twin.info.graphs.items():
            assert report.not_on_device == (), name
            assert report.replay_error is not None


def test_tf32_is_off_unless_asked_for(on_gpu: dict[Any, Any]) -> None:
    for key, twin in twins_on("cuda", tf32=True).items():
        rounded, exact = twin.info.graphs["forward"], on_gpu[key].info.graphs["forward"]
        assert rounded.replay_error <= rounded.replay_tolerance
        assert exact.replay_tolerance < rounded.replay_tolerance


def test_an_optimisation_stays_on_the_device(on_gpu: dict[Any, Any], on_cpu: dict[Any, Any]) -> None:
    from mousetwin_serve.limits import Limits
    from mousetwin_serve.memory import is_on_host
    from mousetwin_serve.optimizer.run import optimize

    for (mouse, model, version), twin in on_gpu.items():
        if twin.summary.no_gradient:
            continue
        query = OptimizeQuery(
            twins=(TwinRef(mouse, model, version),),
            target=Target(neurons=np.arange(0, twin.summary.neurons, twin.summary.neurons // 12)[:, None]),
            behavior=np.ones(len(twin.summary.behavior), np.float32) if twin.summary.behavior else None,
            condition_space=Space.MODEL,
            ascent=Ascent(steps=40, jitter=1, fourier=0.5, total_variation=1e-4),
        )

        def ask(number: int, batch: Any, twin: Any = twin) -> Any:
            assert not is_on_host(batch.images)
            answer = twin.engine.answer(batch)
            assert not is_on_host(answer.responses)
            return answer

        results = []
        for _ in range(2):
            *_, result = optimize(query, [twin], Limits(), ask, twin.engine.devices[0])
            assert isinstance(result, OptimizeResult)
            results.append(result)
        assert_array_equal(results[0].images, results[1].images)
        reference = on_cpu[mouse, model, version]
        *_, expected = optimize(
            query,
            [reference],
            Limits(),
            lambda n, batch, reference=reference: reference.engine.answer(batch),
            reference.engine.devices[0],
        )
        assert isinstance(expected, OptimizeResult)
        assert results[0].values.mean() == pytest.approx(expected.values.mean(), rel=0.02)


def test_each_gpu_answers(gpus: list[str], on_cpu: dict[Any, Any]) -> None:
    from mousetwin_serve.batch import Batch

    if len(gpus) < 2:
        pytest.skip("one GPU only")
    for key, twin in twins_on("cuda").items():
        given = stimulus(twin, 16)
        expected = on_cpu[key].engine.answer(Batch(**given)).responses
        for device in twin.engine.devices:
            there = Batch(**{name: device.put(values) for name, values in given.items()})
            assert_allclose(twin.engine.answer(there).responses.get(), expected, atol=4e-5, rtol=0)


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_served(folder: Path, gpus: list[str], on_cpu: dict[Any, Any]) -> None:
    from mousetwin_serve.batch import Batch

    with (
        as_command("--models", str(folder), "--device", "cuda") as command,
        mousetwin.connect(command.service.grpc, timeout=60) as twins,
    ):
        assert f"ready on cuda: {gpus[0]}" in command.welcome
        for summary in twins.mice():
            key = (summary.twin.mouse, summary.twin.model, summary.twin.version)
            given = stimulus(on_cpu[key], 500)
            expected = on_cpu[key].engine.answer(Batch(**given)).responses
            assert_allclose(twins.mouse(*key).predict(**given, space="model"), expected, atol=4e-5, rtol=0)
            connection = http.client.HTTPConnection(command.service.http.removeprefix("http://"))
            path = f"/v1/mice/{key[0]}/predict?space=model&model={key[1]}"
            connection.request("POST", path, write_npz(given), {"content-type": "application/x-npz"})
            answer = np.load(io.BytesIO(connection.getresponse().read()))
            assert_allclose(answer["responses"], expected, atol=4e-5, rtol=0)
